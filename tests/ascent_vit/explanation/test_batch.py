# SPDX-License-Identifier: Apache-2.0
"""Shares of several processes are neighbours, cut between batches; their errors are the caller's."""

import math
from functools import partial

import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from hypothesis import given
from hypothesis import strategies as st

from ascent_vit.explanation.batch import BatchJob, cut_into_shares, explain_many
from ascent_vit.explanation.sources import DatasetImages, ImageFiles
from ascent_vit.inference.load import load_model


def stream(image):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["wren"])})
    return Dataset.from_dict({"image": [image], "label": [0]}, features=features).to_iterable_dataset()


@given(st.integers(1, 500), st.integers(1, 12), st.integers(1, 40))
def test_shares_cover_all_images_once(number, processes, batch_size):
    shares = cut_into_shares(number, processes, batch_size)
    assert [i for start, stop in shares for i in range(start, stop)] == list(range(number))
    assert len(shares) <= processes
    assert all(start % batch_size == 0 for start, _ in shares)
    longest = max(math.ceil((stop - start) / batch_size) for start, stop in shares)
    assert longest <= math.ceil(math.ceil(number / batch_size) / processes)


@pytest.mark.slow
def test_errors_of_a_process_are_the_callers(image, tmp_path):
    for i in range(4):
        image.save(tmp_path / f"{i}.png")
    load = partial(load_model, str(tmp_path / "nowhere"))
    job = BatchJob(load, ImageFiles([str(tmp_path)]), tmp_path, ("json",), batch_size=1)
    with pytest.raises(FileNotFoundError, match="no model folder"):
        explain_many(job, processes=2)
    assert not list(tmp_path.glob("*.json"))


def test_streams_have_one_process_and_processes_are_counted(image, tmp_path):
    job = BatchJob(lambda: (None, None), DatasetImages(stream(image)), tmp_path, ("json",))
    with pytest.raises(ValueError, match="A stream is read by one process"):
        explain_many(job, processes=2)
    with pytest.raises(ValueError, match="processes must be 1 or more"):
        explain_many(job, processes=0)

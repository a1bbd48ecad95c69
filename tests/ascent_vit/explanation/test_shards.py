# SPDX-License-Identifier: Apache-2.0
"""Shards of several processes: each image once, whatever ends when; a folder holds one job."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, load_dataset
from datasets import Image as ImageFeature
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ascent_vit.explanation import explain
from ascent_vit.explanation.batch import BatchJob
from ascent_vit.explanation.shards import MOST_SHARDS, SHARD_IMAGES, Launch, cut_into_shards, explain_shards
from ascent_vit.explanation.sources import DatasetImages


NUMBER = 11


def rows(folder):
    """The rows of all shards, in the order of the images."""
    tables = [pq.read_table(path).to_pylist() for path in sorted(folder.glob("data/*.parquet"))]
    return sorted((row for table in tables for row in table), key=lambda row: row["index"])


def pictures(number):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for _ in range(number)]


def split_of(images):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["tern", "wren"])})
    return Dataset.from_dict({"image": images, "label": [i % 2 for i in range(len(images))]}, features=features)


@pytest.fixture
def job(model_and_processor, tmp_path, monkeypatch):
    monkeypatch.setattr("ascent_vit.explanation.shards.SHARD_IMAGES", 3)
    source = DatasetImages(split_of(pictures(NUMBER)))
    return BatchJob(lambda: model_and_processor, source, tmp_path / "out", ("parquet",), batch_size=2)


@given(st.integers(1, 3_000_000))
def test_shards_cover_all_images_once(number):
    shards = cut_into_shards(number)
    assert shards[0][0] == 0 and shards[-1][1] == number
    assert all(before[1] == after[0] for before, after in zip(shards, shards[1:], strict=False))
    sizes = {stop - start for start, stop in shards[:-1]}
    assert len(sizes) <= 1 and len(shards) <= MOST_SHARDS
    assert all(size >= SHARD_IMAGES for size in sizes)


def test_processes_share_the_images(job, model_and_processor):
    assert explain_shards(job, Launch(1, 3, 0)) == ([], False)
    assert explain_shards(job, Launch(0, 3, 0)) == ([], False)
    assert explain_shards(job, Launch(2, 3, 0)) == ([], True)
    found = rows(job.folder)
    assert [row["index"] for row in found] == list(range(NUMBER))
    expected = explain(*model_and_processor, pictures(NUMBER), batch_size=NUMBER)
    for row, explanation in zip(found, expected, strict=True):
        np.testing.assert_allclose(row["contributions"], explanation.select(explanation.contributions), atol=1e-5)
    loaded = load_dataset(str(job.folder), cache_dir=job.folder.parent / "cache")
    assert {name: len(split) for name, split in loaded.items()} == {"train": NUMBER}


def test_what_ended_in_the_middle_is_completed(job, monkeypatch):
    """Also by another number of processes; shards that are there stay untouched."""
    from ascent_vit.explanation.render.table import ExplanationTable

    write, seen = ExplanationTable.write, []

    def until(self, explanation, index, *args):
        seen.append(index)
        if index == 7:
            raise KeyboardInterrupt
        write(self, explanation, index, *args)

    with monkeypatch.context() as patched:
        patched.setattr(ExplanationTable, "write", until)
        with pytest.raises(KeyboardInterrupt):
            explain_shards(job, Launch(0, 1, 0))
    (job.folder / "data" / ".train-00002-of-00004.parquet.1.partial").write_bytes(b"killed")
    assert [row["index"] for row in rows(job.folder)] == list(range(6))
    times = {path: path.stat().st_mtime_ns for path in job.folder.glob("data/*.parquet")}
    assert explain_shards(job, Launch(1, 2, 0)) == ([], False)
    assert explain_shards(job, Launch(0, 2, 0)) == ([], True)
    assert [row["index"] for row in rows(job.folder)] == list(range(NUMBER))
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert not list(job.folder.rglob("*.partial"))


def test_a_shard_counts_when_its_record_is_there(job):
    explain_shards(job, Launch(0, 1, 0))
    (job.folder / ".job" / "00001.json").unlink()
    (job.folder / "data" / "train-00001-of-00004.parquet").write_bytes(b"half")
    assert explain_shards(job, Launch(0, 1, 0)) == ([], True)
    assert [row["index"] for row in rows(job.folder)] == list(range(NUMBER))


def test_damaged_images_are_named_again(job):
    images = [{"bytes": b"no image", "path": None} if i in (0, 1, 2, 7) else image for i, image in
              enumerate(pictures(NUMBER))]  # fmt: skip
    job = dataclasses.replace(job, source=DatasetImages(split_of(images)))
    for _ in range(2):
        left_out, is_complete = explain_shards(job, Launch(0, 1, 0))
        assert is_complete and [sentence.split(" cannot")[0][-1] for sentence in left_out] == ["0", "1", "2", "7"]
    assert [row["index"] for row in rows(job.folder)] == [3, 4, 5, 6, 8, 9, 10]
    damaged = DatasetImages(split_of([{"bytes": b"no image", "path": None}]))
    with pytest.raises(ValueError, match="There is no image that can be read"):
        explain_shards(dataclasses.replace(job, source=damaged, folder=job.folder / "none"), Launch(0, 1, 0))


def test_another_job_is_refused(job, make_model):
    explain_shards(job, Launch(0, 2, 0))
    others = {
        "model": {"load": lambda: make_model(num_unsupervised_concepts=3, num_spatial_concepts=4)},
        "data, shards": {"source": DatasetImages(split_of(pictures(NUMBER - 3)))},
        "class": {"class_id": "wren"},
        "maps": {"maps": True},
    }
    for name, change in others.items():
        with pytest.raises(FileExistsError, match=f"another job, which differs in {name}:"):
            explain_shards(dataclasses.replace(job, **change), Launch(1, 2, 0))
    (job.folder.parent / "mine").mkdir()
    (job.folder.parent / "mine" / "file.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        explain_shards(dataclasses.replace(job, folder=job.folder.parent / "mine"), Launch(0, 1, 0))
    with pytest.raises(ValueError, match="parquet alone"):
        explain_shards(dataclasses.replace(job, formats=("png",)), Launch(0, 1, 0))
    stream = DatasetImages(split_of(pictures(1)).to_iterable_dataset())
    with pytest.raises(ValueError, match="stream is read by one process"):
        explain_shards(dataclasses.replace(job, source=stream), Launch(0, 1, 0))


def test_the_environment_names_the_place():
    assert Launch.from_environment({}) is None
    assert Launch.from_environment({"WORLD_SIZE": "4"}) is None
    assert Launch.from_environment({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Launch(3, 4, 1)
    for rank in ("4", "-1", "first"):
        with pytest.raises(ValueError, match="RANK must be a number from 0 to before WORLD_SIZE"):
            Launch.from_environment({"RANK": rank, "WORLD_SIZE": "4"})


@pytest.mark.slow
def test_killed_processes_are_run_again(model_and_processor, tmp_path):
    """SIGKILL of one process and of both in the middle of a shard; then the same command, also under torchrun."""
    number = 6 * SHARD_IMAGES
    model, processor = model_and_processor
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    DatasetDict(test=split_of(pictures(number))).save_to_disk(tmp_path / "data")
    words = ["explain", str(tmp_path / "data"), "--model", str(tmp_path / "model"), "--output"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}

    def start(rank, world_size=2):
        variables = environment | {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", "ascent_vit_cli", *words, str(tmp_path / "out")]
        return subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def wait_for(rank, shards):
        deadline = time.monotonic() + 200
        while sum(int(path.stem) % 2 == rank for path in (tmp_path / "out" / ".job").glob("0*.json")) < shards:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def killed(process):
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    first, second = start(0), start(1)
    wait_for(1, 1)
    killed(second)  # one alone
    assert first.wait() == 0
    assert {int(path.stem) % 2 for path in (tmp_path / "out" / ".job").glob("0*.json")} == {0, 1}
    for path in (tmp_path / "out" / ".job").glob("00004.json"):
        path.unlink()
    first, second = start(0), start(1)
    wait_for(1, 2)
    for process in (first, second):
        killed(process)
    there = {row["index"] for row in rows(tmp_path / "out")}
    assert 0 < len(there) < number
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launcher += ["-m", "ascent_vit_cli", *words, str(tmp_path / "out")]
    result = subprocess.run(launcher, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and f"Explanations: {tmp_path / 'out'}" in result.stdout, result.stderr
    alone = [sys.executable, "-m", "ascent_vit_cli", *words, str(tmp_path / "one")]
    subprocess.run(alone, env=environment, check=True, capture_output=True)
    found, expected = rows(tmp_path / "out"), pq.read_table(tmp_path / "one" / "explanations.parquet").to_pylist()
    assert [row["index"] for row in found] == list(range(number))
    assert [row["predicted"] for row in found] == [row["predicted"] for row in expected]
    for name in ("logits", "contributions", "attention"):
        np.testing.assert_allclose(
            [row[name] for row in found], [row[name] for row in expected], atol=1e-6, err_msg=name
        )
    assert len(load_dataset(str(tmp_path / "out"), cache_dir=tmp_path / "cache")["test"]) == number
    other = subprocess.run([*launcher, "--maps"], env=environment, capture_output=True, text=True)
    assert other.returncode != 0 and "another job, which differs in maps" in other.stderr
    assert json.loads((tmp_path / "out" / ".job" / "job.json").read_text())["maps"] is False

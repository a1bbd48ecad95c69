# SPDX-License-Identifier: Apache-2.0
"""Concept-MNIST from the Hub's parquet files."""

import io
import shutil
from collections import Counter

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from ascent_vit.data import concepts_from_features
from ascent_vit.data.adapters.mnist import prepare
from ascent_vit.data.checks import validate_dataset
from ascent_vit.data.digits import CONCEPTS, INK_THRESHOLD


def write_mnist(folder, train=60_000, test=10_000, label=lambda row: row % 10):
    """Files in the Hub's layout; every image is the same."""
    buffer = io.BytesIO()
    Image.fromarray(np.eye(28, dtype=np.uint8) * 200).save(buffer, format="PNG")
    for split, number in (("train", train), ("test", test)):
        table = pyarrow.table(
            {
                "image": [{"bytes": buffer.getvalue(), "path": None}] * number,
                "label": [label(row) for row in range(number)],
            }
        )
        pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_mnist(tmp_path_factory.mktemp("mnist"))


@pytest.mark.nightly
def test_the_real_files(shared_folder):
    prepared = prepare(shared_folder / "data" / "mnist")
    dataset = prepared.dataset
    assert {name: len(split) for name, split in dataset.items()} == {"train": 55000, "validation": 5000, "test": 10000}
    validate_dataset(dataset)
    again = prepare(shared_folder / "data" / "mnist").dataset
    for name, split in dataset.items():
        assert split.data.table.equals(again[name].data.table)
        assert [concepts[0] % 2 for concepts in split["concepts"]] == split["label"][:]
    # The test split of MNIST, by digit.
    digits = Counter(concepts[0] for concepts in dataset["test"]["concepts"])
    assert [digits[i] for i in range(10)] == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    for row in dataset["test"].select(range(0, 10000, 1000)):
        ink = np.asarray(row["image"]) > INK_THRESHOLD
        assert row["image"].size == (28, 28) and ink.any()
        np.testing.assert_array_equal(np.asarray(row["mask"]), ink * (row["concepts"][0] + 1))


def test_splits(folder):
    prepared = prepare(folder, ink=False)
    dataset = prepared.dataset
    assert {name: len(split) for name, split in dataset.items()} == {"train": 55000, "validation": 5000, "test": 10000}
    assert "mask" not in dataset["train"].features
    train, validation = (set(dataset[name]["row"]) for name in ("train", "validation"))
    assert train | validation == set(range(60_000)) and len(train) + len(validation) == 60_000
    # Stratified: a tenth of each digit.
    assert set(Counter(row % 10 for row in validation).values()) == {500}
    assert dataset["test"]["row"][:] == list(range(10_000))
    listed = prepare(folder, ink=False, present=True, validation_size=0)
    assert listed.dataset["test"]["present"][:] == listed.dataset["test"]["concepts"][:]
    assert concepts_from_features(listed.dataset["test"].features)[2] == CONCEPTS
    assert "`present`" in listed.description and "`present`" not in prepared.description
    other = prepare(folder, ink=False, seed=1, validation_size=100)
    assert other.settings == prepared.settings | {"seed": 1, "validation_size": 100}
    assert len(other.dataset["validation"]) == 100 and not set(other.dataset["validation"]["row"]) <= validation
    assert list(prepare(folder, ink=False, validation_size=0).dataset) == ["train", "test"]


def test_bad_files(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        prepare(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no train-00000-of-00001.parquet"):
        prepare(tmp_path)
    name = "train-00000-of-00001.parquet"
    shutil.copy(folder / name, tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no test-00000-of-00001.parquet"):
        prepare(tmp_path)
    test = tmp_path / "test-00000-of-00002.parquet"
    shutil.copy(folder / "test-00000-of-00001.parquet", test)
    with pytest.raises(ValueError, match="test in test-00000-of-00002.parquet, test-00001-of-00002.parquet; it holds"):
        prepare(tmp_path)
    test.rename(tmp_path / "test-00000-of-00001.parquet")
    (tmp_path / name).write_bytes((folder / name).read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not MNIST in parquet.*Download it again"):
        prepare(tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"img": [1]}), tmp_path / name)
    with pytest.raises(ValueError, match="is not MNIST in parquet"):
        prepare(tmp_path)


def test_bad_content(tmp_path):
    with pytest.raises(ValueError, match="MNIST has 60,000 train images; .* holds 50"):
        prepare(write_mnist(tmp_path, train=50, test=20))
    with pytest.raises(ValueError, match="Row 10 of .* has the label 10; expected 0 to 9"):
        prepare(write_mnist(tmp_path, train=50, test=20, label=lambda row: row))


def test_bad_options(folder):
    with pytest.raises(ValueError, match="validation_size must be 0, or from 10 to 30,000; got 40000"):
        prepare(folder, ink=False, validation_size=40_000)

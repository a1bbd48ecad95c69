# SPDX-License-Identifier: Apache-2.0
"""The demo's digits: splits, masks and seeds."""

import numpy as np
import pytest
from datasets import DatasetDict
from sklearn.datasets import load_digits

from ascent_vit.data import concepts_from_features, load_digits_dataset, validate_dataset
from ascent_vit.data.digits import CONCEPTS, INK_THRESHOLD


@pytest.fixture(scope="module")
def digits():
    return load_digits_dataset(seed=3, copies=2, canvas=32)


def test_each_scan_is_in_exactly_one_split(digits):
    samples = {name: set(split["sample"]) for name, split in digits.items()}
    assert sorted(sum((list(numbers) for numbers in samples.values()), [])) == list(range(1797))
    assert {name: len(numbers) for name, numbers in samples.items()} == {"train": 1257, "validation": 180, "test": 360}
    assert {name: len(split) for name, split in digits.items()} == {"train": 2514, "validation": 180, "test": 360}


def test_splits_have_the_same_share_of_every_digit(digits):
    for split in digits.values():
        counts = np.bincount([digit for (digit,) in split["concepts"]], minlength=10) / len(split)
        assert np.abs(counts - 0.1).max() < 0.01


def test_label_and_concept_are_those_of_the_scan(digits):
    targets = load_digits().target
    for split in digits.values():
        expected = targets[split["sample"]]
        assert [digit for (digit,) in split["concepts"]] == expected.tolist()
        assert split["label"] == (expected % 2).tolist()
    features = digits["train"].features
    assert features["label"].names == ["even", "odd"]
    assert features["concepts"].feature.int2str(7) == "digit 7"


def test_mask_is_the_digit_where_there_is_ink(digits):
    for row in digits["train"].select(range(0, 2514, 50)):
        image, mask = np.asarray(row["image"]), np.asarray(row["mask"])
        assert image.shape == mask.shape == (32, 32)
        np.testing.assert_array_equal(mask, np.where(image > INK_THRESHOLD, row["concepts"][0] + 1, 0))
        assert mask.any()


def test_copies_differ_in_scale_and_place(digits):
    sides = []
    for i in range(0, 400, 2):
        first, second = (np.asarray(digits["train"][j]["image"]) for j in (i, i + 1))
        assert digits["train"][i]["sample"] == digits["train"][i + 1]["sample"]
        sides += [np.ptp(np.nonzero(image)[0]) + 1 for image in (first, second)]
    assert min(sides) <= 10 and max(sides) >= 30
    pairs = np.array(sides).reshape(-1, 2)
    assert (pairs[:, 0] != pairs[:, 1]).mean() > 0.8


@pytest.mark.parametrize("ink", [True, False])
def test_the_digit_as_present_somewhere(digits, ink):
    listed = load_digits_dataset(seed=3, copies=2, canvas=32, ink=ink, present=True)
    columns = ["image", "label", "concepts", *["mask"] * ink, "present", "sample"]
    for name, split in listed.items():
        assert split.column_names == columns
        assert split["present"][:] == split["concepts"][:]
        same = digits[name].data.table
        assert split.data.table.select(same.column_names if ink else ["image", "label", "concepts", "sample"]).equals(
            same if ink else same.drop_columns(["mask"])
        )
    assert concepts_from_features(listed["train"].features)[2] == CONCEPTS
    validate_dataset(DatasetDict(test=listed["test"]))


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_places_of_a_share_of_the_train_images(digits, share):
    """The images are the same, and all held-out ones are marked."""
    placed = load_digits_dataset(seed=3, copies=2, canvas=32, present=True, placed=share)
    for name, split in placed.items():
        images = ["image", "label", "concepts", "sample"]
        assert split.data.table.select(images).equals(digits[name].data.table.select(images))
        is_marked = [mask is not None for mask in split["mask"]]
        assert sum(is_marked) == (round(share * len(split)) if name == "train" else len(split))
    validate_dataset(placed)


def test_the_seed_decides_everything(digits):
    again = load_digits_dataset(seed=3, copies=2, canvas=32)
    other = load_digits_dataset(seed=4, copies=2, canvas=32)
    for name in digits:
        assert digits[name].data.table.equals(again[name].data.table)
    assert set(digits["test"]["sample"]) != set(other["test"]["sample"])


@pytest.mark.parametrize("options", [{"copies": 0}, {"held_out_copies": 0}, {"canvas": 8}, {"placed": 1.5}])
def test_impossible_options_are_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        load_digits_dataset(**options)

# SPDX-License-Identifier: Apache-2.0
"""Checks of rows, groups and concepts."""

import io

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Value
from PIL import Image

from ascent_vit.data import ConceptCollator, check_concepts, concept_features, load_digits_dataset, validate_dataset
from modeling_ascent_vit import AscentViTImageProcessorPil


FEATURES = concept_features(
    ["cat", "dog"],
    ["day", "night"],
    ["ear", "paw"],
    ["objects", "points", "mask", "present", "unknown_present", "unknown_concepts"],
)


def cell(array, **kwargs):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(buffer, **{"format": "PNG", **kwargs})
    return {"bytes": buffer.getvalue(), "path": None}


def good_row():
    """An image of width 20 and height 10 with every annotation."""
    return {
        "image": cell(np.zeros((10, 20, 3))),
        "label": 1,
        "concepts": [0],
        "unknown_concepts": [1],
        "objects": {"bbox": [[15.0, 5.0, 10.0, 10.0]], "category": [1]},
        "points": {"xy": [[19.5, 9.5]], "category": [0]},
        "mask": cell(np.full((10, 20), 2)),
        "present": [0, 1],
        "unknown_present": [1],
    }


def dataset_of(*rows, features=FEATURES):
    columns = {name: [row[name] for row in rows] for name in features}
    return Dataset.from_dict(columns, features=features)


def test_good_datasets_pass():
    validate_dataset(load_digits_dataset(copies=1))
    nothing = dict.fromkeys(FEATURES) | {"image": good_row()["image"], "label": 0}
    dataset = DatasetDict(train=dataset_of(good_row(), nothing))
    validate_dataset(dataset)
    # What passes is what the image processor takes.
    processor = AscentViTImageProcessorPil(num_global_concepts=2, num_spatial_concepts=2)
    assert ConceptCollator(processor)(list(dataset["train"]))["spatial_concept_targets"].shape == (2, 196, 2)


def test_coordinates_are_those_of_the_upright_image():
    exif = Image.Exif()
    exif[274] = 6
    row = good_row() | {"image": cell(np.zeros((20, 10, 3)), format="JPEG", exif=exif)}
    dataset = DatasetDict(train=dataset_of(row))
    assert dataset["train"][0]["image"].size == (20, 10)
    validate_dataset(dataset)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image": None}, r"train\[1\].image is empty"),
        ({"image": {"bytes": b"not an image", "path": None}}, r"train\[1\].image cannot be read"),
        ({"label": None}, r"train\[1\].label must be a class from 0 to 1; got None"),
        ({"concepts": [None]}, r"train\[1\].concepts must be a list of concept ids"),
        ({"objects": {"bbox": [[20.0, 0.0, 5.0, 5.0]], "category": [0]}}, r"train\[1\].objects.bbox must overlap"),
        (
            {"objects": {"bbox": [[0.0, 0.0, 5.0, 5.0]], "category": []}},
            "one category for each bbox; got 1 bbox and 0",
        ),
        ({"points": {"xy": [[20.0, 0.0]], "category": [0]}}, r"train\[1\].points.xy must lie in the image"),
        ({"points": {"xy": [[float("nan"), 0.0]], "category": [0]}}, "must be finite numbers"),
        ({"present": [None]}, r"train\[1\].present must be a list of concept ids"),
        ({"unknown_present": [None]}, r"train\[1\].unknown_present must be a list of concept ids"),
        (
            {"present": [1]},
            r"train\[1\] marks a place of spatial concept 0, but train\[1\].present says that it is nowhere in the "
            "image: list it there, or remove the place",
        ),
        ({"mask": cell(np.zeros((20, 10)))}, r"mask must have the stored image's size, height 10 and width 20; got"),
        ({"mask": cell(np.full((10, 20), 3))}, "mask must hold 0, 255 or values from 1 to 2"),
        ({"mask": cell(np.zeros((10, 20, 3)))}, "mask must be a single-channel image"),
        ({"mask": {"bytes": good_row()["mask"]["bytes"][:50], "path": None}}, r"train\[1\].mask cannot be read"),
    ],
)
def test_bad_rows(change, message):
    dataset = DatasetDict(train=dataset_of(good_row(), good_row() | change), test=dataset_of(good_row()))
    with pytest.raises(ValueError, match=f"Split train, row 1: .*{message}") as caught:
        validate_dataset(dataset)
    assert str(caught.value).endswith("Correct the row, or leave it out.")


def test_bad_datasets():
    good = dataset_of(good_row())
    with pytest.raises(ValueError, match="has no split"):
        validate_dataset(DatasetDict())
    with pytest.raises(ValueError, match="The split test has no rows"):
        validate_dataset(DatasetDict(train=good, test=good.select([])))
    with pytest.raises(ValueError, match="The splits train and test must have the same features"):
        validate_dataset(DatasetDict(train=good, test=good.remove_columns("mask")))
    with pytest.raises(ValueError, match="The split train has no column label; it has image, concepts"):
        validate_dataset(DatasetDict(train=good.remove_columns("label")))
    with pytest.raises(ValueError, match="Column label must hold a ClassLabel"):
        validate_dataset(DatasetDict(train=good.cast_column("label", Value("int64"))))


def test_a_group_is_in_one_split():
    features = concept_features(["cat", "dog"], extra={"group_id": Value("string")})

    def split(*groups):
        rows = [{"image": good_row()["image"], "label": 0, "group_id": group} for group in groups]
        return dataset_of(*rows, features=features)

    validate_dataset(DatasetDict(train=split("a", "a", "b", None), test=split("c", None)))
    with pytest.raises(ValueError, match="The rows of group_id 'b' are in the splits train and test: put all rows"):
        validate_dataset(DatasetDict(train=split("a", "b"), test=split("c", "b")))
    lists = split("a").remove_columns("group_id").add_column("group_id", [["a"]])
    with pytest.raises(ValueError, match="Column group_id must hold text or numbers"):
        validate_dataset(DatasetDict(train=lists))


def test_names_of_a_mask_alone():
    features = concept_features(["cat", "dog"], spatial_concepts=["ear", "paw"], columns=["mask"])
    dataset = DatasetDict(train=dataset_of(good_row(), features=features))
    with pytest.raises(ValueError, match="no names for its values"):
        validate_dataset(dataset)
    validate_dataset(dataset, spatial_concepts=["ear", "paw"])
    with pytest.raises(ValueError, match="values from 1 to 1"):
        validate_dataset(dataset, spatial_concepts=["ear"])


def test_concepts_must_be_the_models(make_config):
    names, places = ["indoors", "outdoors", "night"], ["ear", "tail"]
    config = make_config(global_concepts=names, spatial_concepts=places)
    check_concepts(config, names, places)
    check_concepts(make_config(global_concepts=names), names, places)
    with pytest.raises(ValueError, match="spatial concepts .* number 0 is 'ear' in the model and 'tail'"):
        check_concepts(config, names, places[::-1])
    with pytest.raises(ValueError, match="global concepts .* the model has 3, the dataset 2"):
        check_concepts(config, names[:2], places)

# SPDX-License-Identifier: Apache-2.0
"""Counts and pictures of a concept dataset."""

import io

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from matplotlib.colors import to_rgb
from PIL import Image

from ascent_vit.data.inspect import COLOURS, dataset_table, format_table, picture_sheet
from ascent_vit.data.schema import concept_features


def cell(array):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture(scope="module")
def dataset():
    """Images of 140 x 280 pixels, so that a patch of the grid of 14 is 10 wide and 20 high."""
    image = cell(np.zeros((280, 140, 3)))
    mask = np.zeros((280, 140))
    mask[40:80, 20:40] = 1
    mask[200:220, 0:10] = 255
    rows = [
        {
            "image": image,
            "label": 0,
            "concepts": [1],
            "unknown_concepts": [0],
            "objects": {"bbox": [[100.0, 240.0, 100.0, 100.0]], "category": [1]},
            "points": {"xy": [[5.0, 10.0], [5.0, 10.0], [64.0, 130.0]], "category": [0, 2, 0]},
            "mask": cell(mask),
        },
        dict.fromkeys(("concepts", "unknown_concepts", "objects", "points", "mask")) | {"image": image, "label": 0},
    ]
    columns = ["objects", "points", "mask", "unknown_concepts"]
    features = concept_features(["cat", "dog"], ["day", "night"], ["ear_$left$", "paw", "nose"], columns)
    split = Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)
    return DatasetDict(train=split, test=split.select([1]))


def test_the_table_counts(dataset):
    table = dataset_table(dataset)
    assert table["splits"]["train"] == {
        "images": 2,
        "classes": 1,
        "images_without_concepts": 1,
        "images_without_places": 1,
        # 4 of the mask, 2 of the points, 4 x 2 of the box.
        "annotated_patches": 14,
        "patches": 2 * 196,
    }
    assert table["splits"]["test"]["annotated_patches"] == 0
    assert table["concepts"]["global"] == {
        "day": {"train": {"images": 0, "unknown": 2}, "test": {"images": 0, "unknown": 1}},
        "night": {"train": {"images": 1, "unknown": 1}, "test": {"images": 0, "unknown": 1}},
    }
    spatial = {name: counts["train"] for name, counts in table["concepts"]["spatial"].items()}
    assert spatial == {
        "ear_$left$": {"images": 1, "patches": 6},
        "paw": {"images": 1, "patches": 8},
        "nose": {"images": 1, "patches": 1},
    }
    assert table["missing"]["train"] == {"classes": ["dog"], "global_concepts": ["day"], "spatial_concepts": []}
    assert table["missing"]["test"]["spatial_concepts"] == ["ear_$left$", "paw", "nose"]


def test_lists_of_what_is_present(dataset):
    """Beside places, without them, and null."""
    names = ["ear_$left$", "paw", "nose"]
    rows = [dataset["train"][i] for i in (0, 1, 1)]
    lists = {"present": [[0, 1, 2], [2, 0], None], "unknown_present": [[0], [0], None]}
    features = concept_features(["cat", "dog"], spatial_concepts=names, columns=["objects", *lists])
    columns = {name: [row[name] for row in rows] for name in ("image", "label", "objects")} | lists
    listed = DatasetDict(train=Dataset.from_dict(columns, features=features))
    table = dataset_table(listed)
    assert table["splits"]["train"]["images_without_lists"] == 1
    spatial = {name: counts["train"] for name, counts in table["concepts"]["spatial"].items()}
    assert spatial["ear_$left$"] == {"images": 0, "patches": 0, "present": 0}
    assert spatial["paw"] == {"images": 1, "patches": 8, "present": 1}
    assert spatial["nose"] == {"images": 0, "patches": 0, "present": 2}
    assert table["missing"]["train"]["spatial_concepts"] == ["ear_$left$"]
    lines = format_table(table).splitlines()
    assert "spatial concepts: images / patches / present" in lines
    assert [line.split()[1:] for line in lines if line.startswith("paw")] == [["1", "/", "8", "/", "1"]]
    legends = [[text.get_text() for text in axes.texts] for axes in picture_sheet(listed).figure.axes[1::2]]
    assert "somewhere in the image: nose, ear_$left$" in legends[1] and "somewhere or not: ear_$left$" in legends[1]
    assert not any("somewhere" in text for text in legends[2])


def test_the_table_as_text(dataset):
    lines = format_table(dataset_table(dataset)).splitlines()
    assert lines[0].split() == ["train", "test"]
    assert [line.split()[-2:] for line in lines if line.startswith("annotated patches")] == [["14", "0"]]
    assert [line.split()[1:] for line in lines if line.startswith("paw")] == [["1", "/", "8", "0", "/", "0"]]
    assert "train: no image of 1 classes" in lines


def test_the_sheet_shows_annotations_where_they_are(dataset):
    figure = picture_sheet(dataset, samples=3)
    figure.draw_without_rendering()
    picture, legend = figure.axes[0], figure.axes[1]
    assert picture.get_title(loc="left") == "train 0: cat"
    # Two concepts at one point share a number; the box is clipped to the image.
    marks = {text.get_text(): text.get_position() for text in picture.texts}
    assert marks == {"1": (99.5, 239.5), "2": (4.5, 9.5), "3": (63.5, 129.5)}
    box = picture.patches[-1]
    assert (box.get_xy(), box.get_width(), box.get_height()) == ((99.5, 239.5), 40, 40)
    written = "\n".join(text.get_text() for text in legend.texts)
    for line in ("whole image: night", "not known: day", "1  paw", "2  ear_$left$, nose", "3  ear_$left$"):
        assert line in written.splitlines()
    assert "mask: ear_$left$ (2.0% of the image)" in written and "mask: ignore" in written
    overlay = picture.images[1].get_array()
    assert overlay[40:80, 20:40, 3].all() and overlay[..., 3].astype(bool).sum() == 40 * 20
    np.testing.assert_allclose(overlay[50, 30, :3], to_rgb(COLOURS[0]))
    assert any(text.get_text() == "no place is annotated" for text in figure.axes[3].texts)


def test_the_sheet_is_the_same_by_its_seed(dataset, tmp_path):
    for name in ("a", "b"):
        picture_sheet(dataset, samples=2, seed=1).savefig(tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_long_legends_end_with_a_count():
    names = [f"concept number {i} with a rather long name that goes on" for i in range(60)]
    features = concept_features(["cat", "dog"], spatial_concepts=names, columns=["points"])
    points = {"xy": [[float(i), float(i)] for i in range(60)], "category": list(range(60))}
    columns = {"image": [cell(np.zeros((64, 64, 3)))], "label": [0], "points": [points]}
    figure = picture_sheet(DatasetDict(train=Dataset.from_dict(columns, features=features)))
    texts = [text.get_text() for text in figure.axes[1].texts]
    shown = sum(text.endswith("goes on") or "concept number" in text for text in texts)
    assert texts[-1] == f"... and {60 - shown} more"

# SPDX-License-Identifier: Apache-2.0
"""Folders of images: classes and splits by folder, metadata, tables."""

import json

import pytest


pytestmark = pytest.mark.as_people_have_it


@pytest.fixture
def folder(tmp_path, picture):
    for name in ("train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "val/dog/4.jpg"):
        picture(tmp_path / name)
    return tmp_path


def test_folders_of_splits_are_no_classes(folder, make):
    made = make("imagefolder", folder)
    assert {name: row["label"] for name, row in made.rows.items()} == {
        "train/cat/1.jpg": "cat",
        "train/dog/2.jpg": "dog",
        "val/cat/3.jpg": "cat",
        "val/dog/4.jpg": "dog",
    }
    assert set(made.splits.values()) == {"train", "validation"}
    assert not {"objects", "concepts", "mask"} & set(made.rows["val/dog/4.jpg"])


def test_a_class_named_train(tmp_path, make, picture):
    for name in ("train/1.jpg", "bus/2.jpg", "car/3.jpg"):
        picture(tmp_path / name)
    made = make("imagefolder", tmp_path)
    assert [row["label"] for _, row in sorted(made.rows.items())] == ["bus", "car", "train"]
    made = make("imagefolder", tmp_path, classes=["bus", "car"])
    assert [row["label"] for _, row in sorted(made.rows.items())] == ["bus", "car"]


def test_split_folders_alone_have_no_class(tmp_path, make, picture):
    for name in ("train/1.jpg", "test/2.jpg"):
        picture(tmp_path / name)
    with pytest.raises(ValueError, match="class_from=folder finds no class of any image; there are .*csv:FILE"):
        make("imagefolder", tmp_path)


def test_metadata(folder, make):
    rows = [
        {"file_name": "cat/1.jpg", "patient": "p1", "wet": 1, "colour": "red;blue"},
        {"file_name": "dog/2.jpg", "patient": "p1", "wet": 0, "colour": ""},
    ]
    rows[0] |= {
        "objects": {"bbox": [[1, 2, 3, 4]], "category": ["ear"]},
        "points": {"xy": [[5, 6]], "category": ["eye"]},
    }
    (folder / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = make("imagefolder", folder, group="patient", concepts_from=["wet", "colour"])
    first, second, third = (made.rows[name] for name in ("train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg"))
    assert first["objects"] == [("ear", [1, 2, 3, 4])] and first["points"] == [("eye", [5, 6])]
    assert first["concepts"] == ["wet", "colour: blue", "colour: red"] and first["group_id"] == "p1"
    assert second["concepts"] == [] and second["unknown_concepts"] == ["colour: blue", "colour: red"]
    assert second["objects"] is None and third["concepts"] is third["group_id"] is None
    # Without a name for its number a category means nothing.
    rows[0]["objects"]["category"] = [0]
    (folder / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="metadata.jsonl, line 1: the category 0 must be a name"):
        make("imagefolder", folder)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"file_name": "cat/1.jpg"}\n{"file_name": ', "metadata.jsonl, line 2 is no JSON"),
        ('{"file_name": "cat/1.jpg"}\n[1]', "metadata.jsonl, line 2 must be an object in braces"),
        ('{"name_of_it": "cat/1.jpg"}', "metadata.jsonl, line 1: it names no image"),
        ('{"file_name": "../../cat/9.jpg"}', "1 of 1 annotated images are not in"),
        ('{"file_name": "cat/1.jpg"}\n{"file_name": "cat/1.jpg"}', "line 2: cat/1.jpg is"),
        (
            '{"file_name": "cat/1.jpg", "objects": {"bbox": [[1, 2]], "category": ["x"]}}',
            "bbox must be 4 finite numbers",
        ),
        ('{"file_name": "cat/1.jpg", "objects": {"bbox": [], "category": ["x"]}}', "line 1: zip() argument"),
    ],
)
def test_broken_metadata(folder, make, text, message):
    (folder / "train" / "metadata.jsonl").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        make("imagefolder", folder)
    assert message in str(error.value)


def test_a_table_of_classes(folder, make):
    table = folder / "labels.csv"
    table.write_text("image_id,diagnosis,age\n1,benign,30\n2,malign,40\n3.jpg,benign,50\nabsent,benign,60\n")
    made = make("imagefolder", folder, class_from="csv:labels.csv")
    assert {name: row["label"] for name, row in made.rows.items()} == {
        "train/cat/1.jpg": "benign",
        "train/dog/2.jpg": "malign",
        "val/cat/3.jpg": "benign",
    }
    assert made.lines["rows of labels.csv whose image is missing"] == "1"
    assert made.lines["image files that no annotation lists, left out without a class"] == "1"
    for text, message in (
        ("", "must have a first line of different names"),
        ("image,class\n", "must have a first line of different names of columns, and rows"),
        ("image,class\n1.jpg,a,b\n", "row 2: expected 2 cells, one a column; got 3"),
        ("image,class\n1.jpg,a\n1.jpg,b\n", "row 3: 1.jpg is there twice"),
        ("image,class\n9.jpg,a\n", "none of its 1 images is in"),
        ("image,x,y\n1.jpg,a,b\n", "needs a column of classes called class, label"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError) as error:
            make("imagefolder", folder, class_from="csv:labels.csv")
        assert message in str(error.value)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        make("imagefolder", folder, class_from="csv:nowhere.csv")

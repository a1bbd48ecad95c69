# SPDX-License-Identifier: Apache-2.0
"""YOLO: numbers by names, centres as shares, polygons, keypoints, images without a file."""

import pytest


pytestmark = pytest.mark.as_people_have_it

NAMES = "path: ../datasets/birds\ntrain: images/train\nval: images/val\nnames:\n  0: wing\n  1: beak\n"


@pytest.fixture
def folder(tmp_path, picture):
    for name in ("train/cat_1", "train/dog_2", "val/cat_3", "val/dog_4"):
        picture(tmp_path / "images" / f"{name}.jpg", size=(40, 20))
        (tmp_path / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "data.yaml").write_text(NAMES)
    (tmp_path / "labels/train/cat_1.txt").write_text("1 0.5 0.5 0.25 0.5\n\n0 0.1 0.1 0.5 0.1 0.5 0.6\n")
    (tmp_path / "labels/train/dog_2.txt").write_text("")
    (tmp_path / "labels/val/cat_3.txt").write_text("0 0.5 0.5 1 1")
    lines = ["file,class", *(f"{name}.jpg,{name[:3]}" for name in ("cat_1", "dog_2", "cat_3", "dog_4"))]
    (tmp_path / "classes.csv").write_text("\n".join(lines))
    return tmp_path


def test_boxes_polygons_and_empty_files(folder, make):
    made = make("yolo", folder, class_from="csv:classes.csv")
    row = made.rows["images/train/cat_1.jpg"]
    assert row["objects"] == [("beak", [15, 5, 10, 10]), ("wing", [4, 2, 16, 10])] and row["label"] == "cat"
    assert made.rows["images/train/dog_2.jpg"]["objects"] == []
    assert made.rows["images/val/dog_4.jpg"]["objects"] is None
    assert made.splits["images/val/cat_3.jpg"] == "validation"
    made = make("yolo", folder, class_from="csv:classes.csv", places="mask")
    row = made.rows["images/train/cat_1.jpg"]
    assert row["objects"] == [("beak", [15, 5, 10, 10])] and row["areas"]["wing"] == pytest.approx(80, abs=8)


def test_keypoints(folder, make):
    (folder / "data.yaml").write_text(NAMES + "kpt_shape: [2, 3]\nkpt_names:\n  1: [tip, root]\n")
    for name in ("train/cat_1", "val/cat_3"):
        (folder / "labels" / f"{name}.txt").write_text("1 0.5 0.5 0.5 0.5 0.25 0.25 2 0 0 0\n")
    made = make("yolo", folder, class_from="csv:classes.csv")
    assert made.rows["images/train/cat_1.jpg"]["points"] == [("tip", [10, 5])]
    assert made.lines["keypoints that are not labelled"] == "2"
    # Without visibility (0, 0) is what is not labelled.
    (folder / "data.yaml").write_text(NAMES + "kpt_shape: [2, 2]\n")
    for name in ("train/cat_1", "val/cat_3"):
        (folder / "labels" / f"{name}.txt").write_text("1 0.5 0.5 0.5 0.5 0.25 0.25 0 0\n")
    made = make("yolo", folder, class_from="csv:classes.csv")
    assert made.rows["images/train/cat_1.jpg"]["points"] == [("beak 1", [10, 5])]


def test_darknet(folder, make, picture):
    for path in folder.glob("labels/*/*.txt"):
        path.rename(folder / "images" / path.relative_to(folder / "labels"))
    (folder / "data.yaml").unlink()
    (folder / "obj.names").write_text("wing\nbeak\n")
    (folder / "train.txt").write_text("data/images/train/cat_1.jpg\ndata/images/train/dog_2.jpg\n")
    (folder / "test.txt").write_text("data/images/val/cat_3.jpg\n")
    made = make("yolo", folder, class_from="csv:classes.csv")
    assert made.rows["images/train/cat_1.jpg"]["objects"][0] == ("beak", [15, 5, 10, 10])
    assert made.splits["images/val/cat_3.jpg"] == "test" and made.splits["images/val/dog_4.jpg"] == "validation"


@pytest.mark.parametrize(
    "line, message",
    [
        ("2 0.5 0.5 0.1 0.1", "line 1: there is no class 2: data.yaml has 2 names, from 0"),
        ("0.5 0.5 0.5 0.1 0.1", "line 1: there is no class 0.5"),
        ("-1 0.5 0.5 0.1 0.1", "line 1: there is no class -1"),
        ("0 20 10 5 5", "line 1: places must be shares from 0 to 1; got 20: are these pixels?"),
        ("0 0.5 0.5 0.1", "line 1: expected a class and 4 numbers; got 3"),
        ("0 0.5 0.5 0.1 0.1 0.97", "line 1: got 5 numbers: a box has 4"),
        ("0 0.5 0.5 0.1 nan", "line 1: a line must be finite numbers"),
        ("wing 0.5 0.5 0.1 0.1", "line 1: a line must be numbers"),
    ],
)
def test_broken_lines(folder, make, line, message):
    path = folder / "labels/train/cat_1.txt"
    path.write_text(line)
    with pytest.raises(ValueError) as error:
        make("yolo", folder, class_from="csv:classes.csv")
    assert str(error.value).startswith(f"{path}, ") and message in str(error.value)


def test_numbers_need_names(folder, make):
    (folder / "data.yaml").unlink()
    with pytest.raises(
        FileNotFoundError, match="no data.yaml with names, and no classes.txt or obj.names.*names=FILE"
    ):
        make("yolo", folder, class_from="csv:classes.csv")
    (folder / "data.yaml").write_text("names: {1: wing, 2: beak}")
    with pytest.raises(ValueError, match="names must number 0 to 1; got 1, 2"):
        make("yolo", folder, class_from="csv:classes.csv")
    (folder / "elsewhere.names").write_text("wing\nbeak\n")
    made = make("yolo", folder, class_from="csv:classes.csv", names=str(folder / "elsewhere.names"))
    assert made.rows["images/val/cat_3.jpg"]["objects"] == [("wing", [0, 0, 40, 20])]

# SPDX-License-Identifier: Apache-2.0
"""COCO: boxes, polygons, run lengths, crowds, keypoints; ids with gaps; several files."""

import json

import numpy as np
import pytest

from ascent_vit.data.adapters.coco import decode, read_counts


pytestmark = pytest.mark.as_people_have_it

CATEGORIES = [
    {"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"]},
    {"id": 17, "name": "cat"},
    {"id": 90, "name": "toothbrush"},
]


def coco(*images, annotations=(), categories=CATEGORIES, size=(60, 40)):
    entries = [
        {"id": 100 + i, "file_name": name, "width": size[0], "height": size[1]} for i, name in enumerate(images)
    ]
    return {"images": entries, "categories": categories, "annotations": list(annotations)}


def thing(number, image, category, bbox=(5, 6, 10, 8), **kwargs):
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox), "iscrowd": 0, **kwargs}


@pytest.fixture
def folder(tmp_path, picture, write_json):
    for i, split in enumerate(("train", "train", "val", "val")):
        picture(tmp_path / f"{split}2017" / f"{i}.jpg")
    picture(tmp_path / "val2017" / "nobody_looked.jpg")
    crowd = {"size": [40, 60], "counts": [0, 800, 1600]}
    keypoints = [0, 0, 0, 12.5, 13, 2, 14, 13, 1]
    parts = [
        thing(1, 100, 17, segmentation=[[5, 6, 15, 6, 15, 14, 5, 14], [30, 30, 34, 30, 34, 34, 30, 34]]),
        thing(2, 100, 90, (0, 0, 20, 40), iscrowd=1, segmentation=crowd),
        thing(3, 100, 1, (0, 0, 30, 30), keypoints=keypoints, num_keypoints=2, segmentation=[]),
    ]
    write_json(tmp_path / "annotations" / "instances_train2017.json", coco("0.jpg", "1.jpg", annotations=parts))
    val = coco("2.jpg", "3.jpg", annotations=[thing(1, 101, 90)], categories=CATEGORIES[::-1])
    write_json(tmp_path / "annotations" / "instances_val2017.json", val)
    return tmp_path


def test_boxes_and_keypoints(folder, make):
    made = make("coco", folder, class_from="category:cat")
    # By name, not by number: the categories of the two files have another order.
    assert made.rows["train2017/0.jpg"]["objects"] == [("cat", [5, 6, 10, 8]), ("person", [0, 0, 30, 30])]
    assert made.rows["val2017/3.jpg"]["objects"] == [("toothbrush", [5, 6, 10, 8])]
    assert made.rows["train2017/0.jpg"]["points"] == [("left_eye", [12.5, 13]), ("right_eye", [14, 13])]
    names = made.prepared.dataset["train"].features["objects"]["category"].feature.names
    assert names == ["cat", "left_eye", "person", "right_eye", "toothbrush"]
    # Listed, so looked at: nothing is there. That is not the same as null.
    assert made.rows["train2017/1.jpg"]["objects"] == [] == made.rows["val2017/2.jpg"]["points"]
    assert {name: row["label"] for name, row in made.rows.items()} == {
        "train2017/0.jpg": "cat",
        "train2017/1.jpg": "no cat",
        "val2017/2.jpg": "no cat",
        "val2017/3.jpg": "no cat",
    }
    assert made.splits["train2017/1.jpg"] == "train" and made.splits["val2017/3.jpg"] == "validation"
    assert made.lines["crowd shapes"] == "1" == made.lines["keypoints that are not labelled"]
    assert made.lines["shapes left out by leave_out"] == "1" == made.lines["occluded points"]
    assert made.lines["image files that no annotation lists, left out without a class"] == "1"
    assert made.lines["annotated"] == "4, of these 2 without anything (taken as: nothing is there)"
    assert made.lines["concepts with a place"] == "cat 1, left_eye 1, person 1, right_eye 1, toothbrush 1"


def test_what_nobody_looked_at_is_null(folder, make):
    (folder / "classes.csv").write_text("file_name,class\n0.jpg,a\n3,b\nnobody_looked,b\n")
    made = make("coco", folder, class_from="csv:classes.csv", places="mask")
    row = made.rows["val2017/nobody_looked.jpg"]
    assert row["objects"] is row["points"] is row["mask"] is None and row["label"] == "b"
    assert made.lines["not annotated (null)"] == "1, of these 0 that no annotation lists"
    assert made.lines["images with no class, left out"] == "2"
    # Where an image without annotations may be one that nobody opened, it is no "no cat" either.
    made = make("coco", folder, class_from="category:cat", empty="unknown")
    assert list(made.rows) == ["train2017/0.jpg", "val2017/3.jpg"]
    assert made.lines["images with no class, left out"] == "2"


def test_masks(folder, make):
    made = make("coco", folder, class_from="category:cat", places="mask")
    row = made.rows["train2017/0.jpg"]
    # The crowd is ignored, but for the cat in front of it. A thing without outline is a box.
    assert row["areas"] == {None: 2400 - 800 - 16, "cat": 96, "ignored": 800 - 80}
    assert row["objects"] == [("person", [0, 0, 30, 30])]
    assert made.rows["train2017/1.jpg"]["areas"] == {None: 2400}
    dropped = make("coco", folder, class_from="category:cat", places="mask", leave_out=["occluded"])
    assert dropped.rows["train2017/0.jpg"]["areas"] == {None: 2400 - 800 - 16, "cat": 96, "toothbrush": 720}
    assert dropped.rows["train2017/0.jpg"]["points"] == [("left_eye", [12.5, 13])]


def test_instances_and_keypoints_of_the_same_images(folder, make, write_json):
    person = thing(3, 100, 1, (0, 0, 30, 30), keypoints=[1, 1, 2, 0, 0, 0, 0, 0, 0], segmentation=[])
    write_json(folder / "annotations" / "person_keypoints_train2017.json", coco("0.jpg", annotations=[person]))
    captions = {"images": [{"id": 100, "file_name": "0.jpg"}], "annotations": [{"image_id": 100, "caption": "A cat."}]}
    write_json(folder / "annotations" / "captions_train2017.json", captions)
    made = make("coco", folder, class_from="category:cat")
    assert made.rows["train2017/0.jpg"]["objects"] == [("cat", [5, 6, 10, 8]), ("person", [0, 0, 30, 30])]
    assert ("nose", [1, 1]) in made.rows["train2017/0.jpg"]["points"]
    assert made.lines["JSON files that are not COCO's, or of captions or panoptic segments"] == "1"


def test_concepts_to_take_and_categories_as_classes(folder, make):
    made = make("coco", folder, class_from="category:cat", concepts=["person", "toothbrush"])
    assert made.rows["train2017/0.jpg"]["objects"] == [("person", [0, 0, 30, 30])]
    assert made.lines["places of other names than concepts, left out"] == "3"
    with pytest.raises(ValueError, match="All 1 images have the class 'toothbrush': there is nothing to tell apart"):
        make("coco", folder, class_from="category:cat, toothbrush")
    with pytest.raises(ValueError, match="nothing is called 'tooth'; did you mean 'toothbrush'"):
        make("coco", folder, class_from="category:cat", concepts=["tooth"])
    with pytest.raises(ValueError, match="nothing is called 'cats'; did you mean 'cat'"):
        make("coco", folder, class_from="category:cats")


def test_run_lengths():
    # By pycocotools.mask.encode of ones at columns 1 and 2, rows 1 to 3 of 5 x 4 pixels.
    expected = np.zeros((5, 4), dtype=bool)
    expected[1:4, 1:3] = True
    np.testing.assert_array_equal(decode({"size": [5, 4], "counts": [6, 3, 2, 3, 6]}), expected)
    np.testing.assert_array_equal(decode({"size": [5, 4], "counts": "63204"}), expected)
    assert read_counts("63204") == [6, 3, 2, 3, 6]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            lambda d: d["annotations"][0].update(category_id=3),
            "annotation 1: there is no category 3; there are 1 (p",
        ),
        (lambda d: d["annotations"][0].update(image_id=7), "annotation 1: there is no image 7"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3]), "annotation 1: bbox must be 4 finite numbers"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3, "NaN"]), "annotation 1: bbox must be 4 finite numbers"),
        (
            lambda d: d["annotations"][0].pop("image_id"),
            "annotation 1 is not as the tool writes it (it lacks 'image_id'",
        ),
        (lambda d: d["annotations"].append(5), "annotation 5 is not as the tool writes it"),
        (lambda d: d["images"][0].update(width=80), "the annotation is of 80x40 pixels, but the image"),
        (lambda d: d["images"][0].update(width=40, height=60), "They are swapped"),
        (lambda d: d["images"][0].update(id=101), "image 101 is listed twice"),
        (lambda d: d["images"][0].update(file_name="../../x.jpg"), "1 of 4 annotated images are not in"),
        (lambda d: d["images"][0].update(file_name=None), "the name of an image must be text; got None"),
        (lambda d: d["annotations"][1]["segmentation"].update(counts=[5]), "the runs of a mask are of 5 pixels"),
        (lambda d: d["annotations"][2].update(keypoints=[1, 1, 2]), "the category person has 3 keypoints"),
        (lambda d: d.update(images={}), "The images are all of validation"),
    ],
)
def test_broken_files_are_one_sentence(folder, make, spoil, message):
    path = folder / "annotations" / "instances_train2017.json"
    data = json.loads(path.read_text())
    spoil(data)
    path.write_text(json.dumps(data))
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        make("coco", folder, class_from="category:toothbrush", places="mask")
    assert message in str(error.value)


def test_other_conventions_are_seen(tmp_path, make, picture, write_json):
    picture(tmp_path / "a" / "0.jpg"), picture(tmp_path / "b" / "1.jpg")
    corners = [thing(i, 100 + i % 2, 17, (30 + i, 20, 50, 39)) for i in range(4)]
    path = write_json(tmp_path / "labels.json", coco("0.jpg", "1.jpg", annotations=corners))
    with pytest.raises(
        ValueError, match=r"100% of 4 boxes leave the image: are they corners\? box_format=xyxy, and box_format=xywh"
    ):
        make("coco", tmp_path, class_from="folder")
    made = make("coco", tmp_path, class_from="folder", box_format="xyxy")
    assert made.rows["a/0.jpg"]["objects"][0] == ("cat", [30, 20, 20, 19])
    shares = [thing(i, 100 + i % 2, 17, (0.2, 0.3, 0.5, 0.5)) for i in range(4)]
    write_json(path, coco("0.jpg", "1.jpg", annotations=shares))
    with pytest.raises(ValueError, match="All 4 shapes lie within one pixel"):
        make("coco", tmp_path, class_from="folder")
    odd = [thing(0, 100, 17), thing(1, 100, 17, (5, 5, 0, 3)), thing(2, 101, 17, (70, 5, 4, 4)), thing(3, 101, 17)]
    write_json(path, coco("0.jpg", "1.jpg", annotations=odd))
    made = make("coco", tmp_path, class_from="folder")
    assert made.lines["shapes without area, left out"] == "1" == made.lines["shapes outside of their image, left out"]

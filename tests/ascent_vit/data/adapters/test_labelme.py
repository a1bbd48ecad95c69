# SPDX-License-Identifier: Apache-2.0
"""labelme: rectangles in any order, polygons, circles, points, masks, flags; the copy of the image is not read."""

import base64
import io

import numpy as np
import pytest
from PIL import Image


pytestmark = pytest.mark.as_people_have_it


def shape(label, kind, *points, **kwargs):
    return {
        "label": label,
        "points": [list(p) for p in points],
        "group_id": None,
        "shape_type": kind,
        "flags": {},
        **kwargs,
    }


def labelme(name, *shapes, flags=None, size=(60, 40)):
    return {
        "version": "5.5.0",
        "flags": flags or {},
        "shapes": list(shapes),
        "imagePath": name,
        "imageData": "not even base64",
        "imageHeight": size[1],
        "imageWidth": size[0],
    }


@pytest.fixture
def folder(tmp_path, picture, write_json):
    for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg"):
        picture(tmp_path / name)
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 255], [255, 255]], dtype=np.uint8)).save(buffer, format="PNG")
    mask = {"mask": base64.b64encode(buffer.getvalue()).decode()}
    shapes = [
        shape("wing", "rectangle", (30, 20), (10, 4)),
        shape("beak", "polygon", (0, 0), (8, 0), (8, 8)),
        shape("eye", "point", (3.5, 4.5)),
        shape("eye", "circle", (40, 20), (43, 24)),
        shape("leg", "line", (1, 1), (2, 2)),
        shape("foot", "mask", (50, 30), (51, 31), **mask),
    ]
    write_json(tmp_path / "a" / "1.json", labelme("1.jpg", *shapes, flags={"outdoors": True, "night": False}))
    write_json(tmp_path / "b" / "3.json", labelme("..\\photos\\3.jpg", flags={"outdoors": False, "night": True}))
    return tmp_path


def test_shapes_and_flags(folder, make):
    made = make("labelme", folder, class_from="folder")
    first, second, third = (made.rows[name] for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg"))
    assert first["objects"] == [
        ("wing", [10, 4, 20, 16]),
        ("beak", [0, 0, 8, 8]),
        ("eye", [35, 15, 10, 10]),
        ("foot", [50, 30, 2, 2]),
    ]
    assert first["points"] == [("eye", [3.5, 4.5])]
    assert (first["concepts"], third["concepts"]) == (["outdoors"], ["night"])
    # Listed nowhere: null. Opened and left without shapes: nothing is there.
    assert second["objects"] is second["points"] is second["concepts"] is None
    assert third["objects"] == [] == third["points"]
    assert made.lines["shapes of the kind line"] == "1"
    assert made.lines["not annotated (null)"] == "1, of these 1 that no annotation lists"
    assert "a/2.jpg" not in make("labelme", folder, class_from="folder", unlisted="skip").rows


def test_masks(folder, make):
    made = make("labelme", folder, class_from="folder", places="mask")
    assert made.rows["a/1.jpg"]["objects"] == [("wing", [10, 4, 20, 16])]
    areas = made.rows["a/1.jpg"]["areas"]
    assert (
        areas["foot"] == 3 and areas["beak"] == pytest.approx(32, abs=4) and areas["eye"] == pytest.approx(78, abs=4)
    )


def test_flags_as_classes(folder, make):
    made = make("labelme", folder, class_from="tag")
    assert {name: row["label"] for name, row in made.rows.items()} == {"a/1.jpg": "outdoors", "b/3.jpg": "night"}
    assert "concepts" not in made.rows["a/1.jpg"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"shapes": [shape("x", "mask", (0, 0), (1, 1), mask="%%")]}, "a mask is not base64 text"),
        ({"shapes": [shape("x", "mask", (0, 0), (1, 1), mask="aGVsbG8=")]}, "A mask cannot be read"),
        ({"shapes": [shape("x", "mask", (0, 0), (1, 1))]}, "it lacks 'mask'"),
        ({"shapes": [{"points": [[1, 2]]}]}, "it lacks 'label'"),
        ({"shapes": [shape("x", "polygon", (1, 2), ("a", 2))]}, "1.json: "),
        ({"imageWidth": 59}, "the annotation is of 59x40 pixels"),
        ({"imagePath": "b/3.jpg"}, "annotates too: remove one of the two"),
        ({"imagePath": "/etc/passwd"}, "1 of 2 annotated images are not in"),
    ],
)
def test_broken_files(folder, make, write_json, change, message):
    write_json(folder / "a" / "1.json", labelme("1.jpg") | change)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        make("labelme", folder, class_from="folder", places="mask")
    assert message in str(error.value)


def test_a_cut_file(folder, make):
    path = folder / "a" / "1.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="1.json is no JSON file"):
        make("labelme", folder, class_from="folder")

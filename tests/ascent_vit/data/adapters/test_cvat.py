# SPDX-License-Identifier: Apache-2.0
"""CVAT for images 1.1: every kind of shape, rotation, skeletons, tags and attributes, subsets."""

import pytest


pytestmark = pytest.mark.as_people_have_it


def image(name, *content, subset="", size=(60, 40)):
    subset = f' subset="{subset}"' if subset else ""
    return f'<image id="0" name="{name}"{subset} width="{size[0]}" height="{size[1]}">{"".join(content)}</image>'


def box(label, left, top, right, bottom, more="", inside=""):
    return (
        f'<box label="{label}" source="manual" occluded="0" xtl="{left}" ytl="{top}" xbr="{right}" ybr="{bottom}" '
        f'z_order="0" {more}>{inside}</box>'
    )


def attribute(name, value):
    return f'<attribute name="{name}">{value}</attribute>'


CONTENT = (
    box("wing", 5, 6, 15, 17, inside=attribute("colour", "red") + attribute("wet", "true") + attribute("age", "3")),
    box("wing", 20, 18, 40, 22, 'rotation="90.0"'),
    '<polygon label="beak" points="20.00,20.00;40.00,20.00;30.00,35.00" occluded="1" z_order="0"/>',
    '<ellipse label="eye" cx="50" cy="20" rx="5" ry="3" occluded="0"/>',
    '<mask label="foot" rle="1, 2, 1" left="3" top="4" width="2" height="2" occluded="0"/>',
    '<points label="claw" points="3.00,4.00;12.50,13.50" occluded="0"/>',
    '<skeleton label="bird"><points label="tail" outside="0" occluded="0" points="1,2"/>'
    '<points label="crown" outside="1" occluded="0" points="0,0"/></skeleton>',
    '<polyline label="leg" points="1,1;2,2" occluded="0"/>',
    f'<tag label="outdoors">{attribute("weather", "rain")}{attribute("night", "false")}</tag>',
)


@pytest.fixture
def write(tmp_path, picture):
    def write(*images, root="annotations"):
        for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg"):
            picture(tmp_path / "images" / name)
        path = tmp_path / "annotations.xml"
        path.write_text(
            f'<?xml version="1.0" encoding="utf-8"?>\n<{root}><version>1.1</version>{"".join(images)}</{root}>'
        )
        return path

    return write


def test_shapes(write, make):
    path = write(image("a/1.jpg", *CONTENT, subset="Train"), image("b/3.jpg", subset="Validation"))
    made = make("cvat", path, images=str(path.parent / "images"), class_from="folder")
    row = made.rows["a/1.jpg"]
    # A box turned by 90 degrees about its centre.
    assert row["objects"] == [
        ("wing", [5, 6, 10, 11]),
        ("wing", [28, 10, 4, 20]),
        ("beak", [20, 20, 20, 15]),
        ("eye", [45, 17, 10, 6]),
        ("foot", [3, 4, 2, 2]),
    ]
    assert row["points"] == [("claw", [3, 4]), ("claw", [12.5, 13.5]), ("tail", [1, 2])]
    assert row["concepts"] == ["outdoors", "weather: rain"]
    other = made.rows["b/3.jpg"]
    # No tag: not outdoors, but nobody said anything of the weather.
    assert other["concepts"] == [] == other["objects"] and other["unknown_concepts"] == ["weather: rain"]
    assert made.splits == {"a/1.jpg": "train", "b/3.jpg": "validation", "a/2.jpg": "train"}
    assert made.lines["keypoints that are not labelled"] == "1" == made.lines["shapes of the kind polyline"]
    assert made.lines["attributes of shapes, not taken (attributes=true makes them concepts)"] == "2"
    assert made.lines["answers to age, which are numbers and no concepts"] == "1"


def test_attributes_are_concepts_on_request(write, make):
    path = write(image("a/1.jpg", *CONTENT), image("b/3.jpg"))
    made = make("cvat", path, class_from="folder", attributes=True)
    objects = made.rows["images/a/1.jpg"]["objects"]
    assert objects[:3] == [(name, [5, 6, 10, 11]) for name in ("wing", "colour: red", "wet")]


def test_masks(write, make):
    path = write(image("a/1.jpg", *CONTENT), image("b/3.jpg"))
    areas = make("cvat", path, class_from="folder", places="mask").rows["images/a/1.jpg"]["areas"]
    assert areas["foot"] == 2 and areas["beak"] == 150 - 40 and areas["eye"] == pytest.approx(47, abs=4)
    assert areas["wing"] == 80


def test_classes_by_tag_and_by_attribute(write, make):
    tags = [f'<tag label="{label}">{attribute("place", place)}</tag>' for label, place in (("cat", "x"), ("dog", "y"))]
    path = write(image("a/1.jpg", tags[0]), image("b/3.jpg", tags[1]))
    made = make("cvat", path, class_from="tag")
    assert [row["label"] for row in made.rows.values()] == ["cat", "dog"]
    assert made.rows["images/a/1.jpg"]["concepts"] == ["place: x"]
    made = make("cvat", path, class_from="tag:place")
    assert [row["label"] for row in made.rows.values()] == ["x", "y"]
    assert made.rows["images/b/3.jpg"]["concepts"] == ["dog"]
    path = write(image("a/1.jpg", *tags), image("b/3.jpg", tags[1]))
    with pytest.raises(ValueError, match=r"image a/1.jpg: the image has the classes cat and dog: .*classes=\[A, B\]"):
        make("cvat", path, class_from="tag")


@pytest.mark.parametrize(
    "content, message",
    [
        (
            image("a/1.jpg", '<mask label="x" rle="1,2" left="0" top="0" width="2" height="2"/>'),
            "runs of a mask are of 3",
        ),
        (
            image("a/1.jpg", '<mask label="x" rle="4" left="59" top="0" width="2" height="2"/>'),
            "leaves its image of 60x40",
        ),
        (image("a/1.jpg", '<polygon label="x" points="1,2;3"/>'), "points must be 2 finite numbers"),
        (image("a/1.jpg", '<box label="x" xtl="1"/>'), "it lacks 'ytl'"),
        (image("a/1.jpg", size=(40, 60)), "They are swapped"),
        (image("c/9.jpg"), "1 of 2 annotated images are not in"),
        ('<track id="0" label="x"/>', "CVAT's format for video: export the task as CVAT for images 1.1"),
    ],
)
def test_broken_files(write, make, content, message):
    path = write(content, image("b/3.jpg"))
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        make("cvat", path, class_from="folder", places="mask")
    assert message in str(error.value)
    with pytest.raises(ValueError, match="is no file of CVAT: its root must be annotations; got other"):
        make("cvat", write(root="other"), class_from="folder")

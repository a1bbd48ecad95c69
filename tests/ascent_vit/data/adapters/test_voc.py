# SPDX-License-Identifier: Apache-2.0
"""PASCAL VOC: corners from 1, flags, parts, image sets; no document types."""

import pytest


pytestmark = pytest.mark.as_people_have_it


def annotation(name, *objects, size=(60, 40)):
    return (
        f"<annotation><folder>VOC2012</folder><filename>{name}</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height><depth>3</depth></size>{''.join(objects)}</annotation>"
    )


def thing(name, *box, flags="", inside=""):
    corners = "".join(f"<{key}>{v}</{key}>" for key, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{flags}<bndbox>{corners}</bndbox>{inside}</object>"


@pytest.fixture
def folder(tmp_path, picture):
    (tmp_path / "Annotations").mkdir()
    head = "<part><name>head</name><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>6</xmax><ymax>7</ymax></bndbox></part>"
    things = {
        "1": [thing("person", 1, 1, 10, 20, inside=head), thing("dog", 21, 11, 60, 40)],
        "2": [thing("person", 11, 11, 20, 20, flags="<difficult>1</difficult><truncated>1</truncated>")],
        "3": [],
    }
    for name, objects in things.items():
        picture(tmp_path / "JPEGImages" / f"{name}.jpg")
        (tmp_path / "Annotations" / f"{name}.xml").write_text(annotation(f"{name}.jpg", *objects))
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("1\n")
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("2\n3\n")
    (tmp_path / "ImageSets" / "Main" / "dog_train.txt").write_text("1 1\n2 -1\n")
    return tmp_path


def test_corners_parts_and_flags(folder, make):
    made = make("voc", folder, class_from="category:dog")
    first = made.rows["JPEGImages/1.jpg"]
    assert first["objects"] == [("person", [0, 0, 10, 20]), ("head", [2, 3, 4, 4]), ("dog", [20, 10, 40, 30])]
    assert made.rows["JPEGImages/2.jpg"]["objects"] == [("person", [10, 10, 10, 10])]
    assert made.rows["JPEGImages/3.jpg"]["objects"] == []
    assert made.splits == {"JPEGImages/1.jpg": "train"} | {f"JPEGImages/{i}.jpg": "validation" for i in "23"}
    assert made.lines["difficult shapes"] == "1" == made.lines["truncated shapes"]
    made = make("voc", folder, class_from="category:dog", leave_out=["difficult"])
    assert made.rows["JPEGImages/2.jpg"]["objects"] == []


def test_corners_from_zero(folder, make):
    (folder / "Annotations" / "2.xml").write_text(annotation("2.jpg", thing("person", 0, 5, 20, 20)))
    made = make("voc", folder, class_from="category:dog")
    assert made.rows["JPEGImages/2.jpg"]["objects"] == [("person", [0, 5, 20, 15])]
    assert made.lines["boxes whose corners were taken as edges counted from 0, as asked or as one starts there"] == "4"


@pytest.mark.parametrize(
    "content, message",
    [
        ("<annotation>", "is no XML file: no element found"),
        ("", "is no XML file: no element found"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation/>', "declares a document type"),
        (
            '<!DOCTYPE a [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>',
            "declares a document type",
        ),
        (annotation("1.jpg", "<object><name>dog</name></object>"), "the bndbox of dog must be 4 finite numbers"),
        (annotation("1.jpg", thing("dog", 1, 2, 3, "x")), "the bndbox of dog must be numbers"),
        (annotation("9.jpg"), "1 of 3 annotated images are not in"),
        (annotation("../../1.png"), "1 of 3 annotated images are not in"),
        (annotation("2.jpg"), "which {folder}/Annotations/1.xml annotates too"),
        (annotation("1.jpg", size=(61, 40)), "the annotation is of 61x40 pixels"),
    ],
)
def test_broken_files(folder, make, content, message):
    (folder / "Annotations" / "1.xml").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        make("voc", folder, class_from="category:person")
    assert message.format(folder=folder) in str(error.value)


def test_an_image_in_two_sets(folder, make):
    (folder / "ImageSets" / "Main" / "test.txt").write_text("1\n")
    with pytest.raises(ValueError, match="test.txt, line 1: 1 is in the split train too"):
        make("voc", folder, class_from="category:dog")

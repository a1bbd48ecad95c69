# SPDX-License-Identifier: Apache-2.0
"""Files that tools and converters write a little otherwise: read where that is plain, else refused in a sentence."""

import json

import pytest


pytestmark = pytest.mark.as_people_have_it

IMAGES = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


@pytest.fixture
def folder(tmp_path, picture):
    for kind, number in IMAGES:
        picture(tmp_path / kind / f"{kind}{number}.jpg")
    return tmp_path


def coco(*annotations, file_name="{0}/{0}{1}.jpg", **changes):
    images = [
        {"id": i, "file_name": file_name.format(*names), "width": 60, "height": 40} for i, names in enumerate(IMAGES)
    ]
    data = {"images": images, "annotations": list(annotations), "categories": [{"id": 3, "name": "spot"}]} | changes
    return {"labels.json": json.dumps(data)}


def thing(image, box, **changes):
    return {"id": 9, "image_id": image, "category_id": 3, "bbox": box} | changes


def labelme(*shapes):
    content = {"imagePath": "a0.jpg", "imageWidth": 60, "imageHeight": 40, "shapes": list(shapes)}
    return {"a/a0.json": json.dumps(content)}


def voc(content, name="a0.jpg"):
    return {
        "a/a0.xml": f"<annotation><filename>{name}</filename><object><name>wing</name>{content}</object></annotation>"
    }


def cvat(content):
    image = f'<image name="a/a0.jpg" width="60" height="40">{content}</image>'
    return {"annotations.xml": f"<annotations>{image}</annotations>"}


def studio(*results, image="a0.jpg"):
    return {"e.json": json.dumps([{"id": 1, "data": {"image": image}, "annotations": [{"result": list(results)}]}])}


def yolo(text, names="names: [wing, beak]", file="a/a0.txt"):
    return {"data.yaml": names, file: text}


BOX = "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"
SPOT, WING = [("spot", [5, 6, 7, 8])], [("wing", [4, 5, 16, 25])]
LINE = {"label": "eye", "points": [[5, 6], [20, 30]], "shape_type": "line"}
PERCENT = {"original_width": 60, "original_height": 40}

READ = {
    "ids that are text": ("coco", coco(thing("0", [5, 6, 7, 8], category_id="3")), SPOT),
    "numbers that are text": ("coco", coco(thing(0, ["5", "6", "7", "8"])), SPOT),
    "a byte order mark": ("coco", {k: "\ufeff" + v for k, v in coco(thing(0, [5, 6, 7, 8])).items()}, SPOT),
    "names of Windows": ("coco", coco(thing(0, [5, 6, 7, 8]), file_name="{0}\\{0}{1}.jpg"), SPOT),
    "addresses": ("coco", coco(thing(0, [5, 6, 7, 8]), file_name="https://x.org/p/{0}/{0}{1}.jpg?v=1"), SPOT),
    "a polygon that is no list of lists": (
        "coco",
        coco(thing(0, None, segmentation=[5, 6, 12, 6, 12, 14])),
        SPOT,
    ),
    "names numbered by text": (
        "yolo",
        yolo("1 .5 .5 .2 .2", "names:\n  '0': wing\n  '1': beak"),
        [("beak", [24, 16, 12, 8])],
    ),
    "boxes and polygons": (
        "yolo",
        yolo("1 .5 .5 .2 .2\n0 .1 .1 .5 .1 .5 .5"),
        [("beak", [24, 16, 12, 8]), ("wing", [6, 4, 24, 16])],
    ),
    "a byte order mark and Windows' lines": ("yolo", yolo("\ufeff1 .5 .5 .2 .2\r\n"), [("beak", [24, 16, 12, 8])]),
    "difficult: false": ("voc", voc(f"<difficult>false</difficult><truncated>Unspecified</truncated>{BOX}"), WING),
    "fractions of pixels": ("voc", voc(BOX.replace(">5<", ">5.5<")), [("wing", [4.5, 5, 15.5, 25])]),
    "a path of Windows": ("voc", voc(BOX, "C:\\pictures\\a\\a0.jpg"), WING),
    "a path of another machine": (
        "labelme",
        labelme({"label": "eye", "points": [[20, 30], [5, 6]], "shape_type": "rectangle"}),
        [("eye", [5, 6, 15, 24])],
    ),
    "a bucket": (
        "label-studio",
        studio(
            {
                "type": "rectanglelabels",
                "value": {"x": 50, "y": 20, "width": 20, "height": 30, "rectanglelabels": ["w"]},
            }
            | PERCENT,
            image="s3://bucket/x/a0.jpg",
        ),
        [("w", [30, 8, 12, 12])],
    ),
    # Something is there, so that it must not be nothing.
    "a line alone": ("labelme", labelme(LINE), None),
    "a polyline alone": ("cvat", cvat('<polyline label="x" points="1,2;3,4"/>'), None),
    "a vector alone": (
        "label-studio",
        studio({"type": "vectorlabels", "value": {"vectorlabels": ["x"]}} | PERCENT),
        None,
    ),
    "a box without area alone": ("coco", coco(thing(0, [5, 6, 7, 0])), None),
    "a box beside its image alone": (
        "coco",
        coco(thing(0, [70, 6, 7, 5]), *(thing(1, [1, 1, 5, 5]) for _ in "ab")),
        None,
    ),
}

CORNERS = [thing(i, [10 + i, 5, 58, 39]) for i in range(4)] + [thing(i, [2, 3, 9, 9]) for i in range(4)]
FACE = "0 .5 .5 .4 .6 .32 .25 .68 .25 .5 .78"

REFUSED = {
    "a width below 0": (
        "coco",
        coco(thing(0, [20, 6, -7, 8])),
        "image 0: 'spot' ends before it begins, 20, 6 to 13, 14",
    ),
    "corners the wrong way": ("voc", voc(BOX.replace(">5<", ">40<")), "'wing' ends before it begins"),
    "corners of CVAT the wrong way": (
        "cvat",
        cvat('<box label="x" xtl="20" ytl="6" xbr="5" ybr="30"/>'),
        "'x' ends before it begins",
    ),
    "no number": ("coco", coco(thing(0, [float("nan"), 6, 7, 8])), "bbox must be 4 finite numbers"),
    "half of the boxes are corners": ("coco", coco(*CORNERS), r"50% of 8 boxes leave the image: are they corners\?"),
    "keypoints without visibility": (
        "coco",
        coco(thing(0, [5, 6, 7, 8], keypoints=[1, 2, 3, 4])),
        "keypoints must be x, y and visibility each; got 4 numbers",
    ),
    "predictions": ("yolo", yolo("0 .5 .5 .2 .2 .93"), "got 5 numbers: a box has 4"),
    "poses without their shape": (
        "yolo",
        yolo("\n".join([FACE] * 3)),
        "All 3 lines of 11 numbers seem to be a box and 3 keypoints: give kpt_shape",
    ),
    "poses with visibility": ("yolo", yolo("0 .5 .5 .4 .6 .4 .4 2 .6 .6 1"), "Keypoints need kpt_shape in data.yaml"),
    "corners in YOLO": (
        "yolo",
        yolo("0 .4 .4 .9 .95\n0 .5 .5 .9 .9\n0 .1 .1 .2 .2"),
        "33% of 3 boxes leave their image",
    ),
    "labels in a folder of their own": (
        "yolo",
        yolo("1 .5 .5 .2 .2", file="labels/a0.txt"),
        "No image of 4 has an ann",
    ),
    "labels with two endings": ("yolo", yolo("1 .5 .5 .2 .2", file="a/a0.jpg.txt"), "No image of 4 has an annotation"),
    "no label": ("yolo", {"data.yaml": "names: [wing]"}, "are these the files of yolo"),
    "no annotation but masks": (
        "voc",
        {"SegmentationClass/a0.txt": ""},
        "load that folder with mask_colors=labelmap.txt",
    ),
    "tracks of a video": (
        "cvat",
        {"annotations.xml": '<annotations><track id="0"/></annotations>'},
        "format for video",
    ),
}


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("case", READ)
def test_read(case, folder, make):
    tool, files, expected = READ[case]
    write(folder, files)
    if expected is None:
        # Another image that is annotated, as a dataset has some.
        more = {"labelme": {"a/a1.json": json.dumps({"imagePath": "a1.jpg", "shapes": []})}}.get(tool, {})
        write(folder, more)
    made = make(tool, folder, class_from="folder")
    assert made.rows["a/a0.jpg"]["label"] == "a"
    if expected is None:
        assert made.rows["a/a0.jpg"].get("objects") is None
        assert made.lines["images of which nothing marked could be taken, so not annotated"] == "1"
    else:
        assert made.rows["a/a0.jpg"]["objects"] == expected


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, folder, make):
    tool, files, message = REFUSED[case]
    write(folder, files)
    with pytest.raises(ValueError, match=message):
        make(tool, folder, class_from="folder")


def test_what_could_not_be_taken_is_no_class(folder, make):
    """An image with a thing without area, of the category that tells the class, is not of the other class."""
    write(folder, coco(thing(0, [5, 6, 7, 8]), thing(1, [5, 6, 7, 0]), thing(2, [70, 6, 7, 5])))
    made = make("coco", folder, class_from="category:spot")
    assert {name: row["label"] for name, row in made.rows.items()}["a/a1.jpg"] == "spot"
    assert made.rows["a/a1.jpg"]["objects"] is None and made.rows["b/b1.jpg"]["label"] == "no spot"


def test_stray_labels_and_predictions_are_counted(folder, make):
    write(folder, yolo("1 .5 .5 .2 .2") | {"a/other.txt": "0 .5 .5 .1 .1", "notes.txt": "about the data"})
    made = make("yolo", folder, class_from="folder")
    assert made.lines["label files of no image, the first being a/other.txt"] == "1"
    write(folder, coco(thing(0, [5, 6, 7, 8], score=0.9)))
    made = make("coco", folder, class_from="folder")
    assert made.lines["annotations with a score, as predictions of models have one"] == "1"


def test_polygons_beside_the_boxes_of_voc(folder, make):
    corners = "".join(f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>" for i, (x, y) in enumerate([(5, 6), (20, 6), (20, 30)], 1))
    points = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in [(5, 6), (20, 6), (20, 30)])
    for polygon in (corners, points):
        write(folder, voc(f"{BOX}<polygon>{polygon}</polygon>"))
        made = make("voc", folder, class_from="folder", places="mask")
        assert made.rows["a/a0.jpg"]["areas"]["wing"] == pytest.approx(180, abs=10)

# SPDX-License-Identifier: Apache-2.0
"""Label Studio: per cent values, rotation, brushes, choices, and whose annotation counts."""

import pytest

from ascent_vit.data.adapters.label_studio import decode_brush


pytestmark = pytest.mark.as_people_have_it

# By label_studio_sdk.converter.brush.encode_rle of 4 x 2 pixels, of which two have alpha 255.
BRUSH = [0, 0, 0, 32, 57, 27, 252, 96, 19, 255, 225, 48, 0]


def result(kind, names=None, number="r", source="places", **value):
    value |= {kind: names} if names else {}
    size = {"original_width": 60, "original_height": 40, "image_rotation": 0}
    return {"id": number, "type": kind, "from_name": source, "to_name": "image", "value": value} | size


def choice(name, *answers, number="c"):
    return {
        "id": number,
        "type": "choices",
        "from_name": name,
        "to_name": "image",
        "value": {"choices": list(answers)},
    }


def task(name, *results, **kwargs):
    done = {"id": 1, "was_cancelled": False, "ground_truth": False, "result": list(results), "completed_by": 1}
    return {"id": name, "data": {"image": name}, "annotations": [done], "drafts": [], "predictions": []} | kwargs


@pytest.fixture
def write(tmp_path, picture, write_json):
    def write(*tasks):
        for name in ("1.jpg", "2.jpg", "3.jpg"):
            picture(tmp_path / "pictures" / name)
        return write_json(tmp_path / "export.json", list(tasks))

    return write


FIRST = task(
    "/data/upload/7/0a1b2c3d-1.jpg",
    result("rectanglelabels", ["wing"], x=10, y=10, width=50, height=25, rotation=0),
    result("rectanglelabels", ["wing", "feather"], number="t", x=50, y=50, width=20, height=10, rotation=90),
    result("polygonlabels", ["beak"], number="p", points=[[0, 0], [10, 0], [10, 20]], closed=True),
    result("ellipselabels", ["eye"], number="e", x=50, y=50, radiusX=10, radiusY=10, rotation=0),
    result("keypointlabels", ["claw"], number="k", x=25, y=75, width=0.5),
    result("rectangle", number="u", x=0, y=0, width=10, height=10, rotation=0),
    result("labels", ["tail"], number="u", x=0, y=0, width=10, height=10, rotation=0),
    choice("colour", "red", number="p"),
    choice("species", "cat"),
    choice("weather", "rain", number="d"),
    {"id": "n", "type": "textarea", "from_name": "notes", "value": {"text": ["hm"]}},
)


def test_results(write, make):
    second = task("/data/local-files/?d=pictures/2.jpg", choice("species", "dog"))
    path = write(FIRST, second)
    made = make("label-studio", path, class_from="tag:species")
    row = made.rows["pictures/1.jpg"]
    # Turned about its left upper corner (30, 20): 12 wide and 4 high becomes 4 wide, to the left, and 12 high.
    assert row["objects"] == [
        ("wing", [6, 4, 30, 10]),
        ("wing", [26, 20, 4, 12]),
        ("feather", [26, 20, 4, 12]),
        ("beak", [0, 0, 6, 8]),
        ("eye", [24, 16, 12, 8]),
        ("tail", [0, 0, 6, 4]),
    ]
    assert row["points"] == [("claw", [15, 30])] and row["concepts"] == ["weather: rain"]
    assert made.rows["pictures/2.jpg"]["objects"] == []
    # A question that was not answered is not known.
    assert made.rows["pictures/2.jpg"]["concepts"] is None
    assert made.lines["results of the kind textarea"] == "1"
    made = make("label-studio", path, class_from="tag:species", attributes=True)
    assert ("colour: red", [0, 0, 6, 8]) in made.rows["pictures/1.jpg"]["objects"]


def test_whose_annotation_counts(write, make):
    def done(name, updated, **kwargs):
        entry = result("rectanglelabels", [name], x=0, y=0, width=50, height=50)
        return {"result": [entry], "was_cancelled": False, "updated_at": updated} | kwargs

    cancelled = done("wing", "2026-03", was_cancelled=True)
    tasks = [
        task("1.jpg", annotations=[done("old", "2026-01"), done("new", "2026-02"), cancelled]),
        task("2.jpg", annotations=[done("truth", "2026-01", ground_truth=True), done("later", "2026-02")]),
        task("3.jpg", annotations=[cancelled], drafts=[done("draft", "2026-04")], predictions=[done("model", "")]),
    ]
    path = write(*tasks)
    (path.parent / "classes.csv").write_text("image;class\n1.jpg;a\n2.jpg;b\n3.jpg;b\n")
    made = make("label-studio", path, class_from="csv:classes.csv")
    objects = [made.rows[f"pictures/{i}.jpg"]["objects"] for i in (1, 2, 3)]
    assert objects == [[("new", [0, 0, 30, 20])], [("truth", [0, 0, 30, 20])], None]
    several = "further annotations of an image, of which the ground truth or else the latest was taken"
    assert made.lines[several] == "2" == made.lines["cancelled annotations"]
    assert made.lines["drafts"] == "1" == made.lines["predictions of models"]


def test_brushes(write, make):
    mask = decode_brush(BRUSH, (4, 2))
    assert mask.tolist() == [[False, True, True, False], [False, False, False, False]]
    with pytest.raises(ValueError, match="a brush has 8 pixels, its image 5x2"):
        decode_brush(BRUSH, (5, 2))
    decode_brush(BRUSH[:9], (4, 2))


@pytest.mark.parametrize(
    "tasks, message",
    [
        ([{"id": 1, "image": "1.jpg", "label": []}], "export the project as JSON, not as JSON-MIN"),
        (
            [{"id": 1, "data": {"image": "1.jpg"}}],
            "it has no annotations: export the project as JSON",
        ),
        (
            [task("1.jpg", {"type": "rectanglelabels", "value": {"rectanglelabels": ["x"]}})],
            "it lacks 'original_wid",
        ),
        ([task("1.jpg", result("rectanglelabels", ["x"], x=1, y=1, width=1))], "it lacks 'height'"),
        ([task("1.jpg", result("polygonlabels", ["x"], points=[[1]]))], "a point must be 2 finite numbers"),
        (
            [task("1.jpg", result("keypointlabels", ["x"], x=1, y=1) | {"image_rotation": 90})],
            "was turned in the",
        ),
        ([task("1.jpg", result("keypointlabels", ["x"], x=1, y=1) | {"original_width": 61})], "is of 61x40 pixels"),
        ([task("9.jpg")], "1 of 1 annotated images are not in"),
        ([task("s3://bucket/../../1.png")], "1 of 1 annotated images are not in"),
        ([task(7)], "its data names no image"),
    ],
)
def test_broken_files(write, make, tasks, message):
    path = write(*tasks)
    (path.parent / "classes.csv").write_text("image;class\n1.jpg;a\n2.jpg;b\n")
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        make("label-studio", path, class_from="csv:classes.csv")
    assert message in str(error.value)

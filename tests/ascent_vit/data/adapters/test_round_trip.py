# SPDX-License-Identifier: Apache-2.0
"""The same boxes, polygons and points, written as each tool writes them, are read back equal."""

from pathlib import Path

import numpy as np
import pytest

from ascent_vit.data.adapters.annotated import ImageFiles, Reading


pytestmark = pytest.mark.as_people_have_it

SIZE = (90, 50)
NAMES = ["wing", "beak", "eye"]


def draw(seed):
    """Boxes of whole pixels as left, top, right, bottom; triangles; points; each with a name, by picture."""
    rng = np.random.default_rng(seed)
    pictures = {}
    for picture in ("a.jpg", "b.jpg"):
        low = rng.integers(1, [60, 30], (3, 2))
        boxes = np.concatenate([low, low + rng.integers(1, 20, (3, 2))], axis=1).astype(float)
        polygons = (rng.random((2, 3, 2)) * SIZE).round(2)
        pictures[picture] = [
            [(NAMES[i % 3], box) for i, box in enumerate(boxes)],
            [(NAMES[(i + 1) % 3], polygon) for i, polygon in enumerate(polygons)],
            [(NAMES[(i + 2) % 3], point) for i, point in enumerate((rng.random((2, 2)) * SIZE).round(2))],
        ]
    return pictures


def coco(root, pictures, write_json):
    # Each point of a thing of its own, whose other keypoints are not labelled.
    categories = [{"id": 5 * i + 2, "name": name} for i, name in enumerate(NAMES)]
    categories.append({"id": 99, "name": "bird", "keypoints": NAMES})
    images, entries = [], []
    for number, (file, (boxes, polygons, points)) in enumerate(pictures.items()):
        images.append({"id": number, "file_name": file, "width": SIZE[0], "height": SIZE[1]})
        for name, (left, top, right, bottom) in boxes:
            box = [left, top, right - left, bottom - top]
            entries.append({"image_id": number, "category_id": 5 * NAMES.index(name) + 2, "bbox": box})
        for name, polygon in polygons:
            entry = {"segmentation": [polygon.ravel().tolist()]}
            entries.append({"image_id": number, "category_id": 5 * NAMES.index(name) + 2} | entry)
        for name, point in points:
            values = [0.0] * 9
            values[3 * NAMES.index(name) : 3 * NAMES.index(name) + 3] = [*point.tolist(), 2]
            entries.append({"image_id": number, "category_id": 99, "keypoints": values})
    write_json(root / "labels.json", {"images": images, "categories": categories, "annotations": entries})


def yolo(root, pictures, write_json):
    (root / "classes.txt").write_text("\n".join(NAMES))
    scale = np.array(SIZE)
    for file, (boxes, polygons, _) in pictures.items():
        lines = [
            [NAMES.index(name), *(box[:2] + box[2:]) / 2 / scale, *(box[2:] - box[:2]) / scale] for name, box in boxes
        ]
        lines += [[NAMES.index(name), *(polygon / scale).ravel()] for name, polygon in polygons]
        text = "\n".join(" ".join([str(line[0]), *(f"{value:.6f}" for value in line[1:])]) for line in lines)
        (root / file).with_suffix(".txt").write_text(text)


def voc(root, pictures, write_json):
    for file, (boxes, _, _) in pictures.items():
        things = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{box[0] + 1:.0f}</xmin><ymin>{box[1] + 1:.0f}</ymin>"
            f"<xmax>{box[2]:.0f}</xmax><ymax>{box[3]:.0f}</ymax></bndbox></object>"
            for name, box in boxes
        )
        text = f"<annotation><filename>{file}</filename>{things}</annotation>"
        (root / file).with_suffix(".xml").write_text(text)


def labelme(root, pictures, write_json):
    for file, (boxes, polygons, points) in pictures.items():
        shapes = [("rectangle", name, [box[2:].tolist(), box[:2].tolist()]) for name, box in boxes]
        shapes += [("polygon", name, polygon.tolist()) for name, polygon in polygons]
        shapes += [("point", name, [point.tolist()]) for name, point in points]
        entries = [{"label": name, "points": p, "shape_type": kind, "flags": {}} for kind, name, p in shapes]
        content = {"imagePath": file, "imageWidth": SIZE[0], "imageHeight": SIZE[1], "flags": {}, "shapes": entries}
        write_json((root / file).with_suffix(".json"), content)


def cvat(root, pictures, write_json):
    def text(points):
        return ";".join(f"{x:.2f},{y:.2f}" for x, y in points)

    images = []
    for file, (boxes, polygons, points) in pictures.items():
        corners = [
            (name, " ".join(map('{}="{:.2f}"'.format, ("xtl", "ytl", "xbr", "ybr"), box))) for name, box in boxes
        ]
        shapes = [f'<box label="{name}" {values}/>' for name, values in corners]
        shapes += [f'<polygon label="{name}" points="{text(polygon)}"/>' for name, polygon in polygons]
        shapes += [f'<points label="{name}" points="{text([point])}"/>' for name, point in points]
        images.append(f'<image name="{file}" width="{SIZE[0]}" height="{SIZE[1]}">{"".join(shapes)}</image>')
    (root / "annotations.xml").write_text(f"<annotations>{''.join(images)}</annotations>")


def label_studio(root, pictures, write_json):
    scale = np.array(SIZE) / 100
    tasks = []
    for file, (boxes, polygons, points) in pictures.items():
        found = [
            ("rectanglelabels", name, dict(zip(("x", "y", "width", "height"), values, strict=True)))
            for name, box in boxes
            for values in [[*box[:2] / scale, *(box[2:] - box[:2]) / scale]]
        ]
        found += [("polygonlabels", name, {"points": (polygon / scale).tolist()}) for name, polygon in polygons]
        found += [("keypointlabels", name, {"x": x, "y": y}) for name, p in points for x, y in [p / scale]]
        size = {"original_width": SIZE[0], "original_height": SIZE[1]}
        results = [{"type": kind, "value": {**value, kind: [name]}} | size for kind, name, value in found]
        tasks.append({"data": {"image": f"/data/upload/1/0123abcd-{file}"}, "annotations": [{"result": results}]})
    write_json(root / "export.json", tasks)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("write", [coco, yolo, voc, labelme, cvat, label_studio], ids=lambda write: write.__name__)
def test_read_back(write, seed, tmp_path: Path, picture, write_json):
    pictures = draw(seed)
    for file in pictures:
        picture(tmp_path / file, SIZE)
    write(tmp_path, pictures, write_json)
    result = Reading(ImageFiles(tmp_path))
    module = __import__(f"ascent_vit.data.adapters.{write.__name__}", fromlist=["read"])
    module.read(tmp_path, result)
    assert [path.name for path in result.images] == list(pictures) and not result.missing
    for image, (boxes, polygons, points) in zip(result.images.values(), pictures.values(), strict=True):
        # YOLO writes six decimals; VOC has no polygons, and neither of them points without a box.
        expected = boxes + ([] if write is voc else [(n, np.concatenate([p.min(0), p.max(0)])) for n, p in polygons])
        assert [shape.name for shape in image.shapes] == [name for name, _ in expected]
        for shape, (_, bounds) in zip(image.shapes, expected, strict=True):
            np.testing.assert_allclose(shape.bounds(), bounds, atol=1e-3)
        for shape, (_, polygon) in zip(image.shapes[3:], polygons, strict=False):
            np.testing.assert_allclose(shape.outlines[0], polygon, atol=1e-3)
        expected = [] if write in (voc, yolo) else points
        assert [point.name for point in image.points] == [name for name, _ in expected]
        for point, (_, place) in zip(image.points, expected, strict=True):
            np.testing.assert_allclose([point.x, point.y], place, atol=1e-9)

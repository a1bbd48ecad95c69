# SPDX-License-Identifier: Apache-2.0
"""
Label Studio's JSON: rectangles, ellipses, polygons, keypoints, brushes and choices, in per cent of the image
(https://labelstud.io/guide/export).
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from ascent_vit.utils.files import read_json

from .annotated import AnnotatedImage, Point, Reading, Shape, ellipse, numbers, reading, rectangle, rotated


GEOMETRIES = ("rectangle", "ellipse", "polygon", "keypoint", "brush")


class _Bits:
    """Reads numbers of some bits each, the highest bit first."""

    def __init__(self, data: list[int]):
        self.bits = "".join(f"{byte & 255:08b}" for byte in data)
        self.place = 0

    def read(self, count: int) -> int:
        self.place += count
        return int(self.bits[self.place - count : self.place] or "0", 2)


def decode_brush(data: list[int], size: tuple[int, int]) -> np.ndarray:
    """
    The pixels `(height, width)` bool of a brush: run lengths of @thi.ng/rle-pack, of red, green, blue and alpha.

    Raises:
        ValueError: for data of another size than the image's.
    """
    bits = _Bits(data)
    total = bits.read(32)
    if total != size[0] * size[1] * 4:
        raise ValueError(f"a brush has {total // 4} pixels, its image {size[0]}x{size[1]}")
    word = bits.read(5) + 1
    lengths = [bits.read(4) + 1 for _ in range(4)]
    values = np.zeros(total, dtype=np.int64)
    place = 0
    while place < total and bits.place < len(bits.bits):
        repeated = bits.read(1)
        end = min(place + 1 + bits.read(lengths[bits.read(2)]), total)
        values[place:end] = bits.read(word) if repeated else [bits.read(word) for _ in range(end - place)]
        place = end
    return values.reshape(size[1], size[0], 4)[..., 3] > 0


def _file_of(task: dict) -> str:
    """The name of the image that a task is about, of an address or a path."""
    found = [value for value in task["data"].values() if isinstance(value, str)]
    image = task["data"].get("image") or next((v for v in found if re.search(r"\.\w{3,4}$", v)), None)
    if not isinstance(image, str):
        raise ValueError("its data names no image")
    address = urlsplit(image)
    local = parse_qs(address.query).get("d")
    return unquote(local[0] if local else address.path or image)


def _annotation(task: dict, result: Reading) -> dict | None:
    """The annotation that counts: the ground truth, else the latest that was not cancelled."""
    if "annotations" not in task:
        raise ValueError("it has no annotations: export the project as JSON, not as JSON-MIN")
    finished = [a for a in task["annotations"] if not a.get("was_cancelled")]
    result.counts["cancelled annotations"] += len(task["annotations"]) - len(finished)
    result.counts["drafts"] += len(task.get("drafts") or [])
    result.counts["predictions of models"] += len(task.get("predictions") or [])
    if len(finished) > 1:
        result.counts["further annotations of an image, of which the ground truth or else the latest was taken"] += (
            len(finished) - 1
        )
    finished.sort(key=lambda a: (bool(a.get("ground_truth")), a.get("updated_at") or a.get("created_at") or ""))
    return finished[-1] if finished else None


def _shape(kind: str, value: dict, size: tuple[int, int], name: str) -> Shape | None:
    scale = np.array(size) / 100
    shape = Shape(name)
    if kind == "rectangle":
        x, y, width, height = numbers([value[key] for key in ("x", "y", "width", "height")], "a rectangle", 4)
        corner = np.array([x, y]) * scale
        shape.outlines = [rotated(rectangle(*corner, *([width, height] * scale)), corner, value.get("rotation") or 0)]
    elif kind == "ellipse":
        x, y, *radii = numbers([value[key] for key in ("x", "y", "radiusX", "radiusY")], "an ellipse", 4)
        centre = np.array([x, y]) * scale
        shape.outlines = [rotated(ellipse(centre, radii * scale), centre, value.get("rotation") or 0)]
    elif kind == "polygon":
        shape.outlines = [np.array([numbers(point, "a point", 2) for point in value["points"]]) * scale]
    elif kind == "brush" and value.get("format") == "rle":
        shape.mask = partial(decode_brush, value["rle"], size)
    else:
        return None
    return shape


def _regions(items: list[dict]) -> Iterator[tuple[dict, list[tuple[str, str]]]]:
    """Results with the choices made of them; the label of a region without one of its own is such a choice."""
    by_id: dict[Any, list[dict]] = {}
    for number, item in enumerate(items):
        by_id.setdefault(item.get("id") or number, []).append(item)
    for same in by_id.values():
        labelled = [item for item in same if str(item.get("type")).endswith("labels")]
        regions = labelled or [item for item in same if item.get("type") in GEOMETRIES]
        about = [
            (item.get("from_name") or "", str(choice))
            for item in same
            if item.get("type") == "choices" and regions
            for choice in item["value"]["choices"]
        ]
        for item in regions or same:
            own = {} if labelled else {"labels": [choice for _, choice in about]}
            yield {**item, "value": {**own, **(item.get("value") or {})}}, about if labelled else []


def _add(image: AnnotatedImage, item: dict, attributes: list[tuple[str, str]], result: Reading) -> None:
    value, kind = item.get("value") or {}, item.get("type", "")
    geometry = next((g for g in GEOMETRIES if kind.startswith(g)), None)
    if kind == "labels":
        geometry = "polygon" if "points" in value else "rectangle" if "width" in value else None
        geometry = "brush" if "rle" in value else "ellipse" if "radiusX" in value else geometry
    names = value.get(kind) or value.get("labels") or []
    if kind == "choices":
        image.tags += [(item.get("from_name") or "", str(choice)) for choice in value["choices"]]
    elif geometry and not names:
        result.counts["regions without a label"] += 1
    elif geometry:
        if item.get("image_rotation"):
            raise ValueError("the image was turned in the tool; annotate it as it is")
        size = int(item["original_width"]), int(item["original_height"])
        image.size = image.size or size
        for name in names:
            if geometry == "keypoint":
                x, y = numbers([value["x"], value["y"]], "a keypoint", 2) * np.array(size) / 100
                image.points.append(Point(name, float(x), float(y)))
            elif (shape := _shape(geometry, value, size, name)) is not None:
                shape.attributes = attributes
                image.shapes.append(shape)
    else:
        result.counts[f"results of the kind {kind}"] += 1
        image.unread += kind.endswith("labels")


def read(source: Path, result: Reading) -> None:
    """
    Reads Label Studio's JSON files. An image with a finished annotation has been looked at.

    Args:
        source: file, or folder of files.
        result: reading to add to.
    """
    for path in [source] if source.is_file() else sorted(source.rglob("*.json")):
        tasks = read_json(path)
        if not (isinstance(tasks, list) and all(isinstance(task, dict) and "data" in task for task in tasks)):
            min_form = isinstance(tasks, list)
            hint = "export the project as JSON, not as JSON-MIN" if min_form else "expected a list of tasks"
            raise ValueError(f"{path} is no JSON export of Label Studio: {hint}.")
        for task in tasks:
            where = f"{path}, task {task.get('id')}"
            with reading(where):
                name = _file_of(task)
                own = re.sub(r"^[0-9a-f]{8}-", "", name.replace("\\", "/").rsplit("/", 1)[-1])
                name = name if result.files.find(name) else own
                annotation = _annotation(task, result)
                image = result.image(name, where, split=None)
                image.fields = {key: str(v) for key, v in task["data"].items() if isinstance(v, str | int | float)}
                image.looked_at = annotation is not None
                for item, about in _regions(annotation["result"] if annotation else []):
                    _add(image, item, about, result)


__all__ = ["decode_brush", "read"]

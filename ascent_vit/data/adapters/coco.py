# SPDX-License-Identifier: Apache-2.0
"""
COCO's JSON: boxes, polygons, run lengths, crowds and keypoints (https://cocodataset.org/#format-data).

Several files of a folder are read together: those of splits, and instances and keypoints of the same images.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ascent_vit.utils.files import read_json

from ..suspicions import box_suspicion
from .annotated import AnnotatedImage, Point, Reading, Shape, corners, numbers, reading, run_lengths, split_in_name


# What keypoints say of themselves: 0 not labelled, 1 labelled but hidden, 2 visible.
NOT_LABELLED, HIDDEN = 0, 1


def read_counts(text: str) -> list[int]:
    """Reads run lengths from COCO's text: five bits a character, each length less the one before the last."""
    counts: list[int] = []
    value = shift = 0
    for character in text.encode("ascii"):
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value |= -1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def decode(segmentation: dict[str, Any]) -> np.ndarray:
    """The pixels `(height, width)` bool of run lengths, which go down column by column."""
    height, width = numbers(segmentation["size"], "size of a mask", 2).astype(int)
    counts = segmentation["counts"]
    counts = read_counts(counts) if isinstance(counts, str) else counts
    return run_lengths(counts, height * width).reshape(width, height).T


def _box(values: Any, box_format: str | None) -> np.ndarray:
    x, y, right, bottom = numbers(values, "bbox", 4)
    return np.array([x, y, right, bottom] if box_format == "xyxy" else [x, y, x + right, y + bottom])


def _add(
    image: AnnotatedImage, entry: dict, category: dict, box_format: str | None, reading_: Reading, known: bool
) -> None:
    """Adds an annotation to its image; of one that is known from another file, the keypoints alone."""
    segmentation, box, keypoints = entry.get("segmentation"), entry.get("bbox"), entry.get("keypoints")
    name = category["name"]
    if not known and not (segmentation or box or keypoints):
        image.tags.append(("", name))
    elif not known and (segmentation or box):
        shape = Shape(name, flags={"crowd"} if entry.get("iscrowd") else set())
        shape.box = _box(box, box_format) if box else None
        if isinstance(segmentation, dict):
            shape.mask = partial(decode, segmentation)
        elif segmentation:
            flat = not isinstance(segmentation[0], list | tuple)
            outlines = [segmentation] if flat else segmentation
            shape.outlines = [corners(polygon, "segmentation") for polygon in outlines]
        reading_.counts["annotations with a score, as predictions of models have one"] += "score" in entry
        shape.attributes = [(str(k), str(v)) for k, v in (entry.get("attributes") or {}).items()]
        image.shapes.append(shape)
    if keypoints:
        values = numbers(keypoints, "keypoints")
        if len(values) % 3:
            raise ValueError(f"keypoints must be x, y and visibility each; got {len(values)} numbers")
        values = values.reshape(-1, 3)
        names = category.get("keypoints") or [f"{name} {i}" for i in range(1, len(values) + 1)]
        if len(names) != len(values):
            raise ValueError(f"the category {name} has {len(names)} keypoints, an annotation {len(values)}")
        for point, (x, y, visible) in zip(names, values.tolist(), strict=True):
            if visible == NOT_LABELLED:
                reading_.counts["keypoints that are not labelled"] += 1
            else:
                image.points.append(Point(point, x, y, {"occluded"} if visible == HIDDEN else set()))


def _is_instances(data: Any) -> bool:
    if not isinstance(data, dict) or not isinstance(data.get("images"), list) or not data.get("categories"):
        return False
    entries = data.get("annotations") or [{}]
    return not (isinstance(entries, list) and isinstance(entries[0], dict) and "segments_info" in entries[0])


def read(source: Path, result: Reading, *, box_format: str | None = None) -> None:
    """
    Reads COCO's JSON files. An image that is listed has been looked at.

    Args:
        source: file, or folder of files.
        result: reading to add to.
        box_format: "xyxy" for files whose `bbox` are corners, not x, y, width, height as COCO defines.
    """
    paths = [source] if source.is_file() else sorted(source.rglob("*.json"))
    seen: dict[tuple, Path] = {}
    boxes: list[tuple[Any, Any]] = []
    looked_at: dict[Path, bool] = {}
    for path in paths:
        data = read_json(path)
        if not _is_instances(data):
            if path == source:
                raise ValueError(f"{path} is no COCO file of objects: it needs images, annotations and categories.")
            result.counts["JSON files that are not COCO's, or of captions or panoptic segments"] += 1
            continue
        with reading(str(path)):
            split, entries = split_in_name(path.stem), data.get("annotations") or []
            if not isinstance(entries, list):
                raise ValueError("annotations must be a list")
            # Some tools write ids as text, and not in all places.
            categories = {str(category["id"]): category for category in data["categories"]}
            if len(categories) < len(data["categories"]):
                raise ValueError("two categories have the same id")
            images = {}
            for entry in data["images"]:
                size = (entry["width"], entry["height"]) if entry.get("width") and entry.get("height") else None
                where = f"{path}, image {entry['id']}"
                if str(entry["id"]) in images:
                    raise ValueError(f"{where} is listed twice")
                image = result.image(entry["file_name"], where, size, split, path.parent, again=True)
                image.fields |= {str(k): str(v) for k, v in entry.items() if isinstance(v, str | int | float)}
                looked_at[image.path] = looked_at.get(image.path, False) or "annotations" in data
                image.looked_at = looked_at[image.path]
                images[str(entry["id"])] = image
        for entry in entries:
            where = f"{path}, annotation {entry.get('id') if isinstance(entry, dict) else entry!r:.40}"
            with reading(where):
                image_id, category_id = str(entry["image_id"]), str(entry["category_id"])
                if image_id not in images:
                    raise ValueError(f"there is no image {entry['image_id']}")
                if category_id not in categories:
                    known = ", ".join(f"{i} ({c['name']})" for i, c in list(categories.items())[:8])
                    raise ValueError(f"there is no category {entry['category_id']}; there are {known}")
                image, category = images[image_id], categories[category_id]
                key = image.path, category["name"], str(entry.get("bbox"))
                _add(image, entry, category, box_format, result, seen.setdefault(key, path) != path)
                boxes += [(entry["bbox"], image.size)] if entry.get("bbox") and image.size else []
    if boxes and box_format is None:
        values, sizes = (np.array(part, dtype=float) for part in zip(*boxes, strict=True))
        doubt = box_suspicion(values, sizes)
        if doubt is not None and "corners" in doubt:
            raise ValueError(f"{doubt}, and box_format=xywh takes them as they are.")


__all__ = ["decode", "read", "read_counts"]

# SPDX-License-Identifier: Apache-2.0
"""
CVAT's XML for images 1.1: boxes, polygons, ellipses, masks, points, skeletons, tags and attributes
(https://docs.cvat.ai/docs/manual/advanced/xml_format/).
"""

from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from .annotated import (
    AnnotatedImage,
    Point,
    Reading,
    Shape,
    ellipse,
    numbers,
    read_xml,
    reading,
    rectangle,
    rotated,
    run_lengths,
    split_in_name,
)


def _attributes(item: Element) -> list[tuple[str, str]]:
    found = [(a.attrib["name"], (a.text or "").strip()) for a in item.findall("attribute")]
    return [(name, value) for name, value in found if value]


def _points(item: Element) -> np.ndarray:
    return np.array([numbers(pair.split(","), "points", 2) for pair in item.attrib["points"].split(";")])


def _mask(item: Element, size: tuple[int, int]) -> np.ndarray:
    left, top, width, height = (int(item.attrib[key]) for key in ("left", "top", "width", "height"))
    mask = np.zeros(size[::-1], dtype=bool)
    part = run_lengths(item.attrib["rle"].split(","), width * height).reshape(height, width)
    if not (left >= 0 and top >= 0 and left + width <= size[0] and top + height <= size[1]):
        raise ValueError(f"a mask at {left},{top} of {width}x{height} leaves its image of {size[0]}x{size[1]} pixels")
    mask[top : top + height, left : left + width] = part
    return mask


def _shape(item: Element, size: tuple[int, int]) -> Shape | None:
    shape = Shape(item.attrib["label"], attributes=_attributes(item))
    shape.flags = {"occluded"} if item.get("occluded") == "1" else set()
    turn = float(item.get("rotation") or 0)
    if item.tag == "box":
        box = numbers([item.attrib[key] for key in ("xtl", "ytl", "xbr", "ybr")], "a box", 4)
        if not turn:
            shape.box = box
            return shape
        left, top, right, bottom = box
        outline, centre = rectangle(left, top, right - left, bottom - top), ((left + right) / 2, (top + bottom) / 2)
    elif item.tag == "ellipse":
        x, y, *radii = numbers([item.attrib[key] for key in ("cx", "cy", "rx", "ry")], "an ellipse", 4)
        outline, centre = ellipse((x, y), radii), (x, y)
    elif item.tag == "polygon":
        outline, centre = _points(item), (0.0, 0.0)
    elif item.tag == "mask":
        shape.mask = partial(_mask, item, size)
        return shape
    else:
        return None
    shape.outlines = [rotated(outline, centre, turn)]
    return shape


def _add(image: AnnotatedImage, item: Element, size: tuple[int, int], result: Reading) -> None:
    if item.tag == "tag":
        image.tags += [("", item.attrib["label"]), *_attributes(item)]
    elif item.tag == "points":
        flags = {"occluded"} if item.get("occluded") == "1" else set()
        if item.get("outside") == "1":
            result.counts["keypoints that are not labelled"] += 1
        else:
            image.points += [Point(item.attrib["label"], x, y, flags) for x, y in _points(item).tolist()]
    elif item.tag == "skeleton":
        for part in item:
            _add(image, part, size, result)
    elif (shape := _shape(item, size)) is not None:
        image.shapes.append(shape)
    elif item.tag != "attribute":
        result.counts[f"shapes of the kind {item.tag}"] += 1
        image.unread += 1


def read(source: Path, result: Reading) -> None:
    """
    Reads CVAT's XML files. An image that is listed has been looked at.

    Args:
        source: annotations.xml, or a folder with such files.
        result: reading to add to.
    """
    for path in [source] if source.is_file() else sorted(source.rglob("*.xml")):
        root = read_xml(path)
        if root.tag != "annotations":
            if path == source:
                raise ValueError(f"{path} is no file of CVAT: its root must be annotations; got {root.tag}.")
            result.counts["XML files that are not CVAT's"] += 1
            continue
        if root.find("track") is not None:
            raise ValueError(f"{path} is CVAT's format for video: export the task as CVAT for images 1.1.")
        for element in root.iter("image"):
            where = f"{path}, image {element.get('name')}"
            with reading(where):
                size = int(element.attrib["width"]), int(element.attrib["height"])
                split = split_in_name(element.get("subset") or path.stem)
                image = result.image(element.attrib["name"], where, size, split, path.parent)
                for item in element:
                    _add(image, item, size, result)


__all__ = ["read"]

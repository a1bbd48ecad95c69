# SPDX-License-Identifier: Apache-2.0
"""
PASCAL VOC's XML, one file an image: Annotations/, JPEGImages/ and ImageSets/Main/, or files beside their images.

Corners count pixels from 1, inclusive (http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/). Some tools count from
0, and their right and bottom are edges: so they are read where a box starts at 0, which is said.
"""

import re
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from .annotated import AnnotatedImage, Reading, Shape, corners, numbers, read_xml, reading
from .archive import read_lines
from .labels import NO


FLAGS = ("difficult", "truncated", "occluded")
NOT_SET = NO | {"", "0.0", "none", "unspecified"}


def _shape(item: Element, name: str) -> Shape:
    box = item.find("bndbox")
    values = [box.findtext(key) for key in ("xmin", "ymin", "xmax", "ymax")] if box is not None else None
    flags = {flag for flag in FLAGS if (item.findtext(flag) or "").strip().lower() not in NOT_SET}
    shape = Shape(name, numbers(values or [], f"the bndbox of {name}", 4), flags=flags)
    if (polygon := item.find("polygon")) is not None:
        # x1, y1, x2, y2, ... or points pt of x and y.
        places = [part.text for part in polygon.iter() if re.fullmatch(r"[xy]\d*", part.tag)]
        shape.outlines = [corners(places, f"the polygon of {name}")]
    return shape


def _image_sets(source: Path) -> dict[str, str]:
    """The split of each image by ImageSets/Main, where train, val and test are; trainval is their sum."""
    splits: dict[str, str] = {}
    for file, split in (("train", "train"), ("val", "validation"), ("test", "test")):
        for path in sorted(source.rglob(f"ImageSets/Main/{file}.txt")):
            for number, line in read_lines(path):
                name = line.split()[0]
                if splits.setdefault(name, split) != split:
                    raise ValueError(f"{path}, line {number}: {name} is in the split {splits[name]} too: remove one.")
    return splits


def read(source: Path, result: Reading, *, box_format: str | None = None) -> None:
    """
    Reads PASCAL VOC's XML files. An image with a file has been looked at.

    Args:
        source: folder of the XML files, at any depth.
        result: reading to add to.
        box_format: "xyxy" for corners that are edges counted from 0.
    """
    splits = _image_sets(source)
    shapes: list[Shape] = []
    for path in sorted(source.rglob("*.xml")):
        root = read_xml(path)
        if root.tag != "annotation":
            result.counts["XML files that are not VOC's"] += 1
            continue
        with reading(str(path)):
            name = (root.findtext("filename") or "").strip()
            if not name or (result.files.find(name, path.parent) is None and not Path(name).suffix):
                name = next((p.name for p in result.files.paths if p.stem == (name or path.stem)), name or path.stem)
            size = root.find("size")
            declared = None if size is None else (size.findtext("width"), size.findtext("height"))
            image: AnnotatedImage = result.image(name, str(path), declared, splits.get(path.stem), path.parent)
            for item in root.iter("object"):
                found = [_shape(item, (item.findtext("name") or "").strip())]
                found += [_shape(part, (part.findtext("name") or "").strip()) for part in item.findall("part")]
                image.shapes += found
                shapes += found
    if not result.images and next(source.rglob("SegmentationClass"), None) is not None:
        raise ValueError(
            f"{source} has no XML file, but masks in SegmentationClass: name them in metadata.jsonl as "
            "mask_file_name, beside file_name and label, and load that folder with mask_colors=labelmap.txt."
        )
    from_zero = box_format == "xyxy" or any((shape.bounds()[:2] < 1).any() for shape in shapes)
    for shape in shapes:
        shape.box = shape.bounds() - (np.zeros(4) if from_zero else np.array([1, 1, 0, 0]))
    if from_zero:
        result.counts["boxes whose corners were taken as edges counted from 0, as asked or as one starts there"] = len(
            shapes
        )


__all__ = ["read"]

# SPDX-License-Identifier: Apache-2.0
"""labelme's JSON, one file an image: rectangles, polygons, circles, points and masks, and flags of the whole image."""

import base64
import binascii
import io
from functools import partial
from pathlib import Path

import numpy as np

from ascent_vit.utils.files import read_json
from modeling_ascent_vit.image_inputs_ascent_vit import opened_image

from .annotated import AnnotatedImage, Point, Reading, Shape, corners, ellipse, reading, upright_size


def _mask(encoded: str, left: int, top: int, size: tuple[int, int]) -> np.ndarray:
    try:
        content = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a mask is not base64 text ({error})") from error
    with opened_image(io.BytesIO(content), "A mask") as image:
        pixels = np.asarray(image.convert("L")) > 0
    mask = np.zeros(size[::-1], dtype=bool)
    height, width = (max(0, side) for side in mask[top : top + pixels.shape[0], left : left + pixels.shape[1]].shape)
    mask[top : top + height, left : left + width] = pixels[:height, :width]
    return mask


def _add(image: AnnotatedImage, entry: dict, size: tuple[int, int], result: Reading) -> None:
    kind, name = entry.get("shape_type") or "polygon", entry["label"]
    points = corners(np.ravel(np.array(entry["points"], dtype=float)), "points")
    shape = Shape(name, attributes=[("", flag) for flag, on in (entry.get("flags") or {}).items() if on])
    if kind == "rectangle":
        # Two corners in any order; four in newer files.
        shape.box = np.concatenate([points.min(axis=0), points.max(axis=0)])
    elif kind in ("polygon", "oriented_rectangle"):
        shape.outlines = [points]
    elif kind == "circle":
        shape.outlines = [ellipse(points[0], [np.hypot(*(points[1] - points[0]))] * 2)]
    elif kind == "mask":
        left, top = np.round(points.min(axis=0)).astype(int).clip(0)
        shape.mask = partial(_mask, entry["mask"], left, top, size)
    elif kind in ("point", "points"):
        image.points += [Point(name, x, y) for x, y in points.tolist()]
        return
    else:
        result.counts[f"shapes of the kind {kind}"] += 1
        image.unread += 1
        return
    image.shapes.append(shape)


def read(source: Path, result: Reading) -> None:
    """
    Reads labelme's JSON files. An image with a file has been looked at; its own copy in `imageData` is not read.

    Args:
        source: folder of the JSON files, at any depth.
        result: reading to add to.
    """
    for path in [source] if source.is_file() else sorted(source.rglob("*.json")):
        data = read_json(path)
        if not isinstance(data, dict) or "shapes" not in data or "imagePath" not in data:
            result.counts["JSON files that are not labelme's"] += 1
            continue
        with reading(str(path)):
            size = data.get("imageWidth"), data.get("imageHeight")
            image = result.image(data["imagePath"], str(path), size if all(size) else None, near=path.parent)
            image.tags += [("", name) for name, on in (data.get("flags") or {}).items() if on]
            known = image.size or (upright_size(image.path) if image.path in result.images else (0, 0))
            for entry in data["shapes"]:
                _add(image, entry, known, result)


__all__ = ["read"]

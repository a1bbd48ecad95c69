# SPDX-License-Identifier: Apache-2.0
"""
YOLO's text files, one an image: boxes, polygons and keypoints as shares of the image (https://docs.ultralytics.com/datasets).

Names are those of data.yaml, or of classes.txt or obj.names, one a line. labels/ lies where images/ does, or the text
files beside the images.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ascent_vit.utils.yaml import read_yaml

from ..suspicions import share_inside
from .annotated import AnnotatedImage, Point, Reading, Shape, numbers, reading, upright_size
from .archive import read_lines


NAME_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels")

# A share may exceed 1 by what six decimals round off.
TOLERANCE = 1e-3


def read_settings(source: Path, names: str | None) -> tuple[list[str], dict[str, Any], Path]:
    """
    Finds the names of the numbers.

    Returns:
        The names in their order, the settings of data.yaml, and the file.

    Raises:
        FileNotFoundError: where there is no file of names.
    """
    if names is not None:
        files = [Path(names).expanduser()]
    else:
        files = [*sorted(source.glob("*.y*ml")), *(path for name in NAME_FILES for path in sorted(source.rglob(name)))]
    for path in files:
        if path.suffix not in (".yaml", ".yml"):
            return [line for _, line in read_lines(path)], {}, path
        with reading(str(path)):
            settings = read_yaml(path.read_text(encoding="utf-8"), str(path))
        found = settings.get("names") if isinstance(settings, dict) else None
        if isinstance(found, dict):
            by_number = {str(number): name for number, name in found.items()}
            if by_number.keys() != {str(i) for i in range(len(found))}:
                raise ValueError(f"{path}: names must number 0 to {len(found) - 1}; got {', '.join(map(str, found))}.")
            found = [by_number[str(i)] for i in range(len(found))]
        if isinstance(found, list) and found:
            return [str(name) for name in found], settings, path
    raise FileNotFoundError(
        f"{source} has no data.yaml with names, and no {' or '.join(NAME_FILES[:2])}: YOLO's numbers mean nothing "
        "without. Give the file with --option names=FILE."
    )


def _labels_of(image: Path) -> Path:
    """The text file of an image: beside it, or under labels where the innermost images is."""
    parts = list(image.parts)
    if not image.with_suffix(".txt").is_file() and "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _listed(source: Path, settings: dict[str, Any], result: Reading) -> dict[Path, str]:
    """The split of each image that a text file of train, val or test lists."""
    splits: dict[Path, str] = {}
    for key, split in (("train", "train"), ("val", "validation"), ("valid", "validation"), ("test", "test")):
        entries = settings.get(key) or f"{key}.txt"
        for entry in entries if isinstance(entries, list) else [entries]:
            path = source / str(settings.get("path") or "") / str(entry)
            inside = path.is_file() and path.resolve().is_relative_to(source.resolve())
            path = path if inside else source / Path(str(entry)).name
            for _, line in read_lines(path) if path.suffix == ".txt" and path.is_file() else ():
                image = result.files.find(line)
                if image is None:
                    result.missing.append(line)
                elif splits.setdefault(image, split) != split:
                    raise ValueError(f"{path}: {line} is in the split {splits[image]} too: remove one.")
    return splits


def _add(image: AnnotatedImage, values: np.ndarray, name: str, names: list[str], dims: int, result: Reading) -> None:
    """Adds a line: centre and size, then keypoints; or the corners of a polygon."""
    scale = np.array(image.size)
    places = values if not names else np.concatenate([values[:4], values[4:].reshape(-1, dims)[:, :2].ravel()])
    if (places < -TOLERANCE).any() or (places > 1 + TOLERANCE).any():
        strange = places[np.argmax(np.abs(places - 0.5))]
        raise ValueError(
            f"places must be shares from 0 to 1; got {strange:g}: are these pixels? Keypoints need kpt_shape in "
            "data.yaml"
        )
    if len(values) > 4 and not names:
        if len(values) % 2 or len(values) < 6:
            raise ValueError(
                f"got {len(values)} numbers: a box has 4, a polygon 6 or more of even number, keypoints need "
                "kpt_shape in data.yaml, and a model's predictions are no annotation"
            )
        image.shapes.append(Shape(name, outlines=[values.reshape(-1, 2) * scale]))
        return
    centre, sides = values[:2] * scale, values[2:4] * scale
    image.shapes.append(Shape(name, np.concatenate([centre - sides / 2, centre + sides / 2])))
    for point, (x, y, *visible) in zip(names, values[4:].reshape(-1, dims).tolist() if names else [], strict=True):
        if (visible and visible[0] == 0) or (not visible and x == y == 0):
            result.counts["keypoints that are not labelled"] += 1
        else:
            flags = {"occluded"} if visible and visible[0] == 1 else set()
            image.points.append(Point(point, x * scale[0], y * scale[1], flags))


def _is_labels(path: Path) -> bool:
    """Whether a text file begins as the labels of an image do."""
    try:
        first = path.read_text(encoding="utf-8-sig").lstrip().partition("\n")[0].split()
        return len(first) >= 5 and bool(np.isfinite([float(word) for word in first]).all())
    except ValueError:
        return False


def _are_poses(lines: list[np.ndarray]) -> bool:
    """Whether lines `(n,)` taken for polygons are boxes with keypoints, in the middle of which the first point is."""
    if len(lines) < 3 or len({len(line) for line in lines}) > 1 or len(lines[0]) < 8:
        return False
    for centre, sides, *points in (line.reshape(-1, 2) for line in lines):
        low, high = np.min(points, axis=0), np.max(points, axis=0)
        inside = (low >= centre - sides / 2 - TOLERANCE).all() and (high <= centre + sides / 2 + TOLERANCE).all()
        in_middle = (np.abs((low + high) / 2 - centre) <= sides / 4).all() and (high - low >= sides / 2).all()
        if not (inside and in_middle):
            return False
    return True


def _check_meaning(boxes: list[np.ndarray], polygons: list[np.ndarray]) -> None:
    """Raises ValueError for boxes that are corners, and polygons that are boxes with keypoints."""
    values, sizes = np.array(boxes).reshape(-1, 4), np.ones((len(boxes), 2))
    leaving = 1 - share_inside(values, sizes, "cxcywh") if boxes else 0.0
    if leaving >= 0.2 and share_inside(values, sizes, "xyxy") >= 0.98:
        raise ValueError(
            f"{leaving:.0%} of {len(boxes)} boxes leave their image: they seem to be corners, where YOLO has centre, "
            "width and height: convert them."
        )
    if _are_poses(polygons):
        raise ValueError(
            f"All {len(polygons)} lines of {len(polygons[0]) + 1} numbers seem to be a box and "
            f"{len(polygons[0]) // 2 - 2} keypoints: give kpt_shape in data.yaml."
        )


def read(source: Path, result: Reading, *, names: str | None = None) -> None:
    """
    Reads YOLO's text files. An image with one has been looked at, also where the file is empty; one without has not.

    Args:
        source: folder with data.yaml, images and labels.
        result: reading to add to.
        names: file of the names, where it lies elsewhere.
    """
    classes, settings, file = read_settings(source, names)
    with reading(str(file)):
        count, dims = numbers(settings.get("kpt_shape") or (0, 3), "kpt_shape", 2).astype(int).tolist()
        if count < 0 or dims not in (2, 3):
            raise ValueError(f"kpt_shape must be a number of keypoints and 2 or 3; got {[count, dims]}")
        point_names = dict(settings.get("kpt_names") or {})
    splits = _listed(source, settings, result)
    used: set[Path] = set()
    boxes: list[np.ndarray] = []
    polygons: list[np.ndarray] = []
    for path in result.files.paths:
        labels = _labels_of(path)
        name = str(path.relative_to(result.files.root))
        image = result.image(name, str(labels), upright_size(path), splits.get(path), result.files.root)
        image.looked_at = labels.is_file()
        used.add(labels)
        with reading(str(labels)):
            text = labels.read_text(encoding="utf-8-sig") if image.looked_at else ""
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            with reading(f"{labels}, line {number}"):
                label, *rest = numbers(line.split(), "a line")
                if label != int(label) or not 0 <= label < len(classes):
                    raise ValueError(f"there is no class {label:g}: {file.name} has {len(classes)} names, from 0")
                points = point_names.get(int(label)) if count else None
                points = points or [f"{classes[int(label)]} {i}" for i in range(1, count + 1)]
                if count and len(rest) != 4 + count * dims:
                    raise ValueError(f"expected {5 + count * dims} numbers, as kpt_shape is {[count, dims]}")
                if len(rest) < 4:
                    raise ValueError(f"expected a class and 4 numbers; got {len(rest)}")
                _add(image, np.array(rest), classes[int(label)], points, dims, result)
                if len(rest) > 4 and not points:
                    polygons.append(np.array(rest))
                else:
                    boxes.append(np.array(rest[:4]))
    _check_meaning(boxes, polygons)
    stray = [path for path in sorted(source.rglob("*.txt")) if path not in used and _is_labels(path)]
    if stray:
        shown = stray[0].relative_to(source)
        result.counts[f"label files of no image, the first being {shown}"] = len(stray)


__all__ = ["read", "read_settings"]

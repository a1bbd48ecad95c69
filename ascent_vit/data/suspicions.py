# SPDX-License-Identifier: Apache-2.0
"""Suspicions about valid rows: what their annotations mean may not be what the schema says."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np


# Ways to write a box, the names of whose four numbers begin with these letters; c is for the centre.
BOX_FORMATS = ("xyxy", "cxcywh", "xywh")

# Keys that say that a box is a crowd, in which single things are not told apart.
CROWD_KEYS = ("iscrowd", "is_crowd", "crowd")

SPLIT_FOLDERS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}

# Signs that part several names in one text.
SEPARATORS = re.compile(r"\s*[;|,]\s*")

MOST_NAMED = 5

# Numbers of which there are no more may stand for classes.
MOST_CODES = 20


def as_corners(boxes: np.ndarray, box_format: str) -> np.ndarray:
    """Corners `(n, 4)`, left, top, right and bottom, of boxes in a format."""
    first, second = boxes[:, :2], boxes[:, 2:]
    if box_format == "cxcywh":
        return np.concatenate([first - second / 2, first + second / 2], axis=1)
    return boxes if box_format == "xyxy" else np.concatenate([first, first + second], axis=1)


def share_inside(boxes: np.ndarray, sizes: np.ndarray, box_format: str) -> float:
    """Share of boxes `(n, 4)` that, read in a format, have an area and lie in images `(n, 2)`, width and height."""
    corners, tolerance = as_corners(boxes, box_format), 0.01 * sizes
    inside = (corners[:, :2] >= -tolerance) & (corners[:, 2:] <= sizes + tolerance) & (corners[:, 2:] > corners[:, :2])
    return float(inside.all(axis=1).mean())


def _unit_of(coordinates: np.ndarray, sizes: np.ndarray, leaving: float) -> str:
    """
    Unit that coordinates seem to have: unit for shares of the image's sides, percent, or pixels.

    Args:
        coordinates: numbers of points or boxes, `(n, 2)` or `(n, 4)`.
        sizes: width and height of the image of each, `(n, 2)`.
        leaving: share of those that no way to read them as pixels leaves in their image.
    """
    if coordinates.max(initial=0) <= 1.01 and coordinates.any():
        return "unit"
    # In large images small numbers tell; in small ones pixels that are not there.
    large = len(coordinates) >= 4 and np.median(sizes.max(axis=1)) >= 200
    return (
        "percent" if (large or leaving >= 0.2) and coordinates.min() >= 0 and coordinates.max() <= 100.5 else "pixels"
    )


def box_suspicion(boxes: np.ndarray, sizes: np.ndarray) -> str | None:
    """
    Says in one sentence that boxes do not seem to be x, y, width, height in pixels, and which option would cure it.

    Args:
        boxes: all boxes of a dataset as they are stored, `(n, 4)`.
        sizes: width and height of the image of each, `(n, 2)`.
    """
    if not len(boxes):
        return None
    unit = _unit_of(boxes, sizes, 1 - max(share_inside(boxes, sizes, name) for name in BOX_FORMATS))
    scale = np.full_like(sizes, 1.0 if unit == "unit" else 100.0)
    formats = [name for name in BOX_FORMATS if share_inside(boxes, scale, name) >= 0.98]
    if unit == "unit" or (unit == "percent" and formats):
        options = " or ".join(f'box_format="{name} {unit}"' for name in formats or BOX_FORMATS)
        return f"All {len(boxes)} boxes have numbers up to {boxes.max():.4g}: are they shares of the image? {options}"
    corners = as_corners(boxes, "xywh")
    leaving = float((corners[:, 2:] > sizes + 0.01 * sizes + 1).any(axis=1).mean())
    formats = [name for name in ("xyxy", "cxcywh") if share_inside(boxes, sizes, name) >= 0.95]
    if leaving >= 0.2 or (leaving >= 0.02 and len(boxes) >= 20 and "xyxy" in formats):
        question = (
            "are they corners? box_format=xyxy"
            if "xyxy" in formats
            else "are they x, y, width, height? box_format says what they are"
        )
        if formats == ["cxcywh"]:
            question = "do they give the centre? box_format=cxcywh"
        return f"{leaving:.0%} of {len(boxes)} boxes leave the image: {question}"
    return None


def point_suspicions(points: np.ndarray, sizes: np.ndarray, keys: Collection[str]) -> list[str]:
    """Says that points seem to be shares of the image, or not labelled and so at (0, 0); `keys` are theirs."""
    found = []
    leaving = float((points > sizes).any(axis=1).mean()) if len(points) else 0.0
    if len(points) and (unit := _unit_of(points, sizes, leaving)) != "pixels":
        found.append(
            f"All {len(points)} points have numbers up to {points.max():.4g}: are they shares of the image? "
            f"point_format={unit}"
        )
    zero = int((points == 0).all(axis=1).sum())
    if zero:
        key = next((key for key in keys if key.lower().startswith(("vis", "v"))), "KEY")
        found.append(
            f"{zero} of {len(points)} points ({zero / len(points):.0%}) are at (0, 0), as keypoints that nobody "
            f"labelled: leave them out by visibility={key}, the key of points that is 0 for them"
        )
    return found


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(map(repr, names[:MOST_NAMED])) + more


def flip_suspicion(names: Iterable[str], flip: float, pairs: Iterable[Sequence[str]]) -> str | None:
    """Says that a horizontal flip would leave "left" what is then on the right; `pairs` change places in it."""
    kept = set(names) - {name for pair in pairs for name in pair}
    found = sorted(
        (name, other)
        for name in kept
        if re.search(r"(?<![a-z])left(?![a-z])", name.lower())
        and (other := re.sub("left", "right", re.sub("Left", "Right", name))) in kept - {name}
    )
    if not flip or not found:
        return None
    shown = ", ".join(f"[{left}, {right}]" for left, right in found[:MOST_NAMED])
    return (
        f"A horizontal flip leaves {len(found)} pairs of left and right as they are: augmentation.flip_pairs=[{shown}]"
    )


class Tally:
    """
    Counts over the rows of a dataset, from which suspicions come.

    Args:
        labels: names of the classes.
        streams: names of the global and of the spatial concepts, by stream.
    """

    def __init__(self, labels: list[str], streams: Mapping[str, list[str]]):
        self.labels, self.streams = labels, streams
        self.rows: Counter[str] = Counter()
        self.classes = {"train": np.zeros(len(labels), dtype=int)}
        self.shown = {stream: np.zeros(len(names), dtype=int) for stream, names in streams.items()}
        self.known = {stream: np.zeros(len(names), dtype=int) for stream, names in streams.items()}
        self.boxes: list[np.ndarray] = []
        self.points: list[np.ndarray] = []
        self.box_sizes: list[tuple[int, int]] = []
        self.point_sizes: list[tuple[int, int]] = []
        self.point_keys: set[str] = set()
        self.crowds = self.masks = self.marking_masks = self.ignoring_masks = 0
        self.deep: Counter[str] = Counter()
        self.lowest, self.highest = np.inf, -np.inf
        self.values: set[float] = set()

    def add_places(self, row: Mapping[str, Any], size: tuple[int, int]) -> None:
        """Adds the coordinates of a row as they are, valid or not; `size` is height and width of its image."""
        for column, key, length, kept, sizes in (
            ("objects", "bbox", 4, self.boxes, self.box_sizes),
            ("points", "xy", 2, self.points, self.point_sizes),
        ):
            value = row.get(column)
            if isinstance(value, list):
                value = {name: [item.get(name) for item in value] for name in (value[0] if value else ())}
            for coordinates in (value or {}).get(key) or ():
                array = np.asarray(coordinates, dtype=object)
                if array.shape == (length,) and all(isinstance(item, int | float) for item in array):
                    kept.append(array.astype(np.float64))
                    sizes.append(size[::-1])
            if value and column == "points":
                self.point_keys |= set(value) - {"xy", "category"}
            if value and column == "objects":
                self.crowds += sum(bool(flag) for name in CROWD_KEYS for flag in value.get(name) or ())

    def add_mask(self, values: Iterable[int]) -> None:
        """Adds the values that are in a mask."""
        found = set(values)
        self.masks += 1
        self.marking_masks += bool(found - {0, 255})
        self.ignoring_masks += 255 in found and not found - {0, 255}

    def add_deep(self, mode: str, low: float | None = None, high: float | None = None) -> None:
        """Adds an image of more than eight bits by its mode, and its range once that is known."""
        if low is None or high is None:
            self.deep[mode] += 1
        else:
            self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)

    def add_values(self, label: float | list[float]) -> None:
        """Adds the values of a row that are to be predicted."""
        if len(self.values) <= MOST_CODES:
            self.values |= set(label if isinstance(label, list) else [label])

    def add_row(self, split: str, classes: list[int], stream: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Adds a valid row: its classes, and which concepts it shows and of which it is known, by stream."""
        self.rows[split] += 1
        if split == "train":
            self.classes["train"][classes] += 1
            for name, (shown, known) in stream.items():
                self.shown[name] += shown
                self.known[name] += known

    def errors(self) -> list[str]:
        """Says what cannot be meant."""
        found = []
        if self.labels and {name.lower() for name in self.labels} <= SPLIT_FOLDERS:
            found.append(
                f"The classes are {_named(self.labels)}, which are names of splits: put the images of each split into "
                "a folder for each class, or give the class in a column label"
            )
        if self.ignoring_masks and not self.marking_masks and not self.boxes and not self.points:
            found.append(
                f"{self.ignoring_masks} of {self.masks} masks hold 0 and 255 alone, and 255 is ignored: if it is a "
                "concept, give mask_values={255: NAME}"
            )
        return found

    def _about_train(self) -> Iterable[str]:
        number = self.rows["train"]
        if not number:
            return
        empty = [name for name, count in zip(self.labels, self.classes["train"], strict=True) if not count]
        if empty:
            yield f"{len(empty)} of {len(self.labels)} classes have no row in train: {_named(empty)}"
        for stream, names in self.streams.items():
            shown, known = self.shown[stream], self.known[stream]
            if len(names) and not known.any():
                yield f"No row of train says anything of the {len(names)} {stream} concepts: they cannot be learned"
                continue
            never = [name for name, count in zip(names, shown, strict=True) if not count]
            if never:
                yield (
                    f"{len(never)} of {len(names)} {stream} concepts have no row in train, and cannot be learned: "
                    f"{_named(never)}. Leave them out"
                    + (", or name the numbers by category_names" if all(map(str.isdigit, names)) else "")
                )
            always = [
                name
                for name, count, of in zip(names, shown, known, strict=True)
                if stream == "global" and count == of > 1
            ]
            if always:
                yield f"{len(always)} global concepts are in every row of train, and tell nothing: {_named(always)}"
            joined = [name for name in names if ";" in name or "|" in name]
            if joined:
                yield (
                    f"{len(joined)} names of {stream} concepts are several in one text, such as {joined[0]!r}: part "
                    'them by separator=";"'
                )

    def warnings(self, window: Sequence[float] | None = None) -> list[str]:
        """Says in sentences with numbers what may not be meant, and which option cures it."""
        sizes = [np.array(found, dtype=np.float64).reshape(-1, 2) for found in (self.box_sizes, self.point_sizes)]
        boxes = np.array(self.boxes).reshape(-1, 4)
        box = box_suspicion(boxes, sizes[0])
        found = [box] if box else []
        found += point_suspicions(np.array(self.points).reshape(-1, 2), sizes[1], sorted(self.point_keys))
        if self.crowds:
            found.append(
                f"{self.crowds} of {len(boxes)} boxes are crowds, in which things are not told apart: crowds=drop "
                "leaves them out"
            )
        if self.ignoring_masks and (self.marking_masks or len(boxes) or self.points):
            found.append(
                f"{self.ignoring_masks} of {self.masks} masks hold 0 and 255 alone, and 255 is ignored: if it is a "
                "concept, give mask_values={255: NAME}"
            )
        if self.deep and window is None:
            modes = ", ".join(sorted(self.deep))
            span = f", with values from {self.lowest:g} to {self.highest:g}" if np.isfinite(self.lowest) else ""
            found.append(
                f"{sum(self.deep.values())} images have more than 8 bits ({modes}){span}: each is scaled from the "
                "smallest range of 8, 12 or 16 bits that holds it; window=[low, high] gives one for all"
            )
        if self.values and len(self.values) <= MOST_CODES and all(value.is_integer() for value in self.values):
            found.append(
                f"The labels are {len(self.values)} different whole numbers from {min(self.values):g} to "
                f"{max(self.values):g}, written as fractions, which are values to predict: if they are classes, give "
                "them as whole numbers or names"
            )
        return [*found, *self._about_train()]


__all__ = [
    "BOX_FORMATS",
    "CROWD_KEYS",
    "SEPARATORS",
    "Tally",
    "as_corners",
    "box_suspicion",
    "flip_suspicion",
    "point_suspicions",
]

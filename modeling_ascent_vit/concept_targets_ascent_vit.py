# Copyright 2026 The ASCENT-ViT project. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Concept targets on the patch grid of a vision transformer, and the geometry between an image and its patches."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


MASK_IGNORE = 255

GLOBAL_KEYS = ("concepts", "unknown_concepts")
SPATIAL_KEYS = ("objects", "points", "mask")
PRESENCE_KEYS = ("present", "unknown_present")
ANNOTATION_KEYS = GLOBAL_KEYS + SPATIAL_KEYS + PRESENCE_KEYS

# Most concepts of a stream, and most classes: beyond, lists of names and tensors fill the memory.
LARGEST_COUNT = 1_000_000

# Relative. Absorbs the rounding of coordinates stored as float32, so that a coverage of exactly the share counts.
COVERAGE_TOLERANCE = 1e-6


def pair(size: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    """Height and width, given as two numbers or as one for both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@dataclass(frozen=True)
class PatchAxis:
    """
    One axis of an image on its way to the patches: resized, center-cropped, padded at the end, cut into patches.

    Positions are pixels of the original image, pixel `i` spanning `[i, i + 1)`. They are held in units of
    `1 / original` processed pixels, in which pixel edges, crop and patch edges are all integers: with integer or
    float32 positions every comparison is exact.

    Args:
        original (`int`): Pixels of the original image.
        resized (`int`): Pixels after the resize.
        crop_start (`int`): First resized pixel inside the crop; negative where the crop is larger than the image.
        cropped (`int`): Pixels after the crop.
        processed (`int`): Pixels after padding: what the model gets.
        patch (`int`): Pixels of a patch.

    Raises:
        ValueError: where not even one patch fits.
    """

    original: int
    resized: int
    crop_start: int
    cropped: int
    processed: int
    patch: int

    def __post_init__(self):
        if self.processed < self.patch:
            raise ValueError(
                f"An image processed to {self.processed} pixels has no patch of {self.patch} pixels: "
                "choose a larger size or a smaller patch_size."
            )

    @classmethod
    def identity(cls, length: int, patch: int) -> "PatchAxis":
        """The axis of an image that is not resized, cropped or padded."""
        return cls(length, length, 0, length, length, patch)

    @property
    def num_patches(self) -> int:
        """Whole patches; a rim smaller than a patch belongs to none."""
        return self.processed // self.patch

    @property
    def patch_length(self) -> int:
        """Length of a patch in units of `1 / original` processed pixels."""
        return self.patch * self.original

    def _scale(self, position: np.ndarray | float) -> np.ndarray:
        return np.asarray(position, dtype=np.float64) * self.resized - self.crop_start * self.original

    def patch_of(self, position: float) -> int | None:
        """Index of the patch that contains a position, or None where the model does not see it."""
        scaled = float(self._scale(position))
        if not 0 <= scaled < self.cropped * self.original:
            return None
        index = int(scaled // self.patch_length)
        return index if index < self.num_patches else None

    def overlaps(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """
        Share of every patch that lies in each of the intervals `[start, stop)`.

        Args:
            start, stop (`np.ndarray` of shape `(n,)`): Positions in pixels of the original image.

        Returns:
            `np.ndarray` of shape `(n, num_patches)`, float64: lengths in units of `1 / original` processed pixels, to
            be divided by `patch_length` once they are multiplied or summed, so that they stay exact.
        """
        limit = self.cropped * self.original
        edges = np.arange(self.num_patches + 1, dtype=np.float64) * self.patch_length
        start, stop = np.clip(self._scale(start), 0, limit), np.clip(self._scale(stop), 0, limit)
        low = np.maximum(start[:, None], edges[:-1])
        high = np.minimum(stop[:, None], edges[1:])
        return np.maximum(high - low, 0)

    def interpolation(self, num_patches: int) -> np.ndarray:
        """
        Linear interpolation between patch centres at the centre of every original pixel.

        Beyond the first and the last centre the value of that patch is repeated, in the rim too. Pixels whose centre
        lies outside the crop get 0.

        Args:
            num_patches (`int`): Patches along the axis.

        Returns:
            `np.ndarray` of shape `(original, num_patches)`, float64: rows sum to 1, or to 0 outside the crop.
        """
        scaled = self._scale(np.arange(self.original) + 0.5)
        place = np.clip(scaled / self.patch_length - 0.5, 0, num_patches - 1)
        lower = np.floor(place).astype(np.int64)
        upper = np.minimum(lower + 1, num_patches - 1)
        weights = np.zeros((self.original, num_patches))
        rows = np.arange(self.original)
        weights[rows, lower] = 1 - (place - lower)
        weights[rows, upper] += place - lower
        weights[(scaled < 0) | (scaled >= self.cropped * self.original)] = 0
        return weights


def mark_patches(coverage: np.ndarray, share: float) -> np.ndarray:
    """
    Patches that a box or a mask marks: those of which it covers at least `share`; where there is none, the first of
    those it overlaps most; where it overlaps none, none.

    Args:
        coverage (`np.ndarray` of shape `(h, w)`): Covered share of each patch's area.
        share (`float`): Share that suffices.

    Returns:
        `np.ndarray` of shape `(h, w)`, bool.
    """
    marked = coverage >= share * (1 - COVERAGE_TOLERANCE)
    largest = coverage.max()
    if not marked.any() and largest > 0:
        first = np.flatnonzero(coverage >= largest * (1 - COVERAGE_TOLERANCE))[0]
        marked[np.unravel_index(first, coverage.shape)] = True
    return marked


def read_ids(values: Any, num_concepts: int, where: str) -> np.ndarray:
    """Concept ids as `(n,)` int64, checked against the number of concepts."""
    try:
        ids = np.asarray(values)
    except ValueError:
        ids = np.asarray(None)
    if ids.shape == (0,):
        return np.zeros(0, dtype=np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"{where} must be a list of concept ids (integers); got {reprlib.repr(values)}.")
    outside = ids[(ids < 0) | (ids >= num_concepts)]
    if outside.size:
        raise ValueError(
            f"{where} must hold ids from 0 to {num_concepts - 1}, as there are {num_concepts} concepts; "
            f"got {outside[0]}."
        )
    return ids.astype(np.int64)


def read_coordinates(values: Any, names: str, where: str) -> np.ndarray:
    """Coordinates as `(n, len(names))` float64, finite."""
    try:
        coordinates = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        coordinates = np.zeros(())
    length = len(names.split(", "))
    if coordinates.shape == (0,):
        return np.zeros((0, length))
    if coordinates.ndim != 2 or coordinates.shape[1] != length:
        raise ValueError(f"{where} must be a list of [{names}]; got {reprlib.repr(values)}.")
    finite = np.isfinite(coordinates).all(axis=1)
    if not finite.all():
        raise ValueError(f"{where} must be finite numbers; got {coordinates[~finite][0].tolist()}.")
    return coordinates


def read_placed(
    value: Any, key: str, names: str, num_concepts: int, where: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """
    Coordinates and ids of `objects` or `points`, given as a dict of lists or as a list of dicts.

    Returns:
        `(n, len(names))` float64 and `(n,)` int64, or None where the annotation is null.
    """
    if isinstance(value, Mapping):
        columns = {name: value.get(name) for name in (key, "category")}
    elif isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value):
        columns = {
            name: [item[name] for item in value] if all(name in item for item in value) else None
            for name in (key, "category")
        }
    else:
        raise ValueError(
            f'{where} must be {{"{key}": [...], "category": [...]}} or a list of {{"{key}": ..., "category": ...}}; '
            f"got {reprlib.repr(value)}."
        )
    missing = [name for name, column in columns.items() if column is None]
    if len(missing) == 2 and isinstance(value, Mapping) and all(column is None for column in value.values()):
        return None
    if missing:
        raise ValueError(f'{where} must have "{key}" and "category"; got no {" and no ".join(missing)}.')
    coordinates = read_coordinates(columns[key], names, f"{where}.{key}")
    ids = read_ids(columns["category"], num_concepts, f"{where}.category")
    if len(coordinates) != len(ids):
        raise ValueError(
            f"{where} must have one category for each {key}; got {len(coordinates)} {key} and {len(ids)} category."
        )
    return coordinates, ids


def read_mask(mask: Any, size: tuple[int, int], num_concepts: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The mask as an array of the image's `(height, width)`, and the ids of the concepts in it."""
    array = np.asarray(mask)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{where} must be a single-channel image or a (height, width) array of integers; "
            f"got shape {array.shape} of {array.dtype}."
        )
    if array.shape != size:
        raise ValueError(
            f"{where} must have the stored image's size, height {size[0]} and width {size[1]}; "
            f"got height {array.shape[0]} and width {array.shape[1]}."
        )
    values = np.unique(array).astype(np.int64)
    values = values[(values != 0) & (values != MASK_IGNORE)]
    outside = values[(values < 0) | (values > num_concepts)]
    if outside.size:
        raise ValueError(
            f"{where} must hold 0, {MASK_IGNORE} or values from 1 to {num_concepts}, as there are {num_concepts} "
            f"concepts; got {outside[0]}."
        )
    return array, values - 1


def check_annotations(
    annotations: Any, num_images: int, num_global_concepts: int, num_spatial_concepts: int
) -> list[Mapping | None]:
    """
    Annotations as one dict or None per image.

    Raises:
        ValueError: for another number of annotations than of images, an unknown key, or an annotation of a kind that
            has no concepts.
    """
    if isinstance(annotations, Mapping):
        annotations = [annotations]
    if not isinstance(annotations, list | tuple):
        raise ValueError(f"annotations must be a dict or a list of dicts; got {type(annotations).__name__}.")
    if len(annotations) != num_images:
        raise ValueError(
            f"annotations must have one dict (or None) for each image: expected {num_images}, got {len(annotations)}."
        )
    if not num_global_concepts and not num_spatial_concepts:
        raise ValueError(
            "annotations need concepts, but num_global_concepts and num_spatial_concepts are both 0: "
            "set them, or build the image processor with from_model_config(config)."
        )
    for i, annotation in enumerate(annotations):
        if annotation is None:
            continue
        if not isinstance(annotation, Mapping):
            raise ValueError(f"annotations[{i}] must be a dict or None; got {type(annotation).__name__}.")
        unknown = [key for key in annotation if key not in ANNOTATION_KEYS]
        if unknown:
            raise ValueError(
                f"annotations[{i}] may have the keys {', '.join(ANNOTATION_KEYS)}; "
                f"got {', '.join(map(repr, unknown))}."
            )
        for kind, keys, number in (
            ("global", GLOBAL_KEYS, num_global_concepts),
            ("spatial", SPATIAL_KEYS + PRESENCE_KEYS, num_spatial_concepts),
        ):
            given = [key for key in keys if annotation.get(key) is not None]
            if given and not number:
                raise ValueError(
                    f"annotations[{i}] has {given[0]}, but num_{kind}_concepts is 0: set it to the number of {kind} "
                    f"concepts, or leave {given[0]} out."
                )
    return list(annotations)


def global_concept_targets(annotation: Mapping | None, num_concepts: int, where: str = "annotation") -> np.ndarray:
    """
    Targets of the global concepts of one image.

    Args:
        annotation (`dict`, *optional*):
            `concepts`, the ids of those present ([] = none, None = unknown), and `unknown_concepts`, the ids of those
            not known, whether listed as present or not.
        num_concepts (`int`): Number G of global concepts.
        where (`str`): Name of the annotation in errors.

    Returns:
        `np.ndarray` of shape `(G,)`, float32: 1 present, 0 absent, NaN not known.

    Raises:
        ValueError: for an id that is no integer from 0 to G - 1.
    """
    annotation = annotation or {}
    targets = np.full(num_concepts, np.nan, dtype=np.float32)
    if annotation.get("concepts") is not None:
        targets[:] = 0
        targets[read_ids(annotation["concepts"], num_concepts, f"{where}.concepts")] = 1
    if annotation.get("unknown_concepts") is not None:
        targets[read_ids(annotation["unknown_concepts"], num_concepts, f"{where}.unknown_concepts")] = np.nan
    return targets


def mark_boxes(marks: np.ndarray, boxes: np.ndarray, ids: np.ndarray, axes, share: float, where: str):
    """Marks in `(S, h, w)` the patches of boxes `(n, 4)` as x, y, width, height, clipped to the image."""
    y_axis, x_axis = axes
    left, top = np.maximum(boxes[:, 0], 0), np.maximum(boxes[:, 1], 0)
    right = np.minimum(boxes[:, 0] + boxes[:, 2], x_axis.original)
    bottom = np.minimum(boxes[:, 1] + boxes[:, 3], y_axis.original)
    empty = (right <= left) | (bottom <= top)
    if empty.any():
        raise ValueError(
            f"{where} must overlap the image, width {x_axis.original} and height {y_axis.original}; "
            f"got [x, y, width, height] = {boxes[empty][0].tolist()}."
        )
    rows, columns = y_axis.overlaps(top, bottom), x_axis.overlaps(left, right)
    area = y_axis.patch_length * x_axis.patch_length
    for row, column, concept in zip(rows, columns, ids, strict=True):
        marks[concept] |= mark_patches(np.outer(row, column) / area, share)


def mark_points(marks: np.ndarray, points: np.ndarray, ids: np.ndarray, axes, where: str):
    """Marks in `(S, h, w)` the patch of each of the points `(n, 2)` as x, y."""
    y_axis, x_axis = axes
    for (x, y), concept in zip(points.tolist(), ids, strict=True):
        if not (0 <= x < x_axis.original and 0 <= y < y_axis.original):
            raise ValueError(
                f"{where} must lie in the image, 0 <= x < {x_axis.original} and 0 <= y < {y_axis.original}; "
                f"got [x, y] = {[x, y]}."
            )
        row, column = y_axis.patch_of(y), x_axis.patch_of(x)
        if row is not None and column is not None:
            marks[concept, row, column] = True


def mark_mask(marks: np.ndarray, mask: np.ndarray, ids: np.ndarray, axes, share: float) -> np.ndarray:
    """
    Marks in `(S, h, w)` the patches of each concept of a mask of the image's size.

    Returns:
        `np.ndarray` of shape `(h, w)`, bool: the patches to ignore.
    """
    y_axis, x_axis = axes
    rows = y_axis.overlaps(np.arange(y_axis.original), np.arange(1, y_axis.original + 1)).T
    columns = x_axis.overlaps(np.arange(x_axis.original), np.arange(1, x_axis.original + 1))
    area = y_axis.patch_length * x_axis.patch_length

    def coverage(value: int) -> np.ndarray:
        selected = mask == value
        # Most concepts cover a small part of the image: the rest adds nothing to the sums.
        inside_y, inside_x = np.flatnonzero(selected.any(axis=1)), np.flatnonzero(selected.any(axis=0))
        if not len(inside_y):
            return np.zeros(marks.shape[1:])
        y, x = slice(inside_y[0], inside_y[-1] + 1), slice(inside_x[0], inside_x[-1] + 1)
        return rows[:, y] @ selected[y, x].astype(np.float64) @ columns[x] / area

    for concept in ids:
        marks[concept] |= mark_patches(coverage(concept + 1), share)
    return coverage(MASK_IGNORE) >= share * (1 - COVERAGE_TOLERANCE)


def spatial_concept_targets(
    annotation: Mapping | None,
    axes: tuple[PatchAxis, PatchAxis],
    num_concepts: int,
    annotation_coverage: float = 0.5,
    unannotated: str = "ignore",
    where: str = "annotation",
) -> np.ndarray:
    """
    Targets of the spatial concepts of one image on the patch grid.

    Patches are half-open. A point marks the patch it lies in. A box marks every patch of which it covers at least
    `annotation_coverage`, and where it reaches that nowhere, the one it overlaps most (the first in row-major order);
    so does each concept of a mask. What lies outside the crop is dropped.

    Args:
        annotation (`dict`, *optional*):
            In pixels of the original image: `objects` (`bbox` as x, y, width, height, and `category`), `points` (`xy`
            and `category`), `mask` (0 = not annotated, i = concept i - 1, 255 = ignore). Boxes are clipped to the
            image.
        axes (`tuple[PatchAxis, PatchAxis]`): Vertical and horizontal geometry, (h, w) patches.
        num_concepts (`int`): Number S of spatial concepts.
        annotation_coverage (`float`, *optional*, defaults to 0.5): Share of a patch's area.
        unannotated (`"ignore"` or `"none"`, *optional*, defaults to `"ignore"`):
            Whether unmarked patches are not annotated or show none of the concepts. An image without any of the three
            keys, or with None in all of them, is not annotated in either case.
        where (`str`): Name of the annotation in errors.

    Returns:
        `np.ndarray` of shape `(h * w, S)`, float32, row-major: 1 marked, 0 not, rows of NaN where not annotated. A
        patch that nothing marks and that is ignored in at least `annotation_coverage` of its area is NaN too.

    Raises:
        ValueError: for a box without overlap with the image, a point outside it, a coordinate that is not finite, a
            mask of another size, or an id that is no integer from 0 to S - 1.
    """
    annotation = annotation or {}
    y_axis, x_axis = axes
    marks = np.zeros((num_concepts, y_axis.num_patches, x_axis.num_patches), dtype=bool)
    not_annotated = np.zeros(marks.shape[1:], dtype=bool)
    known = False
    for key, coordinates_key, names in (("objects", "bbox", "x, y, width, height"), ("points", "xy", "x, y")):
        if annotation.get(key) is None:
            continue
        placed = read_placed(annotation[key], coordinates_key, names, num_concepts, f"{where}.{key}")
        if placed is None:
            continue
        known = True
        if key == "objects":
            mark_boxes(marks, *placed, axes, annotation_coverage, f"{where}.objects.bbox")
        else:
            mark_points(marks, *placed, axes, f"{where}.points.xy")
    if annotation.get("mask") is not None:
        known = True
        size = (y_axis.original, x_axis.original)
        mask, ids = read_mask(annotation["mask"], size, num_concepts, f"{where}.mask")
        not_annotated = mark_mask(marks, mask, ids, axes, annotation_coverage)
    if unannotated == "ignore" or not known:
        not_annotated[:] = True
    targets = marks.astype(np.float32)
    targets[:, not_annotated & ~marks.any(axis=0)] = np.nan
    return np.ascontiguousarray(targets.reshape(num_concepts, -1).T)


def spatial_concept_presence(
    annotation: Mapping | None, targets: np.ndarray, axes: tuple[PatchAxis, PatchAxis], where: str = "annotation"
) -> np.ndarray:
    """
    Whether each spatial concept is somewhere in one image, at whatever place.

    A crop may have cut a listed concept away: where it is smaller than the image, a listed concept counts as present
    only if a patch inside the crop is marked with it, and is not known otherwise. Concepts that are absent from the
    image are absent from each part of it.

    Args:
        annotation (`dict`, *optional*):
            `present`, the ids of all concepts that are in the image ([] = none, None = unknown), and `unknown_present`,
            the ids of those not known, whether listed as present or not. Places tell nothing of what else is there: an
            image without `present` is unknown.
        targets (`np.ndarray` of shape `(N, S)`): The image's [`spatial_concept_targets`].
        axes (`tuple[PatchAxis, PatchAxis]`): Vertical and horizontal geometry, as for the targets.
        where (`str`): Name of the annotation in errors.

    Returns:
        `np.ndarray` of shape `(S,)`, float32: 1 somewhere in the image, 0 nowhere, NaN not known.

    Raises:
        ValueError: for an id that is no integer from 0 to S - 1, or a mark of a concept that the list leaves out.
    """
    annotation = annotation or {}
    listed, unknown = (
        read_ids([] if annotation.get(key) is None else annotation[key], targets.shape[1], f"{where}.{key}")
        for key in PRESENCE_KEYS
    )
    presence = np.full(targets.shape[1], np.nan, dtype=np.float32)
    if annotation.get("present") is None:
        return presence
    presence[:] = 0
    presence[listed] = np.nan if any(axis.cropped < axis.resized for axis in axes) else 1
    presence[unknown] = np.nan
    marked = (targets == 1).any(axis=0)
    contradicting = np.flatnonzero(marked & (presence == 0))
    if contradicting.size:
        raise ValueError(
            f"{where} marks a place of spatial concept {contradicting[0]}, but {where}.present says that it is "
            "nowhere in the image: list it there, or remove the place."
        )
    presence[marked] = 1
    return presence


__all__ = [
    "ANNOTATION_KEYS",
    "LARGEST_COUNT",
    "PatchAxis",
    "check_annotations",
    "global_concept_targets",
    "pair",
    "spatial_concept_presence",
    "spatial_concept_targets",
]

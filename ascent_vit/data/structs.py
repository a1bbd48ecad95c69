# SPDX-License-Identifier: Apache-2.0
"""Boxes and points whose numbers have names, as writers of parquet files store them, made lists of numbers."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .conventions import OTHER_KEYS, Conventions, rewrite_column
from .schema import COORDINATES, innermost


logger = logging.getLogger(__name__)

# Names of a box's numbers in their order, with the format that they are of.
BOX_NAMES: dict[tuple[str, ...], str] = {
    ("x", "y", "width", "height"): "xywh",
    ("x", "y", "w", "h"): "xywh",
    ("left", "top", "width", "height"): "xywh",
    ("xmin", "ymin", "xmax", "ymax"): "xyxy",
    ("x_min", "y_min", "x_max", "y_max"): "xyxy",
    ("x1", "y1", "x2", "y2"): "xyxy",
    ("left", "top", "right", "bottom"): "xyxy",
    ("cx", "cy", "width", "height"): "cxcywh",
    ("cx", "cy", "w", "h"): "cxcywh",
    ("x_center", "y_center", "width", "height"): "cxcywh",
}
NAMES: dict[str, dict[tuple[str, ...], str]] = {"objects": BOX_NAMES, "points": {("x", "y"): "xy"}}


def _unpacked(split: Any, column: str) -> tuple[Any, str | None]:
    """A split or stream with lists of numbers in a column, and the format that names told; None without names."""
    from datasets import List, Value

    key = COORDINATES[column][0]
    feature, known = split.features[column], innermost(split.features[column])
    if not isinstance(known, Mapping):
        return split, None
    own = [name for name in (key, *OTHER_KEYS[key]) if name in known]
    inner = innermost(known[own[0]]) if len(own) == 1 else known if not own else None
    if not isinstance(inner, Mapping):
        return split, None
    # Of a column's own keys the others are the category and further facts.
    fits = [names for names in NAMES[column] if set(names) <= set(inner) and (not own or len(inner) == len(names))]
    if len(fits) != 1:
        return split, None
    names = fits[0]
    used = own or list(names)

    def numbers(item: Any) -> Any:
        return None if item is None else [item[name] for name in names]

    def convert(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, list):
            rows = [{name: item[name] for name in item if name not in used} for item in value]
            return [row | {key: numbers(i[own[0]] if own else i)} for row, i in zip(rows, value, strict=True)]
        places = value[own[0]] if own else value
        if isinstance(places, Mapping):
            places = [dict(zip(names, row, strict=True)) for row in zip(*(places[n] for n in names), strict=True)]
        kept = {name: item for name, item in value.items() if name not in used}
        return kept | {key: None if places is None else [numbers(item) for item in places]}

    rest = {name: item for name, item in known.items() if name not in used}
    if hasattr(feature, "feature"):
        made: Any = List({**rest, key: List(Value("float64"))})
    else:
        made = {**rest, key: List(List(Value("float64")))}
    form = NAMES[column][names]
    logger.info("Column %s: %s are read as %s.", column, ", ".join(names), form)
    return rewrite_column(split, column, convert, made), form


def unpack_places(dataset: Any, conventions: Conventions) -> tuple[Any, Conventions]:
    """
    Makes lists of boxes and points whose numbers have names, in all splits or their streams.

    Returns:
        The dataset, and the conventions with the format of the boxes that the names told.

    Raises:
        ValueError: for names that tell of another format than `box_format`, or than those of another split.
    """
    given, unit = conventions.box
    for name, split in dataset.items():
        for column in COORDINATES:
            if column not in split.features:
                continue
            dataset[name], form = _unpacked(split, column)
            split = dataset[name]
            if column == "objects" and form is not None:
                if given not in ("xywh", form):
                    raise ValueError(
                        f"The boxes of {name} have names of {form}, and box_format says {given}: leave it out, or "
                        f"give {form} with the unit."
                    )
                given = form
                conventions = replace(conventions, box_format=f"{form} {unit}")
    return dataset, conventions


__all__ = ["unpack_places"]

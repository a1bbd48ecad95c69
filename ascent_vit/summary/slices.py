# SPDX-License-Identifier: Apache-2.0
"""How good the predictions are for parts of a split: by concepts that are present, by size, by any column."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ascent_vit.utils.bootstrap import bootstrap_interval

from .rows import Rows


MOST_VALUES = 50
QUARTERS = ("smallest quarter", "second quarter", "third quarter", "largest quarter")


def measured(kind: str, value: str, quality: np.ndarray, seed: int) -> dict[str, Any] | None:
    """The mean quality of a part of the images, with its bootstrap interval; None where none is labelled."""
    quality = quality[~np.isnan(quality)].astype(np.float64)
    if not len(quality):
        return None
    low, high = bootstrap_interval(quality, seed=seed) if len(quality) > 1 else (None, None)
    return {
        "by": kind,
        "value": value,
        "images": len(quality),
        "mean": float(quality.mean()),
        "low": low,
        "high": high,
    }


def by_size(sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Marks the images by the quarter of their annotated area."""
    known = ~np.isnan(sizes)
    if not known.any():
        return {}
    edges = np.quantile(sizes[known], [0.25, 0.5, 0.75])
    quarter = np.searchsorted(edges, sizes, side="left")
    spans = [sizes[known & (quarter == i)] for i in range(4)]
    return {
        f"{name} ({span.min():.1%} to {span.max():.1%} of the patches)": known & (quarter == i)
        for i, (name, span) in enumerate(zip(QUARTERS, spans, strict=True))
        if len(span)
    }


def by_column(values: Sequence[Any]) -> dict[str, np.ndarray]:
    """Marks the images by their value in a column; those of the 50 most frequent values, and the others together."""
    texts = np.array([str(value) for value in values], dtype=object)
    common = [text for text, _ in Counter(texts.tolist()).most_common(MOST_VALUES)]
    marks = {text: texts == text for text in common}
    rest = ~np.isin(texts.astype(str), np.array(common, dtype=str))
    return marks | ({f"any of {len(set(texts[rest]))} other values": rest} if rest.any() else {})


def slice_findings(
    rows: Rows, concepts: Sequence[str], columns: Mapping[str, Sequence[Any]], seed: int
) -> list[dict[str, Any]]:
    """
    Accuracy, or what stands for it, of all images and of parts of them, each with its interval and number of images.

    Args:
        rows: table of the images.
        concepts: names of all concepts.
        columns: values of the images in further columns.
        seed: random seed of the intervals.
    """
    quality, presence = rows.column("quality"), rows.column("presence")
    found = [measured("all", "all images", quality, seed)]
    for name, known in zip(concepts, presence.T, strict=True):
        if (known == 1).any():
            found.append(measured("concept", name, quality[known == 1], seed))
    for name, marks in by_size(rows.column("object_size")).items():
        found.append(measured("size", name, quality[marks], seed))
    for column, values in columns.items():
        for name, marks in by_column(values).items():
            found.append(measured(column, name, quality[marks], seed))
    return [item for item in found if item is not None]


__all__ = ["slice_findings"]

# SPDX-License-Identifier: Apache-2.0
"""A review sheet: pictures with a detector's boxes, from the lowest kept score of each concept to the highest."""

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .concepts import DetectedConcept


if TYPE_CHECKING:
    from datasets import DatasetDict
    from matplotlib.figure import Figure

# Number of pictures of a review sheet: at least and, with many concepts, at most.
REVIEW_PICTURES = (24, 96)
REVIEW_COLUMNS = 6
BOX_COLOR, CHOSEN_COLOR = "#fdb863", "#e66101"


def choose_review(dataset: "DatasetDict", num_concepts: int) -> list[tuple[str, int, int]]:
    """
    Chooses boxes for a review sheet: of each concept the lowest kept score first, then evenly up to the highest.

    Returns:
        Split, row and place in the row's objects, concept by concept.
    """
    found: dict[int, list[tuple[float, str, int, int]]] = {}
    for name, split in dataset.items():
        for row, objects in enumerate(split.select_columns(["objects"])["objects"]):
            for place, (category, score) in enumerate(zip(objects["category"], objects["score"], strict=True)):
                found.setdefault(category, []).append((score, name, row, place))
    least, most = REVIEW_PICTURES
    shown = [found[category] for category in range(num_concepts) if category in found]
    if len(shown) > most:
        shown = [shown[i] for i in np.linspace(0, len(shown) - 1, most).astype(int)]
    chosen: list[tuple[str, int, int]] = []
    for candidates in shown:
        candidates.sort()
        ranks = np.linspace(0, len(candidates) - 1, max(1, least // len(shown))).round().astype(int)
        chosen += [candidates[rank][1:] for rank in sorted(set(ranks.tolist()))]
    return chosen


def draw_review(dataset: "DatasetDict", concepts: Sequence[DetectedConcept]) -> "Figure":
    """Draws a sheet of pictures: the box that a picture shows is thick, named above it with its score; others thin."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    chosen = choose_review(dataset, len(concepts))
    columns = min(REVIEW_COLUMNS, max(len(chosen), 1))
    rows = max(1, math.ceil(len(chosen) / columns))
    figure = Figure(figsize=(max(2.2 * columns, 6), 2.4 * rows + 0.4), layout="constrained")
    figure.suptitle("Boxes of a detector, unchecked" if chosen else "No box above its threshold", fontsize=10)
    for i, (split, row, place) in enumerate(chosen):
        ax = figure.add_subplot(rows, columns, i + 1)
        example = dataset[split][row]
        objects = example["objects"]
        ax.imshow(example["image"].convert("RGB"))
        for j in sorted(range(len(objects["bbox"])), key=lambda j: j == place):
            x, y, width, height = objects["bbox"][j]
            # The white rim shows the chosen box on any ground.
            edges = [("white", 3.2), (CHOSEN_COLOR, 1.8)] if j == place else [(BOX_COLOR, 0.6)]
            # Pixel centres have whole coordinates in the figure, pixel edges in the box.
            corner = (x - 0.5, y - 0.5)
            for color, line in edges:
                box = Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=line, clip_on=False)
                ax.add_patch(box)
        name = textwrap.shorten(concepts[objects["category"][place]].name, 26, placeholder=" ...")
        others = len(objects["bbox"]) - 1
        title = f"{name} {objects['score'][place]:.3f}\n{split}[{row}], other boxes: {others}"
        ax.set_title(title, fontsize=8, parse_math=False)
        ax.set_axis_off()
    return figure


__all__ = ["choose_review", "draw_review"]

# SPDX-License-Identifier: Apache-2.0
"""Figures of explanations: image, signed contributions, and where the concepts were seen."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

    from .explanation import ConceptContribution, Explanation


# Both colour maps can be read with any kind of colour vision: cividis is sequential, orange to purple is diverging
# (ColorBrewer). Positive is purple.
ATTENTION_COLORS = "cividis"
CONTRIBUTION_COLORS = "PuOr"
POSITIVE, NEGATIVE = "#5e3c99", "#e66101"

MAPS = 3
MAP_OPACITY = 0.75
ROW_SIZE = (12.0, 3.4)  # inches


def plot_explanation(explanation: "Explanation", top: int = 5, truth: str | None = None) -> "Figure":
    """Draws one explanation, see [`Explanation.plot`]."""
    return plot_rows([explanation], top, None if truth is None else [truth])


def plot_grid(
    explanations: Sequence["Explanation"],
    path: str | os.PathLike,
    truths: Sequence[str] | None = None,
    top: int = 5,
    dpi: int = 110,
) -> None:
    """
    Writes one PNG with a row per explanation: image, top concepts with their contributions, maps on a common scale.

    Args:
        explanations (`Sequence[Explanation]`): What to draw, one or more.
        path (`str` or `os.PathLike`): File to write, whole or not at all.
        truths (`Sequence[str]`, *optional*): Names of the right classes.
        top (`int`, *optional*, defaults to 5): Concepts to show, those of the largest contribution of either sign.
        dpi (`int`, *optional*, defaults to 110): Pixels per inch; a row is 12 inches wide.

    Raises:
        ValueError: for no explanations, another number of truths, or `top` below 1.
    """
    path = Path(path)
    buffer = io.BytesIO()
    plot_rows(explanations, top, truths).savefig(buffer, format="png", dpi=dpi)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(buffer.getvalue())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def plot_rows(explanations: Sequence["Explanation"], top: int, truths: Sequence[str] | None) -> "Figure":
    """A figure with one row per explanation, maps on a common scale."""
    from matplotlib.figure import Figure

    if not explanations:
        raise ValueError("There is nothing to draw: give at least one explanation.")
    if truths is not None and len(truths) != len(explanations):
        raise ValueError(f"truths must name one class per explanation, {len(explanations)}; got {len(truths)}.")
    if top < 1:
        raise ValueError(f"top must be 1 or more concepts; got {top}.")
    mapped = [explanation.top(MAPS, stream="spatial") for explanation in explanations]
    attention_limit = largest([e.patch_attention for e in explanations], mapped)
    contribution_limit = largest([e.patch_contributions for e in explanations], mapped)

    width, height = ROW_SIZE
    figure = Figure(figsize=(width, height * len(explanations)), layout="constrained")
    rows = figure.subfigures(len(explanations), 1, squeeze=False)[:, 0]
    for i, (row, explanation) in enumerate(zip(rows, explanations, strict=True)):
        draw_row(row, explanation, top, mapped[i], truths[i] if truths else None, attention_limit, contribution_limit)
    return figure


def largest(patch_maps: list[np.ndarray], concepts: list[list["ConceptContribution"]]) -> float:
    """Largest size of a value in the maps that are shown; above 0, so that it can be the end of a scale."""
    shown = [np.abs(maps[c.index]).max() for maps, row in zip(patch_maps, concepts, strict=True) for c in row]
    return max([*shown, 1e-12])


def draw_row(
    figure: "SubFigure",
    explanation: "Explanation",
    top: int,
    mapped: list["ConceptContribution"],
    truth: str | None,
    attention_limit: float,
    contribution_limit: float,
):
    columns = len(mapped)
    grid = figure.add_gridspec(2, 2 + columns, width_ratios=[1.5, 1.9] + [1] * columns)
    draw_image(figure.add_subplot(grid[:, 0]), explanation, truth)
    draw_bars(figure.add_subplot(grid[:, 1]), explanation, top)
    if not mapped:
        return
    attention, contributions = explanation.patch_attention, explanation.patch_contributions
    scales = (
        ("attention", attention, ATTENTION_COLORS, 0, attention_limit),
        ("contribution", contributions, CONTRIBUTION_COLORS, -contribution_limit, contribution_limit),
    )
    for i, (name, patch_maps, colors, low, high) in enumerate(scales):
        axes = [figure.add_subplot(grid[i, 2 + j]) for j in range(columns)]
        maps = explanation.resize(patch_maps[[concept.index for concept in mapped]])
        for ax, concept, concept_map in zip(axes, mapped, maps, strict=True):
            # Middle greys only, from a third to two thirds: the image shows without hiding the scale of the map.
            ax.imshow(explanation.image.convert("L"), cmap="gray", vmin=-255, vmax=510)
            drawn = ax.imshow(concept_map, cmap=colors, vmin=low, vmax=high, alpha=MAP_OPACITY)
            ax.set_axis_off()
            if i == 0:
                ax.set_title(shorten(concept.name, 22), fontsize=9, parse_math=False)
        bar = figure.colorbar(drawn, ax=axes, shrink=0.9)
        bar.set_label(name, fontsize=8)
        bar.ax.tick_params(labelsize=7)


def draw_image(ax, explanation: "Explanation", truth: str | None):
    lines = [f"predicted: {shorten(explanation.predicted_label, 30)}, {explanation.predicted_score:.1%}"]
    if explanation.label != explanation.predicted_label:
        lines.append(f"explained: {shorten(explanation.label, 30)}, {explanation.score:.1%}")
    if truth is not None:
        lines.append(f"truth: {shorten(truth, 30)}")
    ax.imshow(explanation.image)
    ax.set_axis_off()
    ax.set_title("\n".join(lines), fontsize=10, parse_math=False)


def draw_bars(ax, explanation: "Explanation", top: int):
    concepts = explanation.top(top)
    values = [concept.contribution for concept in concepts]
    bars = ax.barh(range(len(concepts)), values, color=[POSITIVE if value >= 0 else NEGATIVE for value in values])
    ax.bar_label(bars, [f"{value:+.3g}" for value in values], padding=3, fontsize=8)
    names = [f"{shorten(concept.name, 28)} ({concept.stream})" for concept in concepts]
    ax.set_yticks(range(len(concepts)), names, fontsize=8, parse_math=False)
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=0.8)
    # Room for the numbers on both sides, also where all bars begin at 0.
    ax.use_sticky_edges = False
    ax.margins(x=0.3)
    ax.tick_params(axis="x", labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    rest = sum(concept.contribution for concept in explanation.concepts) - sum(values)
    logit = explanation.logits[explanation.label_id]
    ax.set_title(f'contributions to "{shorten(explanation.label, 24)}"', fontsize=10, parse_math=False)
    sums = f"other concepts {rest:+.3g}, bias {explanation.class_bias:+.3g}, logit {logit:+.3g}"
    ax.set_xlabel(sums, fontsize=8, parse_math=False)


def shorten(text: str, width: int) -> str:
    """The text on one line of at most `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


__all__ = ["plot_explanation", "plot_grid"]

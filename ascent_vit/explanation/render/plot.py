# SPDX-License-Identifier: Apache-2.0
"""Draws figures of explanations: image, signed contributions, and where the concepts were seen."""

import os
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..decomposition import ConceptContribution, Decomposition
from .rows import ContributionRow, contribution_rows, signed


if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure
    from PIL.Image import Image


# Colour maps for any kind of colour vision: cividis is sequential, ColorBrewer's orange to purple is diverging, with
# purple for positive.
ATTENTION_COLORS = "cividis"
CONTRIBUTION_COLORS = "PuOr"
POSITIVE, NEGATIVE = "#5e3c99", "#e66101"
OTHERS_OPACITY = 0.5

MAPS = 3
MOST_PREDICTED = 3
MAP_OPACITY = 0.75
ROW_SIZE = (12.0, 3.4)  # inches; higher for more bars than fit
BAR_HEIGHT = 0.17  # inches
FEWEST_BARS = 4  # fewer are no thicker
LEAST_SPAN = 0.02  # of the axis of the bars, so that contributions shown as 0.00 have no bar to speak of
MAP_SIZE = 2.2  # inches
SIDE = {"ha": "right", "va": "center"}
# Largest ratio of the sides of a drawn image: a longer one is stretched, as nothing could be seen in it.
LONGEST_SHAPE = 6
# Largest side of a drawn image, which is finer than a figure shows: all pixels of a photograph take long to draw.
LONGEST_SIDE = 1200  # pixels


def plot_explanation(explanation: Decomposition, top: int = 5, truth: str | None = None) -> "Figure":
    """Draws one explanation, see [`~ascent_vit.explanation.Explanation.plot`]."""
    return plot_rows([explanation], top, None if truth is None else [truth])


def plot_grid(
    explanations: Sequence[Decomposition],
    path: str | os.PathLike,
    truths: Sequence[str] | None = None,
    top: int = 5,
    dpi: int = 110,
) -> None:
    """
    Writes one PNG with a row per explanation: image, contributions as in
    [`~ascent_vit.explanation.Explanation.plot`], maps on a common scale.

    Args:
        explanations (`Sequence[Explanation]`): Explanations to draw, one or more.
        path (`str` or `os.PathLike`): File to write, whole or not at all.
        truths (`Sequence[str]`, *optional*): Names of the true classes.
        top (`int`, *optional*, defaults to 5):
            Largest number of concepts with a bar of their own, those of the largest contribution of either sign.
        dpi (`int`, *optional*, defaults to 110): Pixels per inch; a row is 12 inches wide.

    Raises:
        ValueError: for no explanations, another number of truths, or `top` below 1.
    """
    from ascent_vit.utils.figures import write_figure

    write_figure(path, plot_rows(explanations, top, truths), dpi)


def plot_heads(explanation: Decomposition, top: int = MAPS) -> "Figure":
    """
    Draws the attention of each head to the `top` spatial concepts, one row per head, on a common scale.

    Args:
        explanation ([`~ascent_vit.explanation.Explanation`]): Explanation to draw.
        top (`int`, *optional*, defaults to 3):
            Number of spatial concepts to show, those of the largest contribution of either sign.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: for a model without spatial concepts, or `top` below 1.
    """
    if top < 1:
        raise ValueError(f"top must be 1 or more concepts; got {top}.")
    concepts = explanation.top(top, stream="spatial")
    if not concepts:
        raise ValueError("The model has no spatial concepts: there are no maps of its heads to draw.")
    heads = explanation.patch_attention_heads[:, [concept.index for concept in concepts]]
    titles = [[wrapped(concept.name, 22) for concept in concepts], *[[""] * len(concepts)] * (len(heads) - 1)]
    sides = [f"head {i}" for i in range(len(heads))]
    return plot_maps(explanation, heads, titles, sides, "attention")


def plot_levels(explanation: Decomposition) -> "Figure":
    """
    Draws where the deformable attention looked in each level of the pyramid, on a common scale: the share of its
    weight that fell on each patch, from all patches and heads.

    Args:
        explanation ([`~ascent_vit.explanation.Explanation`]):
            Explanation to draw, made by `explain(..., fusion=True)`.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: for an explanation made without `fusion=True`.
    """
    maps, shares = explanation.fusion_maps, explanation.level_shares
    strides = explanation.fusion.strides if explanation.fusion else ()
    titles = [f"scale 1/{stride}: {share:.1%}" for stride, share in zip(strides, shares, strict=True)]
    return plot_maps(explanation, maps[None], [titles], ["levels"], "share of weight")


def plot_maps(
    explanation: Decomposition, maps: np.ndarray, titles: list[list[str]], sides: list[str], unit: str
) -> "Figure":
    """Draws patch maps without negative values, `(rows, columns, h, w)`, on a common scale from 0."""
    from ascent_vit.utils.figures import NotebookFigure

    rows, columns = maps.shape[:2]
    shape = np.clip(explanation.image.width / explanation.image.height, 0.5, LONGEST_SHAPE)
    size = (MAP_SIZE * columns + 1.2, max(MAP_SIZE / shape * rows + 0.5, 1.5))
    figure = NotebookFigure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    drawn = draw_maps(axes.ravel(), explanation, maps.reshape(-1, *maps.shape[2:]), ATTENTION_COLORS, 0, top_of(maps))
    for i in range(rows):
        for j in range(columns):
            axes[i, j].set_title(titles[i][j], fontsize=9, parse_math=False)
        if rows > 1:
            axes[i, 0].text(-0.05, 0.5, sides[i], transform=axes[i, 0].transAxes, fontsize=9, rotation=90, **SIDE)
    add_scale(figure, drawn, axes, unit)
    return figure


def plot_rows(explanations: Sequence[Decomposition], top: int, truths: Sequence[str] | None) -> "Figure":
    """Draws a row per explanation, with the maps on a common scale."""
    from ascent_vit.utils.figures import NotebookFigure

    if not explanations:
        raise ValueError("There is nothing to draw: give at least one explanation.")
    if truths is not None and len(truths) != len(explanations):
        raise ValueError(f"truths must name one class per explanation, {len(explanations)}; got {len(truths)}.")
    if top < 1:
        raise ValueError(f"top must be 1 or more concepts; got {top}.")
    mapped = [explanation.top(MAPS, stream="spatial") for explanation in explanations]
    attention_limit = largest([e.patch_attention for e in explanations], mapped)
    contribution_limit = largest([e.patch_contributions for e in explanations], mapped)

    bars = [contribution_rows([explanation], top) for explanation in explanations]
    width, height = ROW_SIZE
    height = max(height, 1 + BAR_HEIGHT * max(map(len, bars)))
    figure = NotebookFigure(figsize=(width, height * len(explanations)), layout="constrained")
    rows = figure.subfigures(len(explanations), 1, squeeze=False)[:, 0]
    for i, (row, explanation) in enumerate(zip(rows, explanations, strict=True)):
        truth = truths[i] if truths else None
        draw_row(row, explanation, bars[i], mapped[i], truth, attention_limit, contribution_limit)
    # The layout measures a high title before it shrinks the image below it: only a second pass leaves room enough.
    engine = figure.get_layout_engine()
    if engine is not None and any(ax.get_title().count("\n") > 1 for ax in figure.axes):
        engine.execute(figure)
    return figure


def top_of(*maps: np.ndarray) -> float:
    """Largest absolute value in maps, or 1 if all are 0, so that it can be the end of a scale."""
    return max((float(np.abs(values).max()) for values in maps), default=0.0) or 1.0


def largest(patch_maps: list[np.ndarray], concepts: list[list[ConceptContribution]]) -> float:
    """Largest absolute value in the maps of the given concepts, a list of them per explanation."""
    return top_of(*[maps[c.index] for maps, row in zip(patch_maps, concepts, strict=True) for c in row])


def draw_row(
    figure: "SubFigure",
    explanation: Decomposition,
    bars: list[ContributionRow],
    mapped: list[ConceptContribution],
    truth: str | None,
    attention_limit: float,
    contribution_limit: float,
):
    columns = len(mapped)
    # Beside many bars, image and maps stay at the top, in their own size.
    spare = figure.bbox.height / figure.dpi / (ROW_SIZE[1] / 2) - 2
    heights = [1, 1, spare] if spare > 0.1 else [1, 1]
    widths = [1.5, 1.9] + [1] * columns
    grid = figure.add_gridspec(len(heights), len(widths), height_ratios=heights, width_ratios=widths)
    draw_image(figure.add_subplot(grid[:2, 0]), explanation, truth)
    draw_bars(figure.add_subplot(grid[:, 1]), explanation, bars)
    if not mapped:
        return
    attention, contributions = explanation.patch_attention, explanation.patch_contributions
    scales = (
        ("attention", attention, ATTENTION_COLORS, 0, attention_limit),
        (wrapped(explanation.unit, 20), contributions, CONTRIBUTION_COLORS, -contribution_limit, contribution_limit),
    )
    for i, (unit, patch_maps, colors, low, high) in enumerate(scales):
        axes = [figure.add_subplot(grid[i, 2 + j]) for j in range(columns)]
        drawn = draw_maps(axes, explanation, patch_maps[[c.index for c in mapped]], colors, low, high)
        if i == 0:
            for ax, concept in zip(axes, mapped, strict=True):
                ax.set_title(wrapped(concept.name, 20), fontsize=8, parse_math=False)
        add_scale(figure, drawn, axes, unit)


def draw_maps(axes, explanation: Decomposition, patch_maps: np.ndarray, colors: str, low: float, high: float):
    """Draws patch maps `(n, h, w)` over the image in grey; returns the last drawn map, for a scale."""
    drawn = None
    # Middle greys only, from a third to two thirds: the image shows without hiding the scale of the map.
    grey = reduced(explanation.image).convert("L")
    maps = explanation.resize(patch_maps, step_of(explanation.image))
    for ax, concept_map in zip(axes, maps, strict=True):
        show(ax, grey, cmap="gray", vmin=-255, vmax=510)
        drawn = show(ax, concept_map, cmap=colors, vmin=low, vmax=high, alpha=MAP_OPACITY)
    return drawn


def step_of(image: "Image") -> int:
    """From how many pixels on each side one is drawn, so that the longer side has at most `LONGEST_SIDE`."""
    return -(-max(image.size) // LONGEST_SIDE)


def reduced(image: "Image") -> "Image":
    """The image as large as it is drawn."""
    step = step_of(image)
    width, height = (len(range(step // 2, side, step)) for side in image.size)
    return image if step == 1 else image.resize((width, height), reducing_gap=2)


def add_scale(figure, drawn, axes, unit: str):
    bar = figure.colorbar(drawn, ax=axes, shrink=0.9)
    bar.set_label(unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.ax.yaxis.get_offset_text().set_fontsize(7)


def show(ax, picture, **kwargs):
    """Draws a picture without axes, in its own shape unless that is longer than `LONGEST_SHAPE`."""
    height, width = np.shape(picture)[:2]
    shape = width / height
    drawn = ax.imshow(picture, aspect=shape / np.clip(shape, 1 / LONGEST_SHAPE, LONGEST_SHAPE), **kwargs)
    ax.set_axis_off()
    return drawn


def draw_image(ax, explanation: Decomposition, truth: str | None):
    lines = predicted_lines(explanation)
    if explanation.label_id != explanation.predicted_id:
        lines.append(f"explained: {shorten(explanation.label, 36)}, {explanation.score_text(explanation.label_id)}")
    for other in explanation.class_ids[1:]:
        lines.append(f"compared with: {shorten(explanation.labels[other], 36)}, {explanation.score_text(other)}")
    if truth is not None:
        lines.append(f"truth: {shorten(truth, 36)}")
    show(ax, reduced(explanation.image))
    ax.set_title("\n".join(wrapped(line, 26) for line in lines), fontsize=9, parse_math=False)


def predicted_lines(explanation: Decomposition) -> list[str]:
    """Lines that say what was predicted, at most `MOST_PREDICTED` classes or values."""
    ids = explanation.predicted_ids
    shown = ids[:MOST_PREDICTED] or [explanation.predicted_id]
    between = " = " if explanation.is_regression else ", "
    named = [f"{shorten(explanation.labels[i], 36)}{between}{explanation.score_text(i)}" for i in shown]
    lines = [f"{start}: {text}" for start, text in zip(["predicted", *["and"] * len(named)], named, strict=False)]
    if not ids:
        return ["predicted: no class", f"most probable: {named[0]}"]
    return lines + ([f"and {len(ids) - len(shown)} more"] if len(ids) > len(shown) else [])


def draw_bars(ax, explanation: Decomposition, rows: list[ContributionRow]):
    values = [row.contribution for row in rows]
    bars = ax.barh(range(len(rows)), values, color=[POSITIVE if value >= 0 else NEGATIVE for value in values])
    if rows[-1].stream is None:
        bars[-1].set_alpha(OTHERS_OPACITY)
    names = [f"{shorten(row.name, 28)} ({row.stream})" if row.stream else row.name for row in rows]
    ax.set_yticks(range(len(rows)), names, fontsize=8, parse_math=False)
    ax.set_ylim(max(len(rows), FEWEST_BARS) - 0.4, -0.6)
    ax.axvline(0, color="black", linewidth=0.8)
    decimals = explanation.decimals
    left = number_bars(ax, values, decimals, fontsize=8)
    low, high = min([0, *values]), max([0, *values])
    room = 0.45 * max(high - low, LEAST_SPAN * 10.0 ** (2 - decimals))
    ax.set_xlim(low - (room if any(left) else room / 5), high + (room / 5 if all(left) else room))
    ax.locator_params(axis="x", nbins=5)
    ax.tick_params(axis="x", labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    label, *others = (shorten(explanation.labels[index], 24) for index in explanation.class_ids)
    if others:
        title, bias, logit = f'why "{label}"\nand not "{others[0]}"', "biases", "logits"
    else:
        # On one line, a long name would run into the maps beside it.
        title, bias, logit = f'contributions to{" " if len(label) <= 16 else chr(10)}"{label}"', "bias", "logit"
    logit = "value" if explanation.is_regression else logit
    ax.set_title(title, fontsize=10, parse_math=False)
    sums = signed(explanation.class_bias, decimals), signed(explanation.logit, decimals)
    ax.set_xlabel(f"{bias} {sums[0]}, {logit} {sums[1]}", fontsize=8)


def number_bars(ax, values: Sequence[float], decimals: int, fontsize: int) -> list[bool]:
    """Writes the number of each bar beyond its end, 0.00 on the positive side; returns which are on the other one."""
    numbers = [signed(value, decimals) for value in values]
    left = [number.startswith("-") for number in numbers]
    for i, number in enumerate(numbers):
        end, offset, side = (values[i], -3, "right") if left[i] else (max(values[i], 0), 3, "left")
        ax.annotate(number, (end, i), (offset, 0), textcoords="offset points", ha=side, va="center", fontsize=fontsize)
    return left


def shorten(text: str, width: int) -> str:
    """Cuts a text to one line of at most `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def wrapped(text: str, width: int) -> str:
    """Breaks a text into up to two lines of about `width` characters, after spaces or the marks that join words."""
    joints = re.compile(r"(?<=[_:/])(?=[^_:/])")
    wrapper = textwrap.TextWrapper(width, expand_tabs=False, replace_whitespace=False, max_lines=2, placeholder="…")
    lines = wrapper.wrap(joints.sub("\t", " ".join(text.split())))
    return "\n".join(line.replace("\t", "") for line in lines)


__all__ = ["plot_explanation", "plot_grid", "plot_heads", "plot_levels"]

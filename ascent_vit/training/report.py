# SPDX-License-Identifier: Apache-2.0
"""The report of a run: what it was, how it went and what came out, in Markdown, as curves, and as JSON."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ascent_vit.utils.files import write_json, write_text
from ascent_vit.utils.markdown import escape_markdown


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSSES = ("loss", "class_loss", "alignment_loss", "presence_loss", "entropy_loss")

# What the loop records every `logging_steps` steps: step, terms of the loss, learning rate.
HISTORY = ("step", *LOSSES, "learning_rate")

# Readable with any kind of colour vision (Okabe and Ito); no yellow on white.
COLORS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")
STYLES = ("-", "--", ":")

RESOLUTION = 110  # dots per inch

# Keys of an epoch's record that are no curve of the validation split; the additivity error is of rounding only.
NO_CURVES = ("epoch", "step", "learning_rate", *(f"train_{name}" for name in LOSSES), "additivity_error")


def _style(place: int) -> dict[str, Any]:
    return {"color": COLORS[place % len(COLORS)], "linestyle": STYLES[place // len(COLORS) % len(STYLES)]}


def _finish(axes: "Axes", title: str) -> None:
    axes.set_title(title, fontsize="medium", loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, frameon=False, fontsize="small")


def plot_curves(report: dict[str, Any]) -> "Figure":
    """
    Draws loss terms, learning rate and the metrics of the validation split over the steps of a run.

    Args:
        report: report of the run, as in `report.json`, with at least `history`, `epochs`, `recipe` and `dataset`.

    Returns:
        The figure; pyplot and its backend are left alone.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    history = [dict(zip(HISTORY, values, strict=True)) for values in report["history"]]
    epochs = report["epochs"]
    figure = Figure(figsize=(9.0, 9.6), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    loss_axes, rate_axes, metric_axes = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1, 3])
    for place, name in enumerate(LOSSES):
        style = _style(place)
        recorded = [(row["step"], row[name]) for row in history if row[name] is not None]
        means = [(row["step"], row[f"train_{name}"]) for row in epochs if row.get(f"train_{name}") is not None]
        if recorded:
            loss_axes.plot(*zip(*recorded, strict=True), alpha=0.35, linewidth=1, **style)
        if means:
            loss_axes.plot(*zip(*means, strict=True), marker="o", markersize=4, label=name, **style)
    rates = [(row["step"], row["learning_rate"]) for row in history or epochs]
    rate_axes.plot(*zip(*rates, strict=True), marker="o" if len(rates) == 1 else None, color=COLORS[0])
    rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    names = [name for name in dict.fromkeys(key for row in epochs for key in row) if name not in NO_CURVES]
    for place, name in enumerate(names):
        values = [(row["step"], row[name]) for row in epochs if row.get(name) is not None]
        if values:
            metric_axes.plot(*zip(*values, strict=True), marker="o", markersize=4, label=name, **_style(place))
    _finish(loss_axes, "Training loss: mean of each epoch (dots), single batches (thin)")
    _finish(rate_axes, "Learning rate")
    _finish(metric_axes, "Validation" if names else "Validation: there is no such split")
    metric_axes.set_xlabel("step")
    figure.suptitle(
        textwrap.shorten(f"{report['recipe']} on {report['dataset']}", 90), x=0.02, ha="left", parse_math=False
    )
    return figure


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return escape_markdown(value)


def _table(header: tuple[str, ...], rows: list[tuple]) -> list[str]:
    """Makes the lines of a table; the first cell of each row is a name of the toolkit, shown as it is."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return [*lines, *(f"| {' | '.join((str(name), *map(_cell, values)))} |" for name, *values in rows), ""]


def report_text(report: dict[str, Any]) -> str:
    """
    Writes a run down in Markdown: results, curves, every epoch, environment and seeds, and the whole recipe.

    Args:
        report: report of the run, as in `report.json`.
    """
    metrics, epochs, recipe = report["metrics"], report["epochs"], report["recipe_values"]
    split = report["split"]
    best = f"epoch {report['best_epoch']}"
    if report["best_validation_value"] is not None:
        best += f", with {report['best_metric']} {_cell(report['best_validation_value'])} on the validation split"
    lines = [f"# Training run: {escape_markdown(report['recipe'])} on {escape_markdown(report['dataset'])}", ""]
    lines += [f"{report['steps']} steps; kept are the weights of {best}.", ""]
    if metrics:
        lines += [f"## Metrics on the {split} split", "", *_table(("metric", "value"), list(metrics.items()))]
    lines += ["## Curves", "", "![Loss, learning rate and validation metrics over the steps](curves.png)", ""]
    columns = tuple(dict.fromkeys(key for row in epochs for key in row))
    lines += ["## Epochs", "", *_table(columns, [tuple(row.get(key) for key in columns) for row in epochs])]
    shown = ("metrics", "epochs", "history", "recipe_values", "step_plan")
    facts = [(key, value) for key, value in report.items() if key not in shown]
    lines += [
        "## Environment, seeds and times",
        "",
        *_table(("what", "value"), facts + list(report["step_plan"].items())),
    ]
    lines += ["## Recipe", "", *_table(("key", "value"), list(recipe.items()))]
    return "\n".join(lines)


def write_report(output: Path, report: dict[str, Any]) -> None:
    """Writes `report.json`, `report.md` and `curves.png` into a run's folder, each whole or not at all."""
    from ascent_vit.utils.figures import write_figure

    write_figure(output / "curves.png", plot_curves(report), RESOLUTION)
    write_text(output / "report.md", report_text(report))
    write_json(output / "report.json", report)


__all__ = ["HISTORY", "LOSSES", "plot_curves", "report_text", "write_report"]

# SPDX-License-Identifier: Apache-2.0
"""
Puts tables of what has been measured, and lists of what has not, into a page, and draws its figures.

    python benchmarks/study/report.py

What stands in the page between `<!-- begin NAME -->` and `<!-- end NAME -->` is written anew, NAME being a table of
`tables.yaml`; the rest of it stays. Figures lie in a folder `figures` beside the page.
"""

import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from plan import StudyRun, read_tables, runs_of

from ascent_vit.evaluation import METRICS
from ascent_vit.utils.files import write_text


PERCENT = {
    "accuracy": "class",
    "top5_accuracy": "class in top 5",
    "global_concept_accuracy": "concept",
    "concept_map": "concept mAP",
    "pixel_tpr": "pixel TPR",
    "pointing_game": "pointing game",
    "pointing_game_15px": "pointing within 15 px",
    "relevance_mass": "relevance mass",
    "relevance_mass_box": "mass in the box",
}
PLAIN = {"alignment_error": "alignment error"}
FAITHFULNESS = {
    "insertion_auc": "insertion",
    "insertion_auc_random": "at random",
    "deletion_auc": "deletion",
    "deletion_auc_random": "at random",
}
INTERVENTION = {"intervention_auc": "accuracy as concepts are corrected", "intervention_auc_random": "at random"}
ROBUSTNESS = {
    "robustness_flip": "flip",
    "robustness_rotation": "rotation",
    "robustness_scale": "scale",
    "robustness_translation": "translation",
}
HEADS = {
    "accuracy": "class",
    "accuracy_of_mean": "class, every head as their mean",
    "concept_map": "concept mAP",
    "pixel_tpr": "pixel TPR",
    "heads_same": "same concept at a place",
    "heads_distance": "distance there",
    "global_heads_same": "same concept of the image",
    "global_heads_distance": "distance there",
}
LEAKAGE = {
    "leakage": "leakage",
    "leakage_accuracy_true": "class, true concepts",
    "leakage_accuracy_permuted": "class, permuted concepts",
    "leakage_majority": "majority",
}
COMPARED = {
    "accuracy": "class",
    "global_concept_accuracy": "concept",
    "concept_map": "concept mAP",
    "pixel_tpr": "pixel TPR",
}
SAMPLES = re.compile(r"(.+)-(\d+)")


class Row:
    """The results of one run with each of its seeds."""

    def __init__(self, runs: list[StudyRun], results: Path):
        self.name, self.title, self.table = runs[0].name, runs[0].title, runs[0].table
        self.runs = runs
        found = {run.seed: run.result(results) for run in runs}
        self.results = {seed: result for seed, result in found.items() if result is not None}
        self.missing = [seed for seed, result in found.items() if result is None]

    def values(self, key: str, part: str = "metrics", name: str | None = None) -> list[float]:
        """A figure with each seed that has it; with `name`, of a part of the test split."""
        sources = [result.get(part, {}) for result in self.results.values()]
        if name is not None:
            sources = [source.get(name, {}) for source in sources]
        return [source[key] for source in sources if source.get(key) is not None]

    def facts(self, key: str) -> list[float]:
        return [result[key] for result in self.results.values() if key in result]


def read_rows(table: str, results: Path) -> list[Row]:
    """The rows of a table, those that it borrows from another one first."""
    groups: dict[str, list[StudyRun]] = {}
    for run in runs_of(table):
        groups.setdefault(run.name, []).append(run)
    rows = [Row(runs, results) for runs in groups.values()]
    borrowed = []
    for place in read_tables()[table].get("also", []):
        other, name = place.split("/")
        borrowed += [row for row in read_rows(other, results) if row.name == name]
    return borrowed + rows


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def mean_and_spread(values: list[float], scale: float = 100.0, digits: int = 1) -> str:
    """As `98.1 ± 0.4`; nothing where nothing was measured, and the number of seeds where it is not three."""
    if not values:
        return ""
    text = f"{scale * statistics.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {scale * spread(values):.{digits}f}"
    return text if len(values) == 3 else f"{text} (n={len(values)})"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table without its empty columns; nothing without rows."""
    used = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
    if not rows or len(used) < 2:
        return ""
    lines = [[header[i] for i in used], ["---"] * len(used), *([row[i] for i in used] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def metric_table(rows: list[Row], names: dict[str, str], scale: float = 100.0, digits: int = 1) -> str:
    cells = [[row.title, *(mean_and_spread(row.values(key), scale, digits) for key in names)] for row in rows]
    return markdown(["", *names.values()], [line for line in cells if any(line[1:])])


def quality_table(rows: list[Row]) -> str:
    cells = []
    for row in rows:
        shares = [mean_and_spread(row.values(key)) for key in PERCENT]
        numbers = [mean_and_spread(row.values(key), 1, 3) for key in PLAIN]
        cells.append([row.title, *shares, *numbers])
    names = [f"{name}, %" for name in PERCENT.values()] + list(PLAIN.values())
    return markdown(["", *names], [line for line in cells if any(line[1:])])


def cost_table(rows: list[Row]) -> str:
    cells = []
    for row in rows:
        if not row.facts("parameters"):
            continue
        seconds = row.facts("cpu_seconds")
        cells.append(
            [
                row.title,
                f"{row.facts('parameters')[0] / 1e6:.2f}",
                f"{row.facts('multiply_adds')[0] / 1e6:.1f}",
                f"{row.facts('steps')[0]:,.0f} x {row.facts('batch_size')[0]:.0f}",
                f"{min(seconds):.0f} to {max(seconds):.0f}",
            ]
        )
    return markdown(["", "parameters, M", "multiply-adds per image, M", "steps x images", "CPU time, s"], cells)


def verdict(key: str, ours: list[float], other: list[float]) -> str:
    """How a row does beside another one, in words: no difference where the spread is as large as the difference."""
    if len(ours) < 3 or len(other) < 3:
        return "too few seeds" if ours and other else ""
    difference = statistics.mean(other) - statistics.mean(ours)
    if abs(difference) <= max(spread(ours), spread(other)):
        return f"no difference ({100 * difference:+.1f})"
    better = (difference > 0) == METRICS[key].greater_is_better
    return f"{'better' if better else 'worse'} ({100 * difference:+.1f})"


def verdict_table(rows: list[Row]) -> str:
    measured = [row for row in rows if row.results]
    if not measured:
        return ""
    first = measured[0]
    cells = [
        [row.title, *(verdict(key, first.values(key), row.values(key)) for key in COMPARED)] for row in measured[1:]
    ]
    return markdown([f"beside {first.title}", *COMPARED.values()], [line for line in cells if any(line[1:])])


def scale_table(rows: list[Row], key: str) -> str:
    """A figure by size and place of the digits."""
    parts: dict[str, Any] = {}
    for row in rows:
        for result in row.results.values():
            parts |= dict.fromkeys(result.get("scales", {}))
    cells = [
        [name, *(mean_and_spread(row.values(key, "scales", name)) for row in rows if row.facts("scales"))]
        for name in parts
    ]
    titles = [row.title for row in rows if row.facts("scales")]
    return markdown([f"{PERCENT[key]}, %", *titles], cells)


def sample_table(rows: list[Row], key: str) -> str:
    """A figure by the number of train images."""
    found: dict[str, dict[int, str]] = {}
    for row in rows:
        size = int(SAMPLES.fullmatch(row.name)[2])
        found.setdefault(row.title, {})[size] = mean_and_spread(row.values(key))
    sizes = sorted({size for cells in found.values() for size in cells})
    cells = [[title, *(cells.get(size, "") for size in sizes)] for title, cells in found.items()]
    header = [f"{PERCENT[key]}, %", *(f"{size:,} images" for size in sizes)]
    return markdown(header, [line for line in cells if any(line[1:])])


def missing_list(table: str, rows: list[Row]) -> str:
    """What of a table has not been made."""
    own = [row for row in rows if row.table == table and row.missing]
    if not own:
        return "All runs of this table have been made.\n"
    lines = [f"- {row.title}{size_of(row)}: seed {', '.join(map(str, row.missing))}" for row in own]
    return "Not made:\n\n" + "\n".join(lines) + "\n"


def size_of(row: Row) -> str:
    images = row.runs[0].train_images
    return f", {images:,} images" if images else ""


def parts_of(table: str, rows: list[Row]) -> list[str]:
    """What the page shows of a table."""
    if table == "samples":
        keys = ("accuracy", "global_concept_accuracy", "pixel_tpr")
        return [*(sample_table(rows, key) for key in keys), missing_list(table, rows)]
    if table == "leakage":
        return [metric_table(rows, LEAKAGE, 1, 3), missing_list(table, rows)]
    if table == "birds-heads":
        return [metric_table(rows, {key: f"{name}, %" for key, name in HEADS.items()}), missing_list(table, rows)]
    return [
        quality_table(rows),
        verdict_table(rows),
        metric_table(rows, FAITHFULNESS, 1, 3),
        metric_table(rows, INTERVENTION, 1, 3),
        metric_table(rows, ROBUSTNESS, 1, 3),
        scale_table(rows, "accuracy"),
        scale_table(rows, "global_concept_accuracy"),
        scale_table(rows, "pixel_tpr"),
        cost_table(rows),
        missing_list(table, rows),
    ]


def fill_page(page: str, name: str, text: str) -> str:
    """The page with a text between the marks of a name; ValueError for a page without them."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"The page has no {begin} ... {end}: add them where this table is to stand.")
    return f"{before}{begin}\n\n{text}\n{end}{after}"


def new_axes(columns: int, height: float = 3.4) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(4.2 * columns, height), layout="constrained")
    return figure, axes


def draw_points(axis: Any, points: list[tuple[Any, list[float]]], **style: Any) -> Any:
    """Means with their spread, over places of the x axis, where there is something measured."""
    points = [(x, values) for x, values in points if values]
    means = [100 * statistics.mean(values) for _, values in points]
    spreads = [100 * spread(values) for _, values in points]
    return axis.errorbar([x for x, _ in points], means, spreads, marker="o", capsize=3, **style)


def draw_scales(rows: list[Row]) -> Any:
    rows = [row for row in rows if row.facts("scales")]
    if not rows:
        return None
    names = list(next(iter(rows[0].results.values()))["scales"])
    heights = [name for name in names if name.startswith("height")]
    wider = [name for name in names if name.startswith("canvas")][::-1]
    order = wider + heights
    labels = [name.replace("canvas ", "canvas\nx ").replace(" times as wide", "") for name in wider]
    labels += [name.removeprefix("height ").replace(" to ", "\nto ") for name in heights]
    keys = ("accuracy", "global_concept_accuracy", "pixel_tpr")
    figure, axes = new_axes(len(keys))
    for axis, key in zip(axes, keys, strict=True):
        for row in rows:
            points = [(i, row.values(key, "scales", name)) for i, name in enumerate(order)]
            line = draw_points(axis, points[len(wider) :], label=row.title)
            draw_points(axis, points[: len(wider)], linestyle="", color=line[0].get_color())
        axis.axvline(len(wider) - 0.5, color="black", linewidth=0.8)
        axis.set_xticks(range(len(order)), labels, fontsize=8)
        axis.set_xlabel("all, on a wider canvas | height of the ink / image")
        axis.set_ylabel(f"{PERCENT[key]}, %")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=len(rows))
    return figure


def draw_samples(rows: list[Row]) -> Any:
    titles = list(dict.fromkeys(row.title for row in rows if row.results))
    if len({row.runs[0].train_images for row in rows if row.results}) < 2:
        # One number of images makes no line.
        return None
    keys = ("accuracy", "global_concept_accuracy", "pixel_tpr")
    figure, axes = new_axes(len(keys))
    for axis, key in zip(axes, keys, strict=True):
        for title in titles:
            points = [(int(SAMPLES.fullmatch(row.name)[2]), row.values(key)) for row in rows if row.title == title]
            draw_points(axis, sorted(points), label=title)
        axis.set_xscale("log")
        axis.set_xlabel("train images")
        axis.set_ylabel(f"{PERCENT[key]}, %")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=3)
    return figure


def draw_rows(rows: list[Row]) -> Any:
    """Each row's figures beside each other; the band is the spread of the first row."""
    rows = [row for row in rows if row.results]
    keys = [key for key in COMPARED if any(row.values(key) for row in rows)]
    if not keys:
        return None
    if "global_concept_accuracy" in keys:
        keys = [key for key in keys if key != "concept_map"]
    figure, axes = new_axes(len(keys), 1.2 + 0.3 * len(rows))
    for axis, key in zip(axes if len(keys) > 1 else [axes], keys, strict=True):
        first = rows[0].values(key)
        if first:
            mean, width = 100 * statistics.mean(first), 100 * spread(first)
            axis.axvspan(mean - width, mean + width, alpha=0.15)
        for place, row in enumerate(rows):
            values = row.values(key)
            if values:
                mean, width = 100 * statistics.mean(values), 100 * spread(values)
                axis.errorbar(mean, place, xerr=width, marker="o", capsize=3, color="C0")
        axis.set_yticks(range(len(rows)), [row.title for row in rows] if axis is figure.axes[0] else [""] * len(rows))
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlabel(f"{PERCENT[key]}, %")
        axis.grid(alpha=0.3)
    return figure


FIGURES: dict[str, tuple[str, Callable[[list[Row]], Any]]] = {
    "digits": ("digits-by-size.png", draw_scales),
    "digits-recipe": ("digits-recipe-by-size.png", draw_scales),
    "samples": ("samples.png", draw_samples),
    "ablation": ("ablation.png", draw_rows),
    "mnist": ("mnist.png", draw_rows),
    "cub": ("cub.png", draw_rows),
    "birds-pretrained": ("birds-pretrained.png", draw_rows),
}


def main(
    results: Annotated[Path, typer.Option(help="Folder with the results of run.py.")] = Path(
        "benchmarks/study/results"
    ),
    page: Annotated[Path, typer.Option(help="Page to fill.")] = Path("benchmarks/study/README.md"),
):
    """Fills the page and draws its figures."""
    text = page.read_text(encoding="utf-8")
    for table in read_tables():
        rows = read_rows(table, results)
        shown = "\n".join(part for part in parts_of(table, rows) if part)
        if table in FIGURES:
            name, draw = FIGURES[table]
            figure = draw(rows)
            if figure is not None:
                (page.parent / "figures").mkdir(exist_ok=True)
                figure.savefig(page.parent / "figures" / name, dpi=110)
                shown = f"![{read_tables()[table]['title']}](figures/{name})\n\n{shown}"
        text = fill_page(text, table, shown)
    write_text(page, text)


if __name__ == "__main__":
    typer.run(main)

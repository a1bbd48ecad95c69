# SPDX-License-Identifier: Apache-2.0
"""
Puts tables of what has been measured, and lists of what has not, into a page.

    python benchmarks/peers/report.py

What stands in the page between `<!-- begin NAME -->` and `<!-- end NAME -->` is written anew, NAME being a table of
`tables.yaml`; the rest of it stays.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


STUDY = Path(__file__).parents[1] / "study"
sys.path.append(str(STUDY))

from plan import runs_of as study_runs_of  # noqa: E402
from rows import PeerRun, read_tables, runs_of  # noqa: E402

from ascent_vit.utils.files import write_text  # noqa: E402


def study_report() -> Any:
    """The study's own report, a module of the same name as this one."""
    spec = importlib.util.spec_from_file_location("study_report", STUDY / "report.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


study = study_report()

# Names of figures, and by how much they are multiplied and how many digits they have.
CONCEPTS = {
    "accuracy": ("class, %", 100, 1),
    "top5_accuracy": ("class in top 5, %", 100, 1),
    "concept_accuracy": ("concepts, %", 100, 1),
    "concept_map": ("concept mAP, %", 100, 1),
    "global_concept_accuracy": ("the one concept named, %", 100, 1),
    "nec5_accuracy": ("class at NEC 5, %", 100, 1),
    "concept_task_leakage": ("leakage", 1, 3),
    "intervention_auc": ("class as concepts are corrected, %", 100, 1),
    "intervention_auc_random": ("in random order, %", 100, 1),
    "pointing_game": ("pointing game, %", 100, 1),
    "relevance_mass": ("relevance mass, %", 100, 1),
}
PLACES = {
    "accuracy": ("class, %", 100, 1),
    "pointing_box": ("points at the bird, %", 100, 0),
    "relevance_mass_box": ("mass on the bird, %", 100, 0),
    "pointing_game": ("points at the named part, %", 100, 1),
    "relevance_mass": ("mass on the named part, %", 100, 1),
    "attributes_auroc": ("attributes of a class, AUROC, %", 100, 1),
    "attributes_auroc_sign": ("by shares, %", 100, 1),
}
CURVES = {
    "insertion_auc": ("insertion", 1, 3),
    "insertion_auc_random": ("at random", 1, 3),
    "deletion_auc": ("deletion", 1, 3),
    "deletion_auc_random": ("at random", 1, 3),
    "robustness_flip": ("flip", 1, 2),
    "robustness_rotation": ("rotation", 1, 2),
    "robustness_scale": ("scale", 1, 2),
    "robustness_translation": ("translation", 1, 2),
}
Names = dict[str, tuple[str, float, int]]


class Row:
    """The results of one row with each of its seeds."""

    def __init__(self, runs: list[Any], results: Path):
        self.title, self.runs = runs[0].title, runs
        found = {run.seed: run.result(results) for run in runs}
        self.results = {seed: result for seed, result in found.items() if result is not None}
        self.missing = [seed for seed, result in found.items() if result is None]

    def values(self, key: str) -> list[float]:
        sources = [result["metrics"] for result in self.results.values()]
        return [source[key] for source in sources if source.get(key) is not None]

    def facts(self, key: str) -> list[Any]:
        return [result[key] for result in self.results.values() if key in result]


def group(runs: list[Any], results: Path) -> list[Row]:
    groups: dict[str, list[Any]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    return [Row(members, results) for members in groups.values()]


def study_rows(table: str, results: Path) -> list[Row]:
    """Rows of the study that a table shows first."""
    source = read_tables()[table].get("study")
    if source is None:
        return []
    return group([run for run in study_runs_of(source["table"]) if run.name in source["rows"]], results)


def cells(rows: list[Row], names: Names) -> str:
    """A table of figures, mean and spread, without empty columns and rows."""
    lines = []
    for row in rows:
        found = [
            study.mean_and_spread(row.values(key), scale, digits) if len(row.runs) > 1 else single(row, key)
            for key, (_, scale, digits) in names.items()
        ]
        lines.append([row.title, *found])
    return study.markdown(["", *(name for name, _, _ in names.values())], [line for line in lines if any(line[1:])])


def single(row: Row, key: str) -> str:
    """A figure of a table with one seed."""
    _, scale, digits = (CONCEPTS | PLACES | CURVES)[key]
    values = row.values(key)
    return f"{scale * values[0]:.{digits}f}" if values else ""


def duration(seconds: list[float]) -> str:
    """The shortest and the longest, as `28 to 37` or `0.4 to 1.2`."""
    digits = 0 if max(seconds) >= 10 else 1
    return " to ".join(dict.fromkeys(f"{value:.{digits}f}" for value in (min(seconds), max(seconds))))


def training_table(rows: list[Row]) -> str:
    """What training took, and what it was told."""
    lines = []
    for row in rows:
        seconds = row.facts("train_seconds")
        if not seconds:
            continue
        parameters = row.facts("head_parameters")
        arguments = row.facts("arguments")
        chosen = ", ".join(f"{key} {value}" for key, value in (arguments[0] if arguments else {}).items())
        lines.append(
            [
                row.title,
                f"{parameters[0]:,}" if parameters else "",
                duration(seconds),
                f"{row.facts('trials')[0]}" if row.facts("trials") else "",
                chosen,
            ]
        )
    header = ["", "parameters of the head", "training, s", "settings tried", "settings taken"]
    return study.markdown(header, lines)


def cost_table(rows: list[Row]) -> str:
    """Time of an explained prediction as a multiple of a prediction."""
    lines = []
    for row in rows:
        for result in row.results.values():
            found, images = result["metrics"], result["settings"]["images"]
            if result["settings"]["method"] == "random":
                # What is drawn explains no prediction.
                continue
            low, high = found["cost_quartiles"]
            counts = ", ".join(
                f"{key} {images[key]}"
                for key in ("maps", "parts", "faithfulness", "robustness", "concepts", "classes")
                if key in images
            )
            lines.append([row.title, f"{found['cost']:.2f}", f"{low:.2f} to {high:.2f}", counts])
    return study.markdown(["", "an explained prediction costs", "quartiles", "images"], lines)


def checks_table(rows: list[Row]) -> str:
    """What peers' own measures say, one row a method and one column a measure."""
    names: dict[str, None] = {}
    for row in rows:
        for result in row.results.values():
            names |= dict.fromkeys(result["metrics"])
    lines = [[row.title, *(f"{row.values(key)[0]:.3g}" if row.values(key) else "" for key in names)] for row in rows]
    return study.markdown(["", *names], [line for line in lines if any(line[1:])])


def missing_list(rows: list[Row]) -> str:
    lines = [f"- {row.title}: seed {', '.join(map(str, row.missing))}" for row in rows if row.missing]
    return "Not made:\n\n" + "\n".join(lines) + "\n" if lines else "All runs of this table have been made.\n"


def parts_of(table: str, results: Path, study_results: Path) -> list[str]:
    """What the page shows of a table."""
    runs: list[PeerRun] = runs_of(table)
    own, kind = group(runs, results), runs[0].kind
    if kind == "concepts":
        return [cells([*study_rows(table, study_results), *own], CONCEPTS), training_table(own), missing_list(own)]
    if kind == "explanations":
        return [cells(own, PLACES), cells(own, CURVES), cost_table(own), missing_list(own)]
    return [checks_table(own), missing_list(own)]


def main(
    results: Annotated[Path, typer.Option(help="Folder with the results of run.py.")] = Path(
        "benchmarks/peers/results"
    ),
    study_results: Annotated[Path, typer.Option(help="Folder with the study's results.")] = Path(
        "benchmarks/study/results"
    ),
    page: Annotated[Path, typer.Option(help="Page to fill.")] = Path("benchmarks/peers/README.md"),
):
    """Fills the page."""
    text = page.read_text(encoding="utf-8")
    for table in read_tables():
        shown = "\n".join(part for part in parts_of(table, results, study_results) if part)
        text = study.fill_page(text, table, shown)
    write_text(page, text)


if __name__ == "__main__":
    typer.run(main)

# SPDX-License-Identifier: Apache-2.0
"""
Writes the tables of docs/doubt.md from what benchmarks/doubt.py measured, each in place of the one with its header.

    python benchmarks/doubt_tables.py benchmarks/results/doubt.json docs/doubt.md
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ascent_vit.utils.files import read_json, write_text


MODELS = ("digits", "concept-mnist", "birds")
SETS = {
    "right class in the set, %": "coverage",
    "the same by the conformal thresholds alone, %": "coverage by conformal thresholds alone",
    "the same of each class, mean over classes, lowest and highest": "class coverage",
    "classes in a set": "size",
    "decided, %": "decided",
    "right, %": "accuracy",
    "right if decided, %": "accuracy if decided",
    "taken for another kind, %": "taken for another kind",
    "`ece`, %": "ece",
    "`ece` with temperature, %": "ece tempered",
}
DIALOGUES = {
    "dialogues": "to a decision",
    "dialogues to the end": "to the end",
    "dialogues, noise 64": "noise 64, to a decision",
    "dialogues to the end, noise 64": "noise 64, to the end",
}
SIGNS = ("features", "attention", "1 - probability")
ASKED = (0, 1, 2, 5, 10)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def with_ends(value: float, low: float, high: float, show: Callable[[float], str]) -> str:
    return f"{show(value)} ({show(low)} to {show(high)})"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [[f" {cell}".rstrip() + " |" for cell in cells] for cells in (header, *rows)]
    lines.insert(1, ["---|"] * len(lines[0]))
    return "\n".join("|" + "".join(line) for line in lines)


def sets_table(results: dict[str, Any]) -> str:
    """How often the sets hold the right class, and how large they are."""
    columns = {name: (results[name], "coverage per class") for name in MODELS[:2]}
    columns["birds, each class"] = results["birds"], "coverage per class"
    columns["birds, `--together`"] = results["birds"], "coverage together"
    rows = [
        ["images", *(f"{found['images']:,}" for found, _ in columns.values())],
        ["promised, %", *(f"{100 * (1 - found['alpha']):.0f}" for found, _ in columns.values())],
    ]
    for label, name in SETS.items():
        show = "{:.2f}".format if name == "size" else percent
        rows.append([label, *(with_ends(*found[kind][name], show=show) for found, kind in columns.values())])
    return table(["", *columns], rows)


def selection_table(results: dict[str, Any]) -> str:
    """Accuracy of the surest images."""
    found = [results[name]["selection"] for name in MODELS]
    show = "{:.4f}".format
    rows = [
        ["area", *(with_ends(each["area"], *each["interval"], show=show) for each in found)],
        ["in random order", *(show(each["area at random"]) for each in found)],
        ["best possible", *(show(each["best area"]) for each in found)],
    ]
    for share in found[0]["accuracy"]:
        label = f"right of the surest {share.removesuffix('%')} %, %"
        rows.append([label, *(percent(each["accuracy"][share]) for each in found)])
    return table(["", *MODELS], rows)


def dialogue_table(results: dict[str, Any]) -> str:
    """What questions are worth: of birds as they are, of the others under noise."""
    rows = []
    for name, part in [("birds", "dialogues"), ("birds", "dialogues to the end")] + [
        (name, part) for name in MODELS[:2] for part in DIALOGUES if "noise" in part
    ]:
        found = results[name][part]
        for order in ("guard", "uncertainty", "random"):
            values = found[order]
            enough = values["to 95 % accuracy"]
            rows.append(
                [
                    f"{name}, {DIALOGUES[part]}, {found['images']} images",
                    order,
                    *(percent(values["accuracy"][number]) for number in ASKED),
                    *(f"{values['size'][number]:.2f}" for number in (ASKED[0], ASKED[-1])),
                    "not reached" if enough is None else f"{enough:.3g}",
                ]
            )
    header = ["", "order", "right before, %", "after 1", *map(str, ASKED[2:])]
    return table([*header, "classes in a set before", "after 10", "questions to 95 % right"], rows)


def kinds_table(results: dict[str, Any]) -> str:
    """How well images of another kind are told."""
    rows = []
    for name in MODELS:
        for part, found in results[name].items():
            if part.startswith("another kind, "):
                areas = [(found[sign]["auroc"], *found[sign]["interval"]) for sign in SIGNS]
                taken = [found[f"{kind} taken for another kind"] for kind in ("known", "foreign")]
                rows.append(
                    [
                        f"{name}, {part.removeprefix('another kind, ')}",
                        *(with_ends(*area, show="{:.2f}".format) for area in areas),
                        *map(percent, taken),
                    ]
                )
    return table(["", *SIGNS, "known taken for another kind, %", "foreign, %"], rows)


def shifts_table(results: dict[str, Any]) -> str:
    """What is left of the promise under shifts."""
    columns = ("coverage", "decided in the end", "accuracy if decided in the end")
    rows = []
    for part in results[MODELS[0]]:
        if part.startswith("sets "):
            cells = [" / ".join(percent(results[name][part][column]) for column in columns) for name in MODELS]
            rows.append([part.removeprefix("sets "), *cells])
    return table(["under a shift", *MODELS], rows)


def tables(results: dict[str, Any]) -> list[str]:
    """All tables of the page."""
    return [make(results) for make in (sets_table, selection_table, dialogue_table, kinds_table, shifts_table)]


def with_tables(page: str, results: dict[str, Any]) -> str:
    """A page with the tables of the results; ValueError for a table that the page does not have."""
    blocks = page.split("\n\n")
    for text in tables(results):
        header = text.partition("\n")[0]
        places = [i for i, block in enumerate(blocks) if block.startswith(header)]
        if len(places) != 1:
            raise ValueError(f"The page has {len(places)} tables with the header {header}; expected one.")
        blocks[places[0]] = text
    return "\n\n".join(blocks)


if __name__ == "__main__":
    results_file, page_file = map(Path, sys.argv[1:])
    write_text(page_file, with_tables(page_file.read_text(encoding="utf-8"), read_json(results_file)))

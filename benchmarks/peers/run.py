# SPDX-License-Identifier: Apache-2.0
"""
Makes the runs of a table that are missing, one JSON file each.

    pip install ".[peers]"
    ascent-vit prepare cub --source CUB_200_2011 --output DATA/cub-all --option global_concepts=all
    OMP_NUM_THREADS=1 python benchmarks/peers/run.py --table birds --data DATA --backbone FOLDER

`--only NAME` makes one row, `--list` says what is done.
"""

import dataclasses
import logging
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer


# The study's modules, whose data and trainings these are too.
sys.path.append(str(Path(__file__).parents[1] / "study"))

from ground import study_ground  # noqa: E402
from rows import PeerRun, first_of, read_tables, runs_of  # noqa: E402

from ascent_vit.data import load_concept_dataset, load_digits_dataset  # noqa: E402
from ascent_vit.training import Recipe, load_recipe  # noqa: E402
from ascent_vit.utils.files import write_json  # noqa: E402
from ascent_vit.utils.versions import versions  # noqa: E402


logger = logging.getLogger(__name__)

# Beside what `versions` gives.
PEERS = ("pytorch_concepts", "scikit-learn", "captum", "grad-cam", "quantus", "evaluate")


def peer_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def load(run: PeerRun, data: Path) -> tuple[Recipe, Any]:
    """The recipe and the dataset of a run; the digits are made."""
    if run.ground:
        return study_ground(run.ground, run.seed, data)
    recipe = load_recipe(run.recipe)
    if run.dataset == "digits":
        return recipe, load_digits_dataset(copies=1)
    source = data / run.dataset
    if not source.is_dir():
        raise FileNotFoundError(f"There is no {source}: the page says how it is made.")
    return recipe, load_concept_dataset(str(source))


def make(run: PeerRun, recipe: Recipe, dataset: Any, work: Path, first: dict[str, Any] | None) -> dict[str, Any]:
    """Measures one row; `first` is the result of the same row with the table's first seed, None for that itself."""
    if run.kind == "concepts":
        from concepts import make as make_row
    elif run.kind == "explanations":
        from explanations import make as make_row
    else:
        from checks import make as make_row
    start, start_cpu = time.perf_counter(), time.process_time()
    found = make_row(run, recipe, dataset, work, first)
    seconds = {"total_seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu}
    settings = {"settings": run.settings(), "title": run.title}
    return settings | found | seconds | {"threads": torch.get_num_threads(), "peers": peer_versions(), **versions()}


def main(
    table: Annotated[str, typer.Option(help="Table of tables.yaml; all of them by default.")] = "",
    output: Annotated[Path, typer.Option(help="Folder of the results, one JSON file per run.")] = Path(
        "benchmarks/peers/results"
    ),
    data: Annotated[Path, typer.Option(help="Folder with the prepared datasets.")] = Path("data"),
    work: Annotated[Path, typer.Option(help="Folder for what is needed while runs last.")] = Path("runs/peers"),
    backbone: Annotated[
        str, typer.Option(help="Folder in place of the backbone's Hub id, with the same weights.")
    ] = "",
    only: Annotated[str, typer.Option(help="Names of rows, with commas between; all by default.")] = "",
    list_runs: Annotated[bool, typer.Option("--list", help="Say what is done and what is missing, and stop.")] = False,
):
    """Makes the runs that are missing. Exit code 2 for a table, row or dataset that does not exist."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    try:
        runs = [run for name in ([table] if table else read_tables()) for run in runs_of(name)]
        unknown = set(filter(None, only.split(","))) - {run.name for run in runs}
        if unknown:
            raise ValueError(f"There is no row {sorted(unknown)[0]} in {table or 'any table'}.")
        if only:
            runs = [run for run in runs if run.name in only.split(",")]
        if list_runs:
            for run in runs:
                print("missing" if run.result(output) is None else "done   ", run.label)
            return
        for run in runs:
            if run.result(output) is not None:
                continue
            recipe, dataset = load(run, data.resolve())
            if backbone and recipe.backbone is not None:
                recipe = dataclasses.replace(recipe, backbone=backbone)
            first = first_of(run).result(output) if run.tune else None
            result = make(run, recipe, dataset, work.resolve(), first)
            write_json(run.path(output), result)
            logger.info("%s: %.0f s", run.label, result["cpu_seconds"])
    except (ValueError, FileNotFoundError) as error:
        logger.error("%s", error)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    os.environ.setdefault("TQDM_MININTERVAL", "10")
    typer.run(main)

# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit train`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Option(help="A recipe file, or the name of one that comes with the package.")],
    output: Annotated[Path, typer.Option(help="Folder for everything that is written; new, or that of the run.")],
    dataset: Annotated[
        str | None, typer.Option(help="A Hub id, a local folder or digits, instead of the recipe's dataset.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed instead of the recipe's.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a key of the recipe, as in model.psi=0.5; repeatable."
        ),
    ] = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Do not look for errors in the dataset before the first step.")
    ] = False,
) -> None:
    """Train a model by a recipe: writes checkpoints, model/, metrics.json and a report."""
    from ascent_vit.training import load_recipe
    from ascent_vit.training import train as train_by_recipe

    # The dataset comes first, so that the changes may set its options.
    overrides = [f"dataset={json.dumps(dataset)}"] if dataset is not None else []
    values = load_recipe(recipe, [*overrides, *(changes or ())])
    try:
        result = train_by_recipe(values, output, resume=resume, seed=seed, check=not no_check)
    except KeyboardInterrupt:
        print("The same command with --resume goes on from the last checkpoint.", file=sys.stderr)
        raise
    for name, value in result.metrics.items():
        print(f"{name}: {value:.4f}")
    print(f"Model: {result.model_dir}")

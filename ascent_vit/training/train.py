# SPDX-License-Identifier: Apache-2.0
"""Trains a concept classifier by a recipe, on any number of processes, with checkpoints to resume from."""

import dataclasses
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ascent_vit.utils.files import claim

from .loop import fit
from .precision import own_precision
from .recipe import Recipe
from .result import TrainingResult, finish
from .setup import check_output, set_up


if TYPE_CHECKING:
    from datasets import DatasetDict


def recipe_for(recipe: Recipe, dataset: "str | os.PathLike | DatasetDict | None", seed: int | None) -> Recipe:
    """Puts the dataset and seed that were given in place of a recipe's own; ValueError without any dataset."""
    changes: dict[str, Any] = {} if seed is None else {"seed": seed}
    if isinstance(dataset, str | os.PathLike):
        if recipe.dataset not in (None, str(dataset)):
            changes["dataset_options"] = {}
        changes["dataset"] = str(dataset)
    elif dataset is not None:
        changes["dataset"] = None
    elif recipe.dataset is None:
        raise ValueError("The recipe names no dataset: give one, a Hub id, a local folder or digits.")
    return dataclasses.replace(recipe, **changes)


def train(
    recipe: Recipe,
    output_dir: str | os.PathLike,
    dataset: "str | os.PathLike | DatasetDict | None" = None,
    resume: bool = False,
    seed: int | None = None,
    check: bool = True,
) -> TrainingResult:
    """
    Trains a model by a recipe.

    Writes `model/` (the best weights on the validation split, with configuration and image processor), `metrics.json`
    (their metrics on the test split), `report.json` (everything about the run), `report.md` and `curves.png` (the same
    for people), `metrics/epoch_NNN.json`, `checkpoints/` and `recipe.json` into the output folder, each file and
    folder whole or not at all. Runs on one process, or on several started by `torchrun`. An epoch is a number of whole
    optimiser steps: images that do not fill the last one are left out, others each epoch. With the same seed,
    versions and number of threads, a run on a CPU gives equal weights each time, also when it was resumed.

    Args:
        recipe: model, data and settings of the run.
        output_dir: an empty or new folder, or, to resume, that of the run.
        dataset: a loaded dataset, or a Hub id or folder to load instead of the recipe's; the `dataset_options` of
            another one are then left out.
        resume: whether to go on from the last checkpoint in `output_dir` that is whole, from the start if there is
            none. A run that is finished is left as it is.
        seed: random seed instead of the recipe's.
        check: whether to check every row first, as [`check_dataset`] does. A dataset that passed is not checked again,
            and a stream never.

    Returns:
        The best weights' folder and metrics.

    Raises:
        FileNotFoundError: for a dataset or backbone that does not exist.
        FileExistsError: for a folder that another process trains in.
        ValueError: for a recipe, dataset or folder that does not serve.
        TrainingError: for a loss or gradient that is not finite, a loss that explodes, or a disk that takes no more.

    Example:

    ```python
    >>> result = train(load_recipe("digits"), "runs/digits")
    >>> result.metrics["accuracy"]
    0.98
    ```
    """
    recipe, output = recipe_for(recipe, dataset, seed), Path(output_dir)
    loaded = None if isinstance(dataset, str | os.PathLike) else dataset
    check_output(output, resume)
    # Of several processes the first one, which writes.
    with claim(output, inside=True) if os.environ.get("RANK", "0") == "0" else nullcontext(), own_precision():
        run = set_up(recipe, output, loaded, resume, check)
        with run.watcher:
            fit(run)
            return finish(run)


__all__ = ["train"]

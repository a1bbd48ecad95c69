# SPDX-License-Identifier: Apache-2.0
"""What peers and the study have in common: recipe, budget and data of a row, and a small backbone trained by them."""

import dataclasses
import logging
from pathlib import Path

from data import load, train_part
from datasets import ClassLabel, Dataset, DatasetDict
from plain import train_plain
from plan import StudyRun, runs_of

from ascent_vit.training import Recipe
from ascent_vit.utils.files import replace_folder, write_json


logger = logging.getLogger(__name__)


def study_run(name: str, seed: int) -> StudyRun:
    """The run TABLE/ROW of the study with a seed; ValueError if there is none."""
    table, _, row = name.partition("/")
    for run in runs_of(table):
        if (run.name, run.seed) == (row, seed):
            return run
    raise ValueError(f"The study has no row {name} with seed {seed}.")


def study_ground(name: str, seed: int, data: Path) -> tuple[Recipe, DatasetDict]:
    """Recipe and splits of a run of the study, its test split as large as the study's."""
    run = study_run(name, seed)
    recipe = run.load_recipe()
    dataset = load(run, recipe, data)
    test = dataset["test"]
    if run.test_images is not None:
        test = test.shuffle(seed=0).select(range(run.test_images))
    return recipe, DatasetDict({**train_part(run, recipe, dataset), "test": test})


def with_concept_as_class(split: Dataset) -> Dataset:
    """A split whose class is the image's global concept; ValueError where an image has none or several."""
    names, concepts = split.features["concepts"].feature.names, split["concepts"]
    if any(len(found) != 1 for found in concepts):
        raise ValueError("A backbone learns one concept of each image, and an image has none or several.")
    classes = [found[0] for found in concepts]
    return split.remove_columns("label").add_column("label", classes).cast_column("label", ClassLabel(names=names))


def on_trained_backbone(recipe: Recipe, dataset: DatasetDict, folder: Path) -> Recipe:
    """
    The recipe on its small backbone, which has learned to name the concept by a linear head, with the same budget.

    It is trained once for a folder, and kept there.
    """
    target = folder / "backbone"
    if not target.is_dir():
        parts = DatasetDict({name: with_concept_as_class(dataset[name]) for name in ("train", "validation")})
        model, processor, facts = train_plain(recipe, parts)
        with replace_folder(target) as partial:
            model.base_model.save_pretrained(partial)
            processor.save_pretrained(partial)
        write_json(folder / "backbone.json", facts)
        logger.info("Backbone of %s: %s", folder.name, facts)
    fields = {name: value for name, value in recipe.model.items() if name != "backbone_config"}
    return dataclasses.replace(recipe, backbone=str(target), model=fields)

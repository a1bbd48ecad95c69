# SPDX-License-Identifier: Apache-2.0
"""Our model and the Concept Transformer, judged by the same code as peers."""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from features import BATCH, Split, numbered_rows
from ground import study_run
from rows import PeerRun
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ascent_vit.data import ConceptCollator
from ascent_vit.data.batches import FEATURE_ROWS
from ascent_vit.data.schema import COLUMNS
from ascent_vit.evaluation import Intervention
from ascent_vit.evaluation.probe import choose_subset
from ascent_vit.inference import load_model
from ascent_vit.training import Recipe, train


SUBSET_SEED = 0


@dataclass(frozen=True)
class Seen:
    """
    A model that has been asked already: its "features" of an image are what it said of it.

    Args:
        num_labels: number of classes.
        num_parameters: number of the model's parameters without its backbone.
    """

    num_labels: int
    num_parameters: int
    features: str = "cls"

    def __call__(self, features: Tensor, override: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Class logits `(B, K)` and attention to the global concepts `(B, G)`."""
        return features[:, : self.num_labels], features[:, self.num_labels :]

    def parameters(self) -> int:
        return self.num_parameters


@torch.no_grad()
def ask(model: Any, rows: Any, collate: Any, description: str) -> Split:
    """What a model says of images, in the place of their features, with their classes and concepts."""
    said, labels, concepts = [], [], []
    for batch in tqdm(DataLoader(rows, BATCH, collate_fn=collate), desc=description):
        batch.pop(FEATURE_ROWS, None)
        out = model(batch["pixel_values"])
        said.append(torch.cat([out.logits, out.global_concept_attention], dim=-1).float())
        labels.append(batch["labels"])
        concepts.append((batch["concept_targets"] > 0).float())
    together = torch.cat(said)
    return Split(together, together, torch.cat(labels), torch.cat(concepts))


def trained(name: str, run: PeerRun, recipe: Recipe, dataset: Any, folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The model of a row of the study, its image processor, and `steps`."""
    own = dataclasses.replace(study_run(name, run.seed).load_recipe(), save_steps=100)
    if own.backbone is not None:
        own = dataclasses.replace(own, backbone=recipe.backbone)
    parts = {name: dataset[name] for name in ("train", "validation")}
    result = train(own, folder, dataset=type(dataset)(parts), resume=True)
    model, processor = load_model(str(result.model_dir))
    shutil.rmtree(folder)
    return model, processor, {"steps": result.steps}


def ask_all(
    run: PeerRun, recipe: Recipe, dataset: Any, folder: Path, steps: int
) -> tuple[Seen, dict[str, Split], dict[str, Any], dict[str, Any]]:
    """
    Loads or trains a model, and asks it of the images that peers learn from and are tested on.

    Args:
        run: row, whose arguments have `model`, a folder, or `study`, a row of the study to train.
        folder: folder for the training.
        steps: number of steps of the curve of corrections.

    Returns:
        The model as a peer, its splits, what is said of its training, and metrics of corrections.
    """
    arguments, facts = dict(run.arguments), {}
    if "study" in arguments:
        model, processor, facts = trained(arguments["study"], run, recipe, dataset, folder)
    else:
        model, processor = load_model(arguments["model"])
    recipe = dataclasses.replace(recipe, cache_mebibytes=0)
    splits = {
        name: ask(model, *numbered_rows(recipe, dataset[name], processor, 0, name == "train"), f"Asking of {name}")
        for name in ("train", "test")
    }
    corrected = {}
    if "corrections" in run.images:
        rows = choose_subset(len(dataset["test"]), run.images["corrections"], SUBSET_SEED)
        split = dataset["test"].select(rows)
        columns = split.select_columns([name for name in COLUMNS if name in split.features])
        loader: Any = DataLoader(columns, BATCH, collate_fn=ConceptCollator(processor))  # type: ignore[arg-type]
        corrected = Intervention(steps, gain=False)(model, loader)
    head = sum(values.numel() for name, values in model.named_parameters() if ".backbone." not in name)
    return Seen(model.config.num_labels, head), splits, facts, corrected

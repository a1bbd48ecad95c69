# SPDX-License-Identifier: Apache-2.0
"""
TCAV (Kim et al., "Interpretability Beyond Feature Attribution", ICML 2018) by captum: how much a class's score grows
in the direction of a concept, learned from images with it and without it. It names no place.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import binary_auroc
from tqdm.auto import tqdm

from ascent_vit.training.blocks import find_blocks


BATCH = 25


class ThroughCls(torch.nn.Module):
    """
    A plain ViT whose CLS token passes a layer of its own, which changes nothing, before the last block.

    There is what the image made of it, and its way to the class scores is not linear.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model, self.cls = model, torch.nn.Identity()
        find_blocks(model.base_model)[-1].register_forward_pre_hook(self.pass_cls)

    def pass_cls(self, block: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens, *others = args
        return torch.cat([self.cls(tokens[:, :1]), tokens[:, 1:]], dim=1), *others

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).logits


class Images(Dataset):
    """Some images of a split as the image processor makes them, each when it is asked for."""

    def __init__(self, split: Any, rows: list[int], processor: Any):
        self.split, self.rows, self.processor = split, rows, processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        image = self.split[self.rows[index]]["image"]
        return self.processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]


def concept_sets(split: Any, truth: np.ndarray, processor: Any, number: int, seed: int) -> dict[int, list[Any]]:
    """
    For each concept, by its number, captum's two sets of images: drawn ones with it, and drawn ones without it.

    Concepts that all images have, or none, are left out.
    """
    from captum.concept import Concept

    rng = np.random.default_rng(seed)
    sets = {}
    for concept, column in enumerate(truth.T):
        if column.min() == column.max():
            continue
        pair = []
        for present in (1, 0):
            rows = rng.permutation(np.flatnonzero(column == present))[:number].tolist()
            images = DataLoader(Images(split, rows, processor), BATCH)
            pair.append(Concept(2 * concept + 1 - present, f"{concept}-{present}", images))
        sets[concept] = pair
    return sets


def truth_of(split: Any, number: int) -> np.ndarray:
    """Which global concepts each image has, `(n, G)`."""
    truth = np.zeros((len(split), number), dtype=int)
    for row, found in enumerate(split["concepts"]):
        truth[row, found] = 1
    return truth


def attributes_auroc(scores: Tensor, attributes: Tensor) -> float:
    """
    How well scores of classes and concepts tell which class has which concept: the mean over concepts of the area
    under the ROC curve over classes, without concepts that all classes have or none.

    Args:
        scores: `(K, G)`.
        attributes: 1 for those that a class has, `(K, G)`.
    """
    some = (attributes.min(0).values == 0) & (attributes.max(0).values == 1)
    pairs = zip(scores.T[some], attributes.T[some].long(), strict=True)
    return torch.stack([binary_auroc(*pair) for pair in pairs]).mean().item()


class ConceptSensitivity:
    """
    captum's TCAV, by its defaults, with all concepts of a dataset.

    Args:
        model: plain ViT in evaluation mode.
        sets: of each concept two sets of images, from [`concept_sets`].
        number: number of concepts; those without sets have scores of 0.
        folder: folder for activations and vectors.
    """

    def __init__(self, model: Any, sets: dict[int, list[Any]], number: int, folder: str):
        from captum.concept import TCAV

        self.sets, self.number, self.tcav = sets, number, TCAV(ThroughCls(model), "cls", save_path=folder)
        for pair in tqdm(sets.values(), desc="Learning concepts"):
            self.tcav.compute_cavs([pair])

    def __call__(self, pixels: Tensor, target: int) -> tuple[Tensor, Tensor]:
        """Derivatives of a class score towards each concept, mean over images, and the share above 0, `(G,)` each."""
        found = self.tcav.interpret(pixels, list(self.sets.values()), target=target)
        scores = torch.zeros(2, self.number)
        for concept, (present, absent) in self.sets.items():
            values = found[f"{present.id}-{absent.id}"]["cls"]
            scores[:, concept] = torch.stack([values["magnitude"][0], values["sign_count"][0]])
        return scores[0], scores[1]


def scores_of_classes(
    explain: Callable[[Tensor, int], tuple[Tensor, ...]], split: Any, processor: Any, per_class: int, seed: int
) -> tuple[list[int], list[Tensor]]:
    """
    Scores of each class and concept, from some drawn images of each class.

    Args:
        explain: function of images `(B, C, H, W)` and their class that gives scores of concepts, some kinds of them,
            `(G,)` each.
        split: test split.
        processor: image processor.
        per_class: number of images of each class.
        seed: random seed of these images.

    Returns:
        The classes, and of each kind of score `(K, G)`.
    """
    labels, rng = np.asarray(split["label"]), np.random.default_rng(seed)
    classes, found = np.unique(labels).tolist(), []
    for chosen in tqdm(classes, desc="Classes"):
        rows = rng.permutation(np.flatnonzero(labels == chosen))[:per_class].tolist()
        images = Images(split, rows, processor)
        found.append(explain(torch.stack([images[i] for i in range(len(rows))]), chosen))
    return classes, [torch.stack(kind) for kind in zip(*found, strict=True)]


def judge_classes(
    explain: Callable[[Tensor, int], tuple[Tensor, ...]], dataset: Any, processor: Any, per_class: int, seed: int
) -> dict[str, float]:
    """Whether what explains the classes agrees with their annotated attributes, by each kind of score."""
    number = len(dataset["test"].features["concepts"].feature.names)
    classes, kinds = scores_of_classes(explain, dataset["test"], processor, per_class, seed)
    labels, truth = np.asarray(dataset["train"]["label"]), truth_of(dataset["train"], number)
    attributes = torch.from_numpy(np.stack([truth[labels == chosen].max(0) for chosen in classes]))
    names = ("attributes_auroc", "attributes_auroc_sign")
    return {name: attributes_auroc(scores, attributes) for name, scores in zip(names, kinds, strict=False)}


def contributions_to_class(model: Any) -> Callable[[Tensor, int], tuple[Tensor, ...]]:
    """What our model's global concepts contribute to a class, mean over images."""

    def explain(pixels: Tensor, target: int) -> tuple[Tensor, ...]:
        with torch.no_grad():
            contributions = model(pixels, output_contributions=True).concept_contributions
        return (contributions[:, : model.config.num_global_concepts, target].mean(0),)

    return explain

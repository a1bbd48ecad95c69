# SPDX-License-Identifier: Apache-2.0
"""Leakage: how much about the class passes through concepts that mean nothing?"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, default_collate

from modeling_ascent_vit.class_scores_ascent_vit import score_function

from .evaluate import check_labels
from .probe import check_counts, column_means, rows_of_images


if TYPE_CHECKING:
    from accelerate import Accelerator

    from ascent_vit.inference.protocols import ConceptClassifier

TARGETS = ("concept_targets", "spatial_concept_targets", "spatial_concept_presence")


class PermutedTargets(Dataset):
    """
    Dataset whose rows have the concept targets, global and spatial together, of another row; pixels and labels stay.

    The rows are one random cycle, so that no row keeps its own targets, and each one's targets are used once.

    Args:
        dataset (`Dataset`): Rows with `pixel_values`, `labels` and targets, 2 or more of them.
        seed (`int`): Random seed of the permutation.

    Raises:
        ValueError: for fewer than two rows.
    """

    def __init__(self, dataset: Any, seed: int):
        if len(dataset) < 2:
            raise ValueError(f"Targets can be permuted among 2 rows or more; the dataset has {len(dataset)}.")
        self.dataset = dataset
        cycle = np.random.default_rng(seed).permutation(len(dataset))
        self.donors = np.empty_like(cycle)
        self.donors[cycle] = np.roll(cycle, 1)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row, donor = self.dataset[index], self.dataset[int(self.donors[index])]
        return row | {name: donor[name] for name in TARGETS if name in donor}


def collate(rows: Any) -> dict[str, Tensor]:
    """Puts rows together as a batch; a [`CachedConceptDataset`] gives whole batches already."""
    return rows if isinstance(rows, dict) else default_collate(rows)


@dataclass(frozen=True)
class ShortTraining:
    """
    Trains a new model with AdamW for a number of steps, the learning rate falling to 0 on a cosine. Called with a
    dataset of rows as [`leakage`] takes them, it gives the trained model.

    Args:
        build_model (`Callable`): Function that gives a model to train, with random weights or a pretrained backbone.
        steps (`int`, *optional*, defaults to 500): Number of optimiser steps.
        batch_size (`int`, *optional*, defaults to 32): Number of images per step.
        learning_rate (`float`, *optional*, defaults to 1e-3): Learning rate of the first step.
        weight_decay (`float`, *optional*, defaults to 0.05): Weight decay of AdamW.
        seed (`int`, *optional*, defaults to 0): Random seed of the weights that are not pretrained, and of the order
            of images.
        device (`str`, *optional*, defaults to `"cpu"`): Device to train on.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Raises:
        ValueError: for numbers below 1.
    """

    build_model: Callable[[], Any]
    steps: int = 500
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0
    device: str = "cpu"
    progress: bool = False

    def __post_init__(self):
        check_counts(steps=self.steps, batch_size=self.batch_size)

    def __call__(self, dataset: Dataset) -> Any:
        from tqdm.auto import tqdm

        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = self.build_model().to(self.device).train()
            optimizer = torch.optim.AdamW(model.parameters(), self.learning_rate, weight_decay=self.weight_decay)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
            sampler = RandomSampler(
                dataset,  # type: ignore[arg-type]
                num_samples=self.steps * self.batch_size,
                generator=torch.Generator().manual_seed(self.seed),
            )
            loader = DataLoader(dataset, self.batch_size, sampler=sampler, collate_fn=collate)
            for batch in tqdm(loader, desc="Training", unit="step", disable=not self.progress):
                loss = model(**{name: values.to(self.device) for name, values in batch.items()}).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
        return model.eval()


def accuracy_and_majority(
    model: "ConceptClassifier",
    dataloader: Iterable[dict[str, Tensor]],
    accelerator: "Accelerator | None",
    progress: bool,
) -> tuple[float, float, int]:
    """Share of images that a model classifies right, share of the most frequent class, number of images."""
    bare_model = model if accelerator is None else accelerator.unwrap_model(model)
    num_classes = bare_model.config.num_labels or 0
    if score_function(bare_model.config) != "softmax":
        raise ValueError("Leakage compares accuracies: it needs a model for one class of an image.")

    def measure(model: "ConceptClassifier", pixels: Tensor, batch: dict[str, Tensor]) -> Tensor:
        labels = check_labels(batch.get("labels"), model.config)
        if labels is None:
            raise ValueError("Leakage needs labels: give batches with labels.")
        labels = labels.to(pixels.device)
        predicted = model(pixels.to(next(model.parameters()).dtype)).logits.argmax(-1)
        classes = torch.nn.functional.one_hot(labels, num_classes)
        return torch.cat([(predicted == labels)[:, None], classes], dim=1).float()

    (accuracy, *classes), counts = column_means(rows_of_images(model, dataloader, measure, accelerator, progress))
    return accuracy, max(classes), counts[0]


def leakage(
    train_model: "Callable[[Dataset], ConceptClassifier]",
    dataset: Dataset,
    dataloader: Iterable[dict[str, Tensor]],
    accelerator: "Accelerator | None" = None,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, float]:
    r"""
    Measures how much of what a model achieves does not need concepts that mean what their targets say.

    A concept layer may carry more about the class than its concepts (Mahinpei et al., "Promises and Pitfalls of
    Black-Box Concept Learning Models", 2021; Margeloiu et al., "Do Concept Bottleneck Models Learn as Intended?",
    2021; Havasi, Parbhoo and Doshi-Velez, "Addressing Leakage in Concept Bottleneck Models", NeurIPS 2022). Two models
    are trained in the same way: one on the true targets, one on targets permuted among the images, where global and
    spatial targets of an image stay together, labels stay, and no concept tells anything about its image any more.

        leakage = (accuracy_permuted - majority) / (accuracy_true - majority)

    on held-out images, `majority` being the share of the most frequent class. 0, or below: without meaningful concepts
    the model is no better than always saying that class. 1: it is as good without them, so that its accuracy is no
    evidence that it decides by concepts.

    Limits: it judges architecture, weights of the losses and length of training together, not one trained model. The
    permuted targets pull against the class loss, so that a larger `concept_loss_weight` gives a smaller value, and a
    short training makes both accuracies uncertain: repeat it with several seeds.

    Cost: two trainings, which `train_model` bounds, and one forward pass per held-out image and model.

    Args:
        train_model (`Callable`):
            Function that trains a new model on a dataset of rows, always from the same start and for the same time,
            for example a [`ShortTraining`].
        dataset (`Dataset`):
            Rows of `pixel_values` (C, H, W), `labels` and any of `concept_targets` (G,), `spatial_concept_targets`
            (N, S) and `spatial_concept_presence` (S,), for example a [`CachedConceptDataset`].
        dataloader (`Iterable[dict]`): Held-out batches, as of [`evaluate`].
        accelerator (`Accelerator`, *optional*): Accelerator that prepared `dataloader`; see [`evaluate`].
        seed (`int`, *optional*, defaults to 0): Random seed of the permutation.
        progress (`bool`, *optional*, defaults to `False`): Whether to show progress bars.

    Returns:
        `dict[str, float]`: `leakage`, `leakage_accuracy_true`, `leakage_accuracy_permuted`, `leakage_majority` and
        `leakage_images`, the number of held-out images. `leakage` is the primary metric, smaller is better.

    Raises:
        ValueError: for rows without targets, or where the model with true targets does not beat the majority.
    """
    permuted = PermutedTargets(dataset, seed)
    if not any(name in permuted[0] for name in TARGETS):
        raise ValueError(f"Leakage needs concept targets: give rows with {' or '.join(TARGETS)}.")
    accuracies = []
    for rows in (dataset, permuted):
        model = train_model(rows)
        accuracy, majority, images = accuracy_and_majority(model, dataloader, accelerator, progress)
        accuracies.append(accuracy)
    true, without_meaning = accuracies
    if true <= majority:
        raise ValueError(
            f"The model with true targets is right in {true:.1%} of the images, and always saying the most frequent "
            f"class would be in {majority:.1%}: train longer, or leave leakage out."
        )
    return {
        "leakage": (without_meaning - majority) / (true - majority),
        "leakage_accuracy_true": true,
        "leakage_accuracy_permuted": without_meaning,
        "leakage_majority": majority,
        "leakage_images": images,
    }


leakage.primary_metric = "leakage"  # type: ignore[attr-defined]
leakage.greater_is_better = False  # type: ignore[attr-defined]

__all__ = ["PermutedTargets", "ShortTraining", "leakage"]

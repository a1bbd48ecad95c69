# SPDX-License-Identifier: Apache-2.0
"""Sanity check of explanations: they must depend on what the model has learned."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef

from modeling_ascent_vit.class_scores_ascent_vit import chosen_classes, score_function

from .probe import ImageEvaluator


if TYPE_CHECKING:
    from ascent_vit.inference.protocols import ConceptClassifier

    from .probe import Measure

# From the class scores down to the pixels, as the cascade goes.
STAGES = ("head", "fusion", "backbone")


def stage_of(name: str) -> str:
    """The stage to which a parameter or buffer of the model belongs."""
    if name.startswith("ascent_vit.backbone."):
        return "backbone"
    return "fusion" if name.startswith("ascent_vit.") else "head"


def randomised_models(model: "ConceptClassifier", seed: int) -> "dict[str, ConceptClassifier]":
    """
    Copies a model with weights as before any training: those of its concept head, of head and pyramid with fusion, and
    of everything. Stages that the model does not have are left out. The model itself and the random state stay.
    """
    config = copy.deepcopy(model.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(config).state_dict()  # type: ignore[call-arg]
    current, models = model, {}
    for stage in STAGES:
        names = [name for name in fresh if stage_of(name) == stage]
        if not names:
            continue
        current = copy.deepcopy(current)
        tensors = current.state_dict()
        with torch.no_grad():
            for name in names:
                tensors[name].copy_(fresh[name])
        models[stage] = current.eval()
    return models


def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Absolute Spearman correlation over places of (B, h, w) with (B, h, w): (B,); 0 with a constant map."""
    first, second = (m.flatten(1).T.contiguous().float().cpu() for m in (maps, others))
    varied = (first != first[:1]).any(0) & (second != second[:1]).any(0)
    values = torch.zeros(first.shape[1])
    if varied.any():
        values[varied] = spearman_corrcoef(first[:, varied], second[:, varied]).reshape(-1).abs()
    return values


@dataclass(frozen=True)
class Randomisation(ImageEvaluator):
    """
    Cascading randomisation (Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018): similarity of the maps
    to those of the same model with random weights in its concept head (`randomisation_head`), in head and pyramid with
    fusion (`randomisation_fusion`, for a model that has them), and everywhere (`randomisation_backbone`).

    Maps are those that insertion ranks patches by: what all spatial concepts together contribute to the class that the
    trained model predicts. Their similarity is the absolute Spearman correlation over the patches, mean over images:
    1 for the same or the inverse order, and `sqrt(2 / pi / (N - 1))` is expected of unrelated maps of N patches.
    A value near 1 means that the maps do not depend on what was learned there. Random weights are those of
    initialisation.

    Cost: 5 forward passes per image and memory for three further models.

    Args:
        seed (`int`, *optional*, defaults to 0): Random seed of the random weights.

    Returns:
        When called, `dict[str, float]`: the metrics, and `randomisation_images`, the number of images. Only
        `pixel_values` are used.

    Raises:
        NotApplicableError: when called, for a model without spatial concepts.
    """

    seed: int = 0
    description: ClassVar[str] = "Randomisation"
    count_name: ClassVar[str] = "randomisation_images"
    primary_metric: ClassVar[str] = "randomisation_backbone"
    greater_is_better: ClassVar[bool] = False

    def measurement(self, model: "ConceptClassifier") -> "tuple[Sequence[str], Measure]":
        models = randomised_models(model, self.seed)

        def similarities(model: "ConceptClassifier", pixels: Tensor, batch: dict[str, Tensor]) -> Tensor:
            pixel_values = pixels.to(next(model.parameters()).dtype)
            classes = chosen_classes(model(pixel_values).logits, score_function(model.config))[:, None]
            maps, *others = (
                m.contribution_maps(pixel_values, classes)[:, 0].sum(1) for m in (model, *models.values())
            )
            return torch.stack([rank_correlation(maps, other) for other in others], dim=1)

        return [f"randomisation_{stage}" for stage in models], similarities


__all__ = ["Randomisation", "randomised_models"]

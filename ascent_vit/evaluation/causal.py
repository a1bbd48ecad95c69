# SPDX-License-Identifier: Apache-2.0
"""Causal concept effect: does a prediction change as the patches that show a concept are removed?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from modeling_ascent_vit.class_scores_ascent_vit import chosen_classes, score_function

from .evaluate import fill_targets
from .faithfulness import masked_scores, scores_of
from .probe import ImageEvaluator, NotApplicableError, check_counts, random_ranks


if TYPE_CHECKING:
    from ascent_vit.inference.protocols import ConceptClassifier

    from .probe import Measure


@dataclass(frozen=True)
class CausalEffect(ImageEvaluator):
    """
    Causal concept effect (Goyal, Feder, Shalit and Kim, "Explaining Classifiers with Causal Concept Effect (CaCE)",
    2019), `E[score | do(concept present)] - E[score | do(concept absent)]`, over the images that show the concept: it
    is present as they are, and absent where its annotated patches have the mean colour of the image.

    Of each image one of its annotated spatial concepts is drawn. `causal_concept_effect` is how much the probability
    of the predicted class falls as the patches of that concept are removed, mean over images;
    `causal_concept_effect_random` is the same for as many patches drawn at random. A concept matters to the
    predictions where the first is greater. A removed patch takes along all that it shows, and a model that has never
    seen patches of one colour may answer to them alone: hence the second. Of a regression it is the first value.

    Cost: 3 forward passes per image.

    Args:
        seed (`int`, *optional*, defaults to 0): Random seed of the concepts and of the random patches.
        batch_size (`int`, *optional*, defaults to 64): Number of images per forward pass; of small images, more.

    Returns:
        When called, `dict[str, float]`: the two effects, from -1 to 1, and `causal_concept_effect_images`, the number
        of images, those with an annotated spatial concept.

    Raises:
        ValueError: for numbers below 1.
        NotApplicableError: when called, for a model without spatial concepts or images without annotated ones.
    """

    seed: int = 0
    batch_size: int = 64
    description: ClassVar[str] = "Causal concept effect"
    count_name: ClassVar[str] = "causal_concept_effect_images"
    primary_metric: ClassVar[str] = "causal_concept_effect"

    def __post_init__(self):
        check_counts(batch_size=self.batch_size)

    def measurement(self, model: "ConceptClassifier") -> "tuple[Sequence[str], Measure]":
        return ("causal_concept_effect", "causal_concept_effect_random"), self.effects

    def results(self, names: Sequence[str], means: list[float], counts: list[int]) -> dict[str, Any]:
        if counts[0] == 0:
            raise NotApplicableError(f"{self.description} needs images with annotated spatial concepts of the model")
        return super().results(names, means, counts)

    def effects(self, model: "ConceptClassifier", pixels: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Both effects of each image, (B, 2)."""
        pixel_values = pixels.to(next(model.parameters()).dtype)
        out = model(pixel_values)
        targets = fill_targets("spatial_concept_targets", batch, out.spatial_concept_attention)
        assert targets is not None
        annotated = targets.to(pixels.device) > 0
        classes = chosen_classes(out.logits, score_function(model.config))
        # The first annotated concept in an order of the image's own.
        number = annotated.shape[-1]
        order = random_ranks(pixels, number, self.seed).masked_fill(~annotated.any(1), number)
        removed = annotated[torch.arange(len(pixels), device=pixels.device), :, order.argmin(-1)]
        if not removed.any():
            return torch.full((len(pixels), 2), torch.nan)
        at_random = random_ranks(pixels, removed.shape[-1], self.seed + 1) < removed.sum(-1, keepdim=True)
        shown = ~torch.stack([removed, at_random], dim=1).unflatten(-1, tuple(out.patch_grid[0].tolist()))
        scores = masked_scores(model, pixel_values, classes, shown, self.batch_size)
        effects = scores_of(model, out.logits, classes) - scores
        return torch.where(removed.any(-1, keepdim=True), effects, torch.nan)


__all__ = ["CausalEffect"]

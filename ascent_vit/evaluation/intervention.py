# SPDX-License-Identifier: Apache-2.0
"""Intervention curves: does the prediction get better as a person corrects the concepts?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from modeling_ascent_vit.class_scores_ascent_vit import score_function
from modeling_ascent_vit.modeling_ascent_vit import true_attention

from .evaluate import check_labels, fill_targets
from .metrics import known_rows
from .probe import ImageEvaluator, NotApplicableError, check_counts, descending_ranks, random_ranks


if TYPE_CHECKING:
    from ascent_vit.inference.protocols import ConceptClassifier

    from .probe import Measure

# Of each stream that can be corrected: the model's output, its targets in a batch, its override.
STREAMS = (
    ("global_concept_attention", "concept_targets", "global_concept_override"),
    ("spatial_concept_attention", "spatial_concept_targets", "spatial_concept_override"),
)


def uncertainty(attention: Tensor, truth: Tensor) -> Tensor:
    """
    How unsure the model is of each concept, (B, C): the binary entropy of its attention, which is greatest at 1/2,
    mean over the rows that can be corrected. 0 where there are none.
    """
    entropy = torch.special.entr(attention) + torch.special.entr((1 - attention).clamp_min(0))
    rows = known_rows(truth).unsqueeze(-1)
    return torch.where(rows, entropy, 0.0).sum(1) / rows.sum(1).clamp(min=1)


def share_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each image's class is right, (B,), by labels (B,); by labels (B, K) the share of classes that are."""
    if labels.ndim == 1:
        return logits.argmax(-1) == labels
    return ((logits > 0) == (labels > 0)).double().mean(-1)


@dataclass(frozen=True)
class Intervention(ImageEvaluator):
    """
    Accuracy as more and more concepts of an image are corrected to their ground truth at test time (Koh et al.,
    "Concept Bottleneck Models", ICML 2020).

    The units are concepts: a global one in the image, a spatial one in all annotated patches at once. To correct one
    is to set the attention to it to its true value, 1/k where it is one of k present concepts of the image or patch
    and 0 where it is absent; the model's attention to concepts that are not corrected yet is rescaled to what is left
    of 1, as the overrides of the model do it. With all concepts corrected, the attention of annotated rows is the
    ground truth, and that of the others still the model's. Rows with an unknown concept count as not annotated.

    Each image has its own order. By uncertainty (UCP of Shin et al., "A Closer Look at the Intervention Procedure of
    Concept Bottleneck Models", ICML 2023): the binary entropy of the attention, of a spatial concept the mean over the
    patches to correct, the greatest first. It uses where there are annotations, never what they say. The other order
    is random. `intervention_curve[i]` is the accuracy with the share i / `steps` of an image's correctable concepts
    corrected, rounded to whole ones; `intervention_auc` is the area under it, by trapezoids, from 0 to 1.

    Where an image may have several classes, its accuracy is the share of all classes that are told right as present or
    absent, by a probability above 0.5. A model for regression is not judged.

    Cost: `2 * steps + 2` forward passes per image.

    Args:
        steps (`int`, *optional*, defaults to 16): Number of steps of a curve.
        seed (`int`, *optional*, defaults to 0): Random seed of the random orders.

    Returns:
        When called, `dict`: `intervention_auc` and `intervention_auc_random`; `intervention_curve` and
        `intervention_curve_random`, lists of `steps` + 1 accuracies; and `intervention_images`, the number of images,
        those with a label and an annotated row.

    Raises:
        ValueError: for fewer than one step.
        NotApplicableError: when called, without such images, or for a model for regression.
    """

    steps: int = 16
    seed: int = 0
    description: ClassVar[str] = "Intervention"
    count_name: ClassVar[str] = "intervention_images"
    needs_maps: ClassVar[bool] = False
    primary_metric: ClassVar[str] = "intervention_auc"

    def __post_init__(self):
        check_counts(steps=self.steps)

    def measurement(self, model: "ConceptClassifier") -> "tuple[Sequence[str], Measure]":
        if score_function(model.config) == "none":
            raise NotApplicableError("Intervention measures accuracy, and the model predicts values")
        points = range(self.steps + 1)
        return [f"{order} {point}" for order in ("by uncertainty", "at random") for point in points], self.correct

    def results(self, names: Sequence[str], means: list[float], counts: list[int]) -> dict[str, Any]:
        if counts[0] == 0:
            raise NotApplicableError("Intervention needs images with labels and annotated concepts of the model")
        points = self.steps + 1
        curve, curve_at_random = means[:points], means[points:]
        shares = torch.linspace(0, 1, points, dtype=torch.float64)
        return {
            "intervention_auc": torch.trapezoid(shares.new_tensor(curve), shares).item(),
            "intervention_auc_random": torch.trapezoid(shares.new_tensor(curve_at_random), shares).item(),
            "intervention_curve": curve,
            "intervention_curve_random": curve_at_random,
            self.count_name: counts[0],
        }

    def correct(self, model: "ConceptClassifier", pixels: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Whether each image is classified right at each point of both curves, (B, 2 * points)."""
        config = model.config
        pixel_values = pixels.to(next(model.parameters()).dtype)
        out = model(pixel_values)
        points = self.steps + 1
        truths, scores, correctable = {}, [], []
        for output, name, override in STREAMS:
            attention = getattr(out, output)
            targets = fill_targets(name, batch, attention)
            if targets is None:
                continue
            rows = (len(pixels), -1, attention.shape[-1])
            truth = true_attention(targets.to(pixels.device, torch.float32).reshape(rows), config.none_concept)
            truths[override] = truth
            scores.append(uncertainty(attention.float().reshape(rows), truth))
            correctable.append(known_rows(truth).any(-1, keepdim=True).expand(-1, attention.shape[-1]))
        labels = check_labels(batch.get("labels"), config)
        if labels is None or not truths:
            return torch.full((len(pixels), 2 * points), torch.nan)
        labels, can_correct, score = labels.to(pixels.device), torch.cat(correctable, -1), torch.cat(scores, -1)
        numbers = can_correct.sum(-1)
        at_random = random_ranks(pixels, score.shape[-1], self.seed)
        right = []
        for order in (score, -at_random.float()):
            # What cannot be corrected comes last.
            ranks = descending_ranks(torch.where(can_correct, order, -torch.inf), at_random)
            for step in range(points):
                corrected = ranks < (numbers * step / self.steps).round().unsqueeze(-1)
                logits = model(pixel_values, **self.overrides(truths, corrected)).logits
                right.append(share_right(logits, labels))
        values = torch.stack(right, dim=1).float()
        return torch.where((numbers > 0).unsqueeze(-1), values, torch.nan)

    @staticmethod
    def overrides(truths: dict[str, Tensor], corrected: Tensor) -> dict[str, Tensor]:
        """The model's override arguments that correct the concepts marked in (B, all concepts)."""
        parts = corrected.split([truth.shape[-1] for truth in truths.values()], dim=-1)
        overrides = {
            name: torch.where(marked.unsqueeze(1), truth, torch.nan)
            for (name, truth), marked in zip(truths.items(), parts, strict=True)
        }
        if "global_concept_override" in overrides:
            overrides["global_concept_override"] = overrides["global_concept_override"].squeeze(1)
        return overrides


__all__ = ["Intervention"]

# SPDX-License-Identifier: Apache-2.0
"""Metrics of a concept classifier, one `torchmetrics.Metric` each, and the collections that an evaluation uses.

Shapes: B images, K classes, G global and S spatial concepts, N patches. Targets are floats, above 0 where a concept is
annotated and NaN where nothing is known. No metric depends on how the data is cut into batches; each is NaN as long as
it has seen nothing that it can judge.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection, R2Score
from torchmetrics.classification import (
    BinaryCalibrationError,
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MultilabelF1Score,
)
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities import dim_zero_cat

from modeling_ascent_vit.class_scores_ascent_vit import score_function


CALIBRATION_BINS = 15


def share_of_strongest(scores: Tensor, annotated: Tensor) -> Tensor:
    """Whether the strongest of `scores` is `annotated`, both (..., n): 1 or 0, and where several tie, their share."""
    strongest = scores == scores.amax(-1, keepdim=True)
    return (strongest & annotated).sum(-1) / strongest.sum(-1)


def known_rows(target: Tensor) -> Tensor:
    """Marks the rows of targets (..., n) without any NaN: (...) bool."""
    return ~target.isnan().any(-1)


class MeanOverAnnotated(Metric):
    """Mean of the values that `measure` gives one per annotated item; NaN without items. Base of the classes below."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @staticmethod
    def measure(attention: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Values of a batch's items, (B, ...), and which of them are annotated, bool; other values mean nothing."""
        raise NotImplementedError

    def update(self, attention: Tensor, target: Tensor):
        """Adds a batch: attention and target of its images, (B, G) or (B, N, S)."""
        values, judged = self.measure(attention, target)
        self.total += values[judged].sum(dtype=torch.float64)
        self.count += judged.sum()

    def compute(self) -> Tensor:
        return self.total / self.count


class GlobalConceptAccuracy(MeanOverAnnotated):
    """Share of the images with exactly one annotated global concept where it is the most attended.

    Images with an unknown concept are left out: the most attended one may be right.
    """

    @staticmethod
    def measure(attention: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """An item is an image: attention (B, G), target (B, G)."""
        annotated = target > 0
        return share_of_strongest(attention, annotated), known_rows(target) & (annotated.sum(-1) == 1)


class PointingGame(MeanOverAnnotated):
    """Share of (image, spatial concept) pairs whose attention map has its maximum on the annotation.

    Zhang et al., "Top-down Neural Attention by Excitation Backprop" (ECCV 2016), without a tolerance around the
    annotation. A maximum on a patch without annotation is a miss. Where several patches share the maximum, their share
    on the annotation counts, so that a constant map scores what a random place would (Quantus counts it as a hit).
    """

    @staticmethod
    def measure(attention: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """An item is a concept in an image: attention (B, N, S), target (B, N, S)."""
        maps, annotated = attention.transpose(1, 2), (target > 0).transpose(1, 2)
        return share_of_strongest(maps, annotated), annotated.any(-1)


class PixelTPR(MeanOverAnnotated):
    """Share of annotated patches whose most attended spatial concept is an annotated one."""

    @staticmethod
    def measure(attention: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """An item is a patch: attention (B, N, S), target (B, N, S)."""
        annotated = target > 0
        return share_of_strongest(attention, annotated), known_rows(target) & annotated.any(-1)


class RelevanceMass(MeanOverAnnotated):
    """Share of an attention map's mass that lies inside the annotation, mean over (image, spatial concept) pairs.

    Arras, Osman and Samek, "CLEVR-XAI" (Information Fusion 2022); Quantus' `RelevanceMassAccuracy`. A map without mass
    counts 0.
    """

    @staticmethod
    def measure(attention: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """An item is a concept in an image: attention (B, N, S), target (B, N, S)."""
        maps, annotated = attention.transpose(1, 2), (target > 0).transpose(1, 2)
        mass, inside = maps.sum(-1), (maps * annotated).sum(-1)
        return torch.where(mass > 0, inside / mass, 0.0), annotated.any(-1)


class AlignmentError(Metric):
    """The squared-error alignment loss of ASCENT-ViT on held-out data, whatever loss the model was trained with.

    A token's target, normalised to sum to 1 over the concepts, against its attention: number of concepts times mean
    squared error. Mean over an image's annotated tokens (0 for an image without), then over all images; global plus
    spatial stream. A row with any NaN is not annotated, nor is a row of zeros unless `none_concept`, where it means
    "none of these".
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    images: Tensor
    tokens: Tensor

    def __init__(self, none_concept: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.none_concept = none_concept
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, *streams: tuple[Tensor, Tensor]):
        """Adds a batch: attention and target (B, T, C) of each stream of the model, T tokens and C concepts each."""
        for attention, target in streams:
            errors, tokens = self.measure(attention, target)
            self.total += errors.sum(dtype=torch.float64)
            self.tokens += tokens.sum()
        self.images += len(streams[0][0])

    def measure(self, attention: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Error of each image of a stream, (B,), and number of its annotated tokens, (B,)."""
        mass = target.nansum(-1, keepdim=True)
        annotated = known_rows(target)
        if not self.none_concept:
            annotated &= mass.squeeze(-1) > 0
        error = (attention - target / torch.where(mass > 0, mass, 1.0)).square().sum(-1)
        tokens = annotated.sum(-1)
        return torch.where(annotated, error, 0.0).sum(-1) / tokens.clamp(min=1), tokens

    def compute(self) -> Tensor:
        return torch.where(self.tokens > 0, self.total / self.images, torch.nan)


class MeanOverConcepts(Metric):
    """Mean over concepts of a ranking score. Base of the classes below.

    A concept counts if it is known to be present in some images and absent in others; images where it is unknown are
    left out of its score.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    attentions: list[Tensor]
    targets: list[Tensor]

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("attentions", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, attention: Tensor, target: Tensor):
        """Adds a batch: attention (B, C) to each of C concepts in an image, target (B, C)."""
        # torchmetrics applies a sigmoid to scores above 1, which a rounded softmax can be.
        self.attentions.append(attention.clamp(0, 1))
        self.targets.append(torch.where(target.isnan(), -1, target > 0))

    def score(self, attention: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError

    def compute(self) -> Tensor:
        attentions, targets = dim_zero_cat(self.attentions), dim_zero_cat(self.targets)
        scores = []
        for attention, target in zip(attentions.T, targets.T, strict=True):
            if (target == 1).any() and (target == 0).any():
                known = target >= 0
                scores.append(self.score(attention[known], target[known]))
        return torch.stack(scores).mean() if scores else attentions.new_tensor(torch.nan)


class ConceptMAP(MeanOverConcepts):
    """Mean average precision of an image's attention to a concept as a score for "this concept is present"."""

    def score(self, attention: Tensor, target: Tensor) -> Tensor:
        return binary_average_precision(attention, target, validate_args=False)


class ConceptAUROC(MeanOverConcepts):
    """Mean area under the ROC curve of an image's attention to a concept as a score for "this concept is present"."""

    def score(self, attention: Tensor, target: Tensor) -> Tensor:
        return binary_auroc(attention, target, validate_args=False)


# Compute groups are off in all collections: torchmetrics merges metrics whose states happen to be equal after the
# first batch, and different metrics here keep states of the same names.


class R2(R2Score):
    """R squared, the mean over values; NaN for fewer than two images, which have no variance."""

    def compute(self) -> Tensor:
        return super().compute() if self.total >= 2 else self.sum_error.new_tensor(torch.nan)


class ClassMetrics(MetricCollection):
    """Metrics of the predicted classes: `update(probabilities (B, K), labels (B,))`."""

    primary_metric: ClassVar[str] = "accuracy"
    greater_is_better: ClassVar[bool] = True

    def __init__(self, num_classes: int, **kwargs):
        kwargs = {"num_classes": num_classes, "validate_args": False, **kwargs}
        metrics: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(average="micro", **kwargs),
            "macro_f1": MulticlassF1Score(average="macro", **kwargs),
            "ece": MulticlassCalibrationError(n_bins=CALIBRATION_BINS, norm="l1", **kwargs),
        }
        if num_classes > 5:
            metrics["top5_accuracy"] = MulticlassAccuracy(average="micro", top_k=5, **kwargs)
        super().__init__(metrics, compute_groups=False)


class MultiLabelMetrics(MetricCollection):
    """
    Metrics of the classes where an image may have several: `update(probabilities (B, K), labels (B, K))`, labels 1 for
    the classes that it has. Of the mean average precision a class is left out that all images have, or none. The
    calibration error is that of all pairs of an image and a class.
    """

    primary_metric: ClassVar[str] = "label_map"
    greater_is_better: ClassVar[bool] = True

    def __init__(self, num_classes: int, **kwargs):
        unchecked = {"validate_args": False, **kwargs}
        metrics: dict[str, Metric | MetricCollection] = {
            "label_map": ConceptMAP(**kwargs),
            "label_f1_macro": MultilabelF1Score(num_classes, average="macro", **unchecked),
            "label_f1_micro": MultilabelF1Score(num_classes, average="micro", **unchecked),
            "ece": BinaryCalibrationError(n_bins=CALIBRATION_BINS, norm="l1", **unchecked),
        }
        super().__init__(metrics, compute_groups=False)

    def update(self, probabilities: Tensor, labels: Tensor):  # type: ignore[override]
        """Adds a batch: probabilities (B, K) and labels (B, K)."""
        super().update(probabilities, labels.long())


class RegressionMetrics(MetricCollection):
    """Metrics of predicted values: `update(values (B, K), labels (B, K))`; the mean over the K values of an image."""

    primary_metric: ClassVar[str] = "mae"
    greater_is_better: ClassVar[bool] = False

    def __init__(self, num_values: int = 1, **kwargs):
        metrics: dict[str, Metric | MetricCollection] = {
            "mae": MeanAbsoluteError(**kwargs),
            "rmse": MeanSquaredError(squared=False, **kwargs),
            "r2": R2(multioutput="uniform_average", **kwargs),
        }
        super().__init__(metrics, compute_groups=False)
        # In float32, the squares of values far from 0 would leave nothing of their variance.
        self.set_dtype(torch.float64)

    def update(self, values: Tensor, labels: Tensor):  # type: ignore[override]
        """Adds a batch: values (B, K) and labels (B, K)."""
        super().update(values.double(), labels.double())


def label_metrics(config: Any, **kwargs) -> ClassMetrics | MultiLabelMetrics | RegressionMetrics:
    """
    Makes the metrics of what a model predicts.

    Args:
        config: configuration of the model, whose problem type decides.
        kwargs: arguments of each metric.

    Raises:
        ValueError: for a model for one class of an image that has fewer than two.
    """
    function, number = score_function(config), config.num_labels or 0
    if function == "none":
        return RegressionMetrics(number, **kwargs)
    if config.problem_type == "multi_label_classification":
        return MultiLabelMetrics(number, **kwargs)
    if number < 2:
        raise ValueError(f"Class metrics need a model with at least 2 classes; this one has {number}.")
    return ClassMetrics(number, **kwargs)


class GlobalConceptMetrics(MetricCollection):
    """Metrics of the attention to global concepts: `update(attention (B, G), target (B, G))`."""

    primary_metric: ClassVar[str] = "concept_map"
    greater_is_better: ClassVar[bool] = True

    def __init__(self, **kwargs):
        metrics = {
            "concept_map": ConceptMAP(**kwargs),
            "concept_auroc": ConceptAUROC(**kwargs),
            "global_concept_accuracy": GlobalConceptAccuracy(**kwargs),
        }
        super().__init__(metrics, compute_groups=False)


class SpatialConceptMetrics(MetricCollection):
    """Metrics of the attention to spatial concepts: `update(attention (B, N, S), target (B, N, S))`."""

    primary_metric: ClassVar[str] = "pixel_tpr"
    greater_is_better: ClassVar[bool] = True

    def __init__(self, **kwargs):
        metrics = {
            "pointing_game": PointingGame(**kwargs),
            "pixel_tpr": PixelTPR(**kwargs),
            "relevance_mass": RelevanceMass(**kwargs),
        }
        super().__init__(metrics, compute_groups=False)


class PresenceMetrics(MetricCollection):
    """
    Metrics of spatial concepts that are somewhere in an image: `update(strongest (B, S), presence (B, S))`, the
    strongest attention that a concept has at any place.
    """

    primary_metric: ClassVar[str] = "presence_map"
    greater_is_better: ClassVar[bool] = True

    def __init__(self, **kwargs):
        metrics = {"presence_map": ConceptMAP(**kwargs), "presence_auroc": ConceptAUROC(**kwargs)}
        super().__init__(metrics, compute_groups=False)

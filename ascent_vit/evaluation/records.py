# SPDX-License-Identifier: Apache-2.0
"""What each image adds to the metrics of a split, so that they can be computed again of images drawn from it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeling_ascent_vit.class_scores_ascent_vit import class_scores, score_function

from .metrics import (
    CALIBRATION_BINS,
    AlignmentError,
    GlobalConceptAccuracy,
    MeanOverAnnotated,
    PixelTPR,
    PointingGame,
    RelevanceMass,
)


SPATIAL_MEANS: dict[str, type[MeanOverAnnotated]] = {
    "pointing_game": PointingGame,
    "pixel_tpr": PixelTPR,
    "relevance_mass": RelevanceMass,
}


def ranking_scores(scores: np.ndarray, target: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Average precision and area under the ROC curve of scores (n,) for a target (n,) of 1 and 0, in each draw.

    Args:
        scores: scores of the images.
        target: target of the images.
        counts: how often each image was drawn, (draws, n).

    Returns:
        Two arrays (draws,), NaN where a draw has no image with the target, or none without.
    """
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    # Below the last image with the target, nothing is added but images without it.
    lowest = np.flatnonzero(target[order] == 1)[-1:].sum()
    last_of_ties = last_of_ties[: np.searchsorted(last_of_ties, lowest) + 1]
    order = order[: last_of_ties[-1] + 1]
    drawn, positive = counts[:, order], target[order] == 1
    true = np.cumsum(drawn * positive, axis=1)[:, last_of_ties]
    false = np.cumsum(drawn * ~positive, axis=1)[:, last_of_ties]
    more_true, more_false = (np.diff(found, axis=1, prepend=0) for found in (true, false))
    all_false = counts.sum(1) - true[:, -1]
    with np.errstate(invalid="ignore"):
        precision = np.nan_to_num(true / (true + false))
        known = np.where(all_false > 0, true[:, -1], np.nan)
        average_precision = (more_true * precision).sum(1) / known
        above = (more_false * (true - more_true / 2)).sum(1) + (all_false - false[:, -1]) * true[:, -1]
        auroc = above / (known * all_false)
    return average_precision, auroc


def mean_ranking_scores(scores: np.ndarray, targets: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Both of [`ranking_scores`] as means over concepts, (2, draws), of scores and targets (n, C); NaN is unknown."""
    found = []
    for column, target in zip(scores.T, targets.T, strict=True):
        known = ~np.isnan(target)
        if (target[known] > 0).any() and (target[known] <= 0).any():
            found.append(ranking_scores(column[known], target[known] > 0, counts[:, known]))
    if not found:
        return np.full((2, len(counts)), np.nan)
    # A rare concept may be missing in a draw, and is then left out of it.
    values = np.array(found)
    number = (~np.isnan(values)).sum(0)
    return np.where(number > 0, np.nansum(values, axis=0) / np.maximum(number, 1), np.nan)


def f1_scores(true: np.ndarray, predicted: np.ndarray, annotated: np.ndarray) -> np.ndarray:
    """F1 scores of classes that are right `true` times among those `predicted` and `annotated`; 0 without any."""
    return 2 * true / np.maximum(predicted + annotated, 1)


def calibration_gaps(confidence: Tensor, right: Tensor) -> Tensor:
    """Sum of confidence - right in each bin of confidence, and where it is 1, (B, pairs) -> (B, bins + 1)."""
    edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, dtype=confidence.dtype, device=confidence.device)
    bins = torch.bucketize(confidence, edges, right=True) - 1
    gaps = confidence.new_zeros(len(confidence), CALIBRATION_BINS + 1, dtype=torch.float64)
    return gaps.scatter_add_(1, bins, confidence.double() - right.double())


class SplitRecords:
    """
    What each image adds to the metrics of a split.

    Args:
        config: configuration of the model.
    """

    def __init__(self, config: Any):
        self.function, self.num_classes = score_function(config), config.num_labels
        self.several = config.problem_type == "multi_label_classification"
        self.alignment = AlignmentError(config.none_concept)
        self.parts: dict[str, list[np.ndarray]] = {}
        self.tables: dict[str, np.ndarray] = {}

    def add(self, name: str, values: Tensor):
        self.parts.setdefault(name, []).append(values.cpu().numpy())
        self.tables.clear()

    def add_mean(self, name: str, values: Tensor, judged: Tensor):
        """Adds values of a batch's items, (B, ...), and which of them count."""
        sums = torch.where(judged, values, 0.0).flatten(1).sum(1, dtype=torch.float64)
        self.add(f"mean/{name}", torch.stack([sums, judged.flatten(1).sum(1).double()], dim=1))

    def add_ranking(self, name: str, scores: Tensor, targets: Tensor):
        """Adds scores and targets of a batch, (B, C), NaN where a target is unknown."""
        self.add(f"scores/{name}", scores.float().clamp(0, 1))
        self.add(f"targets/{name}", targets.float())

    def update(self, outputs: dict[str, Tensor]):
        """Adds a batch's outputs and targets, as an evaluation gathers them."""
        logits = outputs["logits"].double()
        if "labels" in outputs:
            self.add_labels(class_scores(logits, self.function), outputs["labels"])
        errors = []
        if "global_attention" in outputs:
            attention, targets = outputs["global_attention"], outputs["global_targets"]
            self.add_ranking("concept", attention, targets)
            values, judged = GlobalConceptAccuracy.measure(attention, targets)
            self.add_mean("global_concept_accuracy", values[:, None], judged[:, None])
            errors.append(self.alignment.measure(attention[:, None], targets[:, None])[0])
        if "spatial_attention" in outputs:
            attention, targets = outputs["spatial_attention"], outputs["spatial_targets"]
            self.add_ranking("presence", attention.amax(1), outputs["presence"])
            for name, metric in SPATIAL_MEANS.items():
                self.add_mean(name, *metric.measure(attention, targets))
            errors.append(self.alignment.measure(attention, targets)[0])
        if errors:
            total = torch.stack(errors).sum(0)[:, None]
            self.add_mean("alignment_error", total, torch.ones_like(total, dtype=torch.bool))

    def add_labels(self, scores: Tensor, labels: Tensor):
        if self.function == "none":
            errors = scores - labels.to(scores.dtype)
            self.add_mean("mae", errors.abs(), torch.ones_like(errors, dtype=torch.bool))
            self.add_mean("rmse", errors.square(), torch.ones_like(errors, dtype=torch.bool))
            self.add("values", torch.stack([errors, labels.to(scores.dtype)], dim=1))
        elif self.several:
            self.add_ranking("label", scores, labels)
            self.add("gaps", calibration_gaps(scores, labels))
        else:
            confidence, predicted = scores.max(-1)
            right = predicted == labels
            every = torch.ones_like(right)[:, None]
            self.add_mean("accuracy", right[:, None].double(), every)
            if self.num_classes > 5:
                among = (scores.topk(5).indices == labels[:, None]).any(-1)
                self.add_mean("top5_accuracy", among[:, None].double(), every)
            self.add("classes", torch.stack([predicted, labels], dim=1))
            self.add("gaps", calibration_gaps(confidence[:, None], right[:, None]))

    def table(self, name: str) -> np.ndarray:
        if name not in self.tables:
            self.tables[name] = np.concatenate(self.parts[name])
        return self.tables[name]

    @property
    def number(self) -> int:
        """Number of images."""
        return len(self.table(next(iter(self.parts)))) if self.parts else 0

    def figures(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """
        The metrics of the images that were drawn, by name, (draws,) each, NaN where there is nothing to judge.

        Args:
            counts: how often each image was drawn, (draws, n).
        """
        values: dict[str, np.ndarray] = {}
        with np.errstate(invalid="ignore", divide="ignore"):
            for name in self.parts:
                kind, _, metric = name.partition("/")
                if kind == "mean":
                    total, number = (counts @ self.table(name)).T
                    values[metric] = total / number
                elif kind == "scores":
                    found = mean_ranking_scores(self.table(name), self.table(f"targets/{metric}"), counts)
                    values |= dict(zip((f"{metric}_map", f"{metric}_auroc"), found, strict=True))
        values.pop("label_auroc", None)
        if "rmse" in values:
            values["rmse"] = np.sqrt(values["rmse"])
            values["r2"] = self.r2(counts)
        if "gaps" in self.parts:
            pairs = counts.sum(1) * (self.num_classes if self.several else 1)
            values["ece"] = np.abs(counts @ self.table("gaps")).sum(1) / pairs
        if "classes" in self.parts:
            values["macro_f1"] = self.macro_f1(counts)
        if "scores/label" in self.parts:
            values |= self.label_f1(counts)
        return values

    def macro_f1(self, counts: np.ndarray) -> np.ndarray:
        predicted, labels = self.table("classes").T
        right = counts * (predicted == labels)
        # One matrix product each, sparse as an image has one class.
        of_predicted, of_labels = (one_hot(classes, self.num_classes) for classes in (predicted, labels))
        sums = [right @ of_labels, counts @ of_predicted, counts @ of_labels]
        exists = (sums[1] + sums[2]) > 0
        return f1_scores(*sums).sum(1) / exists.sum(1)

    def label_f1(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        predicted, labels = self.table("scores/label") > 0.5, self.table("targets/label") > 0
        sums = [counts @ marked.astype(float) for marked in (predicted & labels, predicted, labels)]
        micro = f1_scores(*(each.sum(1) for each in sums))
        return {"label_f1_macro": f1_scores(*sums).mean(1), "label_f1_micro": micro}

    def r2(self, counts: np.ndarray) -> np.ndarray:
        errors, labels = np.moveaxis(self.table("values"), 1, 0)
        number = counts.sum(1, keepdims=True)
        centred = labels - labels.mean(0)
        variance = counts @ centred**2 - (counts @ centred) ** 2 / number
        with np.errstate(invalid="ignore", divide="ignore"):
            return (1 - counts @ errors**2 / variance).mean(1)


def one_hot(classes: np.ndarray, num_classes: int) -> Any:
    """Marks the class of each image, a sparse matrix (n, K)."""
    from scipy.sparse import csr_array

    places = (np.arange(len(classes)), classes)
    return csr_array((np.ones(len(classes)), places), shape=(len(classes), num_classes))


__all__ = ["SplitRecords"]

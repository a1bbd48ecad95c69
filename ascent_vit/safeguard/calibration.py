# SPDX-License-Identifier: Apache-2.0
"""From a model's outputs on calibration images to what a guard knows: temperatures, thresholds and limits."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ascent_vit.inference.mode import evaluation_mode, input_kind, size_options

from .checks import images_needed
from .doubt import LEAST_ATTENTION, attention_features, nowhere, softmax


if TYPE_CHECKING:
    from datasets import Dataset

    from ascent_vit.inference.protocols import ConceptClassifier, ConceptImageProcessor

TARGETS = {"global": "concept_targets", "spatial": "spatial_concept_targets"}
NEIGHBOURS = 5
# Calibration images that others are compared with, at most.
MOST_REFERENCES = 1000


@dataclass(frozen=True, eq=False)
class Measured:
    """
    What a model says of n calibration images, and what is true.

    Args:
        logits: `(n, K)`.
        labels: `(n,)`.
        features: Attention to the concepts as images are compared by, `(n, F)`.
        nowhere: How much of the attention goes to no concept in particular, `(n,)`.
        attention: Of each stream, the greatest attention to each concept at any token, `(n, C)`.
        presence: Of each stream, 1 where the concept is there, 0 where it is not, NaN where it is unknown, `(n, C)`.
        shares: Of each stream, 1 over the number of concepts there, of all tokens that show one.
        extents: Of each stream, the number of tokens that show a concept, of all concepts that an image shows.
    """

    logits: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    nowhere: np.ndarray
    attention: dict[str, np.ndarray]
    presence: dict[str, np.ndarray]
    shares: dict[str, np.ndarray]
    extents: dict[str, np.ndarray]


def stream_outputs(outputs: Any) -> dict[str, torch.Tensor]:
    """Attention of the streams that can be asked about, the mean over heads, `(B, T, C)`."""
    streams = {}
    for name in TARGETS:
        attention = outputs.get(f"{name}_concept_attention")
        if attention is not None:
            streams[name] = attention.float().cpu().reshape(len(attention), -1, attention.shape[-1])
    return streams


def read_presence(name: str, targets: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    """Whether each concept is in each image, `(B, C)`, NaN for unknown, by the targets of its tokens `(B, T, C)`."""
    known = targets.isnan().logical_not()
    seen = torch.where(known, targets, 0).amax(1)
    presence = torch.where(known.any(1), (seen > 0).float(), torch.nan)
    listed = batch.get("spatial_concept_presence") if name == "spatial" else None
    return presence if listed is None else torch.where(listed.isnan(), presence, listed)


def measure(
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    calibration: "Dataset",
    batch_size: int = 32,
    progress: bool = False,
) -> Measured:
    """Runs a model on the calibration images that have a label."""
    from torch.utils.data import DataLoader
    from tqdm.auto import tqdm

    # A Space has what serves a guard, and no datasets.
    from ascent_vit.data import ConceptCollator

    loader: Any = DataLoader(calibration, batch_size, collate_fn=ConceptCollator(processor))  # type: ignore[arg-type]
    device, dtype = input_kind(model)
    columns: dict[str, list[Any]] = {"logits": [], "labels": [], "features": [], "nowhere": []}
    by_stream: dict[str, dict[str, list[Any]]] = {kind: {} for kind in ("attention", "presence", "shares", "extents")}
    with evaluation_mode(model):
        for batch in tqdm(loader, desc="Calibrating", unit="batch", disable=not progress):
            pixels = batch["pixel_values"].to(device, dtype)
            outputs = model(pixels, return_dict=True, **size_options(model.config, pixels))
            kept = batch["labels"] >= 0
            streams = {name: attention[kept] for name, attention in stream_outputs(outputs).items()}
            columns["logits"].append(outputs.logits.double().cpu()[kept].numpy())
            columns["labels"].append(batch["labels"][kept].numpy())
            for image in zip(*streams.values(), strict=True):
                by_name = {name: values.numpy() for name, values in zip(streams, image, strict=True)}
                columns["features"].append(attention_features(list(by_name.values()))[None])
                columns["nowhere"].append([nowhere(by_name)])
            for name, attention in streams.items():
                targets = torch.full_like(attention, torch.nan)
                if TARGETS[name] in batch:
                    targets = batch[TARGETS[name]][kept].view_as(attention)
                shown = targets.nan_to_num(0) > 0
                numbers, extents = shown.sum(-1), shown.sum(1)
                found = {
                    "attention": attention.amax(1),
                    "presence": read_presence(name, targets, {k: v[kept] for k, v in batch.items()}),
                    "shares": 1 / numbers[numbers > 0],
                    "extents": extents[extents > 0],
                }
                for kind, values in found.items():
                    by_stream[kind].setdefault(name, []).append(values.numpy())
    joined: dict[str, Any] = {name: np.concatenate(parts) for name, parts in columns.items()}
    for kind, streams_of in by_stream.items():
        joined[kind] = {name: np.concatenate(parts) for name, parts in streams_of.items()}
    return Measured(**joined)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """
    Temperature that logits are divided by, of the least cross-entropy with the labels (Guo et al., "On Calibration of
    Modern Neural Networks", ICML 2017). One image more counts as of every class alike, without which a model that is
    right of all images would be made infinitely sure.
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        logs = np.log(np.maximum(softmax(logits * math.exp(-log_temperature)), 1e-300))
        return -float(logs[rows, labels].sum() + logs.mean())

    return math.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-6}).x)


def fit_presence(attention: np.ndarray, presence: np.ndarray) -> list[float]:
    """
    Slope, which is 1 over a temperature, and bias that make probabilities of the logarithms of attention, by logistic
    regression; without examples of both kinds, attention is taken as odds.
    """
    from sklearn.linear_model import LogisticRegression

    known = ~np.isnan(presence)
    x, y = np.log(attention[known] + LEAST_ATTENTION), presence[known] > 0
    if y.all() or not y.any():
        return [1.0, 0.0]
    fitted = LogisticRegression(C=1e6).fit(x[:, None], y)
    return [float(fitted.coef_[0, 0]), float(fitted.intercept_[0])]


def group_classes(labels: np.ndarray, num_classes: int, needed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """
    Groups classes so that each group has enough calibration images: every class that has enough is a group of its own;
    the others make one, joined by the next larger classes until it has enough.

    Returns:
        The groups, arrays of class indices, and the classes that share one.
    """
    counts = np.bincount(labels, minlength=num_classes)
    order = np.argsort(counts, kind="stable")
    number = int((counts < needed).sum())
    while 0 < number < num_classes and counts[order[:number]].sum() < needed:
        number += 1
    shared = np.sort(order[:number])
    return [*([shared] if number else []), *([index] for index in order[number:])], shared  # type: ignore[list-item]


def fit_thresholds(
    probabilities: np.ndarray, labels: np.ndarray, alpha: float, per_class: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """
    Least probabilities with which classes are in the set, by split conformal prediction on 1 - probability of the
    right class (LAC: Sadinle et al., "Least Ambiguous Set-Valued Classifiers", JASA 2019), by MAPIE; for all classes
    together, or for each group of them by itself (Mondrian: Vovk, "Conditional validity of inductive conformal
    predictors", ACML 2012).

    Returns:
        The thresholds, `(K,)`, and the indices of the classes that share one for want of images.
    """
    from mapie.conformity_scores import LACConformityScore

    score, num_classes = LACConformityScore(), probabilities.shape[1]
    scores = score.get_conformity_scores(labels, probabilities, y_enc=labels)
    needed = images_needed(alpha) if per_class else len(labels) + 1
    groups, shared = group_classes(labels, num_classes, needed)
    thresholds = np.empty(num_classes)
    for group in groups:
        chosen = scores[np.isin(labels, group)]
        quantile = score.get_conformity_score_quantiles(chosen, np.array([alpha]), cv="prefit")
        # Rounding must not leave out the very image that the threshold comes from.
        thresholds[group] = 1 - quantile[0] - 1e-9
    return thresholds, shared


def limit_of(values: np.ndarray, rate: float) -> float:
    """The value that a further one like these exceeds with a probability of the rate at most, or of 1 / (n + 1)."""
    rank = min(math.ceil((len(values) + 1) * (1 - rate)), len(values))
    return float(np.sort(values)[rank - 1])


def leave_one_out(features: np.ndarray, neighbours: int) -> np.ndarray:
    """Distance of each of the features `(n, F)` to the last of its nearest `neighbours` among the others, `(n,)`."""
    squared = (features**2).sum(1)
    distances = squared[:, None] + squared - 2 * features @ features.T
    np.fill_diagonal(distances, np.inf)
    return np.sqrt(np.maximum(np.partition(distances, neighbours - 1, axis=1)[:, neighbours - 1], 0))


def calibrate(
    measured: Measured, gated: bool, alpha: float, outlier_rate: float, per_class: bool = True, seed: int = 0
) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    """
    Makes what a guard knows of what a model says of calibration images.

    Returns:
        Facts for `guard.json`, arrays for `guard.safetensors`, and the classes that share a threshold.
    """
    temperature = fit_temperature(measured.logits, measured.labels)
    thresholds, shared = fit_thresholds(softmax(measured.logits / temperature), measured.labels, alpha, per_class)
    # A lower threshold only adds classes: none is left out that is as probable as the share that may be wrong, so that
    # a model which is mostly right, and needs no larger sets for the promise, still doubts where it is unsure.
    thresholds = np.minimum(thresholds, alpha)
    number = len(measured.labels)
    chosen = np.sort(np.random.default_rng(seed).permutation(number)[:MOST_REFERENCES])
    reference, neighbours = measured.features[chosen], min(NEIGHBOURS, len(chosen) - 1)
    # An image is foreign if any sign says so: each has its part of the rate.
    rate = outlier_rate / 2
    limits = {
        "features": limit_of(leave_one_out(reference, neighbours), rate),
        "attention": max(limit_of(measured.nowhere, rate), LEAST_ATTENTION),
    }
    present: dict[str, dict[str, Any]] = {}
    for name, shares in measured.shares.items():
        attention = shares if len(shares) else measured.attention[name].max(1)
        extents = measured.extents[name] if len(shares) else np.ones(1)
        present[name] = {"attention": float(attention.mean()), "tokens": max(round(float(extents.mean())), 1)}
    facts = {
        "alpha": alpha,
        "outlier_rate": outlier_rate,
        "per_class": per_class,
        "temperature": temperature,
        "presence": {name: fit_presence(measured.attention[name], measured.presence[name]) for name in present},
        "present": present,
        "gated": gated,
        "neighbours": neighbours,
        "limits": limits,
        "images": number,
        "images_per_class": np.bincount(measured.labels, minlength=len(thresholds)).tolist(),
    }
    return facts, {"thresholds": thresholds, "reference": reference.astype(np.float32)}, shared


__all__ = ["Measured", "calibrate", "fit_temperature", "fit_thresholds", "measure"]

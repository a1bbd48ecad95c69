# SPDX-License-Identifier: Apache-2.0
"""Concept models by scikit-learn on features of a frozen backbone, after the recipes of their papers."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from features import Split
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.svm import SVC
from torch import Tensor


# Of the scores of train images without and with a concept, what a person's correction sets the score to: Koh et al.,
# "Concept Bottleneck Models" (ICML 2020).
CORRECTION = (5.0, 95.0)
# Images with a concept, and as many without, from which a post-hoc CBM learns its direction.
CONCEPT_SAMPLES = 50


@dataclass(frozen=True)
class LinearPeer:
    """
    Concept scores that are linear in the features, and classes that are linear in the scores.

    Args:
        features: name of the features, as [`Split.pooled`].
        directions, offsets: of the scores, `(G, D)` and `(G,)`.
        weights, bias: of the classes, `(K, G)` and `(K,)`; the scores are not standardised for them.
        corrected: scores of a concept that is absent and of one that is present, `(2, G)`.
    """

    features: str
    directions: Tensor
    offsets: Tensor
    weights: Tensor
    bias: Tensor
    corrected: Tensor

    def __call__(self, features: Tensor, override: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Class logits `(B, K)` and probabilities of the concepts `(B, G)`, some of them given; NaN is not given."""
        scores = features @ self.directions.T + self.offsets
        if override is not None:
            given = torch.where(override > 0, self.corrected[1], self.corrected[0])
            scores = torch.where(override.isnan(), scores, given)
        return scores @ self.weights.T + self.bias, scores.sigmoid()

    def parameters(self) -> int:
        return sum(values.numel() for values in (self.directions, self.offsets, self.weights, self.bias))


def fit_linear(features: Tensor, labels: Tensor, seed: int, strength: float, **options: Any) -> Any:
    """Logistic regression, multinomial for more than two classes; `strength` is the inverse of a penalty."""
    model = LogisticRegression(C=strength, random_state=seed, **({"max_iter": 1000} | options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(features.numpy(), labels.numpy())


def two_sided(model: Any) -> tuple[Tensor, Tensor]:
    """Weights and bias of each class; where there are two classes, scikit-learn has those of the second alone."""
    weights, bias = (torch.from_numpy(np.asarray(v)).float() for v in (model.coef_, model.intercept_))
    if len(weights) == 1:
        weights, bias = torch.cat([-weights, weights]) / 2, torch.cat([-bias, bias]) / 2
    return weights, bias


def concept_layer(fit: Callable[[int], tuple[Any, Any]], number: int) -> tuple[Tensor, Tensor]:
    """Directions and offsets of all concepts, from a function that gives those of one."""
    found = [fit(concept) for concept in range(number)]
    directions = torch.stack([torch.as_tensor(np.ravel(direction)).float() for direction, _ in found])
    return directions, torch.tensor([float(np.ravel(offset)[0]) for _, offset in found])


def activation_vectors(features: Tensor, concepts: Tensor, seed: int, strength: float) -> tuple[Tensor, Tensor]:
    """Concept activation vectors of unit length: normals of linear SVMs on drawn images with and without a concept."""
    rng = np.random.default_rng(seed)

    def fit(concept: int) -> tuple[Any, Any]:
        groups = [np.flatnonzero(concepts[:, concept].numpy() == value) for value in (0, 1)]
        rows = np.concatenate([rng.permutation(group)[:CONCEPT_SAMPLES] for group in groups])
        if min(map(len, groups)) == 0:
            return np.zeros(features.shape[1]), 0.0
        model = SVC(C=strength, kernel="linear").fit(features[rows].numpy(), concepts[rows, concept].numpy())
        norm = np.linalg.norm(model.coef_)
        return model.coef_ / norm, model.intercept_ / norm

    return concept_layer(fit, concepts.shape[1])


def logistic_concepts(features: Tensor, concepts: Tensor, seed: int, strength: float) -> tuple[Tensor, Tensor]:
    """A logistic regression of each concept on all images."""

    def fit(concept: int) -> tuple[Any, Any]:
        target = concepts[:, concept]
        if len(target.unique()) < 2:
            return np.zeros(features.shape[1]), 20.0 * (2 * float(target[0]) - 1)
        model = fit_linear(features, target, seed, strength)
        return model.coef_, model.intercept_

    return concept_layer(fit, concepts.shape[1])


def corrections(scores: Tensor, concepts: Tensor) -> Tensor:
    """What a correction sets each score to, `(2, G)`."""
    columns = []
    for values, present in zip(scores.T.numpy(), concepts.T.numpy() > 0, strict=True):
        parts = [values[~present] if (~present).any() else values, values[present] if present.any() else values]
        columns.append([np.percentile(part, at) for part, at in zip(parts, CORRECTION, strict=True)])
    return torch.tensor(columns).T.float()


def train_post_hoc(
    splits: dict[str, Split],
    seed: int,
    features: str = "cls",
    svm_strength: float = 0.1,
    penalty: float = 1e-5,
    l1_ratio: float = 0.99,
) -> tuple[LinearPeer, dict[str, Any]]:
    """
    A post-hoc CBM (Yuksekgonul, Wang and Zou, ICLR 2023): concept activation vectors, then one classifier against the
    rest for each class by `SGDClassifier` with an elastic net, with the defaults of the authors' code.
    """
    train = splits["train"]
    inputs = train.pooled(features)
    directions, offsets = activation_vectors(inputs, train.concepts, seed, svm_strength)
    scores = inputs @ directions.T + offsets
    model = SGDClassifier(
        loss="log_loss", penalty="elasticnet", alpha=penalty, l1_ratio=l1_ratio, max_iter=10000, random_state=seed
    ).fit(scores.numpy(), train.labels.numpy())
    peer = LinearPeer(features, directions, offsets, *two_sided(model), corrections(scores, train.concepts))
    return peer, {"steps": int(model.n_iter_), "weights_per_class": effective_concepts(peer.weights)}


def train_sparse(
    splits: dict[str, Split],
    seed: int,
    features: str = "cls",
    concept_strength: float = 0.1,
    class_strength: float = 0.01,
    l1_ratio: float = 0.99,
) -> tuple[LinearPeer, dict[str, Any]]:
    """
    A CBM with a sparse last layer (Oikarinen et al., "Label-Free Concept Bottleneck Models", ICLR 2023; Srivastava,
    Yan and Weng, "VLG-CBM", NeurIPS 2024): a layer of concepts, standardised scores, and a multinomial classifier with
    an elastic net by SAGA. Concepts are learned from annotation, as there is some, instead of from CLIP.
    """
    train = splits["train"]
    inputs = train.pooled(features)
    directions, offsets = logistic_concepts(inputs, train.concepts, seed, concept_strength)
    scores = inputs @ directions.T + offsets
    mean, deviation = scores.mean(0), scores.std(0).clamp_min(1e-6)
    model = fit_saga((scores - mean) / deviation, train.labels, seed, class_strength, l1_ratio)
    weights, bias = two_sided(model)
    weights = weights / deviation
    peer = LinearPeer(
        features, directions, offsets, weights, bias - weights @ mean, corrections(scores, train.concepts)
    )
    return peer, {"steps": int(np.max(model.n_iter_)), "weights_per_class": effective_concepts(weights)}


def fit_saga(scores: Tensor, labels: Tensor, seed: int, strength: float, l1_ratio: float = 0.99) -> Any:
    """The multinomial classifier with an elastic net by SAGA."""
    return fit_linear(scores, labels, seed, strength, solver="saga", l1_ratio=l1_ratio, max_iter=100, tol=1e-3)


def effective_concepts(weights: Tensor) -> float:
    """Number of effective concepts (NEC): the mean number of weights of a class that are not 0 (VLG-CBM)."""
    return (weights != 0).sum().item() / len(weights)


@dataclass(frozen=True)
class LinearHead:
    """A logistic regression on features, without concepts."""

    features: str
    weights: Tensor
    bias: Tensor

    def __call__(self, features: Tensor, override: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return features @ self.weights.T + self.bias, None

    def parameters(self) -> int:
        return self.weights.numel() + self.bias.numel()


def train_linear(
    splits: dict[str, Split], seed: int, features: str = "cls", strength: float = 1.0
) -> tuple[LinearHead, dict[str, Any]]:
    """A linear head on features."""
    train = splits["train"]
    model = fit_linear(train.pooled(features), train.labels, seed, strength)
    return LinearHead(features, *two_sided(model)), {"steps": int(np.max(model.n_iter_))}


def prune(weights: Tensor, concepts: float) -> Tensor:
    """Weights `(K, G)` of which the largest stay, so many that a class has this number of them in the mean."""
    kept = weights.abs().flatten().topk(min(round(concepts * len(weights)), weights.numel())).values.min()
    return torch.where(weights.abs() >= kept, weights, 0.0)


def elastic_net(
    scores: Tensor, labels: Tensor, penalty: float, start: tuple[Tensor, Tensor], l1_ratio: float = 0.99
) -> tuple[Tensor, Tensor]:
    """
    Weights and bias of a multinomial classifier with an elastic net, by accelerated proximal gradients (Beck and
    Teboulle, "FISTA", 2009), which on few columns of scores is many times faster than SAGA on its samples.

    Args:
        scores: standardised scores, `(B, G)`.
        labels: classes, `(B,)`.
        penalty: weight of the penalty beside the mean cross-entropy.
        start: weights `(K, G)` and bias `(K,)` to start from.
    """
    weights, bias = start
    target = torch.nn.functional.one_hot(labels, len(bias)).to(scores.dtype)
    # The softmax's Hessian is at most 1/2; the bias is a column of ones.
    step = 2 / (torch.linalg.matrix_norm(scores, 2) ** 2 / len(scores) + 1 + 2 * penalty * (1 - l1_ratio))
    ahead, momentum = (weights, bias), 1.0
    for _ in range(500):
        error = ((scores @ ahead[0].T + ahead[1]).softmax(-1) - target) / len(scores)
        gradient = error.T @ scores + penalty * (1 - l1_ratio) * ahead[0]
        moved = torch.nn.functional.softshrink(ahead[0] - step * gradient, (step * penalty * l1_ratio).item())
        moved_bias = ahead[1] - step * error.sum(0)
        new = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        change, factor = (moved - weights).abs().max(), (momentum - 1) / new
        ahead = moved + factor * (moved - weights), moved_bias + factor * (moved_bias - bias)
        weights, bias, momentum = moved, moved_bias, new
        if change < 1e-4:
            break
    return weights, bias


def accuracy_at(scores: dict[str, Tensor], splits: dict[str, Split], concepts: float = 5.0) -> float:
    """
    Accuracy at a number of effective concepts, 5 as VLG-CBM proposes: of a sparse classifier on a model's scores of
    the concepts, on the path from a strong penalty to the first that leaves as many weights or more, then pruned.

    Args:
        scores: scores of the concepts of each image, `(B, G)`, of "train" and "test".
        splits: classes by split.
        concepts: number of effective concepts.
    """
    mean, deviation = scores["train"].mean(0), scores["train"].std(0).clamp_min(1e-6)
    inputs = {name: (values - mean) / deviation for name, values in scores.items()}
    labels = splits["train"].labels
    classes = int(labels.max()) + 1
    weights, bias = inputs["train"].new_zeros(classes, inputs["train"].shape[1]), inputs["train"].new_zeros(classes)
    penalty = 0.1
    while effective_concepts(weights) < concepts and penalty > 1e-6:
        penalty /= 1.3
        weights, bias = elastic_net(inputs["train"], labels, penalty, (weights, bias))
    predicted = (inputs["test"] @ prune(weights, concepts).T + bias).argmax(-1)
    return (predicted == splits["test"].labels).float().mean().item()

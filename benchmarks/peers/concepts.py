# SPDX-License-Identifier: Apache-2.0
"""Trains concept models on features of one backbone, chooses their settings on validation, and judges them on test."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from features import Split, compute_features
from ground import on_trained_backbone
from judge import accuracy_of, correct, judge, scores_of
from ours import ask_all
from rows import PeerRun
from sparse import accuracy_at, train_linear, train_post_hoc, train_sparse
from torch import Tensor

from ascent_vit.evaluation.concept_scores import concept_task_leakage
from ascent_vit.training import Recipe


# Effective concepts of a class at which accuracies are compared.
NEC = 5.0
CURVE_STEPS = 8


def train_by_pyc(*arguments: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    from pyc import train_pyc

    return train_pyc(*arguments, **options)


METHODS: dict[str, Callable[..., tuple[Any, dict[str, Any]]]] = {
    "pyc": train_by_pyc,
    "post-hoc": train_post_hoc,
    "sparse": train_sparse,
    "linear": train_linear,
}
# Ours does not learn from the backbone's features.
NAMES = (*METHODS, "ours")


def choose(run: PeerRun, splits: dict[str, Split], chosen: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
    """
    The peer with the settings that are best on validation, and what is to be said of its training.

    Args:
        run: row to make.
        splits: features by split.
        chosen: what was found of the first seed, whose settings the others take; None for the first.
    """
    train, best, start = METHODS[run.method], None, time.process_time()
    trials = list(run.trials()) if chosen is None else [chosen["arguments"]]
    for arguments in trials:
        begin = time.process_time()
        peer, facts = train(splits, run.seed, **arguments)
        seconds = time.process_time() - begin
        accuracy = accuracy_of(peer, splits["validation"])
        if best is None or accuracy > best[0]:
            best = accuracy, peer, facts | {"train_seconds": seconds, "arguments": arguments}
    assert best is not None
    accuracy, peer, facts = best
    tuned = {"validation_accuracy": accuracy, "trials": len(trials)}
    return peer, facts | tuned | {"tuning_seconds": time.process_time() - start}


def score_concepts(peer: Any, split: Split) -> Tensor:
    """Scores of the concepts of all images: logits of their probabilities, `(B, G)` float32."""
    probabilities = scores_of(peer, split)[1]
    assert probabilities is not None
    return torch.logit(probabilities.double(), eps=1e-6).float()


def leakage_of(scores: Tensor, split: Split) -> float:
    """Concepts-task leakage, over the concepts that some images have and others have not."""
    some = split.concepts.std(0) > 0
    truth = split.concepts[:, some].numpy()
    return concept_task_leakage(scores[:, some].numpy(), truth, split.labels.numpy())


@torch.no_grad()
def judge_scores(peer: Any, splits: dict[str, Split]) -> dict[str, float]:
    """What the concepts' scores tell of the class: by few of them, and beyond what the concepts themselves tell."""
    scores = {name: score_concepts(peer, splits[name]) for name in ("train", "test")}
    return {
        "nec5_accuracy": accuracy_at(scores, splits, NEC),
        "concept_task_leakage": leakage_of(scores["test"], splits["test"]),
    }


def make_ours(run: PeerRun, recipe: Recipe, dataset: Any, work: Path) -> dict[str, Any]:
    """Judges our model or the Concept Transformer."""
    peer, splits, facts, corrected = ask_all(run, recipe, dataset, work / run.label, CURVE_STEPS)
    metrics = judge(peer, splits["test"], peer.num_labels) | corrected
    # Its attention is shared by the concepts, and no probability of each.
    del metrics["concept_accuracy"]
    return facts | {"metrics": metrics | judge_scores(peer, splits), "head_parameters": peer.parameters()}


def make(run: PeerRun, recipe: Recipe, dataset: Any, work: Path, first: dict[str, Any] | None) -> dict[str, Any]:
    """Trains and judges one concept model; `first` is the result of the row's first seed."""
    recipe = dataclasses.replace(recipe, seed=run.seed)
    if run.method == "ours":
        return make_ours(run, recipe, dataset, work)
    folder = work / f"features-{run.dataset}-{run.recipe}"
    if recipe.backbone is None:
        folder = work / f"features-{run.ground.replace('/', '-')}" / f"seed{run.seed}"
        recipe = on_trained_backbone(recipe, dataset, folder)
    splits = compute_features(recipe, dataset, folder)
    peer, facts = choose(run, splits, first)
    num_labels = int(splits["train"].labels.max()) + 1
    metrics = judge(peer, splits["test"], num_labels)
    if "concept_map" in metrics:
        metrics |= correct(peer, splits["test"], num_labels, CURVE_STEPS) | judge_scores(peer, splits)
    return facts | {"metrics": metrics, "head_parameters": peer.parameters()}

# SPDX-License-Identifier: Apache-2.0
"""Trains concept models on features of one backbone, chooses their settings on validation, and judges them on test."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from features import Split, compute_features
from judge import accuracy_of, judge, scores_of
from rows import PeerRun
from sparse import accuracy_at, train_linear, train_post_hoc, train_sparse

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


def nec_accuracy(peer: Any, splits: dict[str, Split]) -> float:
    """Accuracy of a sparse classifier on the peer's scores of the concepts."""
    scores = {}
    for name in ("train", "test"):
        probabilities = scores_of(peer, splits[name])[1]
        assert probabilities is not None
        scores[name] = torch.logit(probabilities.double(), eps=1e-6).float()
    return accuracy_at(scores, splits, NEC)


def make(run: PeerRun, recipe: Recipe, dataset: Any, work: Path, first: dict[str, Any] | None) -> dict[str, Any]:
    """Trains and judges one concept model; `first` is the result of the row's first seed."""
    folder = work / f"features-{run.dataset}-{run.recipe}"
    splits = compute_features(dataclasses.replace(recipe, seed=run.seed), dataset, folder)
    peer, facts = choose(run, splits, first)
    num_labels = int(splits["train"].labels.max()) + 1
    with torch.no_grad():
        metrics = judge(peer, splits["test"], num_labels, CURVE_STEPS)
        if "concept_map" in metrics:
            metrics["nec5_accuracy"] = nec_accuracy(peer, splits)
    return facts | {"metrics": metrics, "head_parameters": peer.parameters()}

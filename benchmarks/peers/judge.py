# SPDX-License-Identifier: Apache-2.0
"""Peers judged by the evaluators of ascent_vit, through the part of a concept classifier that these ask for."""

from types import SimpleNamespace
from typing import Any

import torch
from features import Split
from torch import Tensor
from torch.utils.data import DataLoader

from ascent_vit.evaluation import ClassMetrics, GlobalConceptMetrics, Intervention


BATCH = 128


class PeerClassifier(torch.nn.Module):
    """
    A peer on features as a concept classifier whose "pixels" are the features.

    Its attention to a concept is the concept's probability. A correction of k present concepts gives each the
    attention 1/k, as our model needs it; to a peer, whose concepts do not compete, one that is given any is present.
    """

    def __init__(self, peer: Any, num_labels: int):
        super().__init__()
        self.peer = peer
        self.config = SimpleNamespace(num_labels=num_labels, problem_type=None, none_concept=False)
        # The evaluators ask for the device and the dtype of a model's first parameter.
        self.register_parameter("unused", torch.nn.Parameter(torch.zeros(())))

    def forward(self, pixel_values: Tensor, global_concept_override: Tensor | None = None) -> SimpleNamespace:
        override = global_concept_override
        if override is not None:
            override = torch.where(override.isnan(), override, (override > 0).float())
        logits, probabilities = self.peer(pixel_values, override)
        return SimpleNamespace(
            logits=logits, global_concept_attention=probabilities, spatial_concept_attention=None, patch_grid=None
        )


def batches(split: Split, features: str) -> DataLoader:
    inputs = split.pooled(features)

    def collate(rows: list[int]) -> dict[str, Tensor]:
        return {
            "pixel_values": inputs[rows],
            "labels": split.labels[rows],
            "concept_targets": split.concepts[rows],
        }

    return DataLoader(range(len(inputs)), BATCH, collate_fn=collate)  # type: ignore[arg-type]


@torch.no_grad()
def scores_of(peer: Any, split: Split) -> tuple[Tensor, Tensor | None]:
    """Logits of the classes and probabilities of the concepts, of all images."""
    found = [peer(part) for part in split.pooled(peer.features).split(BATCH)]
    probabilities = None if found[0][1] is None else torch.cat([part[1] for part in found])
    return torch.cat([part[0] for part in found]), probabilities


def accuracy_of(peer: Any, split: Split) -> float:
    return (scores_of(peer, split)[0].argmax(-1) == split.labels).float().mean().item()


def judge(peer: Any, test: Split, num_labels: int) -> dict[str, Any]:
    """Metrics of classes and of concepts, by the names that `ascent-vit evaluate` gives them."""
    logits, probabilities = scores_of(peer, test)
    classes = ClassMetrics(num_labels)
    classes.update(logits.double().softmax(-1), test.labels)
    found = {name: value.item() for name, value in classes.compute().items()}
    if probabilities is None:
        return found
    concepts = GlobalConceptMetrics()
    concepts.update(probabilities, test.concepts)
    found |= {name: value.item() for name, value in concepts.compute().items() if not value.isnan()}
    right = ((probabilities > 0.5) == (test.concepts > 0)).float().mean()
    return found | {"concept_accuracy": right.item()}


def correct(peer: Any, test: Split, num_labels: int, steps: int) -> dict[str, Any]:
    """Metrics of corrections, by the names that `ascent-vit evaluate` gives them."""
    return Intervention(steps, gain=False)(PeerClassifier(peer, num_labels), batches(test, peer.features))

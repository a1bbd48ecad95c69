# SPDX-License-Identifier: Apache-2.0
"""What the heads of a concept stream hold beside what their mean says, which alone is supervised and shown."""

from collections.abc import Iterable
from typing import Any

import torch


def judge_heads(heads: torch.Tensor) -> torch.Tensor:
    """
    Whether each head's strongest concept is that of the mean over heads, and half the sum of the differences between
    their shares (the total variation distance, 0 to 1), means over heads, `(tokens, 2)`.

    Args:
        heads: attention of tokens, `(A, tokens, S)`.
    """
    shares = heads / heads.sum(-1, keepdim=True).clamp_min(torch.finfo(heads.dtype).tiny)
    mean = shares.mean(0)
    same = (shares.argmax(-1) == mean.argmax(-1)).float().mean(0)
    distance = (shares - mean).abs().sum(-1).mean(0) / 2
    return torch.stack([same, distance], dim=-1)


@torch.no_grad()
def measure_heads(model: Any, batches: Iterable[dict[str, torch.Tensor]]) -> dict[str, float]:
    """
    `heads_same` and `heads_distance` of spatial concepts over patches that show one, the same of global concepts over
    images, and `accuracy_of_mean`: the accuracy where every head attends as their mean does.
    """
    places, images, right = [], [], []
    for batch in batches:
        pixels = batch["pixel_values"]
        outputs = model(pixels, output_concept_heads=True)
        shown = batch["spatial_concept_targets"].nansum(-1) > 0
        places.append(judge_heads(outputs.spatial_concept_attention_heads.transpose(0, 1)[:, shown]))
        images.append(judge_heads(outputs.global_concept_attention_heads.transpose(0, 1)))
        overrides = (outputs.global_concept_attention, outputs.spatial_concept_attention)
        logits = model(pixels, global_concept_override=overrides[0], spatial_concept_override=overrides[1]).logits
        right.append(logits.argmax(-1) == batch["labels"])
    (same, distance), (global_same, global_distance) = (
        torch.cat(found).mean(0).tolist() for found in (places, images)
    )
    return {
        "heads_same": same,
        "heads_distance": distance,
        "global_heads_same": global_same,
        "global_heads_distance": global_distance,
        "accuracy_of_mean": torch.cat(right).float().mean().item(),
    }

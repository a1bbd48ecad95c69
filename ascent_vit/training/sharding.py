# SPDX-License-Identifier: Apache-2.0
"""Training with the model's parameters shared out among the processes, by Accelerate's FSDP2."""

import copy
from typing import TYPE_CHECKING, Any

import torch


if TYPE_CHECKING:
    from accelerate import Accelerator

    from ascent_vit.inference.protocols import ConceptClassifier

    from .recipe import Recipe


def is_sharded(accelerator: "Accelerator") -> bool:
    """Whether the model's parameters are shared out among the processes."""
    from accelerate.utils import DistributedType

    return accelerator.distributed_type == DistributedType.FSDP


def check_sharding(recipe: "Recipe", accelerator: "Accelerator") -> None:
    """Checks recipe and kind of sharding; ValueError for what does not go with shared out parameters."""
    if not is_sharded(accelerator):
        return
    if not accelerator.is_fsdp2:
        raise ValueError("Sharded training needs FSDP2: start with --fsdp_version 2.")
    # They hold parameters from before the model is sharded, which are not those that are then trained.
    for key, off in (("ema_decay", "null"), ("head_only_epochs", "0"), ("cache_features", "false")):
        if getattr(recipe, key):
            raise ValueError(f"{key} does not go with FSDP: set {key}={off}, or start without --use_fsdp.")


def whole_model(model_class: type, model: Any) -> "ConceptClassifier":
    """
    Copies a sharded model, with all of its parameters in every process, to evaluate and to save.

    Args:
        model_class: class of the model before it was sharded.
        model: sharded model; every process must call this.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    with torch.random.fork_rng(devices=[]):
        whole = model_class(copy.deepcopy(model.config))
    whole.load_state_dict(weights)
    return whole.to(next(model.parameters()).device)


__all__ = ["check_sharding", "is_sharded", "whole_model"]

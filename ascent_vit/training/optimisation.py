# SPDX-License-Identifier: Apache-2.0
"""The parts of an optimisation: numbers of steps, optimiser and schedule, frozen weights and their moving average."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import get_scheduler

from .blocks import layer_rates


if TYPE_CHECKING:
    from .recipe import Recipe


@dataclass(frozen=True)
class StepPlan:
    """
    Numbers of optimiser steps of a run.

    Args:
        steps_per_epoch: number of steps between evaluations; an epoch's incomplete last step is left out.
        total_steps: number of steps of the whole run.
        warmup_steps: number of first steps in which the learning rate grows.
        head_only_steps: number of first steps in which the backbone is frozen.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    head_only_steps: int


def plan_steps(recipe: "Recipe", num_images: int | None, num_processes: int = 1) -> StepPlan:
    """
    Counts the steps of a recipe.

    Args:
        recipe: recipe of the run.
        num_images: number of images in the train split; None for a stream, which is one epoch of `max_steps`.
        num_processes: number of processes that share each step.

    Raises:
        ValueError: for fewer images than one step takes, or a stream without `max_steps`.
    """
    images_per_step = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * num_processes
    limited = recipe.max_steps > 0
    if num_images is None:
        if not limited:
            raise ValueError("A streamed dataset has no known length: give max_steps.")
        scale = recipe.max_steps / recipe.num_train_epochs
        warmup, head_only = (math.floor(x * scale) for x in (recipe.warmup_epochs, recipe.head_only_epochs))
        return StepPlan(recipe.max_steps, recipe.max_steps, warmup, head_only)
    steps_per_epoch = num_images // images_per_step
    if steps_per_epoch == 0:
        raise ValueError(
            f"The train split has {num_images} images, fewer than the {images_per_step} of one step: lower "
            "per_device_train_batch_size or gradient_accumulation_steps."
        )
    all_steps = math.ceil(recipe.num_train_epochs * steps_per_epoch)
    total_steps = recipe.max_steps if limited else all_steps
    scale = steps_per_epoch * min(1.0, total_steps / all_steps)
    warmup, head_only = (math.floor(x * scale) for x in (recipe.warmup_epochs, recipe.head_only_epochs))
    return StepPlan(steps_per_epoch, total_steps, warmup, head_only)


def parameter_groups(
    model: torch.nn.Module,
    weight_decay: float,
    backbone_learning_rate: float | None = None,
    layer_decay: float | None = None,
) -> list[dict]:
    """
    Puts trainable parameters in groups: matrices and larger decay, biases, norms and other vectors do not.

    Args:
        model: model to train.
        weight_decay: weight decay of matrices and larger.
        backbone_learning_rate: learning rate of the backbone's parameters, which then come last, in groups of their
            own; None for that of all others.
        layer_decay: factor of that rate from each layer of the backbone to the one below; the lowest come first. None
            for one rate.
    """
    rates: dict[int, float] = {}
    if backbone_learning_rate is not None and layer_decay is not None:
        rates = layer_rates(model, backbone_learning_rate, layer_decay)
    elif backbone_learning_rate is not None:
        rates = {id(p): backbone_learning_rate for p in model.ascent_vit.backbone.parameters()}  # type: ignore[union-attr,operator]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = []
    for rate in (None, *sorted({rates[id(p)] for p in trained if id(p) in rates})):
        chosen = [p for p in trained if rates.get(id(p)) == rate]
        options = {} if rate is None else {"lr": rate}
        groups += [
            {"params": [p for p in chosen if p.ndim > 1], "weight_decay": weight_decay, **options},
            {"params": [p for p in chosen if p.ndim <= 1], "weight_decay": 0.0, **options},
        ]
    return groups


def build_optimizer(model: torch.nn.Module, recipe: "Recipe") -> torch.optim.Optimizer:
    """Makes AdamW with a recipe's settings."""
    rate = recipe.backbone_learning_rate
    if rate is None and recipe.layer_decay is not None:
        rate = recipe.learning_rate
    return torch.optim.AdamW(
        parameter_groups(model, recipe.weight_decay, rate, recipe.layer_decay),
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
    )


def build_scheduler(optimizer: torch.optim.Optimizer, recipe: "Recipe", plan: StepPlan) -> Any:
    """Makes the schedule of the learning rate over the steps of a run."""
    return get_scheduler(
        recipe.lr_scheduler_type,
        optimizer,
        num_warmup_steps=plan.warmup_steps,
        num_training_steps=plan.total_steps,
    )


def moving_average(model: torch.nn.Module, decay: float) -> AveragedModel:
    """Starts an exponential moving average of weights and buffers, so that batch statistics belong to the weights."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return average.requires_grad_(False)


class Freezer:
    """Switches the gradients of a module off and on again; parameters that never had one stay without."""

    def __init__(self, module: torch.nn.Module):
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def freeze(self, frozen: bool) -> None:
        """Freezes the parameters, or lets them train again."""
        for parameter in self.parameters:
            parameter.requires_grad_(not frozen)
            if frozen:
                parameter.grad = None


__all__ = [
    "Freezer",
    "StepPlan",
    "build_optimizer",
    "build_scheduler",
    "moving_average",
    "parameter_groups",
    "plan_steps",
]

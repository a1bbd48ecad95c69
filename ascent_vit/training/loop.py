# SPDX-License-Identifier: Apache-2.0
"""The training loop: epochs of optimiser steps, each followed by an evaluation and a checkpoint."""

import logging
import math
import time
from typing import TYPE_CHECKING, Any

import torch
from accelerate import skip_first_batches
from accelerate.utils import send_to_device
from tqdm.auto import tqdm

from ascent_vit.evaluation import evaluate
from ascent_vit.utils.files import write_json

from .blocks import evaluate_frozen
from .checkpoints import save_checkpoint
from .errors import check_best_metric, writing
from .report import LOSSES
from .stream import StreamLoader


if TYPE_CHECKING:
    from .run import Run

logger = logging.getLogger(__name__)


def fit(run: "Run") -> None:
    """Makes all steps of a run that are left."""
    progress, total = run.progress, run.plan.total_steps
    run.freezer.freeze(progress.step < run.plan.head_only_steps)
    main = run.accelerator.is_main_process
    with tqdm(total=total, initial=progress.step, desc="Training", unit="step", disable=not main) as bar:
        while progress.step < total:
            train_epoch(run, bar)
            evaluate_epoch(run)
            save_checkpoint(run)
            # After the checkpoint, so that the model is never of a time that the run does not go on from.
            if progress.best_step == progress.step:
                run.save_model()


def train_epoch(run: "Run", bar: tqdm) -> None:
    """Makes the steps up to the end of the epoch or of the run."""
    recipe, accelerator, progress, plan = run.recipe, run.accelerator, run.progress, run.plan
    epoch, done = divmod(progress.step, plan.steps_per_epoch)
    end = (epoch + 1) * plan.steps_per_epoch
    skipped = done * recipe.gradient_accumulation_steps
    run.model.train()
    if recipe.freezes_layers:
        evaluate_frozen(accelerator.unwrap_model(run.model).ascent_vit.backbone, recipe.frozen_layers)
    start = time.perf_counter()
    for place, batch in enumerate(batches_of(run, epoch, skipped), start=skipped):
        run.guard.take_batch(epoch, place)
        with accelerator.accumulate(run.model):
            losses = forward_backward(run, send_to_device(batch, accelerator.device))
            if accelerator.sync_gradients and recipe.max_grad_norm > 0:
                norm = accelerator.clip_grad_norm_(run.model.parameters(), recipe.max_grad_norm)
                run.guard.take_gradient(norm, progress.step + 1)
            run.optimizer.step()
            run.optimizer.zero_grad()
        if not accelerator.sync_gradients:
            continue
        end_step(run)
        progress.train_seconds += time.perf_counter() - start
        bar.update()
        bar.set_postfix(loss=f"{losses['loss']:.4f}", refresh=False)
        if progress.step % recipe.logging_steps == 0:
            record_step(run, losses)
        if progress.step == plan.total_steps:
            break
        if progress.step < end and recipe.save_steps and progress.step % recipe.save_steps == 0:
            save_checkpoint(run)
        start = time.perf_counter()


def batches_of(run: "Run", epoch: int, skipped: int) -> Any:
    """Gives the batches of an epoch without the first ones; a stream goes on where it is."""
    if isinstance(run.loader, StreamLoader):
        return run.loader
    run.loader.set_epoch(epoch)
    return skip_first_batches(run.loader, skipped) if skipped else run.loader


def forward_backward(run: "Run", batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """Adds the gradients of one batch; returns its loss and the terms of it."""
    progress = run.progress
    outputs = run.model(**batch)
    values = {name: outputs[name].detach().float() for name in LOSSES if outputs.get(name) is not None}
    losses = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
    # Known by now at no cost, as the loss was waited for.
    run.guard.check_gradient()
    if progress.first_loss is None:
        progress.first_loss = losses["loss"]
    run.guard.check_losses(losses, progress.first_loss, progress.step + 1)
    run.accelerator.backward(outputs.loss)
    for name, value in losses.items():
        progress.sums[name] += value
    progress.num_batches += 1
    return losses


def end_step(run: "Run") -> None:
    """Counts an optimiser step, and does what follows each."""
    run.scheduler.step()
    run.progress.step += 1
    run.guard.end_step()
    if run.average is not None:
        run.average.update_parameters(run.accelerator.unwrap_model(run.model))
    if run.progress.step == run.plan.head_only_steps:
        run.freezer.freeze(False)


def record_step(run: "Run", losses: dict[str, float]) -> None:
    """Records the losses of a step's last batch, and the learning rate."""
    rate = run.scheduler.get_last_lr()[0]
    run.progress.history.append([run.progress.step, *(losses.get(name) for name in LOSSES), rate])
    values = {f"train/{name}": value for name, value in losses.items()}
    run.watcher.log(values | {"train/learning_rate": rate}, run.progress.step)


def evaluate_epoch(run: "Run") -> None:
    """
    Evaluates on the validation split, records the epoch, and notes whether its weights are the best so far.

    Without a validation split, or a metric to choose by, the newest weights are the best.
    """
    progress, recipe = run.progress, run.recipe
    epoch = math.ceil(progress.step / run.plan.steps_per_epoch)
    start = time.perf_counter()
    metrics: dict[str, float] = {}
    if run.validation_loader is not None:
        metrics = evaluate(run.kept_model, run.validation_loader, run.accelerator, progress=True)
        check_best_metric(recipe.best_metric, metrics)
    run.evaluation_seconds += time.perf_counter() - start
    name = recipe.best_metric
    value = None if name is None else metrics.get(name)
    record_epoch(run, epoch, metrics)
    best = progress.best_value
    if value is None or best is None or (value > best if recipe.best_is_greatest else value < best):
        progress.best_value, progress.best_epoch, progress.best_step = value, epoch, progress.step


def record_epoch(run: "Run", epoch: int, metrics: dict[str, float]) -> None:
    """Writes the mean losses and the metrics of an epoch, and begins new means."""
    accelerator, progress = run.accelerator, run.progress
    sums = torch.tensor([progress.sums[loss] / progress.num_batches for loss in LOSSES])
    means = accelerator.reduce(sums.to(accelerator.device), reduction="mean").tolist()
    progress.sums, progress.num_batches = dict.fromkeys(LOSSES, 0.0), 0
    record = {"epoch": epoch, "step": progress.step, "learning_rate": run.scheduler.get_last_lr()[0]}
    record |= {f"train_{loss}": mean for loss, mean in zip(LOSSES, means, strict=True)}
    with writing("The metrics", run.output):
        if accelerator.is_main_process:
            write_json(run.output / "metrics" / f"epoch_{epoch:03d}.json", record | metrics)
            name = run.recipe.best_metric
            shown = f", {name} {metrics[name]:.4f}" if name in metrics else ""
            logger.info("Epoch %d: train_loss %.4f%s", epoch, means[0], shown)
        run.watcher.log({f"validation/{key}": item for key, item in metrics.items()}, progress.step)
        run.watcher.log_concepts(run.kept_model, run.processor, progress.step)


__all__ = ["evaluate_epoch", "fit", "train_epoch"]

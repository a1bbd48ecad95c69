# SPDX-License-Identifier: Apache-2.0
"""Trains a concept classifier by a recipe, on any number of processes, with checkpoints to resume from."""

import dataclasses
import json
import logging
import math
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    ProjectConfiguration,
    broadcast_object_list,
    load,
    send_to_device,
    set_seed,
)
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import get_scheduler

from ascent_vit.data import check_concepts, concepts_from_features, load_concept_dataset
from ascent_vit.evaluation import evaluate
from ascent_vit.utils.files import LOCK, claim, read_json, replace_folder, write_json
from ascent_vit.utils.versions import versions

from .build import build_model, make_loader, split_dataset
from .checkpoints import last_whole_checkpoint, leftovers, new_checkpoint, remove_leftovers
from .errors import TrainingError, writing
from .optimisation import Freezer, StepPlan, moving_average, parameter_groups, plan_steps
from .recipe import FREE_KEYS, Recipe
from .report import LOSSES, write_report
from .sharding import check_sharding, is_sharded, whole_model
from .stream import StreamLoader
from .watch import Watcher, broken_term, check_tracker, diverged


if TYPE_CHECKING:
    from datasets import DatasetDict

logger = logging.getLogger(__name__)

# A batch by its epoch and place in it, and, of a stream, the places of its rows.
TakenBatch = tuple[int, int, list[list[int]]]


@dataclass(frozen=True)
class TrainingResult:
    """
    What a run gave.

    Args:
        model_dir: folder with the best weights, their configuration and image processor, as the Hub holds them.
        metrics: of the best weights on `split`, as in `metrics.json`.
        split: "test", or "validation" where the dataset has no test split; None, without metrics, for neither.
        best_epoch: the epoch whose weights were the best on the validation split, counted from 1; the last one where
            there is none.
        steps: optimiser steps made.
    """

    model_dir: Path
    metrics: dict[str, float]
    split: str | None
    best_epoch: int
    steps: int


class Progress:
    """How far a run has come; saved in every checkpoint, as plain values."""

    def __init__(self):
        self.step = 0
        self.best_value: float | None = None
        self.best_epoch = 0
        self.best_step = 0
        self.train_seconds = 0.0
        self.first_loss: float | None = None
        self.sums = dict.fromkeys(LOSSES, 0.0)
        self.num_batches = 0
        # Of HISTORY, every `logging_steps` steps.
        self.history: list[list[float | None]] = []

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def check_output(output: Path, resume: bool) -> None:
    """ValueError for a folder that is not free, or, to resume, holds something else than a run."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"The output {output} is a file: name a folder.")
    present = {path for path in output.iterdir() if path.name != LOCK} if output.exists() else set()
    if not present or (resume and present <= set(leftovers(output))):
        return
    if not resume:
        raise ValueError(f"The output folder {output} is not empty: name another one, or resume the run in it.")
    if not (output / "recipe.json").is_file():
        raise ValueError(f"The output folder {output} holds no run to resume: it has no recipe.json.")


def check_resumed(output: Path, record: dict[str, Any]) -> None:
    """ValueError where the run in a folder is not the one of `record`, which is kept as `recipe.json`."""
    if not (output / "recipe.json").is_file():
        return
    before = read_json(output / "recipe.json")
    after = json.loads(json.dumps(record))
    changed = [key for key in after if key not in FREE_KEYS and before.get(key) != after[key]]
    if changed:
        differences = ", ".join(f"{key} was {before.get(key)!r}, now {after[key]!r}" for key in changed)
        raise ValueError(f"The run in {output} cannot be resumed with another recipe: {differences}.")


class Run:
    """
    One training run, from its parts to its results.

    Args:
        recipe: of the run.
        output: folder for everything it writes.
        dataset: a loaded dataset; None loads the recipe's.
        resume: whether to go on from the last checkpoint in `output`.
    """

    def __init__(self, recipe: Recipe, output: Path, dataset: "DatasetDict | None", resume: bool):
        start = time.perf_counter()
        self.recipe, self.output = recipe, output
        check_output(output, resume)
        check_tracker(recipe.report_to)
        self.accelerator = accelerator = Accelerator(
            # Accelerate takes processes on CPU for one group only when it is told that they are on CPU.
            cpu=not torch.accelerator.is_available(),
            gradient_accumulation_steps=recipe.gradient_accumulation_steps,
            mixed_precision=recipe.mixed_precision,
            log_with=None if recipe.report_to == "none" else recipe.report_to,
            project_config=ProjectConfiguration(project_dir=str(output), logging_dir=str(output / "logs")),
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=recipe.seed),
            step_scheduler_with_optimizer=False,
            # While the backbone is frozen, its parameters get no gradient.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=recipe.head_only_epochs > 0)],
        )
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if accelerator.num_processes != started:
            raise ValueError(
                f"{started} processes were started, but Accelerate has {accelerator.num_processes}: start them with "
                "torchrun, and with ACCELERATE_USE_CPU=true where they are to share a CPU."
            )
        check_sharding(recipe, accelerator)
        self.dataset_name = recipe.dataset or "given in Python"
        if dataset is None:
            with accelerator.main_process_first():
                dataset = load_concept_dataset(self.dataset_name, **recipe.dataset_options)
        train, validation, test = split_dataset(dataset, recipe.seed)
        self.validation_is_cut = validation is not None and "validation" not in dataset
        names = concepts_from_features(train.features, recipe.dataset_options.get("spatial_concepts"))

        self.num_images = len(train) if hasattr(train, "__len__") else None
        self.plan = self.announce_plan()
        record = dataclasses.asdict(recipe) | {"dataset": self.dataset_name, "steps": dataclasses.asdict(self.plan)}
        check_resumed(output, record)
        accelerator.wait_for_everyone()

        set_seed(recipe.seed)
        model, self.processor = build_model(recipe, *names)
        check_concepts(model.config, *names[1:])
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model.to(accelerator.device)
        self.model_class = type(model)
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.freezer = Freezer(model.ascent_vit.backbone)
        self.average = moving_average(model, recipe.ema_decay) if recipe.ema_decay is not None else None
        optimizer = torch.optim.AdamW(
            parameter_groups(model, recipe.weight_decay),
            lr=recipe.learning_rate,
            betas=(recipe.adam_beta1, recipe.adam_beta2),
            eps=recipe.adam_epsilon,
        )
        scheduler = get_scheduler(
            recipe.lr_scheduler_type,
            optimizer,
            num_warmup_steps=self.plan.warmup_steps,
            num_training_steps=self.plan.total_steps,
        )
        images_per_micro_step = recipe.per_device_train_batch_size * accelerator.num_processes
        images_per_epoch = self.plan.steps_per_epoch * recipe.gradient_accumulation_steps * images_per_micro_step
        loader = self.make_loader(train, recipe.per_device_train_batch_size, images_per_epoch)
        self.model, self.optimizer, self.scheduler = accelerator.prepare(model, optimizer, scheduler)
        self.loader = loader if isinstance(loader, StreamLoader) else accelerator.prepare(loader)
        self.validation_loader = self.evaluation_loader(validation)
        self.test_loader = self.evaluation_loader(test)
        self.progress = Progress()
        # The batches of the step that is being made, and the gradient of the last one with its step and batches.
        self.taken: list[TakenBatch] = []
        self.gradient: tuple[torch.Tensor, int, list[TakenBatch]] | None = None
        self.watcher = Watcher(accelerator, recipe, output, train if validation is None else validation)
        # From here on, processes differ in what they draw, for example in dropout.
        set_seed(recipe.seed, device_specific=True)
        self.load_last_checkpoint(resume)
        with writing("The recipe", output):
            if accelerator.is_main_process:
                write_json(output / "recipe.json", record)
            self.watcher.start(record, self.progress.step)
        self.setup_seconds = time.perf_counter() - start
        self.evaluation_seconds = 0.0

    def announce_plan(self) -> StepPlan:
        recipe = self.recipe
        plan = plan_steps(recipe, self.num_images, self.accelerator.num_processes)
        if self.num_images is None:
            return plan
        whole = plan_steps(dataclasses.replace(recipe, max_steps=-1), self.num_images, self.accelerator.num_processes)
        if self.accelerator.is_main_process and plan.total_steps < whole.total_steps:
            logger.warning(
                "max_steps=%d of the %d steps of %g epochs: warm-up shortened in proportion from %d to %d steps, "
                "head-only training from %d to %d.",
                *(plan.total_steps, whole.total_steps, recipe.num_train_epochs),
                *(whole.warmup_steps, plan.warmup_steps, whole.head_only_steps, plan.head_only_steps),
            )
        return plan

    def make_loader(self, split: Any, batch_size: int, num_shuffled: int | None = None) -> Any:
        accelerator = self.accelerator
        parts = {"process_index": accelerator.process_index, "num_processes": accelerator.num_processes}
        show = accelerator.is_main_process
        return make_loader(split, self.processor, self.recipe, batch_size, num_shuffled, show, **parts)

    def evaluation_loader(self, split: Any | None) -> Any | None:
        if split is None:
            return None
        loader = self.make_loader(split, self.recipe.per_device_eval_batch_size)
        return self.accelerator.prepare_data_loader(loader)

    def load_last_checkpoint(self, resume: bool) -> None:
        """Goes on from the newest checkpoint that is whole; from the start if there is none."""
        accelerator, progress = self.accelerator, self.progress
        self.finished = False
        if not resume:
            return
        found: list[Path | None] = [None]
        if accelerator.is_main_process:
            remove_leftovers(self.output)
            found = [last_whole_checkpoint(self.output)]
        folder = broadcast_object_list(found)[0]
        if folder is not None:
            self.load_checkpoint(folder)
        self.finished = progress.step == self.plan.total_steps and (self.output / "metrics.json").is_file()
        # What an interruption between a checkpoint and its model left out.
        if folder is not None and progress.best_step == progress.step and not self.finished:
            self.save_model()
        if accelerator.is_main_process:
            logger.info("Resuming at step %d of %d.", progress.step, self.plan.total_steps)

    def load_checkpoint(self, folder: Path) -> None:
        accelerator = self.accelerator
        saved = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        if saved["num_processes"] != accelerator.num_processes:
            raise ValueError(
                f"The run in {self.output} has {saved['num_processes']} processes and cannot be resumed with "
                f"{accelerator.num_processes}: start as many."
            )
        accelerator.load_state(str(folder))
        # Accelerate goes on without a word where it cannot read them.
        random_states = load(folder / f"random_states_{accelerator.process_index}.pkl")
        if not torch.equal(random_states["torch_manual_seed"], torch.get_rng_state()):
            raise TrainingError(f"The random states in {folder} cannot be read by the installed packages.")
        self.progress.load_state_dict(saved["progress"])
        if self.average is not None:
            self.average.load_state_dict(load_file(folder / "average.safetensors"))
        if isinstance(self.loader, StreamLoader):
            state = folder / f"stream_{accelerator.process_index}.json"
            self.loader.load_state_dict(json.loads(state.read_text(encoding="utf-8")))

    def save_checkpoint(self) -> None:
        """Writes a checkpoint of weights that are finite; Accelerate's part of it and that of each process."""
        accelerator, progress = self.accelerator, self.progress
        self.check_gradient()
        with new_checkpoint(self.output, progress.step, self.recipe.save_total_limit, accelerator) as folder:
            accelerator.save_state(str(folder))
            if isinstance(self.loader, StreamLoader):
                write_json(folder / f"stream_{accelerator.process_index}.json", self.loader.state_dict())
            if accelerator.is_main_process:
                if self.average is not None:
                    save_file(self.average.state_dict(), folder / "average.safetensors")
                state = {"num_processes": accelerator.num_processes, "progress": progress.state_dict()}
                write_json(folder / "progress.json", state)

    def save_model(self) -> None:
        """Writes the weights to evaluate as the run's model."""
        with writing("The model", self.output):
            model = self.bare_model
            if self.accelerator.is_main_process:
                with replace_folder(self.output / "model") as folder:
                    model.save_pretrained(folder)
                    self.processor.save_pretrained(folder)
        self.accelerator.wait_for_everyone()

    @property
    def bare_model(self) -> Any:
        """The weights to evaluate and to save: the moving average where there is one."""
        if is_sharded(self.accelerator):
            return whole_model(self.model_class, self.model)
        return self.accelerator.unwrap_model(self.model) if self.average is None else self.average.module

    def train(self) -> None:
        """Makes all steps that are left."""
        progress, total = self.progress, self.plan.total_steps
        self.freezer.freeze(progress.step < self.plan.head_only_steps)
        main = self.accelerator.is_main_process
        with tqdm(total=total, initial=progress.step, desc="Training", unit="step", disable=not main) as bar:
            while progress.step < total:
                self.train_epoch(bar)
                self.evaluate_epoch()
                self.save_checkpoint()
                # After the checkpoint, so that the model is never of a time that the run does not go on from.
                if progress.best_step == progress.step:
                    self.save_model()

    def train_epoch(self, bar: tqdm) -> None:
        """Steps up to the end of the epoch or of the run."""
        recipe, accelerator, progress, plan = self.recipe, self.accelerator, self.progress, self.plan
        epoch, done = divmod(progress.step, plan.steps_per_epoch)
        end = (epoch + 1) * plan.steps_per_epoch
        skipped = done * recipe.gradient_accumulation_steps
        batches: Any = self.loader
        if not isinstance(self.loader, StreamLoader):
            self.loader.set_epoch(epoch)
            batches = skip_first_batches(self.loader, skipped) if skipped else self.loader
        self.model.train()
        start = time.perf_counter()
        for place, batch in enumerate(batches, start=skipped):
            self.taken.append((epoch, place, getattr(self.loader, "rows", [])))
            with accelerator.accumulate(self.model):
                losses = self.forward_backward(send_to_device(batch, accelerator.device))
                if accelerator.sync_gradients and recipe.max_grad_norm > 0:
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), recipe.max_grad_norm)
                    self.gradient = (norm, progress.step + 1, self.taken)
                self.optimizer.step()
                self.optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            self.scheduler.step()
            progress.step += 1
            self.taken = []
            if self.average is not None:
                self.average.update_parameters(accelerator.unwrap_model(self.model))
            if progress.step == plan.head_only_steps:
                self.freezer.freeze(False)
            progress.train_seconds += time.perf_counter() - start
            bar.update()
            bar.set_postfix(loss=f"{losses['loss']:.4f}", refresh=False)
            if progress.step % recipe.logging_steps == 0:
                rate = self.scheduler.get_last_lr()[0]
                progress.history.append([progress.step, *(losses.get(name) for name in LOSSES), rate])
                values = {f"train/{name}": value for name, value in losses.items()}
                self.watcher.log(values | {"train/learning_rate": rate}, progress.step)
            if progress.step == plan.total_steps:
                break
            if progress.step < end and recipe.save_steps and progress.step % recipe.save_steps == 0:
                self.save_checkpoint()
            start = time.perf_counter()

    def forward_backward(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        """Gradients of one batch; returns its loss and the terms of it."""
        outputs = self.model(**batch)
        values = {name: outputs[name].detach().float() for name in LOSSES if outputs.get(name) is not None}
        losses = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
        # Known by now at no cost, as the loss was waited for.
        self.check_gradient()
        if self.progress.first_loss is None:
            self.progress.first_loss = losses["loss"]
        reason = broken_term(losses, self.progress.first_loss)
        if reason is not None:
            raise diverged(self.progress.step + 1, reason, self.name_rows(self.taken[-1:]))
        self.accelerator.backward(outputs.loss)
        for name, value in losses.items():
            self.progress.sums[name] += value
        self.progress.num_batches += 1
        return losses

    def check_gradient(self) -> None:
        """TrainingError if the last step's gradient was not finite. With fp16 such a step is skipped instead."""
        if self.gradient is None:
            return
        norm, step, batches = self.gradient
        self.gradient = None
        if self.recipe.mixed_precision != "fp16" and not math.isfinite(norm):
            raise diverged(step, f"the gradient is {float(norm)}", self.name_rows(batches))

    def name_rows(self, batches: list[TakenBatch]) -> str:
        """The rows of batches of this process, in words."""
        if isinstance(self.loader, StreamLoader):
            rows = [f"row {row} of shard {shard}" for _, _, places in batches for _, shard, row in places]
            return f"{', '.join(rows)}, counted from 0, of the streamed train split"
        indices: list[Any] = []
        for epoch, place, _ in batches:
            self.loader.set_epoch(epoch)
            indices += next(islice(self.loader.batch_sampler, place, None))
        rows = [str(index[1] if isinstance(index, tuple) else index) for index in indices]
        cut = ", from which the validation split has been cut" if self.validation_is_cut else ""
        return f"rows {', '.join(rows)}, counted from 0, of the train split{cut}"

    def evaluate_epoch(self) -> None:
        """
        Evaluates on the validation split, records the epoch, and notes whether its weights are the best so far.

        Without a validation split the newest weights are the best.
        """
        accelerator, progress, recipe = self.accelerator, self.progress, self.recipe
        epoch = math.ceil(progress.step / self.plan.steps_per_epoch)
        start = time.perf_counter()
        metrics: dict[str, float] = {}
        if self.validation_loader is not None:
            metrics = evaluate(self.bare_model, self.validation_loader, accelerator, progress=True)
        self.evaluation_seconds += time.perf_counter() - start
        name = recipe.metric_for_best_model
        if name not in metrics and self.validation_loader is not None:
            raise ValueError(
                f"metric_for_best_model: {name} is not among the metrics of the validation split, which are "
                f"{', '.join(metrics)}."
            )
        value = metrics.get(name)
        sums = torch.tensor([progress.sums[loss] / progress.num_batches for loss in LOSSES])
        means = accelerator.reduce(sums.to(accelerator.device), reduction="mean").tolist()
        record = {"epoch": epoch, "step": progress.step, "learning_rate": self.scheduler.get_last_lr()[0]}
        record |= {f"train_{loss}": mean for loss, mean in zip(LOSSES, means, strict=True)}
        progress.sums, progress.num_batches = dict.fromkeys(LOSSES, 0.0), 0
        with writing("The metrics", self.output):
            if accelerator.is_main_process:
                write_json(self.output / "metrics" / f"epoch_{epoch:03d}.json", record | metrics)
                shown = "" if value is None else f", {name} {value:.4f}"
                logger.info("Epoch %d: train_loss %.4f%s", epoch, means[0], shown)
            self.watcher.log({f"validation/{key}": item for key, item in metrics.items()}, progress.step)
            self.watcher.log_concepts(self.bare_model, self.processor, progress.step)
        best = progress.best_value
        if value is None or best is None or (value > best if recipe.best_is_greatest else value < best):
            progress.best_value, progress.best_epoch, progress.best_step = value, epoch, progress.step

    def finish(self) -> TrainingResult:
        """Evaluates the best weights as they were saved; writes the report and, last, `metrics.json`."""
        accelerator, recipe, progress = self.accelerator, self.recipe, self.progress
        model_dir = self.output / "model"
        if self.finished:
            if accelerator.is_main_process:
                logger.info("The run in %s is finished already.", self.output)
            report = json.loads((self.output / "report.json").read_text(encoding="utf-8"))
            accelerator.end_training()
            return TrainingResult(model_dir, report["metrics"], report["split"], report["best_epoch"], report["steps"])
        model = self.model_class.from_pretrained(model_dir).to(accelerator.device)
        loaders = {"test": self.test_loader, "validation": self.validation_loader}
        split, loader = next((item for item in loaders.items() if item[1] is not None), (None, None))
        start = time.perf_counter()
        metrics = {} if loader is None else evaluate(model, loader, accelerator, progress=True)
        self.evaluation_seconds += time.perf_counter() - start
        images = progress.step * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
        images *= accelerator.num_processes
        facts = {
            "split": split,
            "recipe": recipe.name,
            "dataset": self.dataset_name,
            "seed": recipe.seed,
            "steps": progress.step,
            "best_epoch": progress.best_epoch,
            "best_metric": recipe.metric_for_best_model,
            "best_validation_value": progress.best_value,
            "num_parameters": self.num_parameters,
            "num_train_images": self.num_images,
            "num_processes": accelerator.num_processes,
            "device": accelerator.device.type,
            "setup_seconds": self.setup_seconds,
            "train_seconds": progress.train_seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "train_images_per_second": images / progress.train_seconds if progress.train_seconds else None,
            **versions(),
        }
        if accelerator.is_main_process:
            epochs = sorted((self.output / "metrics").glob("epoch_*.json"))
            history = [json.loads(path.read_text(encoding="utf-8")) for path in epochs]
            report = {
                "metrics": metrics,
                **facts,
                "validation_seed": recipe.seed,
                "step_plan": dataclasses.asdict(self.plan),
                "recipe_values": dataclasses.asdict(recipe),
                "epochs": history,
                "history": progress.history,
            }
            with writing("The report", self.output):
                write_report(self.output, report)
                write_json(self.output / "metrics.json", metrics | facts)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return TrainingResult(model_dir, metrics, split, progress.best_epoch, progress.step)


def train(
    recipe: Recipe,
    output_dir: str | os.PathLike,
    dataset: "str | DatasetDict | None" = None,
    resume: bool = False,
    seed: int | None = None,
) -> TrainingResult:
    """
    Trains a model by a recipe.

    Writes `model/` (the best weights on the validation split, with configuration and image processor), `metrics.json`
    (their metrics on the test split), `report.json` (everything about the run), `report.md` and `curves.png` (the same
    for people), `metrics/epoch_NNN.json`, `checkpoints/` and `recipe.json` into the output folder, each file and
    folder whole or not at all. Runs on one process, or on several started by `torchrun`. An epoch is a number of whole
    optimiser steps: images that do not fill the last one are left out, others each epoch. With the same seed,
    versions and number of threads, a run on CPU gives equal weights each time, also when it was resumed.

    Args:
        recipe: what to train, on what, and how.
        output_dir: an empty or new folder, or, to resume, that of the run.
        dataset: a loaded dataset, or a name to load instead of the recipe's; `dataset_options` for another one are
            then left out.
        resume: whether to go on from the last checkpoint in `output_dir` that is whole, from the start if there is
            none. A run that is finished is left as it is.
        seed: instead of the recipe's.

    Returns:
        The best weights' folder and metrics.

    Raises:
        FileNotFoundError: for a dataset or backbone that does not exist.
        FileExistsError: for a folder that another process trains in.
        ValueError: for a recipe, dataset or folder that does not serve.
        TrainingError: for a loss or gradient that is not finite, a loss that explodes, or a disk that takes no more.

    Example:

    ```python
    >>> result = train(load_recipe("digits"), "runs/digits")
    >>> result.metrics["accuracy"]
    0.98
    ```
    """
    changes: dict[str, Any] = {}
    if seed is not None:
        changes["seed"] = seed
    if isinstance(dataset, str | os.PathLike):
        if recipe.dataset not in (None, str(dataset)):
            changes["dataset_options"] = {}
        changes["dataset"] = str(dataset)
        dataset = None
    elif dataset is not None:
        changes["dataset"] = None
    recipe = dataclasses.replace(recipe, **changes)
    if dataset is None and recipe.dataset is None:
        raise ValueError("The recipe names no dataset: give one, a Hub id, a local folder or digits.")
    output = Path(output_dir)
    check_output(output, resume)
    # Of several processes the first one, which writes.
    with claim(output, inside=True) if os.environ.get("RANK", "0") == "0" else nullcontext():
        run = Run(recipe, output, dataset, resume)
        run.train()
        return run.finish()


__all__ = ["TrainingError", "TrainingResult", "train"]

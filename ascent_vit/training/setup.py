# SPDX-License-Identifier: Apache-2.0
"""Makes the parts of a training run from its recipe."""

import dataclasses
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    ProjectConfiguration,
    set_seed,
)
from datasets import DatasetDict, IterableDataset
from torch.utils.data import DataLoader

from ascent_vit.data import check_concepts, check_once, concepts_from_features, load_concept_dataset
from ascent_vit.data.labels import check_problem
from ascent_vit.data.loading import spatial_names, unite
from ascent_vit.data.splits import read_images
from ascent_vit.data.suspicions import flip_suspicion
from ascent_vit.evaluation.evaluate import known_metrics
from ascent_vit.utils.files import LOCK, read_json, write_json
from ascent_vit.utils.hardware import warn_if_slow

from .blocks import freeze
from .build import balanced_weights, build_model, make_loader, split_dataset, start_at_mean
from .checkpoints import leftovers, resume_run
from .divergence import DivergenceGuard
from .errors import check_best_metric, writing
from .features import CachedTokens, check_numbered
from .optimisation import Freezer, StepPlan, build_optimizer, build_scheduler, moving_average, plan_steps
from .precision import check_precision, resolve_precision, training_device
from .recipe import FREE_KEYS, Recipe, augmentation_of, recipe_for_problem
from .run import Run, RunData
from .sharding import check_sharding
from .stream import StreamLoader
from .watch import Watcher, check_trackers


logger = logging.getLogger(__name__)


def check_output(output: Path, resume: bool) -> None:
    """Checks that a folder is free or, to resume, holds a run; ValueError otherwise."""
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
    """Checks that the run in a folder, if any, is the one of `record`; ValueError naming what differs."""
    if not (output / "recipe.json").is_file():
        return
    before = read_json(output / "recipe.json")
    after = json.loads(json.dumps(record))
    changed = [key for key in after if key not in FREE_KEYS and before.get(key) != after[key]]
    if changed:
        differences = ", ".join(f"{key} was {before.get(key)!r}, now {after[key]!r}" for key in changed)
        raise ValueError(f"The run in {output} cannot be resumed with another recipe: {differences}.")


def start_accelerator(recipe: Recipe, output: Path) -> Accelerator:
    """
    Starts the accelerator of a run; ValueError where it does not see the processes that were started, or this process
    has another of another precision.
    """
    check_precision(recipe.mixed_precision)
    accelerator = Accelerator(
        # Accelerate takes processes on CPUs for one group only when it is told that they are on CPUs.
        cpu=not torch.accelerator.is_available(),
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        mixed_precision=recipe.mixed_precision,
        log_with=recipe.trackers or None,
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
    if accelerator.is_main_process and recipe.mixed_precision == "bf16":
        warn_if_slow(torch.bfloat16, "training in float32 (mixed_precision: no)", accelerator.device)
    return accelerator


def check_data(recipe: Recipe, dataset: DatasetDict, loud: bool) -> None:
    """Checks a dataset for training, and if `loud` warns of what may be meant otherwise; ValueError for errors."""
    if any(isinstance(split, IterableDataset) for split in dataset.values()):
        if loud:
            logger.info("A stream is not checked before it is read.")
        return
    names = spatial_names(recipe.dataset_options)
    window = recipe.processor.get("window", recipe.dataset_options.get("window"))
    used = DatasetDict({name: split for name, split in dataset.items() if name in ("train", "validation", "test")})
    report = check_once(used, spatial_concepts=names, window=window, progress=loud)
    report.raise_errors()
    concepts = concepts_from_features(next(iter(used.values())).features, names)[1:]
    options = augmentation_of(recipe)
    flip = options and flip_suspicion(sum(concepts, []), options.horizontal_flip, options.flip_pairs)
    for warning in report.warnings + ([f"{flip}."] if flip else []) if loud else ():
        logger.warning("%s", warning)


def value_names(recipe: Recipe, number: int) -> list[str]:
    """Names of the values that a recipe's dataset has in each row: given as `labels`, as the dataset has none."""
    names = recipe.dataset_options.get("labels") or [f"LABEL_{i}" for i in range(number)]
    if len(names) != number:
        raise ValueError(f"dataset_options: labels must name the {number} values of a row; got {len(names)} names.")
    return names


def load_data(recipe: Recipe, dataset: DatasetDict | None, accelerator: Accelerator, check: bool) -> RunData:
    """Checks and splits a dataset; None loads the recipe's, in the first process before the others."""
    name = recipe.dataset or "given in Python"
    if dataset is None:
        with accelerator.main_process_first():
            dataset = load_concept_dataset(name, **{"problem_type": recipe.problem_type} | recipe.dataset_options)
    elif not any(isinstance(split, IterableDataset) for split in dataset.values()):
        dataset = unite(read_images(DatasetDict(dataset), None), problem_type=recipe.problem_type)
    if check and "train" in dataset:
        with accelerator.main_process_first():
            check_data(recipe, dataset, accelerator.is_main_process)
    train, validation, test = split_dataset(dataset, recipe.seed)
    problem = check_problem(train.features["label"], recipe.problem_type)
    names = concepts_from_features(train.features, spatial_names(recipe.dataset_options))
    if problem == "regression":
        names = (value_names(recipe, len(names[0])), *names[1:])
    is_cut = validation is not None and "validation" not in dataset
    return RunData(name, train, validation, test, names, problem, is_cut)


def make_plan(recipe: Recipe, num_images: int | None, accelerator: Accelerator) -> StepPlan:
    """Counts the steps of a run, and warns of what `max_steps` shortens."""
    plan = plan_steps(recipe, num_images, accelerator.num_processes)
    if num_images is None:
        return plan
    whole = plan_steps(dataclasses.replace(recipe, max_steps=-1), num_images, accelerator.num_processes)
    if accelerator.is_main_process and plan.total_steps < whole.total_steps:
        logger.warning(
            "max_steps=%d of the %d steps of %g epochs: warm-up shortened in proportion from %d to %d steps, "
            "head-only training from %d to %d.",
            *(plan.total_steps, whole.total_steps, recipe.num_train_epochs),
            *(whole.warmup_steps, plan.warmup_steps, whole.head_only_steps, plan.head_only_steps),
        )
    return plan


def place_model(model: Any, accelerator: Accelerator) -> Any:
    """Moves a model to the device of its process; on several GPUs its batch statistics are those of all processes."""
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model.to(accelerator.device)


def train_loader(recipe: Recipe, data: RunData, plan: StepPlan, processor: Any, accelerator: Accelerator) -> Any:
    """Makes the batches to train on, before the accelerator prepares them."""
    images_per_micro_step = recipe.per_device_train_batch_size * accelerator.num_processes
    return make_loader(
        data.train,
        processor,
        recipe,
        recipe.per_device_train_batch_size,
        num_shuffled=plan.steps_per_epoch * recipe.gradient_accumulation_steps * images_per_micro_step,
        progress=accelerator.is_main_process,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        first_row=0 if recipe.cache_features else None,
    )


def evaluation_loader(
    recipe: Recipe, split: Any | None, processor: Any, accelerator: Accelerator, first_row: int | None = None
) -> Any | None:
    """Makes the batches to evaluate on, prepared by the accelerator; None without a split."""
    if split is None:
        return None
    batch_size = recipe.per_device_eval_batch_size
    progress = accelerator.is_main_process
    loader = make_loader(split, processor, recipe, batch_size, progress=progress, first_row=first_row)
    return accelerator.prepare_data_loader(loader)


def build_run(recipe: Recipe, output: Path, accelerator: Accelerator, data: RunData, plan: StepPlan) -> Run:
    """Makes the parts of a run that starts at its first step, prepared by the accelerator."""
    set_seed(recipe.seed)
    model, processor = build_model(recipe, *data.names, data.problem)
    check_concepts(model.config, *data.names[1:])
    if recipe.class_weights == "balanced":
        model.config.class_weights = balanced_weights(data.train, len(data.names[0]))
    if data.problem == "regression":
        start_at_mean(model, data.train)
    if recipe.freezes_layers:
        freeze(model, recipe.frozen_layers)
    features, first_row = None, None
    if recipe.cache_features:
        check_numbered(data.train)
        features = CachedTokens(model, recipe.frozen_layers, "present" in data.train.features)
        # Validation comes behind the views of train.
        first_row = (recipe.feature_views if recipe.augmentation else 1) * len(data.train)
    bare_model = place_model(model, accelerator)
    # Before the accelerator, which gives a sharded model another class.
    model_class = type(bare_model)
    num_parameters = sum(parameter.numel() for parameter in bare_model.parameters())
    freezer = Freezer(bare_model.ascent_vit.backbone)
    average = moving_average(bare_model, recipe.ema_decay) if recipe.ema_decay is not None else None
    optimizer = build_optimizer(bare_model, recipe)
    scheduler = build_scheduler(optimizer, recipe, plan)
    batches = train_loader(recipe, data, plan, processor, accelerator)
    prepared, optimizer, scheduler = accelerator.prepare(bare_model, optimizer, scheduler)
    loader = batches if isinstance(batches, StreamLoader) else accelerator.prepare(batches)
    return Run(
        recipe=recipe,
        output=output,
        accelerator=accelerator,
        data=data,
        plan=plan,
        processor=processor,
        model_class=model_class,
        num_parameters=num_parameters,
        freezer=freezer,
        average=average,
        model=prepared,
        optimizer=optimizer,
        scheduler=scheduler,
        loader=loader,
        validation_loader=evaluation_loader(recipe, data.validation, processor, accelerator, first_row),
        test_loader=evaluation_loader(recipe, data.test, processor, accelerator),
        guard=DivergenceGuard(loader, recipe, data.validation_is_cut, data.num_images),
        watcher=Watcher(accelerator, recipe, output, data.train if data.validation is None else data.validation),
        features=features,
    )


def check_metric(run: Run) -> None:
    """Checks before the first step that the validation split can give the metric that chooses the weights."""
    loader, name = run.validation_loader, run.recipe.best_metric
    if loader is None or name is None:
        return
    # A loader of its own: one that is left early stays the accelerator's current one.
    batches = DataLoader(
        loader.dataset,
        run.recipe.per_device_eval_batch_size,
        collate_fn=loader.collate_fn,
        generator=torch.Generator().manual_seed(run.recipe.seed),
    )
    check_best_metric(name, known_metrics(run.kept_model, batches, name))


def fill_features(run: Run) -> None:
    """Computes the tokens of all images that a run trains and validates on, where it caches them."""
    if run.features is None or run.finished:
        return
    loaders = [loader for loader in (run.loader, run.validation_loader) if loader is not None]
    accelerator = run.accelerator
    with writing("The features", run.output):
        run.features.fill(
            [(loader.dataset, loader.collate_fn) for loader in loaders],
            run.output / "features",
            run.recipe.per_device_eval_batch_size,
            accelerator.process_index,
            accelerator.num_processes,
            accelerator.wait_for_everyone,
            progress=accelerator.is_main_process,
        )


def set_up(recipe: Recipe, output: Path, dataset: "DatasetDict | None", resume: bool, check: bool = True) -> Run:
    """
    Makes a run that is ready to train, and records its recipe.

    Args:
        recipe: recipe of the run.
        output: folder for everything that the run writes.
        dataset: loaded dataset; None loads the recipe's.
        resume: whether to go on from the last checkpoint in `output`.
        check: whether to check every row of the dataset first.

    Raises:
        ValueError: for a recipe, dataset, folder or group of processes that does not serve.
    """
    start = time.perf_counter()
    check_output(output, resume)
    check_trackers(recipe.trackers)
    # From here on the recipe says what the run does on this device, and so do its records.
    recipe = dataclasses.replace(recipe, mixed_precision=resolve_precision(recipe.mixed_precision, training_device()))
    accelerator = start_accelerator(recipe, output)
    data = load_data(recipe, dataset, accelerator, check)
    recipe = recipe_for_problem(recipe, data.problem)
    plan = make_plan(recipe, data.num_images, accelerator)
    record = dataclasses.asdict(recipe) | {"dataset": data.name, "steps": dataclasses.asdict(plan)}
    check_resumed(output, record)
    accelerator.wait_for_everyone()

    run = build_run(recipe, output, accelerator, data, plan)
    if not resume:
        check_metric(run)
    # From here on, processes differ in what they draw, for example in dropout.
    set_seed(recipe.seed, device_specific=True)
    if resume:
        resume_run(run)
    with writing("The recipe", output):
        if accelerator.is_main_process:
            write_json(output / "recipe.json", record)
        run.watcher.start(record, run.progress.step)
    fill_features(run)
    run.setup_seconds = time.perf_counter() - start
    return run


__all__ = ["check_output", "set_up"]

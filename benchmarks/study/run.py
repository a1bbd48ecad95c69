# SPDX-License-Identifier: Apache-2.0
"""
Makes the runs of a table that are missing, one JSON file each.

    ascent-vit prepare mnist --source MNIST_FOLDER --output DATA/mnist
    ascent-vit prepare cub --source CUB_200_2011 --output DATA/cub
    ascent-vit prepare cub --source CUB_200_2011 --output DATA/cub-all --option global_concepts=all
    OMP_NUM_THREADS=1 python benchmarks/study/run.py --table digits --data DATA --output benchmarks/study/results

A run that is interrupted goes on at its last checkpoint when the command is given again; `--list` says what is done.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from data import load, rotations, scale_parts, train_part
from heads import measure_heads
from plain import build_plain, evaluate_plain, train_plain
from plan import StudyRun, read_tables, runs_of, start_of
from pointing import measure_places
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from ascent_vit.data import CachedConceptDataset, ConceptCollator, concepts_from_features
from ascent_vit.data.schema import COLUMNS
from ascent_vit.evaluation import ShortTraining, evaluate, evaluate_dataset, leakage
from ascent_vit.evaluation.dataset import EVALUATORS
from ascent_vit.inference.load import load_model
from ascent_vit.training import Recipe, setup, train
from ascent_vit.training.build import build_model
from ascent_vit.training.features import CachedTokens
from ascent_vit.utils.files import replace_folder, write_json
from ascent_vit.utils.versions import versions
from modeling_ascent_vit import modeling_ascent_vit


logger = logging.getLogger(__name__)

EVALUATION_BATCH = 128
CURVE_STEPS = 8
# Steps between checkpoints, so that a run that is cut off goes on in the middle of an epoch.
SAVE_STEPS = 100


def sigmoid_forward(
    stream: Any, tokens: torch.Tensor, override: Any = None, *others: Any, output_table: bool = False
) -> tuple[torch.Tensor, ...]:
    """A concept stream's forward pass in which concepts do not compete: each has a sigmoid of its own."""
    attention = stream.scores(tokens).float().sigmoid() if override is None else override.unsqueeze(1)
    values = stream.split_heads(stream.value(stream.concepts))
    scores = stream.projection((attention.mean(2, keepdim=True) @ values).flatten(1))
    return (attention, scores, stream.project_heads(values)) if output_table else (attention, scores)


def key_forward(
    stream: Any, tokens: torch.Tensor, override: Any = None, *others: Any, output_table: bool = False
) -> tuple[torch.Tensor, ...]:
    """A concept stream's forward pass in which "none" is one more concept of the same softmax, in place of a gate."""
    scores = stream.scores(tokens).float()
    # It starts with the share that the gate starts with.
    none = math.log(scores.shape[-1]) - stream.gate(tokens).float().unsqueeze(1).expand_as(scores[..., :1])
    attention, none = torch.cat([scores, none], -1).softmax(-1).split([scores.shape[-1], 1], -1)
    attention = modeling_ascent_vit.override_attention(attention, override, none)
    pooled = attention.sum(2) * modeling_ascent_vit.attention_share(attention)
    values = stream.split_heads(stream.value(stream.concepts))
    scores = stream.projection((pooled.unsqueeze(2) @ values).flatten(1))
    return (attention, scores, stream.project_heads(values)) if output_table else (attention, scores)


def linear_forward(
    stream: Any, tokens: torch.Tensor, *others: Any, output_table: bool = False
) -> tuple[torch.Tensor, ...]:
    """A linear head in the place of a concept stream, so that it trains on cached features."""
    scores, concepts = stream.projection(tokens.mean(1)), len(stream.concepts)
    attention = tokens.new_zeros(len(tokens), stream.num_heads, tokens.shape[1], concepts)
    table = tokens.new_zeros(stream.num_heads, concepts, scores.shape[1])
    return (attention, scores, table) if output_table else (attention, scores)


def attention_of(run: StudyRun, recipe: Recipe) -> contextlib.AbstractContextManager:
    """While it lasts, concept streams attend as the run asks for."""
    forward = {"sigmoid": sigmoid_forward, "key": key_forward}.get(run.attention)
    if run.head == "linear" and recipe.cache_features:
        forward = linear_forward
    if forward is None:
        return contextlib.nullcontext()
    return mock.patch.object(modeling_ascent_vit.AscentViTConceptStream, "forward", forward)


def pretrain(run: StudyRun, recipe: Recipe, dataset: Any, folder: Path) -> Path:
    """The folder of a backbone that has told rotations of the train images apart; trained once for a table."""
    target = folder / f"{run.table}-{run.pretrained}"
    if not target.is_dir():
        logger.info("Training the backbone of %s on %s.", run.table, run.pretrained)
        side = recipe.model["backbone_config"]["image_size"]
        first = dataclasses.replace(recipe, seed=0, num_train_epochs=12)
        model, _, facts = train_plain(first, rotations(dataset, side))
        with replace_folder(target) as partial:
            model.base_model.save_pretrained(partial)
        write_json(folder / f"{target.name}.json", facts)
    return target


def on_backbone(recipe: Recipe, backbone: Path) -> Recipe:
    """The recipe with a pretrained backbone in place of a random one."""
    fields = {name: value for name, value in recipe.model.items() if name != "backbone_config"}
    return dataclasses.replace(recipe, backbone=str(backbone), model=fields)


def cost(model: Any) -> dict[str, int]:
    """Parameters, and multiply-adds of one image's forward pass in matrix products, convolutions and attention."""
    config = getattr(model.config, "backbone_config", model.config)
    pixels = torch.zeros(1, 3, config.image_size, config.image_size)
    # The counter knows matrix products, but not the CPU's fused attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(pixel_values=pixels)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "multiply_adds": counter.get_total_flops() // 2,
    }


def batches(split: Any, processor: Any) -> DataLoader:
    columns = [name for name in COLUMNS if name in split.features]
    return DataLoader(split.select_columns(columns), EVALUATION_BATCH, collate_fn=ConceptCollator(processor))


def measure_leakage(run: StudyRun, recipe: Recipe, parts: Any, test: Any) -> dict[str, Any]:
    names = concepts_from_features(parts["train"].features)
    processor = build_model(recipe, *names)[1]
    training = ShortTraining(
        lambda: build_model(recipe, *names)[0],
        run.steps,
        recipe.per_device_train_batch_size,
        recipe.learning_rate,
        recipe.weight_decay,
        run.seed,
    )
    rows = CachedConceptDataset(parts["train"], processor)
    return leakage(training, rows, batches(test, processor), seed=run.seed)


def measure(run: StudyRun, model: Any, processor: Any, test: Any) -> dict[str, Any]:
    """What the table asks for of a trained model."""
    plain = run.head == "linear"
    if plain:
        metrics: dict[str, Any] = evaluate_plain(model, batches(test, processor)) | {"num_images": len(test)}
    else:
        skip = sorted(set(EVALUATORS) - set(run.measures))
        metrics = evaluate_dataset(
            model, processor, test, images=run.images, steps=CURVE_STEPS, batch_size=EVALUATION_BATCH, skip=skip
        )
    found: dict[str, Any] = {"metrics": metrics}
    if "places" in run.measures and not plain:
        metrics |= measure_places(model, processor, test, EVALUATION_BATCH)
    if "heads" in run.measures and not plain:
        metrics |= measure_heads(model, batches(test, processor))
    if "scales" in run.measures:
        judge = evaluate_plain if plain else evaluate
        found["scales"] = {
            name: judge(model, batches(part, processor)) | {"num_images": len(part)}
            for name, part in scale_parts(test).items()
        }
    return found


def shared_features(run: StudyRun, recipe: Recipe, work: Path) -> contextlib.AbstractContextManager:
    """While it lasts, the runs of a table share a file of features; what is not as a run needs it is computed anew."""
    fill, folder = CachedTokens.fill, work / f"features-{run.table}-{recipe.frozen_layers}-{recipe.image_size}"

    def fill_shared(tokens: CachedTokens, datasets: Any, own: Path, *arguments: Any, **options: Any) -> None:
        fill(tokens, datasets, folder, *arguments, **options)

    return mock.patch.object(CachedTokens, "fill", fill_shared)


def train_cached(run: StudyRun, recipe: Recipe, parts: Any, work: Path) -> Path:
    """Trains in a folder of its own in `work`, in which an interrupted run goes on; gives the folder."""
    folder = work / run.label
    # In this order, as the run that it starts from has features of its own.
    with starting(run, recipe, parts, work), shared_features(run, recipe, work):
        train(dataclasses.replace(recipe, save_steps=SAVE_STEPS), folder, dataset=parts, resume=True)
    return folder


def starting(run: StudyRun, recipe: Recipe, parts: Any, work: Path) -> contextlib.AbstractContextManager:
    """While it lasts, what is trained starts with the weights of another run, which is trained first if need be."""
    first = start_of(run)
    if first is None:
        return contextlib.nullcontext()
    folder = work / first.label
    if not (folder / "model").is_dir():
        logger.info("%s starts from %s.", run.label, first.label)
        train_cached(first, dataclasses.replace(first.load_recipe(), backbone=recipe.backbone), parts, work)
    trained = load_model(str(folder / "model"))[0].state_dict()

    def build_started(*arguments: Any) -> tuple[Any, Any]:
        model, processor = build_model(*arguments)
        model.load_state_dict(trained)
        return model, processor

    return mock.patch.object(setup, "build_model", build_started)


def make(run: StudyRun, recipe: Recipe, data: Path, work: Path) -> dict[str, Any]:
    """Trains and measures."""
    start, start_cpu = time.perf_counter(), time.process_time()
    dataset = load(run, recipe, data)
    if run.pretrained is not None:
        recipe = on_backbone(recipe, pretrain(run, recipe, dataset, work))
    parts = train_part(run, recipe, dataset)
    test = dataset["test"]
    if run.test_images is not None:
        test = test.shuffle(seed=0).select(range(run.test_images))
    result: dict[str, Any] = {"settings": run.settings(), "title": run.title}
    if "leakage" in run.measures:
        result["metrics"] = measure_leakage(run, recipe, parts, test)
    else:
        folder = work / run.label
        if run.head == "linear" and not recipe.cache_features:
            model, processor, facts = train_plain(recipe, parts)
        else:
            train_cached(run, recipe, parts, work)
            model, processor = load_model(str(folder / "model"))
            report = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            facts = {key: report[key] for key in ("steps", "train_seconds")}
        result |= measure(run, model, processor, test) | facts
        result |= cost(
            build_plain(recipe, *concepts_from_features(test.features))[0] if run.head == "linear" else model
        )
        shutil.rmtree(folder, ignore_errors=True)
    batch = recipe.per_device_train_batch_size
    return result | {
        "batch_size": batch,
        "train_images": len(dataset["train"]) if run.train_images is None else run.train_images,
        "total_seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - start_cpu,
        "threads": torch.get_num_threads(),
        **versions(),
    }


def missing(runs: list[StudyRun], results: Path) -> Iterator[StudyRun]:
    for run in runs:
        if run.result(results) is None:
            yield run


def main(
    table: Annotated[str, typer.Option(help="Table of tables.yaml; all of them by default.")] = "",
    output: Annotated[Path, typer.Option(help="Folder of the results, one JSON file per run.")] = Path(
        "benchmarks/study/results"
    ),
    data: Annotated[Path, typer.Option(help="Folder with the prepared datasets mnist and cub.")] = Path("data"),
    work: Annotated[Path, typer.Option(help="Folder for what is needed while runs last.")] = Path("runs/study"),
    backbone: Annotated[
        str, typer.Option(help="Folder in place of the backbone's Hub id, with the same weights.")
    ] = "",
    only: Annotated[str, typer.Option(help="Names of runs, with commas between; all by default.")] = "",
    list_runs: Annotated[bool, typer.Option("--list", help="Say what is done and what is missing, and stop.")] = False,
):
    """Makes the runs that are missing. Exit code 2 for a table, run or dataset that does not exist."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    try:
        runs = [run for name in ([table] if table else read_tables()) for run in runs_of(name)]
        unknown = set(filter(None, only.split(","))) - {run.name for run in runs}
        if unknown:
            raise ValueError(f"There is no run {sorted(unknown)[0]} in {table or 'any table'}.")
        if only:
            runs = [run for run in runs if run.name in only.split(",")]
        if list_runs:
            for run in runs:
                print("missing" if run.result(output) is None else "done   ", run.label)
            return
        for run in missing(runs, output):
            recipe = run.load_recipe()
            if backbone and recipe.backbone is not None:
                recipe = dataclasses.replace(recipe, backbone=backbone)
            with attention_of(run, recipe):
                result = make(run, recipe, data.resolve(), work.resolve())
            write_json(run.path(output), result)
            shown = {k: round(v, 4) for k, v in result["metrics"].items() if isinstance(v, float) and "acc" in k}
            logger.info("%s: %s, %.0f s", run.label, shown, result["cpu_seconds"])
    except (ValueError, FileNotFoundError) as error:
        logger.error("%s", error)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    os.environ.setdefault("TQDM_MININTERVAL", "10")
    typer.run(main)

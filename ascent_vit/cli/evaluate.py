# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit evaluate`."""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .inputs import DatasetOptions, load_model, read_dataset_options


if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hub id, or a folder with model and processor.")],
    dataset: Annotated[str, typer.Option(help="A Hub id, a local folder or digits, with the model's concepts.")],
    output: Annotated[Path, typer.Option(metavar="FILE.json", help="File to write; one that exists is replaced.")],
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "test",
    images: Annotated[
        int, typer.Option(min=1, help="Images, drawn by the seed, for all that takes many forward passes per image.")
    ] = 1000,
    steps: Annotated[int, typer.Option(min=1, help="Steps of insertion, deletion and intervention curves.")] = 16,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the chosen images, of random orders and random weights.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass and process.")] = 32,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            help="What to leave out: faithfulness, intervention, robustness, causal or concepts; repeatable."
        ),
    ] = None,
    sanity: Annotated[
        bool, typer.Option("--sanity", help="Also compare the maps with those of random weights.")
    ] = False,
    purity: Annotated[
        bool, typer.Option("--purity", help="Also measure what concepts tell of each other: two networks a concept.")
    ] = False,
    intervals: Annotated[
        bool, typer.Option(help="Also give the interval of 95 % of each metric, by bootstrap over the images.")
    ] = True,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not look for errors in the split first.")] = False,
    options: DatasetOptions = None,
) -> None:
    """Measure a model on a split: class, concepts, faithfulness, intervention, robustness; writes flat JSON."""
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder: name a JSON file.")
    dataset_options = read_dataset_options(options or ())

    import torch
    from accelerate import Accelerator

    from ascent_vit.data import check_once, load_concept_dataset
    from ascent_vit.data.loading import spatial_names
    from ascent_vit.evaluation import evaluate_dataset
    from ascent_vit.utils.files import write_json
    from ascent_vit.utils.versions import versions

    # Without an accelerator, Accelerate joins the processes into one group only if it is told to use the CPU.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    start = time.perf_counter()
    classifier, processor = load_model(model)
    with accelerator.main_process_first():
        # Whole numbers are classes unless the model says that it predicts values.
        known = {"problem_type": "regression"} if classifier.config.problem_type == "regression" else {}
        splits = load_concept_dataset(dataset, **known | dataset_options)
    if split not in splits:
        raise ValueError(f"The dataset has no split {split}; it has {', '.join(splits)}.")
    if not no_check:
        with accelerator.main_process_first():
            report = check_once(
                type(splits)({split: splits[split]}),
                spatial_concepts=spatial_names(dataset_options),
                window=getattr(processor, "window", None),
                progress=accelerator.is_main_process,
            )
            report.raise_errors()
        for warning in report.warnings if accelerator.is_main_process else ():
            logger.warning("%s", warning)
    values = evaluate_dataset(
        classifier.to(accelerator.device),
        processor,
        splits[split],
        images=images,
        steps=steps,
        seed=seed,
        batch_size=batch_size,
        skip=skip or (),
        sanity=sanity,
        spatial_concepts=spatial_names(dataset_options),
        accelerator=accelerator,
        progress=True,
        with_intervals=intervals,
        purity=purity,
    )
    if accelerator.is_main_process:
        facts = {
            "model": model,
            "dataset": dataset,
            "split": split,
            **{f"dataset_{name}": value for name, value in dataset_options.items()},
            "seed": seed,
            "steps": steps,
            "images": images,
            "batch_size": batch_size,
            "dtype": str(classifier.dtype).removeprefix("torch."),
            **processes(accelerator),
            "evaluation_seconds": round(time.perf_counter() - start, 1),
            **versions(),
        }
        write_json(output, values | facts)
        print_table(values, f"{split}, {values['num_images']:,} images")
        print(f"Written: {output}")
    accelerator.end_training()


def processes(accelerator: "Accelerator") -> dict[str, Any]:
    return {"device": accelerator.device.type, "num_processes": accelerator.num_processes}


def print_table(values: dict[str, Any], title: str) -> None:
    """Prints the metrics, their intervals, and which way is better."""
    from ascent_vit.utils.metrics import METRICS

    shown = {name: metric for name, metric in METRICS.items() if name in values}
    width = max(map(len, shown))
    print(f"{'metric':{width}}  better  {title}")
    for name, metric in shown.items():
        interval = f"  [{values[f'{name}_low']:.4g}, {values[f'{name}_high']:.4g}]" if f"{name}_low" in values else ""
        better = "higher" if metric.greater_is_better else "lower"
        print(f"{name:{width}}  {better:6}  {values[name]:.4g}{interval}")
    for sentence in values["left_out"]:
        print(f"Left out: {sentence}.")

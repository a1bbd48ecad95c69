# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit evaluate`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .inputs import DatasetOptions, check_rows, read_dataset_options, read_split


if TYPE_CHECKING:
    from accelerate import Accelerator

# At most: images of what takes many passes, and of insertion and deletion, which take most of the time.
IMAGES, CURVE_IMAGES = 1000, 300
# At most, with --quick: images of the split, images of what takes many passes, and steps of curves.
QUICK_SPLIT, QUICK_IMAGES, QUICK_STEPS = 1000, 50, 8


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hub id, or a folder with model and processor.")],
    dataset: Annotated[str, typer.Option(help="A Hub id, a local folder or digits, with the model's concepts.")],
    output: Annotated[Path, typer.Option(metavar="FILE.json", help="File to write; one that exists is replaced.")],
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "test",
    compare: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="A second model: measures both, and how MODEL differs from it."),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images, drawn by the seed, for all that takes many forward passes per image; by default "
            f"{IMAGES:,}, and {CURVE_IMAGES} of them for insertion and deletion.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of insertion, deletion and intervention curves.")] = 16,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"A minute's answer, with wide intervals: at most {QUICK_SPLIT:,} images drawn by the seed, "
            f"{QUICK_IMAGES} of them for all that takes many passes, and {QUICK_STEPS} steps.",
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the chosen images, of random orders, random weights and intervals.")
    ] = 0,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images per forward pass and process; of small images, more.")
    ] = 32,
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
    concept_groups: Annotated[
        str | None,
        typer.Option(metavar="prefix", help="Correct concepts whose names begin alike before '::' at once."),
    ] = None,
    intervals: Annotated[
        bool, typer.Option(help="Also give the interval of 95 % of each metric, by bootstrap over the images.")
    ] = True,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not look for errors in the split first.")] = False,
    options: DatasetOptions = None,
) -> None:
    """Measure a model on a split: class, concepts, faithfulness, intervention, robustness; writes flat JSON."""
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder: name a JSON file.")
    if concept_groups not in (None, "prefix"):
        raise ValueError(f"--concept-groups is prefix; got {concept_groups}. Other groups are given in Python.")
    dataset_options = read_dataset_options(options or ())

    import torch
    from accelerate import Accelerator

    from ascent_vit.data.loading import spatial_names
    from ascent_vit.evaluation.compare import compare_dataset
    from ascent_vit.evaluation.dataset import Settings, interval_ends, measure_dataset
    from ascent_vit.evaluation.probe import choose_subset
    from ascent_vit.inference import load_model
    from ascent_vit.utils.files import write_json
    from ascent_vit.utils.versions import versions

    # Without an accelerator, Accelerate joins the processes into one group only if it is told to use the CPU.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    start = time.perf_counter()
    models = [load_model(name) for name in (model, compare) if name is not None]
    curve_images, images = (images, images) if images else (CURVE_IMAGES, IMAGES)
    if quick:
        images, curve_images, steps = min(images, QUICK_IMAGES), QUICK_IMAGES, min(steps, QUICK_STEPS)
    settings = Settings(
        images, steps, seed, batch_size, tuple(skip or ()), sanity, purity, curve_images, concept_groups
    )
    with accelerator.main_process_first():
        rows = read_split(dataset, split, dataset_options, models[0][0].config)
    if not no_check:
        check_rows(rows, split, dataset_options, models[0][1], accelerator)
    total = len(rows)
    if quick:
        rows = rows.select(choose_subset(total, QUICK_SPLIT, seed))
    common: dict[str, Any] = {
        "spatial_concepts": spatial_names(dataset_options), "accelerator": accelerator, "progress": True
    }  # fmt: skip
    ready = [(classifier.to(accelerator.device), processor) for classifier, processor in models]
    if compare is None:
        values, samples = measure_dataset(*ready[0], rows, settings, **common)
        values |= interval_ends(samples, seed) if intervals else {}
    else:
        values = compare_dataset(ready[0], ready[1], rows, settings, **common)
    if quick and total > len(rows):
        values["left_out"].append(f"--quick: {total - len(rows):,} of {total:,} images")
    if accelerator.is_main_process:
        facts = {
            "model": model,
            **({} if compare is None else {"compared_with": compare}),
            "dataset": dataset,
            "split": split,
            **{f"dataset_{name}": value for name, value in dataset_options.items()},
            "seed": seed,
            "steps": steps,
            "images": images,
            "batch_size": batch_size,
            **({} if concept_groups is None else {"concept_groups": concept_groups}),
            "dtype": str(models[0][0].dtype).removeprefix("torch."),
            **processes(accelerator),
            "evaluation_seconds": round(time.perf_counter() - start, 1),
            **versions(),
        }
        write_json(output, values | facts)
        title = f"{split}, {values['num_images']:,} images"
        print_table(values, title) if compare is None else print_comparison(values, title, model, compare)
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


def print_comparison(values: dict[str, Any], title: str, model: str, other: str) -> None:
    """Prints both models' metrics, their differences with intervals, and what these show."""
    from ascent_vit.evaluation.compare import verdict
    from ascent_vit.utils.metrics import METRICS

    names = [name for name in METRICS if f"{name}_difference" in values]
    width = max(map(len, ["metric", *names]))
    print(f"{model} against {other}: {title}")
    print(f"{'metric':{width}}  {'model':>9}  {'other':>9}  difference and its interval of 95 %")
    for name in names:
        low, high = (values[f"{name}_difference_{end}"] for end in ("low", "high"))
        print(
            f"{name:{width}}  {values[name]:9.4g}  {values[f'{name}_other']:9.4g}  "
            f"{values[f'{name}_difference']:+.4f} [{low:+.4f}, {high:+.4f}]  {verdict(name, low, high)}"
        )
    print("better, worse, differs: 0 is outside of the interval; not shown: these images do not tell.")
    for sentence in values["left_out"]:
        print(f"Left out: {sentence}.")

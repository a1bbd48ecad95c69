# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit explain`."""

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .inputs import DatasetOptions, read_dataset_options


if TYPE_CHECKING:
    from ascent_vit.explanation.sources import DatasetImages, ImageFiles

DATASET_FILES = ("dataset_dict.json", "state.json", "metadata.jsonl", "metadata.csv", "metadata.parquet")


def is_dataset(name: str) -> bool:
    """Whether an input is a dataset, and not an image or a folder of images."""
    from ascent_vit.explanation.sources import URL_STARTS, is_image_name

    path = Path(name).expanduser()
    if path.is_dir():
        return any(path.rglob("*.parquet")) or any((path / file).exists() for file in DATASET_FILES)
    if path.is_file() or name.startswith(URL_STARTS) or is_image_name(name):
        return False
    return not name.startswith((".", "/", "~"))


def open_split(name: str, split: str | None, options: dict[str, Any]) -> "DatasetImages":
    """Opens a split of a dataset; without a name, test or the only one."""
    from ascent_vit.data import load_concept_dataset
    from ascent_vit.explanation.sources import DatasetImages

    splits = load_concept_dataset(name, **options)
    wanted = split or (next(iter(splits)) if len(splits) == 1 else "test")
    if wanted not in splits:
        raise ValueError(f"The dataset has no split {wanted}; it has {', '.join(splits)}: choose with --split.")
    return DatasetImages(splits[wanted], str(wanted))


def open_inputs(
    inputs: Sequence[str], split: str | None, streaming: bool, options: Sequence[str]
) -> "ImageFiles | DatasetImages":
    """Opens the images that the inputs name."""
    from ascent_vit.explanation.sources import ImageFiles

    datasets = [name for name in inputs if split is not None or streaming or options or is_dataset(name)]
    if not datasets:
        return ImageFiles(inputs)
    if len(inputs) > 1:
        raise ValueError(f"{datasets[0]} is a dataset, which is explained alone; got {len(inputs)} inputs.")
    dataset_options = read_dataset_options(options)
    return open_split(datasets[0], split, dataset_options | ({"streaming": True} if streaming else {}))


def explain(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="Image files or URLs, folders of images, or one dataset: a Hub id or a folder."
        ),
    ],
    model: Annotated[str, typer.Option(help="A Hub id, or a folder with model and processor.")],
    output: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    label: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Class to explain instead of the predicted one.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Concepts to show first in pictures and pages.")] = 5,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="png, html, json (a file per image) or parquet (one for all); repeatable. By default the first "
            "three, and of a dataset parquet.",
        ),
    ] = None,
    maps: Annotated[bool, typer.Option("--maps", help="Put the patch maps into JSON and parquet too.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass and process.")] = 8,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share the images.")] = 1,
    split: Annotated[
        str | None,
        typer.Option(help="Split of a dataset; without it, test or the only one. A folder is then a dataset."),
    ] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read a dataset row by row instead of downloading it first.")
    ] = False,
    guard: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="A guard, for doubt in pages and JSON: its folder or Hub id; auto is the model's own."
        ),
    ] = None,
    options: DatasetOptions = None,
) -> None:
    """Explain predictions: a picture, a page and JSON per image, or a table for a dataset.

    Images that cannot be read are left out and listed at the end, with exit code 1.

    Under torchrun or accelerate launch, also on several machines, the processes write a dataset of parquet files
    together, and the same command again completes it. They need no more than the output folder in common. The exit
    code is then 0, as a launcher ends all processes when one of them fails.
    """
    from ascent_vit.explanation.batch import FORMATS, BatchJob, explain_many
    from ascent_vit.explanation.shards import Launch, explain_shards
    from ascent_vit.explanation.sources import ImageFiles
    from ascent_vit.inference import load_model
    from ascent_vit.utils.files import check_new_folder, new_folder
    from modeling_ascent_vit.names_ascent_vit import class_index, class_names

    unknown = [name for name in formats or () if name not in FORMATS]
    if unknown:
        raise ValueError(f"--format is {', '.join(FORMATS)}; got {unknown[0]}.")
    launch = Launch.from_environment()
    if launch is None:
        check_new_folder(output)
    elif processes > 1:
        raise ValueError("The launcher starts the processes: leave --processes out.")
    source = open_inputs(inputs, split, streaming, options or ())
    classifier, processor = load_model(model)
    source.window = getattr(processor, "window", None)
    if label is not None:
        class_index(label, class_names(classifier.config))
    load = partial(load_model, model) if processes > 1 else lambda: (classifier, processor)
    by_image = isinstance(source, ImageFiles) and launch is None
    chosen = tuple(formats or (("png", "html", "json") if by_image else ("parquet",)))
    judge = None
    if guard is not None:
        from ascent_vit.safeguard import Safeguard

        if not {"html", "json"} & set(chosen):
            raise ValueError("--guard is for pages and JSON: add --format html or --format json.")
        judge = partial(Safeguard.from_pretrained, model if guard == "auto" else guard)
        judge(model=classifier, processor=processor)
    job = BatchJob(load, source, output, chosen, label, top, batch_size, maps, judge)
    is_complete = True
    if launch is not None:
        skipped, is_complete = explain_shards(job, launch, progress=True)
    else:
        with new_folder(output) as folder:
            skipped = explain_many(dataclasses.replace(job, folder=folder), processes, progress=True)
    for sentence in skipped:
        print(f"Left out: {sentence}", file=sys.stderr)
    if is_complete:
        print(f"Explanations: {output}")
    if skipped and launch is None:
        raise typer.Exit(1)


__all__ = ["explain"]

# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit evaluate`."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer


if TYPE_CHECKING:
    from accelerate import Accelerator


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
        typer.Option(help="What to leave out: faithfulness, intervention or robustness; repeatable."),
    ] = None,
    sanity: Annotated[
        bool, typer.Option("--sanity", help="Also compare the maps with those of random weights.")
    ] = False,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="KEY=VALUE",
            help="An option of the dataset's loading, as in columns='{label: species}' or, of digits, seed=1; "
            "repeatable.",
        ),
    ] = None,
) -> None:
    """Measure a model on a split: class, concepts, faithfulness, intervention, robustness; writes flat JSON."""
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder: name a JSON file.")
    dataset_options = read_dataset_options(options or ())

    import torch
    from accelerate import Accelerator

    from ascent_vit.data import load_concept_dataset
    from ascent_vit.evaluation import evaluate_dataset
    from ascent_vit.files import write_json
    from ascent_vit.training.train import versions

    # Accelerate takes processes on CPU for one group only when it is told that they are on CPU.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    start = time.perf_counter()
    classifier, processor = load_model(model)
    with accelerator.main_process_first():
        splits = load_concept_dataset(dataset, **dataset_options)
    if split not in splits:
        raise ValueError(f"The dataset has no split {split}; it has {', '.join(splits)}.")
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
        spatial_concepts=dataset_options.get("spatial_concepts"),
        accelerator=accelerator,
        progress=True,
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


def read_dataset_options(pairs: Sequence[str]) -> dict[str, Any]:
    """
    Options KEY=VALUE of a dataset's loading, the values read as YAML.

    Raises:
        ValueError: for something else than KEY=VALUE, a value that is no YAML, or streaming.
    """
    import yaml

    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not (key and equals):
            raise ValueError(f"--option takes KEY=VALUE; got {pair!r}.")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"The value of --option {key} cannot be read: {error}") from error
    if options.get("streaming"):
        raise ValueError("A stream has no subset to draw: leave --option streaming out.")
    return options


def load_model(name_or_path: str) -> tuple[Any, Any]:
    """
    A model in evaluation mode and its image processor, of the Hub or a folder.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for another kind of model.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    import ascent_vit  # noqa: F401  Registers the model.

    folder = Path(name_or_path).expanduser()
    if not folder.is_dir() and (name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1):
        raise FileNotFoundError(f"There is no model folder {folder}.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"The folder {folder} holds no config.json: give one that a model was saved to.")
    source = str(folder) if folder.is_dir() else name_or_path
    try:
        model = AutoModelForImageClassification.from_pretrained(source)
        processor = AutoImageProcessor.from_pretrained(source)
    except OSError as error:
        raise FileNotFoundError(f"The model {name_or_path} cannot be read: {error}") from error
    if model.config.model_type != "ascent_vit":
        raise ValueError(
            f"{name_or_path} is a model of type {model.config.model_type}: give an ASCENT-ViT, as train writes it."
        )
    return model.eval(), processor


def processes(accelerator: "Accelerator") -> dict[str, Any]:
    return {"device": accelerator.device.type, "num_processes": accelerator.num_processes}


def print_table(values: dict[str, Any], title: str) -> None:
    """The metrics, an arrow showing which way is better."""
    from ascent_vit.evaluation import GREATER_IS_BETTER

    shown = [name for name in GREATER_IS_BETTER if name in values]
    width = max(map(len, shown))
    print(f"{'metric':{width}}  better  {title}")
    for name in shown:
        print(f"{name:{width}}  {'higher' if GREATER_IS_BETTER[name] else 'lower':6}  {values[name]:.4g}")
    for sentence in values["left_out"]:
        print(f"Left out: {sentence}.")

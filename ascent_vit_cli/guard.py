# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit guard`."""

from pathlib import Path
from typing import Annotated

import typer

from .inputs import DatasetOptions, read_dataset_options, read_split


def guard(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hub id, or a folder with model and processor.")],
    dataset: Annotated[str, typer.Option(help="A Hub id, a local folder or digits, with the model's classes.")],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder whose guard/ is written or replaced: usually the model's.")
    ],
    split: Annotated[str, typer.Option(help="Split that the model was not trained on.")] = "validation",
    alpha: Annotated[float, typer.Option(help="Share of images whose set of classes may lack the right one.")] = 0.1,
    outlier_rate: Annotated[
        float, typer.Option(help="Share of images of the right kind that may be taken for another kind.")
    ] = 0.05,
    per_class: Annotated[
        bool, typer.Option("--per-class/--together", help="Promise it of each class, or of all classes together.")
    ] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 32,
    options: DatasetOptions = None,
) -> None:
    """Calibrate doubt: sets of classes with a promise, images of another kind, and what to ask a person."""
    from ascent_vit.inference import load_model
    from ascent_vit.safeguard import Safeguard

    if output.is_file():
        raise NotADirectoryError(f"{output} is a file: name a folder.")
    classifier, processor = load_model(model)
    rows = read_split(dataset, split, read_dataset_options(options or ()), classifier.config)
    fitted = Safeguard.fit(
        classifier,
        processor,
        rows,
        alpha,
        outlier_rate,
        per_class,
        dataset=dataset,
        split=split,
        batch_size=batch_size,
        progress=True,
    )
    fitted.save_pretrained(output)
    facts = fitted.judge.facts
    print(f"Calibrated on {facts['images']:,} images of {split}; temperature {facts['temperature']:.3g}.")
    print(f"Sets hold the right class of {1 - alpha:.4g} of such images or more.")
    print(f"Guard: {output / 'guard'}")


__all__ = ["guard"]

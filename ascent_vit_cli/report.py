# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit report`."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from .inputs import DatasetOptions, check_rows, read_dataset_options, read_split


def report(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hub id, or a folder with model and processor.")],
    dataset: Annotated[str, typer.Option(help="A Hub id, a local folder or digits, with the model's concepts.")],
    output: Annotated[Path, typer.Option(help="Folder to write; new or empty.")],
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "test",
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="A column by whose values the predictions are judged; repeatable."),
    ] = None,
    index: Annotated[
        str | None, typer.Option(metavar="DIR", help="An index of cases, to show those most similar to errors.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass and process.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap intervals.")] = 0,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not look for errors in the split first.")] = False,
    options: DatasetOptions = None,
) -> None:
    """Show the whole model on one page: its classes, concepts, errors and slices of a split.

    The page holds small copies of images of the split: share it only where these may be shared.

    Under torchrun or accelerate launch, also on several machines, the processes share the images and the folder in
    which the output lies. What was cut off is completed by the same command, with as many processes or others.
    """
    from ascent_vit.utils.files import check_new_folder

    check_new_folder(output)
    dataset_options = read_dataset_options(options or ())

    import torch
    from accelerate import Accelerator

    from ascent_vit.data.loading import spatial_names
    from ascent_vit.inference import load_model
    from ascent_vit.summary import summarize
    from ascent_vit.summary.observation import is_unlabelled
    from ascent_vit.utils.versions import versions

    # Without an accelerator, Accelerate joins the processes into one group only if it is told to use the CPU.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    classifier, processor = load_model(model)
    cases = None
    if index is not None:
        from ascent_vit import ConceptIndex

        cases = ConceptIndex.load(index)
    with accelerator.main_process_first():
        images = read_split(dataset, split, dataset_options, classifier.config)
    if not no_check and not all(is_unlabelled({"label": label}) for label in images["label"]):
        check_rows(images, split, dataset_options, processor, accelerator)
    # Beside the output, which is written whole at the end.
    work = output.with_name(f".{output.name}.unfinished")
    summary = summarize(
        classifier.to(accelerator.device),
        processor,
        images,
        by=by or (),
        index=cases,
        batch_size=batch_size,
        seed=seed,
        spatial_concepts=spatial_names(dataset_options),
        accelerator=accelerator,
        progress=True,
        work=work,
    )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        facts = {"model": model, "dataset": dataset, "split": split, **versions()}
        facts |= {f"dataset_{name}": value for name, value in dataset_options.items()}
        summary.save(output, title=f"{model} on {dataset}, split {split}", **facts)
        shutil.rmtree(work)
        for sentence in summary.left_out:
            print(f"Left out: {sentence}")
        print(f"Report: {output / 'index.html'}")
    accelerator.end_training()


__all__ = ["report"]

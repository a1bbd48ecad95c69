# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit annotate`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .inputs import DatasetOptions, read_dataset_options


def annotate(
    dataset: Annotated[
        str, typer.Argument(metavar="ID_OR_DIR", help="A Hub id or local folder with images and labels.")
    ],
    concepts: Annotated[
        Path,
        typer.Option(help="What to look for: a concept per line, or YAML with the prompt and threshold of each."),
    ],
    detector: Annotated[str, typer.Option(help="Hub id or folder of an OWLv2 or Grounding DINO model.")],
    output: Annotated[Path, typer.Option(help="Folder for the annotated dataset; new or empty.")],
    threshold: Annotated[float, typer.Option(help="Least score of a box, for concepts without their own.")] = 0.2,
    iou: Annotated[
        float, typer.Option(help="Overlap (0 to 1) from which a concept's box of lower score is dropped.")
    ] = 0.5,
    batch_size: Annotated[int, typer.Option(help="Pairs of image and concept per forward pass.")] = 8,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run of the same settings.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Drop the objects, points and mask that the dataset has.")
    ] = False,
    options: DatasetOptions = None,
) -> None:
    """Let an open-vocabulary detector mark concepts in a dataset: writes it with objects, a card and review.png."""
    from ascent_vit.data.annotate import annotate_dataset, read_concepts
    from ascent_vit.utils.files import claim

    dataset_options = read_dataset_options(options or ())
    wanted = read_concepts(concepts, threshold)
    # The card shows the command, and its readers do not have the folders of this machine.
    sources = ["DIR" if Path(name).expanduser().is_dir() else name for name in (dataset, detector)]
    words = ["ascent-vit", "annotate", sources[0], "--concepts", "FILE", "--detector", sources[1], "--output", "DIR"]
    words += ["--threshold", f"{threshold:g}", "--iou", f"{iou:g}", "--batch-size", str(batch_size)]
    words += ["--replace"] * replace + [word for option in options or () for word in ("--option", option)]
    with claim(output):
        found = annotate_dataset(
            dataset,
            wanted,
            detector,
            output,
            iou=iou,
            batch_size=batch_size,
            resume=resume,
            replace=replace,
            dataset_options=dataset_options,
            command=shlex.join(words),
        )
    for name, number in found.boxes.items():
        print(f"{name}: {number} boxes in {found.images_with[name]} images")
    for name, number in found.images.items():
        print(f"Split {name}: {number} images, {found.empty[name]} without any box")
    print(f"Dataset: {output}")
    print(f"Look at: {output / 'review.png'}")

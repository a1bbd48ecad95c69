# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit index`."""

from pathlib import Path
from typing import Annotated

import typer

from .inputs import DatasetOptions, read_dataset_options, read_split


def index(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hub id, or a folder with model and processor.")],
    dataset: Annotated[str, typer.Option(help="A Hub id, a local folder or digits.")],
    output: Annotated[Path, typer.Option(help="Folder to write, new or empty; index in the model's is found there.")],
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "train",
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="Keep the images too, at 128 pixels; publish them only if you may.")
    ] = False,
    concepts_per_image: Annotated[
        int, typer.Option(min=0, help="Spatial concepts of an image, the most attended, whose patches are kept.")
    ] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 8,
    options: DatasetOptions = None,
) -> None:
    """Build an index of a dataset's images, to find those that the model sees as it sees a given one.

    Images that cannot be read are left out, and one sentence says how many.
    """
    from ascent_vit.cases import ConceptIndex
    from ascent_vit.inference import load_model
    from ascent_vit.utils.files import check_new_folder

    check_new_folder(output)
    classifier, processor = load_model(model)
    rows = read_split(dataset, split, read_dataset_options(options or ()), classifier.config)
    built = ConceptIndex.build(
        classifier,
        processor,
        rows,
        thumbnails=thumbnails,
        concepts_per_image=concepts_per_image,
        batch_size=batch_size,
        # The last part alone, as a path is this machine's.
        dataset_name=Path(dataset).name if Path(dataset).exists() else dataset,
        split_name=split,
        progress=True,
    )
    built.save(output)
    print(f"Index of {len(built):,} images and {len(built.patches):,} patches: {output}")


__all__ = ["index"]

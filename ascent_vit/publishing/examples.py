# SPDX-License-Identifier: Apache-2.0
"""Example images of a published model: what a visitor of its card or its Space can choose."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .source import (
    EXAMPLES,
    OPEN_LICENSES,
    PublishOptions,
    Source,
    check_source,
    dataset_path,
    find_data_license,
    read_records,
)


MAX_EXAMPLES = 24
EXAMPLE_SIDE = 512  # pixels
DIGITS = 8
DIGITS_SOURCE = (
    'the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998, CC BY 4.0), placed at random'
)

# A card shows fewer images than a Space, and of each the most probable classes.
CARD_EXAMPLES, CARD_CLASSES = 4, 5
SCORE_DIGITS = 4


def digit_examples(source: Source) -> list[Image.Image]:
    """Held-out digits of a run of the demo, as PIL images; none if the extra "train" is not installed."""
    recipe = read_records(source).get("recipe.yaml", {})
    given = recipe.get("dataset_options") or {}
    try:
        from ascent_vit.data import load_digits_dataset

        kept = {name: given[name] for name in ("seed", "canvas") if name in given}
        test = load_digits_dataset(copies=1, **kept)["test"]
    # The app works without the extra "train" too.
    except ImportError:
        return []
    return [test[i]["image"].convert("RGB") for i in range(DIGITS)]


def example_images(source: Source, paths: Sequence[str | os.PathLike] = ()) -> list[Image.Image]:
    """
    Reads the images that a visitor can choose, as RGB PIL images of at most 512 pixels a side.

    Args:
        source: folder of the model; one that learned the demo's digits has digits as default examples.
        paths: image files, or folders of them.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a folder without images, a link that leaves its folder, a file that is no image, or more than
            24 images.
    """
    from ascent_vit.explanation.sources import ImageFiles

    if not paths:
        return digit_examples(source) if dataset_path(source) == "digits" else []
    files = ImageFiles([os.fspath(path) for path in paths])
    if len(files) > MAX_EXAMPLES:
        raise ValueError(f"At most {MAX_EXAMPLES} examples are shown; got {len(files)}: choose some.")
    for folder in filter(os.path.isdir, paths):
        check_source(Path(folder), [Path(file) for file in files.files if Path(file).is_relative_to(folder)])
    images = [item.read() for item in files.items()]
    for image in images:
        image.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
    return images


def check_examples(source: Source, options: PublishOptions, examples: Sequence[str | os.PathLike]) -> None:
    """
    Checks examples before anything is sent.

    Args:
        source: folder of the model.
        options: options of the publication, which say whether images may be sent.
        examples: image files, or folders of them.

    Raises:
        FileNotFoundError: for an example that does not exist.
        ValueError: for an example that cannot be read, or images that no known licence allows to show, unless the
            options include them.
    """
    if not examples:
        return
    example_images(source, examples)
    if not may_show_images(source, options):
        raise ValueError(
            "--examples sends images, and no licence is known that allows it: give --data-license or --include-images."
        )


def may_show_images(source: Source, options: PublishOptions) -> bool:
    """Whether a known licence of the dataset lets anybody show its images, or the options include them anyway."""
    return options.include_images or find_data_license(dataset_path(source), options) in OPEN_LICENSES


def write_examples(images: Sequence[Image.Image], folder: Path) -> list[Path]:
    """Writes the pixels of images as numbered PNG files, without metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:02d}.png" for i in range(1, len(images) + 1)]
    for image, path in zip(images, paths, strict=True):
        bare = Image.new("RGB", image.size)
        bare.paste(image)
        bare.save(path)
    return paths


def about_examples(dataset: str | None, number: int, given: bool, options: PublishOptions) -> str:
    """Describes the origin of the examples, without them nothing."""
    if not number:
        return ""
    if not given:
        return f"The example images are digits of {DIGITS_SOURCE}."
    licence = find_data_license(dataset, options)
    name = options.dataset_name or options.dataset_id
    origin = f" of {name}" if name else ""
    return f"The example images are images{origin}" + (f", licence {licence}." if licence else ".")


def write_card_examples(
    images: Sequence[Image.Image], model: Any, processor: Any, folder: Path
) -> list[dict[str, Any]]:
    """
    Writes the first images into a model's folder, and says what the model gives for each, for the Hub's `widget`.

    Args:
        images: images, of which the first 4 are shown.
        model, processor: model and image processor of the folder.
        folder: folder of the model.

    Returns:
        Entries of the card's `widget`: path of the image, and label and score of the five most probable classes.
    """
    from transformers import pipeline

    classifier = pipeline("image-classification", model=model, image_processor=processor, device="cpu")
    paths = write_examples(images[:CARD_EXAMPLES], folder / EXAMPLES)
    outputs = [classifier(str(path), top_k=CARD_CLASSES) for path in paths]
    return [
        {
            "src": path.relative_to(folder).as_posix(),
            "output": [{"label": each["label"], "score": round(each["score"], SCORE_DIGITS)} for each in output],
        }
        for path, output in zip(paths, outputs, strict=True)
    ]


__all__ = [
    "about_examples",
    "check_examples",
    "example_images",
    "may_show_images",
    "write_card_examples",
    "write_examples",
]

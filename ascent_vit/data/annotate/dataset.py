# SPDX-License-Identifier: Apache-2.0
"""A dataset annotated by a detector: its column of boxes, what was found, its card, and the folder written."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ascent_vit.utils.files import check_new_folder, replace_folder
from ascent_vit.utils.markdown import code_span, escape_markdown

from ..card import write_dataset
from ..loading import load_concept_dataset
from ..prepared import PreparedDataset
from ..schema import (
    GLOBAL_COLUMNS,
    PRESENCE_COLUMNS,
    SPATIAL_COLUMNS,
    concept_features,
    concepts_from_features,
    label_names,
)
from .concepts import DetectedConcept
from .detection import detect_concepts, detector_version, load_detector
from .review import draw_review
from .shards import detect_split, listed_concepts, open_work


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


@dataclass(frozen=True)
class Annotations:
    """
    What a detector found in a dataset.

    Args:
        dataset: the dataset with its column `objects`.
        concepts: concepts that were looked for, in the order of their ids.
        images: number of images, by split.
        empty: number of images without any box, by split.
        boxes: number of boxes, by concept.
        images_with: number of images that show the concept, by concept.
    """

    dataset: "DatasetDict"
    concepts: list[DetectedConcept]
    images: dict[str, int]
    empty: dict[str, int]
    boxes: dict[str, int]
    images_with: dict[str, int]


def _without_spatial(dataset: "DatasetDict", name: str, replace: bool) -> "DatasetDict":
    features = next(iter(dataset.values())).features
    present = [column for column in SPATIAL_COLUMNS if column in features]
    if present and not replace:
        raise ValueError(
            f"{name} already has {' and '.join(present)}: --replace drops them in favour of the detector's boxes."
        )
    return dataset.remove_columns(present)


def _digest_of_lists(dataset: "DatasetDict", name: str, concepts: Sequence[DetectedConcept]) -> str | None:
    """
    Gives a digest of the lists of what each image shows; None for a dataset without.

    Raises:
        ValueError: for lists of other concepts than those to look for.
    """
    features = next(iter(dataset.values())).features
    columns = [column for column in PRESENCE_COLUMNS if column in features]
    if not columns:
        return None
    listed = concepts_from_features(features)[2]
    if listed != [concept.name for concept in concepts]:
        raise ValueError(
            f"{name} lists in {columns[0]} which of the concepts {', '.join(listed)} each image shows: look for the "
            "same ones in the same order, or leave the column out."
        )
    digest = hashlib.sha256()
    for split in dataset.values():
        for row in split.select_columns(columns):
            digest.update(repr(listed_concepts(row)).encode())
    return digest.hexdigest()


def _with_objects(split: "Dataset", objects: list[dict[str, list]], concepts: Sequence[DetectedConcept]) -> "Dataset":
    """Adds the column `objects`, after those of the schema that come before it."""
    from datasets import List, Value

    names = [concept.name for concept in concepts]
    score = {"objects": {"score": List(Value("float32"))}}
    feature = concept_features(label_names(split.features["label"]), None, names, extra=score)["objects"]
    first = [column for column in ("image", "label", *GLOBAL_COLUMNS) if column in split.features]
    rest = [column for column in split.features if column not in first]
    return split.add_column("objects", objects, feature=feature).select_columns([*first, "objects", *rest])


def _count(dataset: "DatasetDict", concepts: list[DetectedConcept]) -> Annotations:
    boxes, images_with, empty = Counter[int](), Counter[int](), {}
    for name, split in dataset.items():
        categories = [row["category"] for row in split.select_columns(["objects"])["objects"]]
        empty[name] = sum(not row for row in categories)
        for row in categories:
            boxes.update(row)
            images_with.update(set(row))
    return Annotations(
        dataset=dataset,
        concepts=concepts,
        images={name: len(split) for name, split in dataset.items()},
        empty=empty,
        boxes={concept.name: boxes[i] for i, concept in enumerate(concepts)},
        images_with={concept.name: images_with[i] for i, concept in enumerate(concepts)},
    )


def describe(
    annotations: Annotations, dataset: str, detector: str, version: str, iou: float, listed: bool = False
) -> str:
    """
    Describes the annotations in Markdown: that a model made them, which one, its thresholds, and what it found, and
    where the dataset has lists of what an image shows, that it kept to them.
    """
    lines = [
        f"Images and classes are those of {code_span(dataset)}, whose licence holds for them.",
        "",
        "**A model made the annotations, nobody has checked them.** The boxes in `objects` are those that the "
        f"open-vocabulary detector {code_span(detector)} (version {code_span(version)}) gave for the prompts below, "
        "with scores above the concept's threshold. Boxes are in whole pixels, clipped to their image; of two boxes "
        f"of a concept with an intersection over union above {iou:g} the one of the higher score was kept. `score` is "
        "the detector's own, and no probability. A concept without a box in an image may still be there. `review.png` "
        "shows boxes of each concept from the lowest kept score to the highest.",
        "",
    ]
    if listed:
        lines += ["It was asked for the concepts alone that an image may show by `present` and `unknown_present`.", ""]
    lines += ["| concept | prompt | threshold | boxes | images |", "|---|---|---|---|---|"]
    for concept in annotations.concepts:
        cells = (escape_markdown(concept.name), escape_markdown(concept.prompt), f"{concept.threshold:g}")
        counts = (str(annotations.boxes[concept.name]), str(annotations.images_with[concept.name]))
        lines.append(f"| {' | '.join((*cells, *counts))} |")
    lines += ["", "| split | images | without any box |", "|---|---|---|"]
    for name, number in annotations.images.items():
        lines.append(f"| {name} | {number} | {annotations.empty[name]} |")
    return "\n".join(lines)


def _shown_name(name_or_path: str) -> str:
    """A Hub id as it is, a folder by its last part: where it lies on this machine says nothing to others."""
    folder = Path(name_or_path).expanduser()
    return folder.resolve().name if folder.is_dir() else name_or_path


def _write(annotations: Annotations, output: Path, settings: Mapping[str, Any], command: str | None) -> None:
    """Writes parquet files, card and review sheet, all of them or none."""
    from ascent_vit.utils.figures import write_figure

    names = ("dataset", "detector", "detector_version", "iou")
    facts = [*(settings[key] for key in names), "lists" in settings]
    prepared = PreparedDataset(
        dataset=annotations.dataset,
        title=f"{settings['dataset']} with {len(annotations.concepts)} concepts found by a detector",
        license="other",
        description=describe(annotations, *facts),
        settings={key: value for key, value in settings.items() if key not in ("images", "concepts", "lists")},
    )
    with replace_folder(output) as folder:
        write_dataset(prepared, folder, command=command)
        write_figure(folder / "review.png", draw_review(annotations.dataset, annotations.concepts), dpi=150)


def annotate_dataset(
    name_or_path: str,
    concepts: Sequence[DetectedConcept],
    detector: str,
    output: str | Path,
    iou: float = 0.5,
    batch_size: int = 8,
    resume: bool = False,
    replace: bool = False,
    rows_per_shard: int = 256,
    dataset_options: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> Annotations:
    """
    Writes a dataset with the boxes that an open-vocabulary detector finds for concepts that are named in words.

    While it runs, the boxes of every finished `rows_per_shard` images lie in a hidden folder beside `output`, from
    which a run with the same settings goes on. `output` itself is written at the end, whole or not at all: parquet,
    a card, and `review.png` with boxes of every concept from the lowest kept score to the highest.

    In an image whose `present` is known, the detector is asked for the concepts that it and `unknown_present` list
    alone: it cannot find what is not there.

    Args:
        name_or_path: Hub id or folder of a concept dataset, see [`load_concept_dataset`]; image and label are enough.
        concepts: concepts to look for, see [`read_concepts`].
        detector: Hub id or folder of an OWL-ViT, OWLv2 or Grounding DINO model, with its tokenizer and image
            processor.
        output: folder to write, new or empty.
        iou: intersection over union above which the lower-scoring of two boxes of a concept is dropped; 1 keeps all.
        batch_size: pairs of image and concept per forward pass.
        resume: whether to go on with an unfinished run. Without one, it starts.
        replace: whether to drop objects, points and mask that the dataset has.
        rows_per_shard: number of images after which what was found is kept.
        dataset_options: further arguments of [`load_concept_dataset`].
        command: command that does this, for the card.

    Returns:
        The dataset with the column `objects` (bbox x, y, width, height; category; score), and its counts.

    Raises:
        NotADirectoryError: for an `output` that is a file.
        FileExistsError: for an `output` that is not empty, or an unfinished run without `resume`.
        FileNotFoundError: for a dataset or detector that cannot be read.
        ValueError: for settings or images that differ from those of the unfinished run, a dataset that has spatial
            annotations without `replace`, or lists of other concepts in `present`, an image that cannot be read, or a
            model of another kind.
    """
    from datasets import DatasetDict

    output = Path(output)
    if not 0 <= iou <= 1:
        raise ValueError(f"iou must be a number from 0 to 1; got {iou}.")
    for what, number in (("batch_size", batch_size), ("rows_per_shard", rows_per_shard)):
        if number < 1:
            raise ValueError(f"{what} must be 1 or more; got {number}.")
    if not concepts:
        raise ValueError("There is nothing to look for: give at least one concept.")
    check_new_folder(output)
    dataset = load_concept_dataset(name_or_path, **(dataset_options or {}))
    dataset = _without_spatial(dataset, name_or_path, replace)
    lists = _digest_of_lists(dataset, name_or_path, concepts)
    pipeline = load_detector(detector, concepts)
    settings = {
        "dataset": _shown_name(name_or_path),
        "images": {name: len(split) for name, split in dataset.items()},
        "concepts": [asdict(concept) for concept in concepts],
        "detector": _shown_name(detector),
        "detector_version": detector_version(detector, pipeline),
        "iou": iou,
        "rows_per_shard": rows_per_shard,
    } | ({"lists": lists} if lists else {})
    work = output.absolute().with_name(f".{output.absolute().name}.annotate")
    open_work(work, settings, resume)
    annotated = {}
    detect = partial(detect_concepts, pipeline, concepts=concepts, iou=iou, batch_size=batch_size)
    with tqdm(total=sum(map(len, dataset.values())), desc="Detecting", unit="image") as bar:
        for name, split in dataset.items():
            objects = detect_split(split, name, detect, work, rows_per_shard, bar)
            annotated[name] = _with_objects(split, objects, concepts)
    found = _count(DatasetDict(annotated), list(concepts))
    _write(found, output, settings, command)
    shutil.rmtree(work)
    return found


__all__ = ["Annotations", "annotate_dataset", "describe"]

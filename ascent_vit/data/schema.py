# SPDX-License-Identifier: Apache-2.0
"""
The schema of concept datasets as code: its features, a check of every row, and what an adapter hands over.

| column | feature | meaning |
|---|---|---|
| `image` | Image | |
| `label` | ClassLabel | the class |
| `concepts` | List(ClassLabel) | global concepts that are present; null = not known, [] = none |
| `unknown_concepts` | List(ClassLabel) | global concepts of which it is not known |
| `objects` | {bbox: List(List(float32, 4)), category: List(ClassLabel)} | spatial concepts' x, y, width, height |
| `points` | {xy: List(List(float32, 2)), category: List(ClassLabel)} | spatial concepts' x, y |
| `mask` | Image | per pixel 0 = not annotated, i = spatial concept i - 1, 255 = ignore |
| `group_id` | Value | what rows belong together, as a patient's: never in two splits; null = the row is alone |

Coordinates are pixels of the image as `datasets` decodes it, which is upright.
"""

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps, UnidentifiedImageError

from modeling_ascent_vit.concept_targets_ascent_vit import PatchAxis, global_concept_targets, spatial_concept_targets

from .loading import (
    COLUMNS,
    GLOBAL_COLUMNS,
    SPATIAL_COLUMNS,
    annotation_from_row,
    check_groups,
    concepts_from_features,
)


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features

EXIF_ORIENTATION = 274

# What Pillow's readers raise for files that are damaged, or of more pixels than anybody's image.
IMAGE_ERRORS = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)

# Rows that are held at a time while a dataset is checked.
ROWS_AT_A_TIME = 100


@dataclass(frozen=True)
class PreparedDataset:
    """
    A dataset in the schema, with what its card says.

    Args:
        dataset: columns of the schema, images as the original file where there is one: its bytes, or its path, whose
            bytes are embedded when the dataset is written.
        title: as "CUB-200-2011 with 108 concepts".
        license: the Hub's name of the licence, or "other".
        description: Markdown: source, citation, how concepts were made, what was left out and why, with counts.
        settings: options and every seed used.
    """

    dataset: "DatasetDict"
    title: str
    license: str
    description: str
    settings: dict[str, Any]


def _check_names(what: str, names: Sequence[str]) -> list[str]:
    if isinstance(names, str) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"{what} must be a list of names; got {names!r}.")
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise ValueError(f"{what} must differ from each other; {', '.join(map(repr, repeated))} is there twice.")
    return list(names)


def concept_features(
    labels: Sequence[str],
    global_concepts: Sequence[str] | None = None,
    spatial_concepts: Sequence[str] | None = None,
    columns: Collection[str] = ("objects",),
    extra: Mapping[str, Any] | None = None,
) -> "Features":
    """
    The features of a concept dataset.

    Args:
        labels: names of the classes, in the order of their ids.
        global_concepts: names of the concepts of whole images; gives the column concepts.
        spatial_concepts: names of the concepts with a place. Names of a mask alone cannot be stored in its column:
            they are told to [`load_concept_dataset`], or are those of the global concepts.
        columns: which of objects, points and mask there are, if there are spatial concepts (a mask's may be the global
            ones), and unknown_concepts, if there is such a column.
        extra: further features (group_id, other ids, scores). For objects and points, a dict of further keys.

    Returns:
        `Features` with the columns in the order of the schema, then the extra ones.

    Raises:
        ValueError: for an unknown column, a column without its concepts, or names that are not all different.

    Example:

    ```python
    >>> concept_features(["even", "odd"], global_concepts=["0", "1"], spatial_concepts=["0", "1"], columns=["mask"])
    ```
    """
    from datasets import ClassLabel, Features, List, Value
    from datasets import Image as ImageFeature

    columns = list(columns)
    unknown = [column for column in columns if column not in (*SPATIAL_COLUMNS, "unknown_concepts")]
    if unknown:
        raise ValueError(
            f"columns may be {', '.join(SPATIAL_COLUMNS)} and unknown_concepts; got {', '.join(unknown)}."
        )
    features: dict[str, Any] = {"image": ImageFeature(), "label": ClassLabel(names=_check_names("labels", labels))}
    if global_concepts:
        features["concepts"] = List(ClassLabel(names=_check_names("global_concepts", global_concepts)))
    if "unknown_concepts" in columns:
        if not global_concepts:
            raise ValueError("The column unknown_concepts needs global_concepts.")
        features["unknown_concepts"] = features["concepts"]
    if spatial_concepts:
        categories = List(ClassLabel(names=_check_names("spatial_concepts", spatial_concepts)))
        if "objects" in columns:
            features["objects"] = {"bbox": List(List(Value("float32"), length=4)), "category": categories}
        if "points" in columns:
            features["points"] = {"xy": List(List(Value("float32"), length=2)), "category": categories}
    if "mask" in columns and (spatial_concepts or global_concepts):
        features["mask"] = ImageFeature()
    for name, feature in (extra or {}).items():
        if name in ("objects", "points") and name in features and isinstance(feature, Mapping):
            features[name] = {**feature, **features[name]}
        elif name in (*GLOBAL_COLUMNS, *SPATIAL_COLUMNS, "image", "label"):
            raise ValueError(f"extra features must have names of their own; {name} is a column of the schema.")
        else:
            features[name] = feature
    return Features(features)


def read_image_file(path: Path) -> tuple[dict[str, Any], tuple[int, int]]:
    """
    An image file as a cell of an Image column, with its own bytes, and its height and width in pixels.

    Raises:
        FileNotFoundError: for a file that is missing.
        ValueError: for a file that is no image, is cut off, or that its EXIF tag turns or mirrors, so that annotations
            in stored pixels would not fit what `datasets` decodes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"The image {path} is missing: unpack the whole archive.")
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as image:
            size = image.height, image.width
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
            # JPEGs are then decoded at an eighth of their size, which still reads the file to its end.
            image.draft("L", (1, 1))
            image.load()
    except IMAGE_ERRORS as error:
        raise ValueError(f"The image {path} cannot be read ({error}): unpack the archive again.") from error
    if orientation != 1:
        raise ValueError(
            f"The image {path} has the EXIF orientation {orientation}, so its annotations in stored pixels would be "
            "misplaced: store it upright, without the tag."
        )
    return {"bytes": content, "path": path.name}, size


def _open(cell: Any, where: str) -> Image.Image:
    """An image that is not decoded yet, from a cell of an Image column."""
    if cell is None or (cell.get("bytes") is None and not cell.get("path")):
        raise ValueError(f"{where} is empty; every row needs an image.")
    try:
        return Image.open(cell["path"] if cell.get("bytes") is None else io.BytesIO(cell["bytes"]))
    except IMAGE_ERRORS as error:
        raise ValueError(f"{where} cannot be read: {error}") from error


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width as `datasets` decodes the image."""
    turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    return (image.width, image.height) if turned else (image.height, image.width)


def stored_columns(split: "Dataset") -> "Dataset":
    """The schema's columns of a split, images and masks as they are stored, not decoded."""
    from datasets import Image as ImageFeature

    columns = [name for name in COLUMNS if name in split.features]
    stored = split.select_columns(columns)
    for column in {"image", "mask"} & set(columns):
        stored = stored.cast_column(column, ImageFeature(decode=False))
    return stored


def stored_annotation(row: Mapping[str, Any], where: str) -> tuple[dict[str, Any], tuple[int, int]]:
    """
    The annotations of a row of [`stored_columns`], and its image's height and width, for which no pixel is decoded.

    Raises:
        ValueError: for an image or a mask that cannot be read; `where` is the row's name in errors.
    """
    with _open(row["image"], f"{where}.image") as image:
        size = _upright_size(image)
    annotation = annotation_from_row(row)
    if "mask" in annotation:
        with _open(annotation["mask"], f"{where}.mask") as mask:
            try:
                annotation["mask"] = ImageOps.exif_transpose(mask)
            except OSError as error:
                raise ValueError(f"{where}.mask cannot be read: {error}") from error
    return annotation, size


def _check_row(row: Mapping[str, Any], numbers: tuple[int, int, int], where: str) -> None:
    num_labels, num_global, num_spatial = numbers
    label = row["label"]
    if label is None or not 0 <= label < num_labels:
        raise ValueError(f"{where}.label must be a class from 0 to {num_labels - 1}; got {label}.")
    annotation, (height, width) = stored_annotation(row, where)
    if num_global:
        global_concept_targets(annotation, num_global, where)
    if num_spatial:
        # With the whole image as one patch, this is the image processor's own check.
        axes = PatchAxis.identity(height, height), PatchAxis.identity(width, width)
        spatial_concept_targets(annotation, axes, num_spatial, where=where)


def validate_dataset(dataset: "DatasetDict", spatial_concepts: list[str] | None = None) -> None:
    """
    Checks every row of a concept dataset as the image processor will: what passes can be trained on.

    Args:
        dataset: with the columns of the schema.
        spatial_concepts: names of a mask's concepts, see [`concepts_from_features`].

    Raises:
        ValueError: naming the split, the row, the column, what is wrong and what to do: for splits with different
            features, with rows of the same group or without rows, missing columns, labels and concepts out of range,
            points and boxes outside their image, and masks of another size or with other values than the concepts'.
    """
    if not len(dataset):
        raise ValueError("The dataset has no split; expected train, and validation and test where there are such.")
    first = next(iter(dataset))
    for name, split in dataset.items():
        missing = [column for column in ("image", "label") if column not in split.features]
        if missing:
            raise ValueError(
                f"The split {name} has no column {' and no '.join(missing)}; it has {', '.join(split.features)}. "
                "Rename its columns, or map them."
            )
        if split.features != dataset[first].features:
            raise ValueError(f"The splits {first} and {name} must have the same features: cast one to the other's.")
        if not len(split):
            raise ValueError(f"The split {name} has no rows: leave it out.")
    labels, global_names, spatial_names = concepts_from_features(dataset[first].features, spatial_concepts)
    check_groups(dataset)
    numbers = len(labels), len(global_names), len(spatial_names)
    for name, split in dataset.items():
        stored = stored_columns(split)
        for start in range(0, len(stored), ROWS_AT_A_TIME):
            rows = stored[start : start + ROWS_AT_A_TIME]
            for i, values in enumerate(zip(*rows.values(), strict=True), start=start):
                try:
                    _check_row(dict(zip(rows, values, strict=True)), numbers, f"{name}[{i}]")
                except ValueError as error:
                    raise ValueError(f"Split {name}, row {i}: {error} Correct the row, or leave it out.") from error


__all__ = [
    "PreparedDataset",
    "concept_features",
    "read_image_file",
    "stored_annotation",
    "stored_columns",
    "validate_dataset",
]

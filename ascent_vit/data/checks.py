# SPDX-License-Identifier: Apache-2.0
"""Checks of concept datasets: their rows, their groups, and that their concepts are the model's."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modeling_ascent_vit.concept_targets_ascent_vit import (
    PatchAxis,
    global_concept_targets,
    spatial_concept_presence,
    spatial_concept_targets,
)

from .cells import stored_annotation, stored_columns
from .schema import GROUP_COLUMN, concepts_from_features


if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedConfig

# Number of rows in memory at a time.
ROWS_AT_A_TIME = 100


def check_concepts(config: "PreTrainedConfig", global_concepts: list[str], spatial_concepts: list[str]) -> None:
    """
    Checks that model and dataset have the same concepts in the same order, unless the model has none.

    Raises:
        ValueError: naming the first place where they differ.
    """
    for stream, expected, got in (
        ("global", config.global_concepts, global_concepts),
        ("spatial", config.spatial_concepts, spatial_concepts),
    ):
        if not expected or expected == got:
            continue
        if len(expected) != len(got):
            difference = f"the model has {len(expected)}, the dataset {len(got)}"
        else:
            place = next(i for i, (left, right) in enumerate(zip(expected, got, strict=True)) if left != right)
            difference = f"number {place} is {expected[place]!r} in the model and {got[place]!r} in the dataset"
        raise ValueError(
            f"The {stream} concepts of model and dataset must have the same names in the same order, but {difference}."
        )


def check_groups(dataset: "DatasetDict") -> None:
    """
    Checks that the rows of a group, those with the same `group_id`, are in one split.

    Raises:
        ValueError: naming a group that is in two splits, or for a `group_id` that is neither text nor a number.
    """
    from datasets import ClassLabel, Value

    home: dict[Any, str] = {}
    for name, split in dataset.items():
        feature = split.features.get(GROUP_COLUMN)
        if feature is None:
            continue
        if not isinstance(feature, ClassLabel | Value):
            raise ValueError(f"Column {GROUP_COLUMN} must hold text or numbers, one for each row; got {feature}.")
        for group in sorted(split.unique(GROUP_COLUMN), key=str):
            if group is not None and home.setdefault(group, name) != name:
                raise ValueError(
                    f"The rows of {GROUP_COLUMN} {group!r} are in the splits {home[group]} and {name}: put all rows "
                    "of a group into one split."
                )


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
        targets = spatial_concept_targets(annotation, axes, num_spatial, where=where)
        spatial_concept_presence(annotation, targets, axes, where)


def validate_dataset(dataset: "DatasetDict", spatial_concepts: list[str] | None = None) -> None:
    """
    Checks every row of a concept dataset as the image processor will: what passes can be trained on.

    Args:
        dataset: dataset with the columns of the schema.
        spatial_concepts: names of a mask's concepts, see [`concepts_from_features`].

    Raises:
        ValueError: naming the split, the row, the column, what is wrong and what to do: for splits with different
            features, with rows of the same group or without rows, missing columns, labels and concepts out of range,
            points and boxes outside their image, masks of another size or with other values than the concepts', and
            places of concepts that the row's `present` leaves out.
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


__all__ = ["check_concepts", "check_groups", "validate_dataset"]

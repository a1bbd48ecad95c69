# SPDX-License-Identifier: Apache-2.0
"""One set of columns and names over all splits of a dataset."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .conventions import rewrite_column
from .schema import COLUMNS, COORDINATES, GLOBAL_COLUMNS, GROUP_COLUMN, PRESENCE_COLUMNS, category_feature, innermost


logger = logging.getLogger(__name__)

# Columns of masks, and of names of their files.
MASK_FILES = ("mask_file_name", "mask_path")


def encoded_feature(feature: Any, names: list[str]) -> Any:
    """Turns a feature of text or numbers, or of dicts with such a category, into ClassLabels."""
    from datasets import ClassLabel

    if hasattr(feature, "feature"):
        return type(feature)(encoded_feature(feature.feature, names))
    if isinstance(feature, Mapping):
        return {key: encoded_feature(item, names) if key == "category" else item for key, item in feature.items()}
    return ClassLabel(names=names)


def encoded(value: Any, numbers: Mapping[Any, int], column: str, parameter: str) -> Any:
    """Numbers of the names in a value: a name, a list of them, or dicts with a category; null stays null."""
    if isinstance(value, list):
        return [encoded(item, numbers, column, parameter) for item in value]
    if isinstance(value, Mapping):
        return {
            key: encoded(item, numbers, column, parameter) if key == "category" else item
            for key, item in value.items()
        }
    if value is not None and value not in numbers:
        raise ValueError(f"Column {column} holds {value!r}, which has no name among {parameter}.")
    return None if value is None else numbers[value]


def holds_null(feature: Any) -> bool:
    """Whether a feature is of nothing but nulls somewhere, as that of a column in which all lists are empty."""
    feature = innermost(feature)
    if isinstance(feature, Mapping):
        return any(holds_null(item) for item in feature.values())
    return getattr(feature, "dtype", None) == "null"


def read_images(dataset: Any, folder: Path | None) -> Any:
    """
    Makes Image columns of images and masks that are paths as text, bytes, or dicts of these: `datasets` then decodes
    them, upright.

    Args:
        dataset: dict of all splits, or of their streams.
        folder: folder that paths are relative to.
    """
    from datasets import Image, Value

    def cell(path: Any) -> Any:
        if path is None:
            return None
        inside = folder / path if folder is not None and not Path(path).is_absolute() else Path(path)
        return {"bytes": None, "path": str(inside) if inside.exists() else path}

    for name, split in dataset.items():
        files = next((column for column in MASK_FILES if column in split.features), None)
        if files is not None and "mask" not in split.features:
            split = split.rename_column(files, "mask")
        for column in ("image", "mask"):
            feature = split.features.get(column)
            if isinstance(feature, Value) and "string" in feature.dtype:
                split = rewrite_column(split, column, cell, Image())
            elif (
                isinstance(feature, Value)
                and "binary" in feature.dtype
                or isinstance(feature, Mapping)
                and set(feature) <= {"bytes", "path"}
            ):
                split = split.cast_column(column, Image())
            elif feature is not None and not isinstance(feature, Image) and not holds_null(feature):
                raise ValueError(f"Column {column} of {name} must hold images or paths of files; got {feature}.")
        dataset[name] = split
    return dataset


def unite_names(dataset: Any) -> Any:
    """
    Gives the names of classes and concepts the same numbers in all splits: those of the first split that has names.

    Raises:
        ValueError: for names that are in one split alone.
    """
    from datasets import ClassLabel, Value

    for column in ("label", *GLOBAL_COLUMNS, *COORDINATES, *PRESENCE_COLUMNS):
        leaves = {
            name: (category_feature if column in COORDINATES else innermost)(split.features[column])
            for name, split in dataset.items()
            if column in split.features
        }
        named = {name: list(leaf.names) for name, leaf in leaves.items() if isinstance(leaf, ClassLabel)}
        if not named:
            continue
        first, names = next(iter(named.items()))
        for name, leaf in leaves.items():
            own = named.get(name)
            if own == names or holds_null(dataset[name].features[column]):
                continue
            if own is not None and set(own) != set(names):
                alone = sorted(set(own) ^ set(names))
                raise ValueError(
                    f"The names of {column} differ between the splits {first} and {name}: {alone[0]!r} is in one of "
                    "them alone. Give both the same names."
                )
            if own is None and not (isinstance(leaf, Value) and "string" in leaf.dtype):
                raise ValueError(
                    f"Column {column} has names in the split {first}, and {leaf} in {name}: give both the same names."
                )
            numbers: dict[Any, int] = {text: i for i, text in enumerate(names)}
            if own is not None:
                # A label of -1 is that of a row whose class is not given.
                numbers = {-1: -1} | {i: names.index(text) for i, text in enumerate(own)}
            logger.info("Column %s: the names of %s are in another order, and are taken by name.", column, name)
            dataset[name] = rewrite_column(
                dataset[name],
                column,
                lambda value, numbers=numbers, column=column, first=first: encoded(value, numbers, column, first),
                encoded_feature(dataset[name].features[column], names),
            )
    return dataset


def unite_columns(dataset: Any) -> Any:
    """
    Gives all splits the same columns of the schema: one that a split lacks is null there, not annotated.

    Raises:
        ValueError: for columns of a split that do not fit those of another.
    """
    for column in (*COLUMNS, GROUP_COLUMN):
        having = {name: split.features[column] for name, split in dataset.items() if column in split.features}
        full = [feature for feature in having.values() if not holds_null(feature)]
        if not having or column == "image":
            continue
        if not full:
            for name in having:
                dataset[name] = dataset[name].remove_columns(column)
            logger.warning("Column %s is null or empty in every row of every split: it is left out.", column)
            continue
        # Whole numbers, as a split may have by chance, become fractions and not the other way round.
        kind = next((feature for feature in full if "float" in repr(feature)), full[0])
        lacking = [name for name in dataset if name not in having]
        if column != "label":
            for name in lacking:
                dataset[name] = dataset[name].add_column(column, [None] * len(dataset[name]), feature=kind)
            if lacking:
                logger.info("No column %s in %s: not annotated there.", column, ", ".join(lacking))
        for name, feature in having.items():
            if feature != kind:
                try:
                    dataset[name] = dataset[name].cast_column(column, kind)
                except (TypeError, ValueError) as error:
                    raise ValueError(
                        f"Column {column} is {feature} in {name}, and {kind} elsewhere: cast it."
                    ) from error
    return dataset


__all__ = ["encoded", "encoded_feature", "read_images", "unite_columns", "unite_names"]

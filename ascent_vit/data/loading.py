# SPDX-License-Identifier: Apache-2.0
"""Loads concept datasets of the Hub, of local folders or by name, and casts them to the schema."""

import hashlib
import inspect
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .conventions import Conventions, apply_conventions, other_keys, part_names, rewrite_column
from .digits import load_digits_dataset
from .labels import check_problem, read_labels
from .local_files import check_files, check_remote_files, innermost_cause, load_parts, names_differ
from .schema import (
    COLUMNS,
    COORDINATES,
    GLOBAL_COLUMNS,
    GROUP_COLUMN,
    PRESENCE_COLUMNS,
    category_feature,
    concepts_from_features,
    innermost,
)
from .splits import encoded, encoded_feature, read_images, unite_columns, unite_names
from .structs import unpack_places


if TYPE_CHECKING:
    from datasets import DatasetDict, Features, IterableDatasetDict

logger = logging.getLogger(__name__)

# Keys within columns that `columns` may map, beside the columns themselves.
KEYS = ("objects.bbox", "objects.category", "points.xy", "points.category")

SPLIT_ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}


def _rename_keys_within(dataset: Any, column: str, keys: dict[str, str]) -> Any:
    """Renames the keys within a column of dicts of a dataset or stream, `keys` being {new: old}."""

    def renamed(value: Any) -> Any:
        if isinstance(value, list):
            return [renamed(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        return {new_names.get(key, key): item for key, item in value.items()}

    def renamed_feature(feature: Any) -> Any:
        if hasattr(feature, "feature"):
            return type(feature)(renamed_feature(feature.feature))
        return renamed(feature)

    new_names = {old: new for new, old in keys.items()}
    known = innermost(dataset.features[column])
    for new, old in keys.items():
        if not isinstance(known, Mapping) or old not in known:
            has = f"the keys {', '.join(known)}" if isinstance(known, Mapping) else "no keys"
            raise ValueError(f"columns maps {column}.{new} to {old!r}, but {column} has {has}.")
    features = dataset.features.copy()
    features[column] = renamed_feature(features[column])

    return rewrite_column(dataset, column, renamed, features[column])


def _values(value: Any, key: str | None) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _values(item, key)
    elif isinstance(value, Mapping):
        yield from _values(value[key], key)
    elif value is not None:
        yield value


def _found_names(
    dataset: Any, columns: list[str], key: str | None, names: list[str] | None, parameter: str
) -> tuple[list[str], list[int] | None]:
    """
    Checks that the names given are those of all that columns of text or numbers hold; without them, finds them.

    Returns:
        The names, and for columns of numbers the number of each. -1 stands for what has no number.
    """
    values: set = set()
    for split in dataset.values():
        for column in columns:
            values |= set(_values(list(split.select_columns([column])[column]), key))
    numbers = bool(values) and not all(isinstance(value, str) for value in values)
    if numbers:
        values -= {-1}
    if numbers and min(values, default=0) < 0:
        raise ValueError(f"Column {columns[0]} holds the class number {min(values)}; numbers start at 0.")
    if names is None:
        found = sorted(values)
        if numbers and found != list(range(len(found))):
            option = "labels" if parameter == "labels" else "category_names={1: ...}"
            logger.warning(
                "Column %s holds %d different numbers from %d to %d, with gaps or not from 0: each becomes a name, "
                "which %s would give.",
                *(columns[0], len(found), found[0], found[-1], option),
            )
        return [str(value) for value in found], found if numbers else None
    strange = sorted(values - set(range(len(names)) if numbers else names))
    if strange:
        raise ValueError(f"Column {columns[0]} holds {strange[0]!r}, which has no name among {parameter}.")
    return names, list(range(len(names))) if numbers else None


def _open_columns(
    features: "Features", columns: tuple[str, ...], names: list[str] | None, parameter: str
) -> list[str]:
    """Finds the columns that hold text or numbers; those that hold ClassLabels must have the names given."""
    from datasets import ClassLabel, Value

    found = []
    for column in columns:
        if column not in features:
            continue
        feature = category_feature(features[column]) if column in COORDINATES else innermost(features[column])
        if isinstance(feature, Value) and (feature.dtype in ("string", "large_string") or "int" in feature.dtype):
            found.append(column)
        elif isinstance(feature, ClassLabel) and names is not None and list(names) != list(feature.names):
            raise ValueError(f"{parameter} differ from the names of {column} in the dataset: leave them out.")
    return found


def _encode_names(
    dataset: Any, given: dict[str, list[str] | None], category_names: Mapping[int, str] | None = None
) -> Any:
    """
    Turns names that are still text, and class numbers, into ClassLabels, over all splits.

    Args:
        dataset: dict of all splits, or of their streams.
        given: names by parameter; None for those found, sorted.
        category_names: names of spatial concepts by the numbers that stand for them.
    """
    from datasets import IterableDatasetDict

    features = next(iter(dataset.values())).features
    streaming = isinstance(dataset, IterableDatasetDict)
    for parameter, sources, key in (
        ("labels", ("label",), None),
        ("global_concepts", GLOBAL_COLUMNS, None),
        ("spatial_concepts", (*COORDINATES, *PRESENCE_COLUMNS), "category"),
    ):
        names = given[parameter]
        columns = _open_columns(features, sources, names, parameter)
        numbered = category_names if parameter == "spatial_concepts" else None
        if not columns:
            if numbered:
                raise ValueError("category_names names numbers, but no column of spatial concepts holds any.")
            continue
        known: dict[Any, int] = {}
        if numbered:
            names = list(dict.fromkeys(name for _, name in sorted(numbered.items())))
            known |= {number: names.index(name) for number, name in numbered.items()}
            parameter = "category_names"
        elif not streaming:
            names, numbers = _found_names(dataset, columns, key, names, parameter)
            known |= dict(zip(names if numbers is None else numbers, range(len(names)), strict=True))
        elif names is None:
            raise ValueError(
                f"Column {columns[0]} holds text or numbers, whose names a stream does not tell: give them in "
                f"their order, in the recipe as dataset_options: {{{parameter}: [...]}}, or leave streaming out."
            )
        else:
            known |= dict(zip(names, range(len(names)), strict=True)) | {i: i for i in range(len(names))}
        # Numbers without gaps, and text, `datasets` casts by itself.
        is_plain = all(name == i or isinstance(name, str) for i, name in enumerate(known))
        for column in columns:
            feature = encoded_feature(features[column], list(names))
            if is_plain and not streaming and not numbered:
                dataset = dataset.cast_column(column, feature)
                continue
            # Of -1, which stands for what is not known, the check of rows tells the row.
            encode = partial(encoded, numbers=known | {-1: -1}, column=column, parameter=parameter)
            for split in dataset:
                dataset[split] = rewrite_column(dataset[split], column, encode, feature)
    return dataset


def _cache_of(folder: Path) -> str:
    """
    Names the place where `datasets` may keep what it has read of a folder, for these files alone.

    By itself `datasets` tells local folders with a card apart by name and card alone, and would give the rows of
    another folder of the same name, or those that the folder held before.
    """
    from datasets import config

    files = sorted(path for path in folder.resolve().rglob("*") if path.is_file())
    state = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return str(Path(config.HF_DATASETS_CACHE) / f"ascent_vit_{hashlib.sha256(repr(state).encode()).hexdigest()[:16]}")


def _read(name_or_path: str, streaming: bool, options: dict[str, Any]) -> "DatasetDict | IterableDatasetDict":
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
    from pyarrow import ArrowException

    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            try:
                dataset = load_from_disk(str(folder))
            except (ArrowException, OSError) as error:
                raise ValueError(f"{folder} cannot be read ({error}): a file is cut off, get it again.") from error
            if streaming:
                raise ValueError(
                    f"{folder} was written by save_to_disk, which cannot be streamed: leave streaming out."
                )
            return dataset
        if not any(folder.iterdir()):
            raise FileNotFoundError(f"The folder {folder} is empty; expected a dataset.")
    elif folder.is_file():
        raise ValueError(f"{folder} is a file: give the folder that holds the dataset.")
    elif name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1:
        raise FileNotFoundError(f"There is no dataset folder {folder}.")
    features: dict[str, str] = {}
    if folder.is_dir():
        options = {"cache_dir": _cache_of(folder), **options}
        features = check_files(folder)
    elif "split" not in options:
        features = check_remote_files(name_or_path, options)
    # Whole, as a folder's bare name may be that of a format: text, csv, json.
    name = str(folder.absolute()) if folder.is_dir() else name_or_path
    in_parts = not streaming and "split" not in options
    # Given whole, `datasets` would take the first file's features for those of all, and numbers for others.
    if streaming and names_differ(features.values()):
        raise ValueError(
            f"The splits of {name_or_path} number their classes or concepts in different orders, which a stream does "
            "not tell apart: leave streaming out."
        )
    try:
        if in_parts and len(set(features.values())) > 1:
            parts = load_parts(name, options, features)
            if parts is not None:
                return parts
        return load_dataset(name, streaming=streaming, **options)
    except DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"{name_or_path} is neither a local folder, nor digits, nor a dataset of the Hub that can be read: {error}"
        ) from error
    except ConnectionError as error:
        raise ConnectionError(f"{name_or_path} is no local folder, and the Hub cannot be reached: {error}") from error
    except DataFilesNotFoundError as error:
        raise FileNotFoundError(f"{name_or_path} holds no data files that datasets can read: {error}") from error
    except (DatasetGenerationError, ValueError) as error:
        if in_parts and folder.is_dir():
            with suppress(DatasetGenerationError, ValueError):
                parts = load_parts(name, options, features)
                if parts is not None:
                    return parts
        raise ValueError(f"{name_or_path} cannot be read: {innermost_cause(error)}") from error


def _load_digits(streaming: bool, options: dict[str, Any]) -> "DatasetDict":
    if streaming:
        raise ValueError("The digits are made in memory: leave streaming out.")
    known = inspect.signature(load_digits_dataset).parameters
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"The digits take the options {', '.join(known)}; got {', '.join(unknown)}.")
    return load_digits_dataset(**options)


def _as_splits(dataset: Any, name_or_path: str) -> Any:
    """Makes a dict of splits: a single one keeps its name or is train, and validation splits are called so."""
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    if isinstance(dataset, Dataset | IterableDataset):
        # A part, such as train[:10%], is of the split that it names.
        own = re.fullmatch(r"(\w+)(\[.*\])?", str(dataset.split or "train"))
        kind = DatasetDict if isinstance(dataset, Dataset) else IterableDatasetDict
        dataset = kind({own[1] if own else "train": dataset})
    renamed = {SPLIT_ALIASES.get(name, name): split for name, split in dataset.items()}
    if len(renamed) < len(dataset):
        raise ValueError(f"{name_or_path} has two validation splits: {', '.join(dataset)}.")
    return type(dataset)(renamed)


def _rename_columns(dataset: Any, columns: Mapping[str, str]) -> Any:
    """Renames columns to those of the schema, `columns` being {new: old}."""
    for column, source in columns.items():
        if column in KEYS:
            continue
        if column not in (*COLUMNS, GROUP_COLUMN):
            raise ValueError(f"columns may map {', '.join((*COLUMNS, GROUP_COLUMN, *KEYS))}; got {column!r}.")
        if source == column:
            continue
        for name, split in dataset.items():
            if split.features is not None and source not in split.features:
                raise ValueError(
                    f"columns maps {column} to {source!r}, but the split {name} has {', '.join(split.features)}."
                )
        dataset = dataset.rename_column(source, column)
    return dataset


def _rename_keys(dataset: Any, columns: Mapping[str, str]) -> Any:
    """Renames keys within columns to those of the schema, as in {"objects.category": "categories"}."""
    keys: dict[str, dict[str, str]] = {}
    for name, source in columns.items():
        if name in KEYS:
            column, key = name.split(".")
            keys.setdefault(column, {})[key] = source
    for column, names in keys.items():
        for name, split in dataset.items():
            if column not in split.features:
                raise ValueError(f"columns maps keys of {column}, but the split {name} has no such column.")
            dataset[name] = _rename_keys_within(split, column, names)
    return dataset


def _classes_of_folders(dataset: Any) -> Any:
    """Takes the classes from the names of the folders that the images are in."""
    from datasets import Value

    def folder_of(*values: Any) -> str:
        path = values[-1].get("path") if isinstance(values[-1], Mapping) else None
        if not path:
            raise ValueError("class_from=folder needs images with files of their own: give a column label.")
        return Path(path).parent.name

    for name, split in dataset.items():
        dataset[name] = rewrite_column(split, "label", folder_of, Value("string"), of_image=True)
    return dataset


def _check_columns(dataset: Any, name_or_path: str) -> None:
    for name, split in dataset.items():
        if split.features is None:
            raise ValueError(f"{name_or_path} does not declare its features, so it cannot be streamed: load it whole.")
        missing = [column for column in ("image", "label") if column not in split.features]
        if missing:
            raise ValueError(
                f"The split {name} of {name_or_path} has no column {' and no '.join(missing)}; it has "
                f"{', '.join(split.features)}. Map the names with dataset_options: {{columns: {{label: ...}}}}"
                + (", or take the class from the folder: {class_from: folder}." if missing == ["label"] else ".")
            )


def spatial_names(options: Mapping[str, Any]) -> list[str] | None:
    """Names of a mask's concepts among the options of [`load_concept_dataset`], None where the features have them."""
    return options.get("spatial_concepts")


def load_concept_dataset(
    name_or_path: str | os.PathLike[str],
    streaming: bool = False,
    columns: dict[str, str] | None = None,
    labels: list[str] | None = None,
    global_concepts: list[str] | None = None,
    spatial_concepts: list[str] | None = None,
    problem_type: str | None = None,
    **options: Any,
) -> "DatasetDict | IterableDatasetDict":
    """
    Loads a concept dataset and casts it to the schema.

    Args:
        name_or_path: Hub id, local folder (save_to_disk, parquet, imagefolder with metadata.jsonl), or "digits".
        streaming: whether to read rows as they are needed, instead of all first.
        columns: the dataset's own names of columns, by their names in the schema, as {"image": "img", "label":
            "fine_label"}; keys within a column likewise, as {"objects": "annotations", "objects.category":
            "categories"}. A column for group_id, as {"group_id": "patient"}, tells [`split_dataset`] which rows to
            keep together.
        labels: names of the classes in their order, for labels that are text or numbers. Without them the names are
            those found, sorted; a stream cannot be searched and needs them. Where values are to be predicted, their
            names, which the dataset itself has no place for.
        global_concepts: names of the concepts in `concepts` and `unknown_concepts`, likewise.
        spatial_concepts: names of the categories of `objects` and `points` and of the concepts in `present`, likewise;
            or of a mask's concepts, see [`concepts_from_features`].
        problem_type: what is to be predicted, of `PROBLEM_TYPES` of the schema, checked against the labels. By default
            the labels say it: a class, lists of classes, or floating point numbers. "regression" takes whole numbers,
            which are classes by default, as values; "multi_label_classification" parts texts at the `separator`.
        options: arguments of [`~ascent_vit.data.conventions.Conventions`], which say what the annotations mean where
            it is not what the schema says, and further arguments of `datasets.load_dataset` (`name`, `revision`,
            `data_dir`, ...), or of [`load_digits_dataset`].

    Returns:
        A `DatasetDict`, or `IterableDatasetDict` when streaming, with the columns of the schema. Splits val, valid and
        dev are called validation. Labels and concepts that are text become ClassLabels with sorted names.

    Raises:
        FileNotFoundError: for a dataset that does not exist.
        ValueError: for missing columns, names that cannot be determined, or `streaming` that is no boolean.
    """
    name_or_path = os.fspath(name_or_path)
    if not isinstance(streaming, bool):
        # As the word `no` of a recipe or an option is, which would count as true.
        raise ValueError(f"streaming must be true or false; got {streaming!r}.")
    if name_or_path == "digits":
        digits = _load_digits(streaming, options)
        check_problem(digits["train"].features["label"], problem_type)
        return digits
    colors = options.get("mask_colors")
    if isinstance(colors, str) and not Path(colors).expanduser().is_file():
        # As the file that lies in the dataset's folder.
        options["mask_colors"] = str(Path(name_or_path).expanduser() / colors)
    conventions = Conventions.pop(options)
    dataset = _as_splits(_read(name_or_path, streaming, options), name_or_path)
    columns = columns or {}
    dataset = _rename_columns(dataset, columns)
    folder = Path(name_or_path).expanduser()
    if not any(split.features is None for split in dataset.values()):
        dataset = read_images(dataset, folder.absolute() if folder.is_dir() else None)
        if conventions.class_from == "folder":
            dataset = _classes_of_folders(dataset)
    _check_columns(dataset, name_or_path)
    dataset, conventions = unpack_places(_rename_keys(dataset, columns), conventions)
    dataset = unite(dataset, conventions.separator, problem_type)
    names = {"labels": labels, "global_concepts": global_concepts, "spatial_concepts": spatial_concepts}
    dataset = _encode_names(dataset, names, conventions.category_names)
    dataset = apply_conventions(dataset, conventions, spatial_concepts)
    features = next(iter(dataset.values())).features
    number = len(concepts_from_features(features, spatial_concepts)[0])
    if check_problem(features["label"], problem_type) == "regression" and labels and len(labels) != number:
        raise ValueError(f"labels must name the {number} value{'s' * (number > 1)} of a row; got {len(labels)} names.")
    return dataset


def unite(dataset: Any, separator: str | None = None, problem_type: str | None = None) -> Any:
    """Gives all splits the same columns, keys and names, those of the schema; streams the keys alone."""
    from datasets import IterableDatasetDict

    dataset = read_labels(dataset, problem_type, separator)
    for name, split in dataset.items():
        for column, keys in other_keys(split).items():
            split = _rename_keys_within(split, column, keys)
        dataset[name] = split
    dataset = part_names(dataset, separator)
    return dataset if isinstance(dataset, IterableDatasetDict) else unite_columns(unite_names(dataset))


__all__ = ["load_concept_dataset", "spatial_names", "unite"]

# SPDX-License-Identifier: Apache-2.0
"""
Concept datasets of the Hub, of local folders or by name, and their rows as batches for the model.

A concept dataset has the columns image and label, and any of concepts, unknown_concepts, objects, points and mask. The
names of the concepts stand in the features: those of `concepts` are the global ones, those of the `category` of
`objects` and `points` the spatial ones. An image of class numbers has no place for names; those of a mask are, in this
order, the names of `objects` or `points`, the names given as `spatial_concepts`, the names of `concepts`.

Rows with the same `group_id`, where there is such a column, belong together: they are never in two splits.
"""

import hashlib
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from .digits import load_digits_dataset


if TYPE_CHECKING:
    from datasets import DatasetDict, Features, IterableDatasetDict
    from transformers import PreTrainedConfig

    from modeling_ascent_vit import AscentViTImageProcessorPil

GLOBAL_COLUMNS = ("concepts", "unknown_concepts")
SPATIAL_COLUMNS = ("objects", "points", "mask")
ANNOTATION_COLUMNS = GLOBAL_COLUMNS + SPATIAL_COLUMNS
COLUMNS = ("image", "label", *ANNOTATION_COLUMNS)

# What rows belong together, such as the slices of a patient, which no two splits may share.
GROUP_COLUMN = "group_id"

# Keys within columns that can be mapped.
KEYS = ("objects.bbox", "objects.category", "points.xy", "points.category")

SPLIT_ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}

# Target codes of the cache: 0 and 1 as they are.
UNKNOWN_CODE = 255


def _innermost(feature: Any) -> Any:
    while hasattr(feature, "feature"):
        feature = feature.feature
    return feature


def _category(feature: Any) -> Any:
    """The category of a column of objects or points, which is a dict of lists or a list of dicts."""
    feature = _innermost(feature)
    return _innermost(feature.get("category")) if isinstance(feature, Mapping) else None


def concepts_from_features(
    features: "Features", spatial_concepts: list[str] | None = None
) -> tuple[list[str], list[str], list[str]]:
    """
    Names of classes and concepts of a dataset.

    Args:
        features: of the dataset.
        spatial_concepts: names of a mask's concepts, 1 being the first, for a dataset without objects and points.

    Returns:
        Names of the labels, of the global and of the spatial concepts, each in the order of their ids.

    Raises:
        ValueError: for a label or concepts that are no ClassLabel, for objects and points with different names, or a
            mask without names.
    """
    from datasets import ClassLabel

    found = {"label": features["label"]}
    found |= {name: _innermost(features[name]) for name in GLOBAL_COLUMNS if name in features}
    found |= {f"{name}.category": _category(features[name]) for name in ("objects", "points") if name in features}
    names: dict[str, list[str]] = {}
    for column, feature in found.items():
        if not isinstance(feature, ClassLabel):
            raise ValueError(
                f"Column {column} must hold a ClassLabel, whose names are those of the model; got {feature}. "
                f'Cast it, for example dataset.cast_column("{column.split(".")[0]}", ...).'
            )
        names[column] = list(feature.names)
    global_concepts = names.get("concepts", [])
    placed = [names[column] for column in ("objects.category", "points.category") if column in names]
    if len(placed) == 2 and placed[0] != placed[1]:
        raise ValueError("The categories of objects and points must have the same names in the same order.")
    if names.get("unknown_concepts", global_concepts) != global_concepts:
        raise ValueError("concepts and unknown_concepts must have the same names in the same order.")
    if placed:
        if spatial_concepts is not None and list(spatial_concepts) != placed[0]:
            raise ValueError(
                "spatial_concepts differ from the names of the categories in the dataset: leave them out."
            )
        return names["label"], global_concepts, placed[0]
    if "mask" not in features:
        return names["label"], global_concepts, []
    if not (spatial_concepts or global_concepts):
        raise ValueError(
            "The dataset has a mask, but no names for its values: give them as spatial_concepts, in the recipe as "
            "dataset_options: {spatial_concepts: [...]}."
        )
    return names["label"], global_concepts, list(spatial_concepts or global_concepts)


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


def check_concepts(config: "PreTrainedConfig", global_concepts: list[str], spatial_concepts: list[str]) -> None:
    """
    Checks that the model's concepts are the dataset's: the same names in the same order, or none at all in the model.

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


def _rename_keys(dataset: Any, column: str, keys: dict[str, str]) -> Any:
    """A dataset or stream in which a column of dicts has other keys, `keys` being {new: old}."""
    from datasets import Dataset, concatenate_datasets

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
    known = _innermost(dataset.features[column])
    for new, old in keys.items():
        if not isinstance(known, Mapping) or old not in known:
            has = f"the keys {', '.join(known)}" if isinstance(known, Mapping) else "no keys"
            raise ValueError(f"columns maps {column}.{new} to {old!r}, but {column} has {has}.")
    features = dataset.features.copy()
    features[column] = renamed_feature(features[column])

    def rename_row(value: Any) -> dict[str, Any]:
        return {column: renamed(value)}

    if not isinstance(dataset, Dataset):
        return dataset.map(rename_row, input_columns=column, features=features)
    # Alone, so that the images are not written again.
    part = dataset.select_columns([column])
    part = part.map(rename_row, input_columns=column, features=type(features)({column: features[column]}))
    return concatenate_datasets([dataset.remove_columns(column), part], axis=1)


def _values(value: Any, key: str | None) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _values(item, key)
    elif isinstance(value, Mapping):
        yield from _values(value[key], key)
    elif value is not None:
        yield value


def _encode_names(dataset: Any, given: dict[str, list[str] | None]) -> Any:
    """
    Turns names that are still text, and class numbers, into ClassLabels, over all splits.

    Args:
        dataset: all splits, or streams of them.
        given: names by parameter; None takes those found, sorted.
    """
    from datasets import ClassLabel, IterableDatasetDict, Value

    features = next(iter(dataset.values())).features
    streaming = isinstance(dataset, IterableDatasetDict)

    def found_names(columns: list[str], key: str | None, given_names: list[str] | None) -> list[str]:
        values: set = set()
        for split in dataset.values():
            for column in columns:
                values |= set(_values(list(split.select_columns([column])[column]), key))
        numbers = bool(values) and not all(isinstance(value, str) for value in values)
        if numbers and min(values) < 0:
            raise ValueError(f"Column {columns[0]} holds the class number {min(values)}; numbers start at 0.")
        if given_names is None:
            return [str(number) for number in range(max(values) + 1)] if numbers else sorted(values)
        strange = sorted(values - set(range(len(given_names)) if numbers else given_names))
        if strange:
            raise ValueError(f"Column {columns[0]} holds {strange[0]!r}, which has no name among {parameter}.")
        return given_names

    def encoded(feature: Any, names: list[str]) -> Any:
        if hasattr(feature, "feature"):
            return type(feature)(encoded(feature.feature, names))
        if isinstance(feature, Mapping):
            return {key: encoded(item, names) if key == "category" else item for key, item in feature.items()}
        return ClassLabel(names=names)

    for parameter, sources, key in (
        ("labels", ("label",), None),
        ("global_concepts", GLOBAL_COLUMNS, None),
        ("spatial_concepts", ("objects", "points"), "category"),
    ):
        names = given[parameter]
        open_columns = []
        for column in sources:
            if column not in features:
                continue
            feature = _category(features[column]) if key else _innermost(features[column])
            if isinstance(feature, Value) and (feature.dtype in ("string", "large_string") or "int" in feature.dtype):
                open_columns.append(column)
            elif isinstance(feature, ClassLabel) and names is not None and list(names) != list(feature.names):
                raise ValueError(f"{parameter} differ from the names of {column} in the dataset: leave them out.")
        if not open_columns:
            continue
        if streaming and names is None:
            raise ValueError(
                f"Column {open_columns[0]} holds text or numbers, whose names a stream does not tell: give them in "
                f"their order, in the recipe as dataset_options: {{{parameter}: [...]}}, or leave streaming out."
            )
        if not streaming:
            names = found_names(open_columns, key, names)
        for column in open_columns:
            feature = encoded(features[column], list(names or []))
            for split in dataset if streaming else ():
                dataset[split] = _encode_stream(dataset[split], column, feature, list(names or []), parameter)
            if not streaming:
                dataset = dataset.cast_column(column, feature)
    return dataset


def _encode_stream(stream: Any, column: str, feature: Any, names: list[str], parameter: str) -> Any:
    """A stream in which names of a column are class numbers, checked as rows are read."""
    known = dict(zip(names, range(len(names)), strict=True)) | {i: i for i in range(len(names))}

    def encoded(value: Any) -> Any:
        if isinstance(value, list):
            return [encoded(item) for item in value]
        if isinstance(value, Mapping):
            return {key: encoded(item) if key == "category" else item for key, item in value.items()}
        if value is not None and value not in known:
            raise ValueError(f"Column {column} holds {value!r}, which has no name among {parameter}.")
        return None if value is None else known[value]

    def encode_row(value: Any) -> dict[str, Any]:
        return {column: encoded(value)}

    features = stream.features.copy()
    features[column] = feature
    return stream.map(encode_row, input_columns=column, features=features)


def _cache_of(folder: Path) -> str:
    """
    Where `datasets` may keep what it has read of a folder: a place for these files alone.

    By itself it tells local folders with a card apart by their name and card only, and would give the rows of another
    one of the same name, or those that the folder held before.
    """
    from datasets import config

    files = sorted(path for path in folder.resolve().rglob("*") if path.is_file())
    state = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return str(Path(config.HF_DATASETS_CACHE) / f"ascent_vit_{hashlib.sha256(repr(state).encode()).hexdigest()[:16]}")


def _read(name_or_path: str, streaming: bool, options: dict[str, Any]) -> "DatasetDict | IterableDatasetDict":
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError

    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            dataset = load_from_disk(str(folder))
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
    if folder.is_dir():
        options = {"cache_dir": _cache_of(folder), **options}
    try:
        return load_dataset(str(folder) if folder.is_dir() else name_or_path, streaming=streaming, **options)
    except DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"{name_or_path} is neither a local folder, nor digits, nor a dataset of the Hub that can be read: {error}"
        ) from error
    except ConnectionError as error:
        raise ConnectionError(f"{name_or_path} is no local folder, and the Hub cannot be reached: {error}") from error
    except DataFilesNotFoundError as error:
        raise FileNotFoundError(f"{name_or_path} holds no data files that datasets can read: {error}") from error


def load_concept_dataset(
    name_or_path: str | os.PathLike[str],
    streaming: bool = False,
    columns: dict[str, str] | None = None,
    labels: list[str] | None = None,
    global_concepts: list[str] | None = None,
    spatial_concepts: list[str] | None = None,
    **options: Any,
) -> "DatasetDict | IterableDatasetDict":
    """
    Loads a concept dataset.

    Args:
        name_or_path: a Hub id, a local folder (save_to_disk, parquet, imagefolder with metadata.jsonl), or "digits".
        streaming: whether to read rows as they are needed, instead of all first.
        columns: the dataset's name of a column whose name here differs, as {"image": "img", "label": "fine_label"};
            keys within a column likewise, as {"objects": "annotations", "objects.category": "categories"}. That of
            what keeps rows together, as {"group_id": "patient"}, tells [`split_dataset`] what not to part.
        labels: names of the classes in their order, for labels that are text or numbers. Without them the names are
            those found, sorted; a stream cannot be searched and needs them.
        global_concepts: the same for `concepts` and `unknown_concepts`.
        spatial_concepts: the same for the categories of `objects` and `points`; or names of a mask's concepts, see
            [`concepts_from_features`].
        options: of `datasets.load_dataset` (`name`, `revision`, `data_dir`, ...), or of [`load_digits_dataset`].

    Returns:
        A `DatasetDict`, or `IterableDatasetDict` when streaming, with the columns of the schema. Splits val, valid and
        dev are called validation. Labels and concepts that are text become ClassLabels with sorted names.

    Raises:
        FileNotFoundError: for a dataset that does not exist.
        ValueError: for columns that are missing, or names that cannot be told.
    """
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    name_or_path = os.fspath(name_or_path)
    if name_or_path == "digits":
        if streaming:
            raise ValueError("The digits are made in memory: leave streaming out.")
        known = inspect.signature(load_digits_dataset).parameters
        unknown = [option for option in options if option not in known]
        if unknown:
            raise ValueError(f"The digits take the options {', '.join(known)}; got {', '.join(unknown)}.")
        return load_digits_dataset(**options)
    dataset = _read(name_or_path, streaming, options)
    if isinstance(dataset, Dataset):
        dataset = DatasetDict(train=dataset)
    elif isinstance(dataset, IterableDataset):
        dataset = IterableDatasetDict(train=dataset)
    renamed = {SPLIT_ALIASES.get(name, name): split for name, split in dataset.items()}
    if len(renamed) < len(dataset):
        raise ValueError(f"{name_or_path} has two validation splits: {', '.join(dataset)}.")
    dataset = type(dataset)(renamed)
    keys: dict[str, dict[str, str]] = {}
    for column, source in (columns or {}).items():
        if column in KEYS:
            whole, key = column.split(".")
            keys.setdefault(whole, {})[key] = source
        elif column not in (*COLUMNS, GROUP_COLUMN):
            raise ValueError(f"columns may map {', '.join((*COLUMNS, GROUP_COLUMN, *KEYS))}; got {column!r}.")
        elif source != column:
            for name, split in dataset.items():
                if split.features is not None and source not in split.features:
                    raise ValueError(
                        f"columns maps {column} to {source!r}, but the split {name} has {', '.join(split.features)}."
                    )
            dataset = dataset.rename_column(source, column)
    for name, split in dataset.items():
        if split.features is None:
            raise ValueError(f"{name_or_path} does not declare its features, so it cannot be streamed: load it whole.")
        missing = [column for column in ("image", "label") if column not in split.features]
        if missing:
            raise ValueError(
                f"The split {name} of {name_or_path} has no column {' and no '.join(missing)}; it has "
                f"{', '.join(split.features)}. Map the names with dataset_options: {{columns: {{label: ...}}}}."
            )
    for column, names in keys.items():
        for name, split in dataset.items():
            if column not in split.features:
                raise ValueError(f"columns maps keys of {column}, but the split {name} has no such column.")
            dataset[name] = _rename_keys(split, column, names)
    dataset = _encode_names(
        dataset, {"labels": labels, "global_concepts": global_concepts, "spatial_concepts": spatial_concepts}
    )
    concepts_from_features(next(iter(dataset.values())).features, spatial_concepts)
    return dataset


def annotation_from_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The annotations of a row for the image processor: those of the schema's columns that are not null."""
    return {name: row[name] for name in ANNOTATION_COLUMNS if row.get(name) is not None}


class ConceptCollator:
    """
    Turns rows of a concept dataset into a batch for the model.

    Args:
        processor: the model's image processor. Annotations of a stream in which it has no concepts are left out.
        kwargs: further arguments of the processor.

    Returns:
        When called with a list of rows, a dict of `pixel_values` (B, C, H, W) float32, `labels` (B,) int64 and, where
        the processor has such concepts, `concept_targets` (B, G) and `spatial_concept_targets` (B, N, S) float32.
    """

    def __init__(self, processor: "AscentViTImageProcessorPil", **kwargs: Any):
        self.processor = processor
        self.kwargs = kwargs
        self.used = (GLOBAL_COLUMNS if processor.num_global_concepts else ()) + (
            SPATIAL_COLUMNS if processor.num_spatial_concepts else ()
        )

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images = [row["image"] for row in rows]
        arguments = dict(self.kwargs)
        if self.used:
            annotations = [annotation_from_row(row) for row in rows]
            arguments["annotations"] = [
                {name: value for name, value in annotation.items() if name in self.used} for annotation in annotations
            ]
        batch = dict(self.processor(images, return_tensors="pt", **arguments))
        batch["labels"] = torch.tensor([row["label"] for row in rows])
        return batch


class CachedConceptDataset(torch.utils.data.Dataset):
    """
    A split that the image processor has gone over once, held in memory as bytes.

    Pixels are kept as the processor leaves them before it rescales and normalises, which is done batch by batch, so
    that batches are equal to those of [`ConceptCollator`] up to float32 rounding. It gives whole batches: pass
    `collate_fn=lambda batch: batch` to the DataLoader.

    Args:
        dataset: a split with random access, of one image or more.
        processor: the model's image processor, with whole-number pixels until it rescales and one size for all images.
        batch_size: images per call of the processor.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for a processor that gives something other than bytes before rescaling, or targets other than 0, 1
            and NaN.
    """

    def __init__(
        self, dataset: Any, processor: "AscentViTImageProcessorPil", batch_size: int = 256, progress: bool = False
    ):
        collate = ConceptCollator(processor, do_rescale=False, do_normalize=False)
        self.scale, self.mean, self.std = 1.0, torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        if processor.do_rescale:
            self.scale = 1 / processor.rescale_factor
        if processor.do_normalize:
            self.mean = torch.tensor(processor.image_mean).view(-1, 1, 1)
            self.std = torch.tensor(processor.image_std).view(-1, 1, 1)
        self.columns: dict[str, torch.Tensor] = {}
        starts = range(0, len(dataset), batch_size)
        for start in tqdm(starts, desc="Reading images", unit="batch", leave=False, disable=not progress):
            stop = min(start + batch_size, len(dataset))
            encoded = {
                name: self._encode(name, values) for name, values in collate(_rows(dataset, start, stop)).items()
            }
            for name, values in encoded.items():
                if name not in self.columns:
                    self.columns[name] = torch.empty((len(dataset), *values.shape[1:]), dtype=values.dtype)
                self.columns[name][start:stop] = values

    @staticmethod
    def _encode(name: str, values: torch.Tensor) -> torch.Tensor:
        if name == "labels":
            return values
        if name == "pixel_values":
            fits = values.dtype == torch.uint8
        else:
            unknown = values.isnan()
            fits = bool(((values == 0) | (values == 1) | unknown).all())
            values = values.masked_fill(unknown, UNKNOWN_CODE).to(torch.uint8)
        if not fits:
            raise ValueError(f"{name} cannot be kept as bytes: set cache_mebibytes: 0 in the recipe.")
        return values

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Iterable[int]) -> dict[str, torch.Tensor]:
        chosen = torch.as_tensor(list(indices))
        batch = {name: values[chosen] for name, values in self.columns.items()}
        # In the order of the processor's own arithmetic: (pixel - mean / factor) / (std / factor).
        batch["pixel_values"] = (batch["pixel_values"].float() - self.mean * self.scale).div_(self.std * self.scale)
        for name in batch.keys() - {"pixel_values", "labels"}:
            codes = batch[name]
            batch[name] = codes.float().masked_fill_(codes == UNKNOWN_CODE, torch.nan)
        return batch


def _rows(dataset: Any, start: int, stop: int) -> list[dict[str, Any]]:
    columns = dataset[start:stop]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def cached_bytes(dataset: Any, processor: "AscentViTImageProcessorPil") -> int:
    """Memory in bytes that [`CachedConceptDataset`] takes for a split, told from its first row."""
    batch = ConceptCollator(processor, do_rescale=False, do_normalize=False)(_rows(dataset, 0, 1))
    return len(dataset) * sum(values.numel() for values in batch.values())


__all__ = [
    "CachedConceptDataset",
    "ConceptCollator",
    "annotation_from_row",
    "cached_bytes",
    "check_concepts",
    "check_groups",
    "concepts_from_features",
    "load_concept_dataset",
]

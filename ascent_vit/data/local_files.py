# SPDX-License-Identifier: Apache-2.0
"""Files of a dataset, of a folder or the Hub: looked at before they are read, and read apart where features differ."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .splits import unite_columns, unite_names


if TYPE_CHECKING:
    from datasets import DatasetDict


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number}: no JSON ({error}): correct the line, or leave it out."
                ) from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: expected {{...}}; got {type(row).__name__}.")
            yield number, row


def _csv_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            yield reader.line_num, row


def _check_named_files(path: Path, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
    """Checks that the files that a metadata file names are there; FileNotFoundError for others, with the line."""
    missing = [
        (number, value)
        for number, row in rows
        for key, value in row.items()
        if key is not None and key.endswith("file_name") and isinstance(value, str) and value
        if not (path.parent / value).exists() and "://" not in value
    ]
    if missing:
        number, name = missing[0]
        others = f", and so are {len(missing) - 1} others" if len(missing) > 1 else ""
        raise FileNotFoundError(
            f"{path}, line {number}: the file {name} is missing{others}. Add it, or leave the line out."
        )


def check_files(folder: Path) -> dict[str, str]:
    """
    Checks the files of a folder that hold rows, without reading images.

    Returns:
        A text that stands for the features of each parquet file, by its path.

    Raises:
        FileNotFoundError: for images that a metadata file names and that are missing, with the line.
        ValueError: for a line that is no JSON, or a parquet file that is cut off.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import read_schema

    found = {}
    for path in sorted(item for item in folder.rglob("*") if item.suffix in (".jsonl", ".csv", ".parquet")):
        is_metadata = path.stem == "metadata"
        if path.suffix == ".jsonl":
            # Every line is read, also of a file that names no others.
            rows = list(_json_lines(path))
            _check_named_files(path, rows if is_metadata else ())
        elif path.suffix == ".csv" and is_metadata:
            _check_named_files(path, _csv_lines(path))
        elif path.suffix == ".parquet":
            try:
                schema = read_schema(path)
            except (ArrowException, OSError) as error:
                raise ValueError(
                    f"{path} is cut off or no parquet file ({error}): get it again, or remove it."
                ) from error
            found[str(path.resolve())] = _features_text(schema)
    return found


def _features_text(schema: Any) -> str:
    """A text that stands for the features of a parquet file."""
    stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = stored.get("info", {}).get("features")
    return json.dumps(features) if features else str(schema.remove_metadata())


def check_remote_files(name: str, options: dict[str, Any]) -> dict[str, str]:
    """
    Reads the end of the first parquet file of each split of a dataset of the Hub.

    Returns:
        A text that stands for the features of each file of these splits, by its address; nothing for a dataset of one
        split or of other files, or where they cannot be read here: loading then tells why.
    """
    from datasets import load_dataset_builder
    from huggingface_hub import HfFileSystem
    from pyarrow.parquet import read_schema

    found: dict[str, str] = {}
    # What the Hub and its client raise is of many kinds.
    with suppress(Exception):
        data_files = load_dataset_builder(name, **options).config.data_files or {}
        if len(data_files) > 1 and all(str(files[0]).endswith(".parquet") for files in data_files.values()):
            system = HfFileSystem(token=options.get("token"))
            for files in data_files.values():
                with system.open(str(files[0]), "rb", block_size=2**16) as file:
                    text = _features_text(read_schema(file))
                found |= {str(item): text for item in files}
    return found


def names_differ(texts: Iterable[str]) -> bool:
    """Whether texts that stand for features tell of other names, or another order of them, in the same place."""
    known: dict[str, Any] = {}

    def differs(value: Any, place: str) -> bool:
        if not isinstance(value, dict):
            return False
        if value.get("_type") == "ClassLabel":
            return known.setdefault(place, value.get("names")) != value.get("names")
        return any(differs(item, f"{place}.{key}") for key, item in value.items())

    # Of files of other tools the text is no JSON, and tells no names.
    return any(differs(json.loads(text), "") for text in texts if text.startswith("{"))


def load_parts(source: str, options: dict[str, Any], features: Mapping[str, str]) -> "DatasetDict | None":
    """
    Loads the splits of a dataset, and within them files of other features, each by itself, and joins them by name.

    Args:
        source: folder of the dataset, or its id on the Hub.
        options: further arguments of `datasets.load_dataset`.
        features: what stands for the features of files, by path, as [`check_files`] and [`check_remote_files`] give
            it.

    Returns:
        The dataset; None for a dataset of one part.
    """
    from datasets import DatasetDict, concatenate_datasets, load_dataset, load_dataset_builder

    builder = load_dataset_builder(source, **options)
    parts: dict[str, dict[str, list[str]]] = {}
    for split, files in (builder.config.data_files or {}).items():
        for file in files:
            kind = features.get(file if "://" in file else str(Path(file).resolve()), "")
            parts.setdefault(str(split), {}).setdefault(kind, []).append(file)
    if sum(map(len, parts.values())) < 2:
        return None
    kept = {key: value for key, value in options.items() if key not in ("name", "data_dir", "data_files", "revision")}
    splits = {}
    for name, kinds in parts.items():
        loaded = {
            f"part {i} of {name}": load_dataset(builder.name, data_files={name: files}, split=name, **kept)
            for i, files in enumerate(kinds.values())
        }
        if len(loaded) > 1:
            loaded = unite_columns(unite_names(loaded))
        splits[name] = concatenate_datasets(list(loaded.values())) if len(loaded) > 1 else next(iter(loaded.values()))
    return DatasetDict(splits)


def innermost_cause(error: BaseException) -> str:
    """The text of the error that all others came from, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:400]}..."


__all__ = ["check_files", "check_remote_files", "innermost_cause", "load_parts", "names_differ"]

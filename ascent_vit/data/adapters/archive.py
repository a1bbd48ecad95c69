# SPDX-License-Identifier: Apache-2.0
"""What adapters share: text files of archives, seeded shares, and rows written to disk as they come."""

import atexit
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features


def find_file(folders: Iterable[Path], name: str, hint: str) -> Path:
    """
    Finds a file of this name in the first of the folders that has it.

    Raises:
        FileNotFoundError: where none has it, naming the places and ending with `hint`.
    """
    places = [folder / name for folder in folders]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"{name} is missing; looked for {', '.join(map(str, places))}. {hint}")


def file_in(folder: Path, name: str, where: str) -> Path:
    """
    The path of a file of `folder` that a text file names; `where` is the line that does, for errors.

    Raises:
        ValueError: for a name that leads out of the folder.
    """
    parts = re.split(r"[/\\]", name)
    if ".." in parts or Path(name).is_absolute():
        raise ValueError(f"{where}: {name!r} leads out of {folder}: unpack the official archive again.")
    return folder / name


def read_lines(path: Path) -> list[tuple[int, str]]:
    """
    Reads the lines of a text file that are not blank, stripped of white space, each with its number from 1.

    Raises:
        ValueError: for a file that is not UTF-8, or has no such lines.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start}): unpack the archive again, or convert the file."
        ) from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty: unpack the archive again.")
    return lines


def check_shares(validation_share: float, test_share: float = 0.0) -> None:
    """Raises ValueError for shares that are negative, or leave nothing to train on."""
    if min(validation_share, test_share) < 0 or not validation_share + test_share < 1:
        raise ValueError(
            "validation_share and test_share must be 0 or more and together below 1; "
            f"got {validation_share} and {test_share}."
        )


def draw(items: Sequence[Any], counts: Mapping[str, int], seed: int | Sequence[int]) -> dict[str, list[Any]]:
    """
    Draws items at random into splits, each in the order of `items`.

    Args:
        items: items to draw from, in a fixed order.
        counts: number of items of each split; what is left over is train.
        seed: random seed of the permutation.
    """
    order = np.random.default_rng(seed).permutation(len(items))
    splits, start = {}, 0
    for name, count in counts.items():
        splits[name] = [items[i] for i in sorted(order[start : start + count])]
        start += count
    return {"train": [items[i] for i in sorted(order[start:])], **splits}


def dataset_from_rows(rows: Iterable[dict[str, Any]], features: "Features") -> "Dataset":
    """
    Makes a dataset of rows that need not fit into memory.

    They are written, as they come, to a temporary file (TMPDIR) that is deleted when the process ends.
    """
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter

    folder = tempfile.mkdtemp(prefix="ascent-vit-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = str(Path(folder) / "rows.arrow")
    try:
        with ArrowWriter(features=features, path=path) as writer:
            for row in rows:
                writer.write(features.encode_example(row))
            writer.finalize()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Dataset.from_file(path)


def dataset_from_splits(splits: Mapping[str, Iterable[dict[str, Any]]], features: "Features") -> "DatasetDict":
    """Makes a dataset of the rows of each split as [`dataset_from_rows`] does; splits without rows are left out."""
    from datasets import DatasetDict

    datasets = {name: dataset_from_rows(rows, features) for name, rows in splits.items()}
    return DatasetDict({name: dataset for name, dataset in datasets.items() if len(dataset)})


def sizes_in_words(dataset: "DatasetDict") -> str:
    """Rows of each split for a card, as in "100 train, 20 test"."""
    return ", ".join(f"{len(split)} {name}" for name, split in dataset.items())


__all__ = [
    "check_shares",
    "dataset_from_rows",
    "dataset_from_splits",
    "draw",
    "file_in",
    "find_file",
    "read_lines",
    "sizes_in_words",
]

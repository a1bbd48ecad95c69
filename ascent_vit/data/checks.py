# SPDX-License-Identifier: Apache-2.0
"""Checks of concept datasets: their rows, their groups, and that their concepts are the model's."""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from ascent_vit.utils.files import read_json, write_json
from modeling_ascent_vit.concept_targets_ascent_vit import (
    MASK_IGNORE,
    PatchAxis,
    global_concept_targets,
    read_mask,
    spatial_concept_presence,
    spatial_concept_targets,
)
from modeling_ascent_vit.image_inputs_ascent_vit import eight_bit, is_deep

from .cells import is_cut_off, opened_cell, stored_columns, stored_mask, upright_size
from .schema import GROUP_COLUMN, concepts_from_features, problem_type
from .suspicions import Tally


if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)

# Number of rows in memory at a time.
ROWS_AT_A_TIME = 100

# Number of errors that are shown one by one.
MOST_SHOWN = 10


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


@dataclass(frozen=True)
class CheckReport:
    """
    What a check of a dataset found.

    Args:
        rows: number of rows that were checked.
        decoded: number of images that were decoded.
        errors: sentences on what cannot be trained on, each with split, row and file where it has them.
        warnings: sentences on what may be meant otherwise, with numbers and the option that cures it.
        bad_rows: rows with an error, by split.
    """

    rows: int = 0
    decoded: int = 0
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    bad_rows: dict[str, list[int]] = field(default_factory=dict)

    def shown_errors(self) -> list[str]:
        """The first ten errors, and the number of the others."""
        more = len(self.errors) - MOST_SHOWN
        return self.errors[:MOST_SHOWN] + ([f"And {more} more errors."] if more > 0 else [])

    def raise_errors(self) -> None:
        """Raises a ValueError with the first errors, if there are any."""
        if len(self.errors) == 1:
            raise ValueError(self.errors[0])
        if self.errors:
            raise ValueError(f"The dataset has {len(self.errors)} errors. {' '.join(self.shown_errors())}")


def _check_structure(dataset: "DatasetDict") -> list[str]:
    if not len(dataset):
        return ["The dataset has no split; expected train, and validation and test where there are such."]
    first = next(iter(dataset))
    found = []
    for name, split in dataset.items():
        missing = [column for column in ("image", "label") if column not in split.features]
        if missing:
            found.append(
                f"The split {name} has no column {' and no '.join(missing)}; it has {', '.join(split.features)}. "
                "Rename its columns, or map them."
            )
        elif split.features != dataset[first].features:
            found.append(f"The splits {first} and {name} must have the same features: cast one to the other's.")
        elif not len(split):
            found.append(f"The split {name} has no rows: leave it out.")
    return found


def _check_image(
    cell: Any, where: str, decode: bool, window: Sequence[float] | None, tally: Tally
) -> tuple[Any, bool]:
    """Reads an image's height and width, and decodes it if asked to or if its file may be cut off; tells whether."""
    with opened_cell(cell, f"{where}.image") as image:
        size, deep = upright_size(cell, image), is_deep(image)
        decode = decode or is_cut_off(cell, image)
        if deep:
            tally.add_deep(image.mode)
        if decode:
            # JPEGs are then decoded at an eighth of their size, which still reads the file to its end.
            image.draft("L", (1, 1))
            image.load()
            if deep:
                pixels = np.asarray(image)
                tally.add_deep(image.mode, float(pixels.min()), float(pixels.max()))
                eight_bit(image, window)
    return size, decode


def _check_mask(mask: Any, size: tuple[int, int], num_concepts: int, where: str, tally: Tally) -> np.ndarray:
    """Ids of the concepts in a mask, of which nothing but the values is looked at."""
    array = np.asarray(mask)
    if array.dtype == np.uint8 and array.shape == size:
        values = np.flatnonzero(np.bincount(array.ravel()))
        tally.add_mask(values.tolist())
        named = values[(values > 0) & (values != MASK_IGNORE)]
        if not named.size or named.max() <= num_concepts:
            return named - 1
    return read_mask(array, size, num_concepts, f"{where}.mask")[1]


def _check_label(label: Any, problem: str, number: int, where: str) -> list[int]:
    """Classes of a row's label, none where it is of values; `number` is that of all classes."""
    if problem == "regression":
        values = label if isinstance(label, list) else [label]
        if any(value is None or not math.isfinite(value) for value in values):
            raise ValueError(f"{where}.label must be finite numbers; got {label}.")
        return []
    several = problem == "multi_label_classification"
    classes = label if several else [label]
    if classes is None or any(item is None or not 0 <= item < number for item in classes):
        kind = "a list of classes, empty for none of them," if several else "a class"
        raise ValueError(f"{where}.label must be {kind} from 0 to {number - 1}; got {label}.")
    repeated = next((item for item in classes if classes.count(item) > 1), None)
    if repeated is not None:
        raise ValueError(
            f"{where}.label has the class {repeated} twice; it must list each class of the image once, by its number, "
            f"and not say 0 or 1 of each; got {label}."
        )
    return classes


def _check_row(
    row: Mapping[str, Any],
    where: str,
    split: str,
    decode: bool,
    window: Sequence[float] | None,
    tally: Tally,
    problem: str,
) -> bool:
    """Checks a row as the image processor will read it, and adds it to the tally; tells whether it was decoded."""
    num_global, num_spatial = (len(tally.streams[stream]) for stream in ("global", "spatial"))
    size, decoded = _check_image(row["image"], where, decode, window, tally)
    tally.add_places(row, size)
    annotation = stored_mask(row, where)
    in_mask: Any = _check_mask(annotation.pop("mask"), size, num_spatial, where, tally) if "mask" in annotation else []
    classes = _check_label(row["label"], problem, len(tally.labels), where)
    if problem == "regression":
        tally.add_values(row["label"])
    streams = {}
    if num_global:
        targets = global_concept_targets(annotation, num_global, where)
        streams["global"] = targets == 1, ~np.isnan(targets)
    if num_spatial:
        # With the whole image as one patch, this is the image processor's own check.
        axes = PatchAxis.identity(size[0], size[0]), PatchAxis.identity(size[1], size[1])
        targets = spatial_concept_targets(annotation, axes, num_spatial, where=where)
        targets[:, in_mask] = 1
        presence = spatial_concept_presence(annotation, targets, axes, where)
        shown = (targets == 1).any(axis=0) | (presence == 1)
        streams["spatial"] = shown, shown | ~np.isnan(presence)
    tally.add_row(split, classes, streams)
    return decoded


def _row_error(error: Exception, row: Mapping[str, Any], where: str) -> str:
    """Says what is wrong with a row, and in which file."""
    path = (row["image"] or {}).get("path")
    hint = " If its values mean something else, give mask_values." if "mask must hold" in str(error) else ""
    if "mask must be a single-channel" in str(error):
        hint = " If its colours are concepts, give mask_colors={NAME: [255, 0, 0], ...} or a labelmap.txt."
    return f"{where}{f' ({path})' if path else ''}: {error}{hint} Correct the row, or leave it out."


def check_dataset(
    dataset: "DatasetDict",
    spatial_concepts: list[str] | None = None,
    decode: int | None = 100,
    seed: int = 0,
    window: Sequence[float] | None = None,
    progress: bool = False,
) -> CheckReport:
    """
    Checks every row of a concept dataset as the image processor will read it, and asks whether it means what it says.

    Annotations, masks, headers and the ends of files are read of every row, and pictures are decoded in a sample.

    Args:
        dataset: dataset with the columns of the schema.
        spatial_concepts: names of a mask's concepts, see [`concepts_from_features`].
        decode: number of pictures to decode, drawn by the seed; None for all.
        seed: random seed of the pictures to decode.
        window: range of the image processor for images of more than eight bits.
        progress: whether to show a progress bar.
    """
    errors = _check_structure(dataset)
    if errors:
        return CheckReport(errors=errors)
    try:
        features = next(iter(dataset.values())).features
        labels, *names = concepts_from_features(features, spatial_concepts)
        problem = problem_type(features["label"])
        check_groups(dataset)
    except ValueError as error:
        return CheckReport(errors=[str(error)])
    tally = Tally([] if problem == "regression" else labels, {"global": names[0], "spatial": names[1]})
    total = sum(map(len, dataset.values()))
    chosen = set(np.random.default_rng(seed).permutation(total)[:decode].tolist())
    number = decoded = 0
    bad_rows: dict[str, list[int]] = {}
    bar = tqdm(total=total, desc="Checking the dataset", unit="row", leave=False, disable=not progress)
    for name, split in dataset.items():
        stored = stored_columns(split)
        for start in range(0, len(stored), ROWS_AT_A_TIME):
            columns = stored[start : start + ROWS_AT_A_TIME]
            for i, values in enumerate(zip(*columns.values(), strict=True), start=start):
                row = dict(zip(columns, values, strict=True))
                try:
                    decoded += _check_row(row, f"{name}[{i}]", name, number in chosen, window, tally, problem)
                except (TypeError, ValueError) as error:
                    errors.append(_row_error(error, row, f"Split {name}, row {i}"))
                    bad_rows.setdefault(name, []).append(i)
                number += 1
            bar.update(len(columns["label"]))
    bar.close()
    # First, as it may explain the others.
    errors = [f"{sentence}." for sentence in tally.errors()] + errors
    warnings = [f"{sentence}." for sentence in tally.warnings(window)]
    return CheckReport(total, decoded, errors, warnings, bad_rows)


def check_once(dataset: "DatasetDict", progress: bool = False, **settings: Any) -> CheckReport:
    """
    Gives the report of [`check_dataset`]: kept from before, for a dataset that it had no errors in.

    A report is kept in the cache of `datasets`, by the fingerprints and files of the splits and by the settings.
    """
    from datasets import config

    from ascent_vit import __version__

    state: list[Any] = [__version__, sorted(settings.items())]
    for name, split in dataset.items():
        files = [Path(file["filename"]) for file in split.cache_files]
        state.append((name, split._fingerprint, [(str(path), path.stat().st_mtime_ns) for path in files]))
    key = hashlib.sha256(repr(state).encode()).hexdigest()[:32]
    kept = Path(config.HF_DATASETS_CACHE) / "ascent_vit_checks" / f"{key}.json"
    with suppress(FileNotFoundError, ValueError, TypeError):
        return CheckReport(**read_json(kept))
    report = check_dataset(dataset, progress=progress, **settings)
    if not report.errors:
        # A cache that cannot be written makes the check slower the next time, and nothing else.
        with suppress(OSError):
            write_json(kept, asdict(report))
    return report


def validate_dataset(dataset: "DatasetDict", spatial_concepts: list[str] | None = None) -> None:
    """
    Checks every row of a concept dataset as the image processor will: what passes can be trained on.

    Args:
        dataset: dataset with the columns of the schema.
        spatial_concepts: names of a mask's concepts, see [`concepts_from_features`].

    Raises:
        ValueError: naming the split, the row, the column, what is wrong and what to do, of the first ten errors: for
            splits with different features, with rows of the same group or without rows, missing columns, labels and
            concepts out of range, points and boxes outside their image, masks of another size or with other values
            than the concepts', and places of concepts that the row's `present` leaves out.
    """
    report = check_dataset(dataset, spatial_concepts)
    for warning in report.warnings:
        logger.warning("%s", warning)
    report.raise_errors()


__all__ = ["CheckReport", "check_concepts", "check_dataset", "check_groups", "check_once", "validate_dataset"]

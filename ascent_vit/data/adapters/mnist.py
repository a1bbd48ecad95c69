# SPDX-License-Identifier: Apache-2.0
"""Concept-MNIST: is a handwritten digit even or odd, by way of ten concepts, the digits (Rigotti et al., 2022)."""

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from modeling_ascent_vit.image_inputs_ascent_vit import opened_image

from ..digits import CLASSES, CONCEPTS, INK_THRESHOLD, ink_cell
from ..prepared import PreparedDataset
from ..schema import concept_features


if TYPE_CHECKING:
    from datasets import Dataset

OFFICIAL_SIZES = {"train": 60_000, "test": 10_000}
SHARD = re.compile(r"(train|test)-(\d{5})-of-(\d{5})\.parquet")

DESCRIPTION = """\
[MNIST](https://huggingface.co/datasets/ylecun/mnist) (LeCun, Cortes and Burges, 1998): handwritten digits, 28 x 28
pixels, here to be told apart as even or odd. The task and its ten concepts, the digits, are those of the Concept
Transformer (Rigotti, Miksovic, Giurgiu, Gschwind and Scotton, "Attention-based Interpretability with Concept
Transformers", ICLR 2022). Images are the dataset's own files. The test split is the official one, of {test} images; of
the {train} official train images, {validation} are the validation split, stratified by digit.

The digit of an image is a global concept (`concepts`).{ink}{present}
"""
INK = """ Its ink, the pixels above {threshold} of 255, is the same digit as a spatial
concept: `mask` holds digit + 1 there and 0 elsewhere, and the names of its concepts are those of `concepts`."""
PRESENT = " It is also listed as a spatial concept that is somewhere in the image (`present`)."


def _shards(source: Path) -> dict[str, list[Path]]:
    """Finds the parquet files of both splits, all of them in one folder."""
    if not source.is_dir():
        raise FileNotFoundError(f"There is no folder {source}: give the one that holds MNIST's parquet files.")
    found: dict[str, list[Path]] = {"train": [], "test": []}
    for path in sorted(source.rglob("*.parquet")):
        match = SHARD.fullmatch(path.name)
        if match:
            found[match[1]].append(path)
    for split, paths in found.items():
        if not paths:
            raise FileNotFoundError(f"{source} holds no {split}-00000-of-00001.parquet: download the whole dataset.")
        total = int(paths[0].name[-13:-8])
        names = [f"{split}-{shard:05d}-of-{total:05d}.parquet" for shard in range(total)]
        if [path.name for path in paths] != names or len({path.parent for path in paths}) > 1:
            raise ValueError(
                f"{source} must hold one MNIST, {split} in {', '.join(names)}; it holds "
                f"{', '.join(str(path.relative_to(source)) for path in paths)}."
            )
    return found


def _read(paths: list[Path]) -> tuple[list[bytes], np.ndarray]:
    """Reads image files and digits."""
    import pyarrow
    import pyarrow.parquet

    images: list[bytes] = []
    digits: list[int] = []
    for path in paths:
        try:
            table = pyarrow.parquet.read_table(path, columns=["image", "label"])
            images += [cell["bytes"] for cell in table["image"].to_pylist()]
            digits += table["label"].to_pylist()
        except (pyarrow.ArrowException, OSError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not MNIST in parquet with image and label: {error} Download it again."
            ) from error
    wrong = [row for row, digit in enumerate(digits) if digit not in range(10)]
    if wrong:
        raise ValueError(f"Row {wrong[0]} of {paths[0].parent} has the label {digits[wrong[0]]}; expected 0 to 9.")
    return images, np.array(digits, dtype=np.int64)


def _ink(image: bytes, digit: int, where: str) -> dict[str, Any]:
    """Makes the mask of a digit from its image file."""
    with opened_image(io.BytesIO(image), f"The image of {where}", "download the dataset again.") as opened:
        pixels = np.asarray(opened.convert("L"))
    return ink_cell(pixels, digit)


def _build(images: list[bytes], digits: np.ndarray, rows: np.ndarray, spatial: list[str], name: str) -> "Dataset":
    from datasets import Dataset, Value

    features = concept_features(CLASSES, CONCEPTS, CONCEPTS if spatial else None, spatial, {"row": Value("int32")})
    chosen = digits[rows].tolist()
    columns: dict[str, list] = {
        "image": [{"bytes": images[row], "path": None} for row in rows],
        "label": [digit % 2 for digit in chosen],
        "concepts": [[digit] for digit in chosen],
        "present": [[digit] for digit in chosen],
        "row": rows.tolist(),
    }
    if "mask" in spatial:
        pairs = zip(tqdm(rows, desc=f"Masks of {name}", unit="image", leave=False), chosen, strict=True)
        columns["mask"] = [_ink(images[row], digit, f"{name}, row {row}") for row, digit in pairs]
    return Dataset.from_dict({key: columns[key] for key in features}, features=features)


def prepare(
    source: Path, *, validation_size: int = 5000, ink: bool = True, present: bool = False, seed: int = 0
) -> PreparedDataset:
    """
    Prepares Concept-MNIST: even or odd, the digit as a global concept, its ink as a spatial one.

    Args:
        source: folder with train-00000-of-00001.parquet and test-00000-of-00001.parquet, as the Hub has them
            (`ylecun/mnist`), at any depth.
        validation_size: images of the train split that become the validation split, stratified by digit; 0 for none.
        ink: whether to write `mask`.
        present: whether to list the digit as a spatial concept too. Without it and ink there are global concepts only.
        seed: random seed of the validation split.

    Returns:
        Splits train (55,000), validation (5,000) and official test (10,000), each in the order of the official file,
        whose row numbers are in `row`.

    Raises:
        FileNotFoundError: for missing files.
        ValueError: for files that are incomplete or hold something else, or a validation split that is too large.
    """
    from datasets import DatasetDict
    from sklearn.model_selection import train_test_split

    read = {split: _read(paths) for split, paths in _shards(Path(source)).items()}
    for split, expected in OFFICIAL_SIZES.items():
        if len(read[split][1]) != expected:
            raise ValueError(
                f"MNIST has {expected:,} {split} images; {source} holds {len(read[split][1]):,}. Download it again."
            )
    digits = read["train"][1]
    if validation_size and not 10 <= validation_size <= len(digits) // 2:
        raise ValueError(f"validation_size must be 0, or from 10 to {len(digits) // 2:,}; got {validation_size}.")
    rows: dict[str, np.ndarray] = {"train": np.arange(len(digits))}
    if validation_size:
        train, validation = train_test_split(
            rows["train"], test_size=validation_size, random_state=seed, stratify=digits
        )
        rows = {"train": np.sort(train), "validation": np.sort(validation)}
    rows["test"] = np.arange(len(read["test"][1]))
    spatial = ["mask"] * ink + ["present"] * present
    return PreparedDataset(
        dataset=DatasetDict(
            {name: _build(*read["test" if name == "test" else "train"], rows[name], spatial, name) for name in rows}
        ),
        title="Concept-MNIST: even or odd digits",
        license="mit",
        description=DESCRIPTION.format(
            test=f"{len(rows['test']):,}",
            train=f"{len(digits):,}",
            validation=f"{validation_size:,}",
            ink=INK.format(threshold=INK_THRESHOLD) if ink else "",
            present=PRESENT if present else "",
        ),
        settings={
            "validation_size": validation_size,
            "ink": ink,
            "ink_threshold": INK_THRESHOLD,
            "present": present or None,
            "seed": seed,
        },
    )


__all__ = ["prepare"]

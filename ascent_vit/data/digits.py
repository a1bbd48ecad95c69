# SPDX-License-Identifier: Apache-2.0
"""The demo's data: handwritten digits at any scale and place, told apart as even or odd."""

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .cells import image_cell
from .schema import concept_features


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features

CLASSES = ["even", "odd"]
CONCEPTS = [f"digit {digit}" for digit in range(10)]

# A pixel is ink from a quarter of full black on: the smooth upsampling leaves a faint rim around each stroke.
INK_THRESHOLD = 64


def _place(digit: np.ndarray, canvas: int, rng: np.random.Generator) -> np.ndarray:
    """Places a digit (8, 8) with values 0 to 16 on an empty canvas (canvas, canvas) with values 0 to 255."""
    side = int(rng.integers(canvas // 4, canvas + 1))
    top, left = rng.integers(0, canvas - side + 1, size=2)
    small = Image.fromarray(np.round(digit * (255 / 16)).astype(np.uint8))
    placed = np.zeros((canvas, canvas), dtype=np.uint8)
    placed[top : top + side, left : left + side] = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))
    return placed


def ink_cell(pixels: np.ndarray, digit: int) -> dict[str, Any]:
    """Makes a mask of a digit's ink, white on black (height, width), as a cell of an Image column."""
    mask = np.where(pixels > INK_THRESHOLD, digit + 1, 0).astype(np.uint8)
    return image_cell(Image.fromarray(mask), compress_level=1)


def _build_split(
    samples: np.ndarray,
    digits: np.ndarray,
    targets: np.ndarray,
    copies: int,
    canvas: int,
    seeds: list[int],
    features: "Features",
    placed_share: float,
) -> "Dataset":
    from datasets import Dataset

    columns: dict[str, list] = {name: [] for name in features}
    samples = np.repeat(samples, copies)
    # Drawn apart from places and sizes, which are the same with any share.
    marked = np.random.default_rng([*seeds, 1]).permutation(len(samples)) < round(placed_share * len(samples))
    rng = np.random.default_rng(seeds)
    for sample, is_marked in zip(samples, marked, strict=True):
        digit = int(targets[sample])
        placed = _place(digits[sample], canvas, rng)
        columns["image"].append(image_cell(Image.fromarray(placed), compress_level=1))
        columns["label"].append(digit % 2)
        columns["concepts"].append([digit])
        if "mask" in features:
            columns["mask"].append(ink_cell(placed, digit) if is_marked else None)
        if "present" in features:
            columns["present"].append([digit])
        columns["sample"].append(int(sample))
    return Dataset.from_dict(columns, features=features)


def load_digits_dataset(
    seed: int = 0,
    copies: int = 8,
    canvas: int = 64,
    held_out_copies: int = 1,
    ink: bool = True,
    present: bool = False,
    placed: float = 1.0,
) -> "DatasetDict":
    """
    Places handwritten digits at a random scale and place on an empty canvas, to be told apart as even or odd.

    The 1,797 scans are those of scikit-learn's `load_digits`, 8 x 8 pixels with 17 shades, from the UCI set "Optical
    Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998, CC BY 4.0). They are split by scan, stratified by
    digit: 70 % train, 10 % validation, 20 % test, so that no scan is in two splits however often it is placed.

    Args:
        seed: random seed of the split, and of every scale and place.
        copies: number of placements of each train scan, each different.
        canvas: height and width of the images in pixels, 16 or more. A digit's side is from a quarter of it to all.
        held_out_copies: number of placements of each validation and test scan.
        ink: whether to mark where the digit is, in `mask`.
        present: whether to list the digit as a spatial concept that is somewhere in the image, in `present`.
        placed: share of the train images in which the ink is marked, drawn at random; in the others it is not known.

    Returns:
        A `DatasetDict` with train, validation and test, and the columns image (L, white on black), label (even or
        odd), concepts (the digit), mask (digit + 1 where there is ink, else 0), present (the digit) and sample (the
        scan's number).

    Raises:
        ValueError: for fewer than one copy, a canvas below 16 pixels, or a share outside 0 to 1.
    """
    for name, value, least in (("copies", copies, 1), ("held_out_copies", held_out_copies, 1), ("canvas", canvas, 16)):
        if value < least:
            raise ValueError(f"{name} must be {least} or more; got {value}.")
    if not 0 <= placed <= 1:
        raise ValueError(f"placed must be a share from 0 to 1; got {placed}.")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError("The digits come with scikit-learn: pip install 'ascent-vit[train]'.") from error
    from datasets import DatasetDict, Value

    columns = ["mask"] * ink + ["present"] * present
    # Where there is a mask alone, names of its concepts are those of the global ones.
    spatial_concepts = CONCEPTS if present else None
    features = concept_features(CLASSES, CONCEPTS, spatial_concepts, columns, {"sample": Value("int32")})
    digits, targets = load_digits(return_X_y=True)
    digits = digits.reshape(-1, 8, 8)
    rest, test = train_test_split(np.arange(len(digits)), test_size=0.2, random_state=seed, stratify=targets)
    train, validation = train_test_split(rest, test_size=0.125, random_state=seed, stratify=targets[rest])
    splits = {
        "train": (train, copies, placed),
        "validation": (validation, held_out_copies, 1.0),
        "test": (test, held_out_copies, 1.0),
    }
    return DatasetDict(
        {
            name: _build_split(np.sort(samples), digits, targets, number, canvas, [seed, i], features, share)
            for i, (name, (samples, number, share)) in enumerate(splits.items())
        }
    )


__all__ = ["CLASSES", "CONCEPTS", "INK_THRESHOLD", "ink_cell", "load_digits_dataset"]

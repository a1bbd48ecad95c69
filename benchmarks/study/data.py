# SPDX-License-Identifier: Apache-2.0
"""The data of the study: what a run trains and is tested on."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict
from datasets import Image as ImageFeature
from PIL import Image, ImageOps
from plan import StudyRun

from ascent_vit.data import load_concept_dataset, load_digits_dataset
from ascent_vit.evaluation.leakage import PermutedTargets
from ascent_vit.training.recipe import Recipe


# Placements of each test scan: more images where a bin is small.
TEST_COPIES = 2
# Canvases wider than those of training, where some digits are smaller than any in training.
WIDER = (2.0,)
# Upper ends of bins of the height of the ink, as a share of the image.
HEIGHTS = (0.3, 0.5, 0.75, 1.0)
# Digits of at most this height have a place worth naming.
SMALL = 0.5

# Photographs for small backbones are reduced to this shorter side once, instead of decoded whole for each run.
PHOTO_SIDE = 96

ROTATIONS = ["0", "90", "180", "270"]


def reduced(dataset: DatasetDict) -> DatasetDict:
    """Photographs with a shorter side of PHOTO_SIDE pixels, and their points with them."""

    def reduce(row: dict[str, Any]) -> dict[str, Any]:
        image = row["image"].convert("RGB")
        factor = PHOTO_SIDE / min(image.size)
        size = [max(1, round(side * factor)) for side in image.size]
        across, down = size[0] / image.width, size[1] / image.height
        points = row["points"] | {"xy": [[x * across, y * down] for x, y in row["points"]["xy"]]}
        return {"image": image.resize(size, Image.Resampling.BICUBIC), "points": points}

    return dataset.map(reduce, keep_in_memory=True, load_from_cache_file=False)


@functools.cache
def load_once(name: str, text: str, folder: Path, whole_images: bool) -> DatasetDict:
    """A dataset with all splits, read or drawn once for all runs on it; `text` holds the digits' options as JSON."""
    if name == "digits":
        options = json.loads(text)
        dataset = load_digits_dataset(**options)
        dataset["test"] = load_digits_dataset(**(options | {"copies": 1, "held_out_copies": TEST_COPIES}))["test"]
        return dataset
    source = folder / name
    if not source.is_dir():
        raise FileNotFoundError(f"There is no {source}: the page says how it is made.")
    dataset = load_concept_dataset(str(source))
    return reduced(dataset) if "points" in dataset["train"].features and not whole_images else dataset


def load(run: StudyRun, recipe: Recipe, folder: Path) -> DatasetDict:
    """All splits of a run's dataset; the digits' are drawn by the run's seed."""
    options = recipe.dataset_options | {"seed": run.seed} if run.dataset == "digits" else {}
    return load_once(run.dataset, json.dumps(options), folder, run.whole_images)


def permuted(split: Dataset, seed: int) -> Dataset:
    """Photographs with the concepts of another one of them, its points at the same share of width and height."""
    donors = PermutedTargets(split, seed).donors
    sizes = [image.size for image in split["image"]]
    concepts, points = split["concepts"][:], split["points"][:]

    def replace(row: dict[str, Any], index: int) -> dict[str, Any]:
        donor = donors[index]
        (width, height), (own_width, own_height) = sizes[donor], sizes[index]
        xy = [[x * own_width / width, y * own_height / height] for x, y in points[donor]["xy"]]
        return {"concepts": concepts[donor], "points": points[donor] | {"xy": xy}}

    return split.map(replace, with_indices=True, keep_in_memory=True, load_from_cache_file=False)


def train_part(run: StudyRun, recipe: Recipe, dataset: DatasetDict) -> DatasetDict:
    """
    What a run trains on: train and validation without the test split, which is judged by `run.py` alone.

    With `steps`, train is `train_images` drawn by the seed, as often as the steps need them, and one epoch long.
    """
    train, validation = dataset["train"], dataset["validation"]
    if run.permuted:
        train = permuted(train, run.seed)
    rng = np.random.default_rng(run.seed)
    if run.steps is not None:
        rows = rng.permutation(len(train))[: run.train_images]
        train = train.select(np.resize(rows, run.steps * recipe.per_device_train_batch_size))
        # It chooses nothing.
        validation = validation.select(range(min(100, len(validation))))
    return DatasetDict(train=train, validation=validation)


def rotations(dataset: DatasetDict, side: int) -> DatasetDict:
    """Train and validation as a task without annotation: by how much was the image turned?"""

    def turned(split: Dataset, seed: int) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        for image in split["image"]:
            turns = int(rng.integers(len(ROTATIONS)))
            small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            yield {"image": small.rotate(90 * turns), "label": turns}

    parts = {}
    for seed, name in enumerate(("train", "validation")):
        rows = list(turned(dataset[name], seed))
        columns = {key: [row[key] for row in rows] for key in ("image", "label")}
        split = Dataset.from_dict(columns)
        parts[name] = split.cast_column("label", ClassLabel(names=ROTATIONS)).cast_column("image", ImageFeature())
    return DatasetDict(parts)


def widened(split: Dataset, factor: float) -> Dataset:
    """Digits on a canvas that is wider by a factor, in the middle of it."""

    def widen(row: dict[str, Any]) -> dict[str, Any]:
        border = round(row["image"].width * (factor - 1) / 2)
        return {name: ImageOps.expand(row[name], border, 0) for name in ("image", "mask")}

    return split.map(widen, keep_in_memory=True, load_from_cache_file=False)


def ink_boxes(split: Dataset) -> np.ndarray:
    """Left, top, right and bottom of each image's ink as shares of the image, (N, 4)."""
    boxes = []
    for mask in split["mask"]:
        left, top, right, bottom = mask.getbbox()
        boxes.append([left / mask.width, top / mask.height, right / mask.width, bottom / mask.height])
    return np.array(boxes)


def scale_parts(split: Dataset) -> dict[str, Dataset]:
    """
    Parts of the digits' test split by the height of the ink, by the place of small ones, and on wider canvases.

    The place is the distance of the ink's middle from the image's, along the axis where it is greater, as a share of
    the greatest distance that the ink's size allows.
    """
    left, top, right, bottom = ink_boxes(split).T
    height = bottom - top
    parts, low = {}, 0.0
    for high in HEIGHTS:
        parts[f"height {low:g} to {high:g}"] = np.flatnonzero((low < height) & (height <= high))
        low = high
    across, down = (np.abs(a + b - 1) / np.maximum(1 - (b - a), 1e-6) for a, b in ((left, right), (top, bottom)))
    place = np.maximum(across, down)
    parts["small, near the middle"] = np.flatnonzero((height <= SMALL) & (place <= 0.5))
    parts["small, near the edge"] = np.flatnonzero((height <= SMALL) & (place > 0.5))
    found = {name: split.select(rows) for name, rows in parts.items() if len(rows)}
    return found | {f"canvas {factor:g} times as wide": widened(split, factor) for factor in WIDER}

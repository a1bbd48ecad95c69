# SPDX-License-Identifier: Apache-2.0
"""Rows of a concept dataset with global concepts, boxes and points."""

from collections.abc import Callable

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image


LABELS, GLOBAL, SPATIAL = ["cat", "dog"], ["indoors", "outdoors", "night"], ["ear", "tail"]
OBJECTS = {"bbox": List(List(Value("float32"), length=4)), "category": List(ClassLabel(names=SPATIAL))}
POINTS = {"xy": List(List(Value("float32"), length=2)), "category": List(ClassLabel(names=SPATIAL))}
FEATURES = {
    "image": ImageFeature(),
    "label": ClassLabel(names=LABELS),
    "concepts": List(ClassLabel(names=GLOBAL)),
    "objects": OBJECTS,
    "points": POINTS,
}


def make_image(seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _make_dataset(number: int = 6) -> Dataset:
    columns = {
        "image": [make_image(i) for i in range(number)],
        "label": [i % 2 for i in range(number)],
        "concepts": [[[0], [1, 2], [], None][i % 4] for i in range(number)],
        "objects": [{"bbox": [[0, 0, 16, 8]], "category": [i % 2]} for i in range(number)],
        "points": [{"xy": [[20.5, 30.5]], "category": [0]} if i % 3 else None for i in range(number)],
    }
    return Dataset.from_dict(columns, features=Features(FEATURES))


@pytest.fixture
def make_dataset() -> Callable[..., Dataset]:
    """Makes a dataset of some rows, six by default."""
    return _make_dataset

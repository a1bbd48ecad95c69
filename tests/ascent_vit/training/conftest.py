# SPDX-License-Identifier: Apache-2.0
"""A few digits and a model of two layers to train on them."""

import dataclasses

import pytest
from datasets import DatasetDict

from ascent_vit.data import load_digits_dataset
from ascent_vit.training import Recipe


BACKBONE = {
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
TINY_RECIPE = Recipe(
    model={"backbone_config": BACKBONE, "fusion_heads": 4, "pyramid_norm": "group"},
    learning_rate=1e-3,
    num_train_epochs=2,
    per_device_train_batch_size=8,
    per_device_eval_batch_size=16,
    seed=1,
    save_total_limit=None,
    name="tiny",
)


@pytest.fixture(scope="session")
def few_digits() -> DatasetDict:
    """36 images to train on, 20 to validate, 20 to test."""
    digits = load_digits_dataset(copies=1, canvas=32)
    numbers = {"train": 36, "validation": 20, "test": 20}
    return DatasetDict({name: digits[name].select(range(number)) for name, number in numbers.items()})


def make_tiny_recipe(**changes) -> Recipe:
    """Two epochs of four steps of 8 images."""
    model = TINY_RECIPE.model | changes.pop("model", {})
    return dataclasses.replace(TINY_RECIPE, model=model, **changes)


@pytest.fixture(name="tiny_recipe", scope="session")
def tiny_recipe_fixture():
    return make_tiny_recipe

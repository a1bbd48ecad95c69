# SPDX-License-Identifier: Apache-2.0
"""Presets and recipes that come with the package."""

import dataclasses

import pytest
import torch

from ascent_vit.training import Recipe, load_recipe
from ascent_vit.training.build import build_config
from ascent_vit.training.reading import configuration_files
from ascent_vit.training.recipe import FIELDS
from modeling_ascent_vit import AscentViTForImageClassification


LABELS, CONCEPTS = ["a", "b", "c"], [f"concept {i}" for i in range(10)]

# Hidden size, layers, heads of the published models.
SHAPES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
PATCHES = {"vit": 16, "dinov2": 14}

# What the authors state for CUB, as far as a recipe holds it.
AUTHORS_CUB = {
    "learning_rate": 5e-5,
    "weight_decay": 1e-3,
    "per_device_train_batch_size": 32,
    "num_train_epochs": 50,
    "warmup_epochs": 10,
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 1.0,
}


def test_the_presets_are_every_size_of_two_backbones():
    assert sorted(configuration_files("models")) == sorted(f"{kind}-{size}" for kind in PATCHES for size in SHAPES)


@pytest.mark.parametrize("preset", sorted(configuration_files("models")))
def test_a_preset_builds_its_model(preset):
    kind, size = preset.split("-")
    config = build_config(Recipe(model=preset), LABELS, CONCEPTS, CONCEPTS[:4])
    backbone = config.backbone_config
    assert (backbone.hidden_size, backbone.num_hidden_layers, backbone.num_attention_heads) == SHAPES[size]
    assert (backbone.model_type, config.patch_size) == (kind, (PATCHES[kind],) * 2)
    assert (config.num_labels, config.num_global_concepts, config.num_spatial_concepts) == (3, 10, 4)
    assert (config.id2label[1], config.concept_attention_heads, config.psi) == ("b", 2, 1.0)
    with torch.device("meta"):
        model = AscentViTForImageClassification(config)
    assert (config.pyramid_stem, config.pyramid_channels) == ("conv", [64, 128, 256, 256])
    layers = SHAPES[size][1] * 12 * SHAPES[size][0] ** 2
    assert 0 < sum(p.numel() for p in model.ascent_vit.backbone.parameters()) - layers < 0.06 * layers + 1e6


@pytest.mark.parametrize("name", sorted(configuration_files("recipes")))
def test_a_recipe_is_valid(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert Recipe(**dataclasses.asdict(recipe)) == recipe
    if recipe.backbone is None:
        build_config(recipe, LABELS, CONCEPTS, CONCEPTS[:4])


def test_the_cub_recipe_has_the_authors_settings():
    recipe = load_recipe("cub")
    assert {key: getattr(recipe, key) for key in AUTHORS_CUB} == AUTHORS_CUB
    assert (recipe.model["concept_loss_weight"], recipe.model["entropy_loss_weight"]) == (1.0, 0.5)


def test_the_concept_mnist_model_is_small():
    config = build_config(load_recipe("concept-mnist"), LABELS[:2], CONCEPTS, CONCEPTS)
    assert sum(p.numel() for p in AscentViTForImageClassification(config).parameters()) < 2e6


def test_the_names_of_keys_are_those_of_training_arguments():
    from transformers import TrainingArguments

    ours = {
        "model",
        "backbone",
        "image_size",
        "num_channels",
        "dtype",
        "label_smoothing",
        "class_weights",
        "backbone_learning_rate",
        "layer_decay",
        "freeze_backbone",
        "frozen_layers",
        "cache_features",
        "feature_views",
        "dataset",
        "dataset_options",
        "problem_type",
        "processor",
        "augmentation",
        "warmup_epochs",
        "head_only_epochs",
        "mixed_precision",
        "ema_decay",
        "cache_mebibytes",
        "name",
    }
    assert set(FIELDS) - ours <= {field.name for field in dataclasses.fields(TrainingArguments)}

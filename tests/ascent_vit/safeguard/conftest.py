# SPDX-License-Identifier: Apache-2.0
"""A small model with a concept in both streams, its image processor, and calibration images with its classes."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, List
from PIL import Image as Picture

from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


CLASSES = ["tern", "bunting", "wren"]
GLOBAL, SPATIAL = ["striped", "beak", "large"], ["beak", "wing", "tail", "crest"]


@pytest.fixture
def make_model(make_config):
    def make(none_concept=True, seed=0, **kwargs):
        torch.manual_seed(seed)
        streams = {"global_concepts": GLOBAL, "spatial_concepts": SPATIAL} | kwargs.pop("streams", {})
        config = make_config(
            num_labels=3, id2label=dict(enumerate(CLASSES)), none_concept=none_concept, **streams, **kwargs
        )
        model = AscentViTForImageClassification(config).eval()
        with torch.no_grad():
            for stream in model.streams().values():
                # As after training: concepts that differ, biases that are not 0, a gate neither open nor closed.
                stream.projection.bias.normal_()
                stream.projection.weight.mul_(40)
                stream.concepts.mul_(40)
                if stream.gate is not None:
                    stream.gate.weight.mul_(30)
                    stream.gate.bias.zero_()
        return model, AscentViTImageProcessor.from_model_config(config)

    return make


@pytest.fixture
def model_and_processor(make_model):
    return make_model()


def make_images(number, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Picture.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((48, 48), Picture.Resampling.NEAREST)
        for _ in range(number)
    ]


def make_dataset(number=60, seed=0, classes=CLASSES, labels=None):
    rng = np.random.default_rng(seed + 1)
    labels = rng.integers(0, len(classes), number).tolist() if labels is None else labels
    columns = {
        "image": make_images(number, seed),
        "label": labels,
        "concepts": [sorted(rng.choice(3, rng.integers(0, 4), replace=False).tolist()) for _ in range(number)],
    }
    features = Features(
        {"image": Image(), "label": ClassLabel(names=classes), "concepts": List(ClassLabel(names=GLOBAL))}
    )
    return Dataset.from_dict(columns, features=features)


@pytest.fixture(name="make_dataset")
def make_dataset_fixture():
    return make_dataset


@pytest.fixture(name="make_images")
def make_images_fixture():
    return make_images


@pytest.fixture
def guard(model_and_processor, make_dataset):
    from ascent_vit import Safeguard

    return Safeguard.fit(*model_and_processor, make_dataset(), alpha=0.2)

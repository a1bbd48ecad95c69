# SPDX-License-Identifier: Apache-2.0
"""A small real model of every stream, with its image processor, and an image."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


CLASSES = ["Black Tern", "Painted Bunting", "Indigo Bunting", "House Wren", "Winter Wren"]


@pytest.fixture
def make_model(make_config):
    def make(**kwargs):
        config = make_config(id2label=dict(enumerate(CLASSES)), **kwargs)
        model = AscentViTForImageClassification(config).eval()
        # Streams start with a bias of 0 and nearly equal concepts: a trained model has neither.
        with torch.no_grad():
            for stream in model.streams().values():
                stream.projection.bias.normal_()
                stream.concepts.mul_(20)
        return model, AscentViTImageProcessor.from_model_config(config)

    return make


@pytest.fixture
def model_and_processor(make_model):
    return make_model()


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))

# SPDX-License-Identifier: Apache-2.0
"""A small real model of every stream, a dataset of four classes with a damaged image, and their index."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from ascent_vit import ConceptIndex
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


pytest.importorskip("faiss")

CLASSES = ["Black Tern", "Painted Bunting", "Indigo Bunting", "House Wren", "Winter Wren"]
NUMBER, DAMAGED = 40, 7


@pytest.fixture(scope="session")
def pictures():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (NUMBER, 6, 6, 3), dtype=np.uint8)
    return [Image.fromarray(values).resize((60, 48), Image.Resampling.BICUBIC) for values in noise]


@pytest.fixture(scope="session")
def dataset(pictures):
    """Labels in another order than the model's; one class that the model does not have, one row without a label."""
    names = ["House Wren", "Painted Bunting", "Dodo"]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
    labels: list[int | None] = [i % 3 for i in range(NUMBER)]
    labels[5] = None
    images = [{"bytes": b"no image", "path": None} if i == DAMAGED else image for i, image in enumerate(pictures)]
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


def build_model(config):
    torch.manual_seed(0)
    model = AscentViTForImageClassification(config).eval()
    # Streams start with a bias of 0 and nearly equal concepts: a trained model has neither.
    with torch.no_grad():
        for stream in model.streams().values():
            stream.projection.bias.normal_()
            stream.concepts.mul_(40)
    return model, AscentViTImageProcessor.from_model_config(config)


@pytest.fixture(scope="session")
def make_index_model():
    return build_model


@pytest.fixture
def config(make_config):
    names = {"global_concepts": ["small", "large", "long"], "spatial_concepts": ["beak", "wing", "tail", "red crown"]}
    return make_config(id2label=dict(enumerate(CLASSES)), **names)


@pytest.fixture
def model_and_processor(config):
    return build_model(config)


@pytest.fixture(scope="session")
def index_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cases") / "index"


@pytest.fixture
def index(model_and_processor, dataset, index_folder):
    """The index, built by the first test."""
    if not index_folder.exists():
        ConceptIndex.build(*model_and_processor, dataset, thumbnails=True, concepts_per_image=2).save(index_folder)
    return ConceptIndex.load(index_folder)

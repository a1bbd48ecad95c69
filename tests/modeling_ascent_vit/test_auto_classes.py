# SPDX-License-Identifier: Apache-2.0
"""A saved folder in the hands of someone who knows transformers only."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    pipeline,
)
from transformers.utils import is_torchvision_available

from modeling_ascent_vit import (
    AscentViTConfig,
    AscentViTForImageClassification,
    AscentViTImageProcessor,
    AscentViTImageProcessorPil,
    AscentViTModel,
)


def picture(mode: str = "RGB", size: tuple[int, int] = (70, 50)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.fixture
def folder(make_config, tmp_path):
    config = make_config(id2label=dict(enumerate(["wren", "crow", "gull", "finch", "tern"])))
    AscentViTForImageClassification(config).save_pretrained(tmp_path)
    AscentViTImageProcessor.from_model_config(config).save_pretrained(tmp_path)
    return tmp_path


def test_auto_classes(folder):
    assert isinstance(AutoConfig.from_pretrained(folder), AscentViTConfig)
    assert isinstance(AutoModel.from_pretrained(folder), AscentViTModel)
    assert isinstance(AutoModelForImageClassification.from_pretrained(folder), AscentViTForImageClassification)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert isinstance(processor, AscentViTImageProcessor)
    assert (processor.num_global_concepts, processor.num_spatial_concepts) == (3, 4)


def test_pil_backend_by_name(folder):
    assert type(AutoImageProcessor.from_pretrained(folder, backend="pil")) is AscentViTImageProcessorPil


@pytest.mark.skipif(not is_torchvision_available(), reason="needs torchvision")
def test_torchvision_backend_by_name(folder):
    assert type(AutoImageProcessor.from_pretrained(folder, backend="torchvision")) is AscentViTImageProcessor
    assert AscentViTImageProcessor is not AscentViTImageProcessorPil


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "LA", "1", "CMYK"])
def test_pipeline_takes_any_mode(folder, mode):
    classifier = pipeline("image-classification", model=str(folder))
    answer = classifier(picture(mode))
    assert [set(entry) for entry in answer] == [{"label", "score"}] * 5
    assert {entry["label"] for entry in answer} == {"wren", "crow", "gull", "finch", "tern"}
    assert sum(entry["score"] for entry in answer) == pytest.approx(1, abs=1e-5)


def test_pipeline_agrees_with_the_model_alone_and_in_batches(folder, tmp_path):
    images = [picture(size=(70, 50)), picture("L", (20, 90)), picture("RGBA", (48, 48)), picture("P", (200, 33))]
    images[0].save(tmp_path / "first.png")
    classifier = pipeline("image-classification", model=str(folder))
    one_by_one = [classifier(image) for image in images]
    assert classifier(str(tmp_path / "first.png")) == one_by_one[0]
    for answer in (classifier(images), classifier(images, batch_size=3)):
        for got, expected in zip(answer, one_by_one, strict=True):
            for a, b in zip(got, expected, strict=True):
                assert a["label"] == b["label"] and a["score"] == pytest.approx(b["score"], abs=1e-5)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        scores = model(**processor([image.convert("RGB") for image in images], return_tensors="pt")).logits.softmax(-1)
    for row, answer in zip(scores, one_by_one, strict=True):
        for entry in answer:
            assert row[model.config.label2id[entry["label"]]].item() == pytest.approx(entry["score"], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pipeline_in_half_precision(folder, dtype):
    classifier = pipeline("image-classification", model=str(folder), dtype=dtype)
    assert classifier.model.dtype == dtype
    assert sum(entry["score"] for entry in classifier(picture())) == pytest.approx(1, abs=1e-2)


def test_feature_extraction_pipeline(folder):
    features = pipeline("image-feature-extraction", model=str(folder))(picture())
    assert np.array(features).shape == (1, 37, 32)

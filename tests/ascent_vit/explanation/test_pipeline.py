# SPDX-License-Identifier: Apache-2.0
"""The pipeline task: the same as `explain`, for images one by one, in batches, from generators and datasets."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ImageClassificationPipeline, ViTConfig, ViTForImageClassification, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from ascent_vit import explain


TASK = "concept-image-classification"


@pytest.fixture
def classifier(model_and_processor):
    model, processor = model_and_processor
    return pipeline(TASK, model=model, image_processor=processor)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    sizes = [(60, 90), (48, 48), (33, 100), (5, 7), (64, 64)]
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def test_it_says_what_explain_says(classifier, model_and_processor, image):
    explanation = explain(*model_and_processor, image)
    result = classifier(image, top_k=None, top_concepts=None)
    scores = [entry["score"] for entry in result]
    assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1)
    assert result[0]["label"] == explanation.label
    for entry in result:
        expected = explanation.for_class(entry["label"])
        assert entry["score"] == pytest.approx(expected.score, abs=1e-6)
        assert entry["logit"] == pytest.approx(expected.logit, abs=1e-5)
        total = sum(concept["contribution"] for concept in entry["concepts"]) + entry["class_bias"]
        assert total == pytest.approx(entry["logit"], abs=1e-5)
        assert [concept["name"] for concept in entry["concepts"]] == [concept.name for concept in expected.concepts]
        assert entry["concepts"][0].keys() == {"name", "stream", "attention", "contribution"}


def test_numbers_of_classes_and_concepts(classifier, image):
    assert len(classifier(image)) == 5
    (entry,) = classifier(image, top_k=1, top_concepts=2)
    assert len(entry["concepts"]) == 2
    (entry,) = classifier(image, class_id="House Wren")
    assert entry["label"] == "House Wren"
    assert classifier(image, class_id=3)[0] == entry


def test_maps_in_the_images_pixels(classifier, model_and_processor, image):
    explanation = explain(*model_and_processor, image, class_ids=1)
    (entry,) = classifier(image, class_id=1, top_concepts=None, maps=True)
    spatial = [concept for concept in entry["concepts"] if concept["stream"] == "spatial"]
    assert len(spatial) == 4
    for concept in spatial:
        index = explanation.concept(concept["name"]).index
        np.testing.assert_allclose(concept["attention_map"], explanation.attention_maps[index], atol=1e-6)
        np.testing.assert_allclose(concept["contribution_map"], explanation.contribution_maps[index], atol=1e-6)
        assert concept["attention_map"].shape == (60, 90)
    assert all("attention_map" not in c for c in entry["concepts"] if c["stream"] != "spatial")


@pytest.mark.parametrize("batch_size", [1, 2])
def test_many_images(classifier, images, tmp_path, batch_size):
    def check(results):
        for result, expected in zip(results, alone, strict=True):
            assert [entry["label"] for entry in result] == [entry["label"] for entry in expected]
            assert result[0]["score"] == pytest.approx(expected[0]["score"], abs=1e-5)
            shapes = [[np.shape(c.get("attention_map")) for c in entry["concepts"]] for entry in result]
            assert shapes == [[np.shape(c.get("attention_map")) for c in entry["concepts"]] for entry in expected]

    alone = [classifier(image, maps=True) for image in images]
    check(classifier(images, batch_size=batch_size, maps=True))
    check(classifier((image for image in images), batch_size=batch_size, maps=True))
    paths = [str(tmp_path / f"{i}.png") for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    check(classifier(paths, batch_size=batch_size, maps=True))
    check(classifier(KeyDataset([{"image": image} for image in images], "image"), batch_size=batch_size, maps=True))


def test_a_model_without_spatial_concepts(make_model, image):
    model, processor = make_model(num_global_concepts=3)
    (entry,) = pipeline(TASK, model=model, image_processor=processor)(image, top_k=1, maps=True)
    assert [concept["stream"] for concept in entry["concepts"]] == ["global"] * 3


def test_a_saved_model_in_half_precision(model_and_processor, image, tmp_path):
    for part in model_and_processor:
        part.save_pretrained(tmp_path)
    entry = pipeline(TASK, model=str(tmp_path), dtype=torch.bfloat16)(image)[0]
    assert entry["score"] == pytest.approx(explain(*model_and_processor, image).score, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_id": "House Wrens"}, "did you mean 'House Wren'"),
        ({"top_k": 0}, "top_k must be 1 or more"),
        ({"function_to_apply": "none"}, "takes top_k, top_concepts, class_id, maps; got function_to_apply"),
    ],
)
def test_bad_arguments(classifier, image, arguments, message):
    with pytest.raises(ValueError, match=message):
        classifier(image, **arguments)


def test_other_models_are_refused(model_and_processor):
    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = ViTForImageClassification(ViTConfig(**layers, image_size=48, patch_size=8))
    with pytest.raises(ValueError, match="model must be an ASCENT-ViT model"):
        pipeline(TASK, model=vit, image_processor=model_and_processor[1])


def test_a_folder_that_the_pipeline_saves_is_whole(classifier, image, tmp_path):
    classifier.save_pretrained(tmp_path)
    (named,) = json.loads((tmp_path / "config.json").read_text())["custom_pipelines"].values()
    module, name = named["impl"].split(".")
    assert (tmp_path / f"{module}.py").is_file() and name == type(classifier).__name__
    # With the package, the registered pipeline takes the folder, and no code in it needs to be trusted.
    again = pipeline(TASK, model=str(tmp_path))
    assert type(again) is type(classifier) and not hasattr(again.model.config, "custom_pipelines")
    assert again(image, top_k=1)[0]["logit"] == pytest.approx(classifier(image, top_k=1)[0]["logit"], abs=1e-6)


def test_image_classification_is_as_it_was(model_and_processor, image):
    model, processor = model_and_processor
    classifier = pipeline("image-classification", model=model, image_processor=processor)
    assert type(classifier) is ImageClassificationPipeline
    best = classifier(image)[0]
    explanation = explain(model, processor, image)
    assert best == {"label": explanation.label, "score": pytest.approx(explanation.score, abs=1e-6)}

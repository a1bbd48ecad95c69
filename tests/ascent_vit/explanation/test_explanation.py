# SPDX-License-Identifier: Apache-2.0
"""Explanations of a small real model: exact, in the right place, from every kind of image."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ascent_vit import explain
from ascent_vit.explanation.explanation import array_to_image, read_image
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


CLASSES = ["Black Tern", "Painted Bunting", "Indigo Bunting", "House Wren", "Winter Wren"]


def make_model(make_config, **kwargs):
    config = make_config(id2label=dict(enumerate(CLASSES)), **kwargs)
    model = AscentViTForImageClassification(config).eval()
    # Streams start with a bias of 0, and fusion at 0: a trained model has neither.
    with torch.no_grad():
        for stream in model.streams().values():
            stream.projection.bias.normal_()
            stream.concepts.mul_(20)
    return model, AscentViTImageProcessor.from_model_config(config)


@pytest.fixture
def model_and_processor(make_config):
    return make_model(make_config)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


def test_contributions_and_bias_are_the_logit(model_and_processor, image):
    model, processor = model_and_processor
    for class_id in range(5):
        explanation = explain(model, processor, image, class_ids=class_id)
        total = sum(concept.contribution for concept in explanation.concepts) + explanation.class_bias
        assert total == pytest.approx(explanation.logits[class_id], abs=1e-5)
        assert explanation.additivity_error < 1e-5
        assert explanation.class_bias == pytest.approx(model.class_bias()[class_id].item())


def test_explanation_says_what_the_model_says(model_and_processor, image):
    model, processor = model_and_processor
    explanation = explain(model, processor, image)
    with torch.no_grad():
        out = model(**processor(image, return_tensors="pt"), output_contributions=True)
    predicted = out.logits.argmax().item()
    assert explanation.label_id == predicted
    assert explanation.label == explanation.predicted_label == CLASSES[predicted]
    assert explanation.score == pytest.approx(out.logits.softmax(-1)[0, predicted].item(), abs=1e-6)
    np.testing.assert_allclose(explanation.logits, out.logits[0].numpy(), atol=1e-6)
    places = {(concept.stream, concept.index): concept for concept in explanation.concepts}
    columns = [*(("global", i) for i in range(3)), *(("spatial", i) for i in range(4))]
    columns += [("unsupervised", i) for i in range(2)]
    assert places.keys() == set(columns)
    for column, place in enumerate(columns):
        concept = places[place]
        assert concept.name == model.config.concepts[column]
        assert concept.contribution == pytest.approx(out.concept_contributions[0, column, predicted].item(), abs=1e-6)
    assert places["global", 1].attention == pytest.approx(out.global_concept_attention[0, 1].item(), abs=1e-6)
    mean = out.spatial_concept_attention[0, :, 2].mean().item()
    assert places["spatial", 2].attention == pytest.approx(mean, abs=1e-6)
    unsupervised = out.unsupervised_concept_attention[0, 1].item()
    assert places["unsupervised", 1].attention == pytest.approx(unsupervised, abs=1e-6)


def test_concepts_are_sorted_by_signed_contribution(model_and_processor, image):
    explanation = explain(*model_and_processor, image)
    contributions = [concept.contribution for concept in explanation.concepts]
    assert contributions == sorted(contributions, reverse=True)
    assert min(contributions) < 0 < max(contributions)
    top = explanation.top(2)
    assert {abs(concept.contribution) for concept in top} == set(sorted(map(abs, contributions))[-2:])
    assert top[0].contribution > top[1].contribution
    assert {concept.stream for concept in explanation.top(9, stream="spatial")} == {"spatial"}


def test_patch_maps_sum_to_contributions_and_are_drawn_in_the_images_pixels(model_and_processor, image):
    explanation = explain(*model_and_processor, image.crop((0, 0, 90, 54)), class_ids=2)
    spatial = {c.index: c for c in explanation.concepts if c.stream == "spatial"}
    for index, concept in spatial.items():
        assert explanation.patch_contributions[index].sum() == pytest.approx(concept.contribution, abs=1e-5)
        assert explanation.patch_attention[index].mean() == pytest.approx(concept.attention, abs=1e-6)
    assert explanation.patch_attention.shape == (4, 6, 6)
    assert explanation.attention_maps.shape == explanation.contribution_maps.shape == (4, 54, 90)
    # 54x90 pixels on 6x6 patches: a patch is 9 high and 15 wide, and its centre pixel has its value.
    np.testing.assert_allclose(explanation.attention_maps[:, 31, 37], explanation.patch_attention[:, 3, 2], atol=1e-6)
    np.testing.assert_allclose(
        explanation.contribution_maps[:, 4, 82], explanation.patch_contributions[:, 0, 5], atol=1e-6
    )


def test_maps_show_the_place_of_the_image_that_matters(make_config):
    # One bright patch in a dark image, and patches that do not see each other: the maps differ at its place alone.
    model, processor = make_model(make_config, num_spatial_concepts=4, fusion_levels=0)
    pixels = np.zeros((96, 192, 3), dtype=np.uint8)
    pixels[16:32, 128:160] = 255
    with torch.no_grad():
        for layer in model.ascent_vit.backbone.layers:
            layer.attention.o_proj.weight.zero_()
        model.ascent_vit.backbone.embeddings.position_embeddings.zero_()
    explanation = explain(model, processor, Image.fromarray(pixels))
    difference = np.abs(explanation.attention_maps - explanation.attention_maps[:, -1:, :1]).sum(0)
    row, column = np.unravel_index(difference.argmax(), difference.shape)
    assert 16 <= row < 32 and 128 <= column < 160


def test_batches_and_single_images_agree(model_and_processor):
    rng = np.random.default_rng(1)
    images = [Image.fromarray(rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)) for i in range(5)]
    together = explain(*model_and_processor, images, class_ids=[0, "House Wren", 2, 1, 4], batch_size=2)
    assert [explanation.label for explanation in together] == [CLASSES[i] for i in (0, 3, 2, 1, 4)]
    for i, image in enumerate(images):
        alone = explain(*model_and_processor, image, class_ids=together[i].label_id)
        np.testing.assert_allclose(together[i].logits, alone.logits, atol=1e-5)
        np.testing.assert_allclose(together[i].patch_contributions, alone.patch_contributions, atol=1e-5)
        assert together[i].image.size == image.size
    assert explain(*model_and_processor, []) == []
    assert len(explain(*model_and_processor, iter(images[:2]))) == 2


def test_every_kind_of_image_gives_the_same(model_and_processor, image, tmp_path):
    image.save(tmp_path / "image.png")
    array = np.asarray(image)
    kinds = [
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        array,
        array.transpose(2, 0, 1),
        array / 255,
        torch.from_numpy(array.copy()),
        torch.from_numpy(array.copy()).permute(2, 0, 1) / 255,
        image.convert("RGBA"),
    ]
    expected = explain(*model_and_processor, image).logits
    for kind in kinds:
        np.testing.assert_array_equal(explain(*model_and_processor, kind).logits, expected)
    batch = explain(*model_and_processor, np.stack([array, array]))
    assert len(batch) == 2


def test_grey_images_and_single_channels():
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for array in (grey, grey[..., None], grey[None]):
        assert np.asarray(array_to_image(array)).tolist() == grey.tolist()
    assert read_image(Image.fromarray(grey)).mode == "RGB"


def test_sixteen_bit_images_keep_their_shades(tmp_path):
    shades = (np.arange(64, dtype=np.uint16) * 1024).reshape(8, 8)
    Image.fromarray(shades).save(tmp_path / "deep.png")
    assert np.asarray(read_image(tmp_path / "deep.png"))[..., 0].tolist() == (shades >> 8).tolist()


def test_images_are_turned_upright(image, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png").size == (60, 90)


def test_model_keeps_its_mode_and_gets_no_gradients(model_and_processor, image):
    model, processor = model_and_processor
    model.train()
    explain(model, processor, image)
    assert model.training
    with pytest.raises(ValueError):
        explain(model, processor, image, class_ids=99)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bfloat16(model_and_processor, image):
    model, processor = model_and_processor
    expected = explain(model, processor, image)
    explanation = explain(model.to(torch.bfloat16), processor, image)
    np.testing.assert_allclose(explanation.logits, expected.logits, atol=0.3)
    assert explanation.patch_attention.dtype == explanation.logits.dtype == np.float32


@pytest.mark.parametrize(
    "streams", [{"num_global_concepts": 3}, {"num_spatial_concepts": 3}, {"num_unsupervised_concepts": 3}]
)
def test_models_with_one_stream(make_config, image, streams):
    explanation = explain(*make_model(make_config, **streams), image)
    number = streams.get("num_spatial_concepts", 0)
    assert len(explanation.concepts) == 3
    assert explanation.additivity_error < 1e-5
    assert explanation.attention_maps.shape == explanation.contribution_maps.shape == (number, 60, 90)
    explanation.plot()


def test_to_dict_is_json_and_complete(model_and_processor, image):
    explanation = explain(*model_and_processor, image)
    values = json.loads(json.dumps(explanation.to_dict(maps=True)))
    assert values["label"] == explanation.label and values["image_size"] == [60, 90]
    assert values["concepts"][0] == {
        "name": explanation.concepts[0].name,
        "stream": explanation.concepts[0].stream,
        "index": explanation.concepts[0].index,
        "attention": explanation.concepts[0].attention,
        "contribution": explanation.concepts[0].contribution,
    }
    np.testing.assert_allclose(values["patch_contributions"], explanation.patch_contributions)
    assert "patch_attention" not in explanation.to_dict()


@pytest.mark.parametrize(
    ("class_id", "message"),
    [
        ("painted buntings", "did you mean 'Painted Bunting', 'Indigo Bunting'"),
        ("zebra!!", "the first are Black Tern"),
        (5, "classes are 0 to 4; the nearest, 4, is 'Winter Wren'"),
        (-1, "the nearest, 0, is 'Black Tern'"),
        ([0, 1], "one for each of the 1 images; got 2"),
    ],
)
def test_unknown_classes(model_and_processor, image, class_id, message):
    with pytest.raises(ValueError, match=message):
        explain(*model_and_processor, image, class_ids=class_id)


def test_unreadable_images(model_and_processor, image, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.png does not exist"):
        explain(*model_and_processor, [tmp_path / "nowhere.png"])
    with pytest.raises(FileNotFoundError, match="is a folder"):
        explain(*model_and_processor, tmp_path)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="text.png cannot be read"):
        explain(*model_and_processor, tmp_path / "text.png")
    image.save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1000])
    with pytest.raises(ValueError, match="cut.png cannot be read"):
        explain(*model_and_processor, tmp_path / "cut.png")


@pytest.mark.parametrize("array", [np.zeros((5, 5, 7)), np.full((4, 4), 2.0), np.full((4, 4), -1), np.zeros((0, 3))])
def test_arrays_that_are_no_images(array):
    with pytest.raises(ValueError, match="An image array must"):
        array_to_image(array)


def test_things_that_are_no_images_models_or_processors(model_and_processor, image):
    model, processor = model_and_processor
    with pytest.raises(ValueError, match="got int"):
        explain(model, processor, 5)
    with pytest.raises(ValueError, match="model must be an ASCENT-ViT model.*got Linear"):
        explain(torch.nn.Linear(2, 2), processor, image)
    with pytest.raises(ValueError, match="processor must be an ASCENT-ViT processor"):
        explain(model, None, image)
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        explain(model, processor, image, batch_size=0)


REMOTE = """
import sys
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
import transformers
folder = sys.argv[1]
# The toolkit registers its own classes: without that, these are the repository's.
for mapping in (transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, transformers.CONFIG_MAPPING):
    assert "ascent_vit" not in getattr(mapping, "_extra_content", {})
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
from ascent_vit import explain
explanation = explain(model, processor, Image.new("RGB", (60, 90)))
print(explanation.additivity_error)
"""


@pytest.mark.slow
def test_model_loaded_as_remote_code(make_config, tmp_path):
    model, processor = make_model(make_config)
    AscentViTForImageClassification.register_for_auto_class("AutoModelForImageClassification")
    type(model.config).register_for_auto_class("AutoConfig")
    type(processor).register_for_auto_class("AutoImageProcessor")
    try:
        model.save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
    finally:
        AscentViTForImageClassification._auto_class = type(model.config)._auto_class = None
        type(processor)._auto_class = None
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "HF_HOME": str(tmp_path / "hf"), "PATH": ""}
    process = subprocess.run(
        [sys.executable, "-c", REMOTE, str(tmp_path / "model")], env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert float(process.stdout.splitlines()[-1]) < 1e-5

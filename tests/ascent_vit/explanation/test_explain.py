# SPDX-License-Identifier: Apache-2.0
"""`explain` on a small real model: exact, in the right place, for every kind of image and model, a batch at a time."""

import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ascent_vit import explain


CLASSES = ["Black Tern", "Painted Bunting", "Indigo Bunting", "House Wren", "Winter Wren"]


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


def test_maps_show_the_place_of_the_image_that_matters(make_model):
    # One bright patch in a dark image, and patches that do not see each other: the maps differ at its place alone.
    model, processor = make_model(num_spatial_concepts=4, fusion_levels=0)
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


def test_model_runs_once_per_batch(model_and_processor, image, monkeypatch):
    model, processor = model_and_processor
    batches = []
    forward = model.ascent_vit.forward

    def counted(pixel_values, **kwargs):
        batches.append(len(pixel_values))
        return forward(pixel_values, **kwargs)

    monkeypatch.setattr(model.ascent_vit, "forward", counted)
    explanations = explain(model, processor, [image] * 5, batch_size=2)
    for explanation in explanations:
        explanation.for_class(1).contrast(1, 2).to_dict(maps=True)
    assert batches == [2, 2, 1]
    assert all(e.contribution_table is explanations[0].contribution_table for e in explanations)


@pytest.mark.parametrize("class_id", range(5))
def test_patch_contributions_are_the_models_contribution_maps(model_and_processor, image, class_id):
    model, processor = model_and_processor
    explanation = explain(model, processor, image, class_ids=class_id)
    with torch.no_grad():
        maps = model.contribution_maps(processor(image, return_tensors="pt")["pixel_values"], [class_id])
    np.testing.assert_allclose(explanation.patch_contributions, maps[0, 0].numpy(), atol=1e-6)


def test_iterators_hold_one_batch(model_and_processor):
    taken, given, held = 0, [], []

    def images():
        nonlocal taken
        rng = np.random.default_rng(0)
        while True:  # without an end: a list of it could never be made
            held.append(sum(reference() is not None for reference in given))
            taken += 1
            yield Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8))

    explanations = explain(*model_and_processor, images(), batch_size=3)
    assert taken == 0
    for number in range(1, 10):
        explanation = next(explanations)
        given.append(weakref.ref(explanation))
        assert explanation.additivity_error < 1e-5
        assert taken == -(-number // 3) * 3
    # When a batch is read, only the last explanation is left of those before, as it has a name here.
    assert held == [0] * 3 + [1] * 6


def test_iterators_take_a_class_per_image(model_and_processor, image):
    explanations = explain(*model_and_processor, iter([image] * 3), class_ids=iter([0, "House Wren", 2]), batch_size=2)
    assert [explanation.label_id for explanation in explanations] == [0, 3, 2]
    with pytest.raises(ValueError, match="it ended before image 2"):
        list(explain(*model_and_processor, iter([image] * 3), class_ids=[0]))


@pytest.mark.parametrize("size", [(1, 1), (8000, 50), (50, 8000)])
def test_images_of_odd_sizes(model_and_processor, size):
    explanation = explain(*model_and_processor, Image.new("RGB", size, (200, 20, 90)))
    assert explanation.additivity_error < 1e-5
    assert explanation.attention_maps.shape == (4, size[1], size[0])


def test_fusion_is_kept_on_request(make_model, image):
    model, processor = make_model()
    with torch.no_grad():
        model.ascent_vit.fusion.sampling_weights.weight.normal_()
    explanation = explain(model, processor, image, fusion=True)
    with torch.no_grad():
        out = model(**processor(image, return_tensors="pt"), output_fusion=True)
    weights, locations = out.fusion_weights[0], out.fusion_locations[0] * 6  # 48 pixels are 6 patches
    np.testing.assert_allclose(explanation.level_shares, weights.mean((0, 1)).sum(-1).numpy(), atol=1e-6)
    assert explanation.level_shares.std() > 1e-4
    expected = np.zeros((3, 6, 6))
    for patch in range(36):
        for head in range(4):
            for level in range(3):
                for point in range(4):
                    x, y = np.floor(locations[patch, head, level, point].numpy()).astype(int)
                    if 0 <= x < 6 and 0 <= y < 6:
                        expected[level, y, x] += weights[patch, head, level, point].item() / (36 * 4)
    np.testing.assert_allclose(explanation.fusion_maps, expected, atol=1e-6)
    assert explanation.fusion.strides == (8, 16, 32)
    with pytest.raises(ValueError, match="call explain with fusion=True"):
        explain(model, processor, image).fusion_maps  # noqa: B018
    with pytest.raises(ValueError, match="has no pyramid"):
        explain(*make_model(fusion_levels=0), image, fusion=True)


@pytest.mark.parametrize(
    "options",
    [{"none_concept": True}, {"fusion_levels": 0}, {"backbone": "siglip_vision_model"}, {"global_token": "pool"}],
)
def test_other_architectures(make_model, image, options):
    explanation = explain(*make_model(**options), image)
    assert explanation.additivity_error < 1e-5
    spatial = {c.index: c.contribution for c in explanation.concepts if c.stream == "spatial"}
    np.testing.assert_allclose(explanation.patch_contributions.sum((1, 2)), [spatial[i] for i in range(4)], atol=1e-5)


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
def test_models_with_one_stream(make_model, image, streams):
    explanation = explain(*make_model(**streams), image)
    number = streams.get("num_spatial_concepts", 0)
    assert len(explanation.concepts) == 3
    assert explanation.additivity_error < 1e-5
    assert explanation.attention_maps.shape == explanation.contribution_maps.shape == (number, 60, 90)
    explanation.plot()


@pytest.mark.parametrize(
    ("class_id", "message"),
    [
        ("painted buntings", "did you mean 'Painted Bunting', 'Indigo Bunting'"),
        ("zebra!!", "known are Black Tern"),
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
import weakref
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
def test_model_loaded_as_remote_code(make_model, tmp_path):
    model, processor = make_model()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "HF_HOME": str(tmp_path / "hf"), "PATH": ""}
    process = subprocess.run(
        [sys.executable, "-c", REMOTE, str(tmp_path / "model")], env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert float(process.stdout.splitlines()[-1]) < 1e-5

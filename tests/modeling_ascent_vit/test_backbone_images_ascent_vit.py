# SPDX-License-Identifier: Apache-2.0
"""Model and image processor on a pretrained backbone: its statistics, its dtype, other sizes and channels."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, pipeline

from ascent_vit.explanation import explain, intervene
from ascent_vit.inference import load_model
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor, AscentViTImageProcessorPil


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CONCEPTS = {"global_concepts": ["a", "b"], "spatial_concepts": ["c", "d", "e"], "num_labels": 5, "fusion_heads": 4}
OWN = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3, "rescale_factor": 1 / 127}
PROCESSORS = [AscentViTImageProcessor, AscentViTImageProcessorPil]


def save_backbone(folder, model_type="vit", dtype=torch.float32, settings=None, **fields):
    config = AutoConfig.for_model(model_type, **SIZES | {"image_size": 48, "patch_size": 8} | fields)
    AutoModel.from_config(config).to(dtype).save_pretrained(folder)
    if settings is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def build(backbone, **kwargs):
    return AscentViTForImageClassification.from_backbone(backbone, **CONCEPTS | kwargs)


@pytest.mark.parametrize("processor_class", PROCESSORS)
def test_statistics_are_those_of_the_backbones_own_file(processor_class, tmp_path):
    backbone = save_backbone(tmp_path / "backbone", settings=OWN | {"size": {"height": 64, "width": 64}})
    model = build(backbone)
    processor = processor_class.from_backbone(backbone, model.config)
    processor.save_pretrained(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    assert {name: saved[name] for name in OWN} == OWN
    # A ViT takes its own size alone.
    assert saved["size"] == {"height": 48, "width": 48} and saved["num_spatial_concepts"] == 3
    other = processor_class.from_backbone(backbone, model.config, image_mean=[0.0] * 3)
    assert tuple(other.image_mean) == (0, 0, 0) and tuple(other.image_std) == (0.4, 0.5, 0.6)


def test_statistics_of_a_model_are_those_of_the_folder_that_it_came_from(tmp_path):
    loaded = AutoModel.from_pretrained(save_backbone(tmp_path, settings=OWN))
    assert AscentViTImageProcessor.from_backbone(loaded, build(loaded).config).resample == 3


def test_statistics_of_timm(tmp_path):
    backbone = save_backbone(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    known = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic", "input_size": [3, 48, 48]}
    (tmp_path / "config.json").write_text(json.dumps(config | {"pretrained_cfg": known}))
    processor = AscentViTImageProcessor.from_backbone(backbone, build(backbone).config)
    assert (tuple(processor.image_mean), processor.resample) == ((0.1, 0.2, 0.3), 3)


@pytest.mark.parametrize("name, mean, resample", [("deit", 0.485, 3), ("dinov2", 0.485, 3), ("vit", 0.5, 2)])
def test_statistics_of_a_family(name, mean, resample, tmp_path):
    backbone = save_backbone(tmp_path, name)
    processor = AscentViTImageProcessor.from_backbone(backbone, build(backbone).config)
    assert (processor.image_mean[0], processor.resample) == (mean, resample)


def test_a_backbone_that_takes_any_size_gets_that_of_its_own_processor(tmp_path):
    """DINOv2 is built for 518 pixels, and its image processor gives 224."""
    settings = OWN | {"do_center_crop": True, "size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    backbone = save_backbone(tmp_path, "dinov2", settings=settings)
    model = build(backbone)
    processor = AscentViTImageProcessor.from_backbone(backbone, model.config)
    assert dict(processor.size) == {"height": 32, "width": 32} and not processor.do_center_crop
    assert explain(model, processor, Image.new("RGB", (40, 50))).patch_contributions.shape == (3, 4, 4)
    asked = AscentViTImageProcessor.from_backbone(backbone, build(backbone, image_size=64).config)
    assert dict(asked.size) == {"height": 64, "width": 64}


def test_where_nothing_is_known_the_statistics_are_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("modeling_ascent_vit"), "propagate", True)
    model = build(save_backbone(tmp_path, "ijepa"))
    for _ in range(2):
        AscentViTImageProcessor.from_backbone(tmp_path, model.config)
    said = [record for record in caplog.records if "mean 0.5 and std 0.5 are taken" in record.getMessage()]
    assert len(said) == 1 and "from_backbone(backbone, model.config)" in said[0].getMessage()


@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float16])
def test_weights_are_float32_whatever_they_were_saved_in(saved, tmp_path):
    backbone = save_backbone(tmp_path / "backbone", dtype=saved)
    model = build(backbone)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path / "model")
    loaded = AscentViTForImageClassification.from_pretrained(tmp_path / "model")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    for asked in ("auto", saved, str(saved).removeprefix("torch.")):
        assert {parameter.dtype for parameter in build(backbone, dtype=asked).parameters()} == {saved}


def test_dtype_of_a_model_and_of_a_configuration(tmp_path):
    backbone = AutoModel.from_pretrained(save_backbone(tmp_path, dtype=torch.bfloat16))
    assert build(backbone).dtype == torch.bfloat16 and build(backbone, dtype="float32").dtype == torch.float32
    assert build(backbone.config, dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("size", [(64, 64), (48, 80)], ids=["square", "wide"])
@pytest.mark.parametrize("name", ["vit", "deit", "siglip_vision_model", "clip_vision_model", "ijepa", "vit_msn"])
def test_another_size_is_interpolated_once(name, size, tmp_path):
    """The saved model then takes it in every pipeline, and computes what interpolation on the way computes."""
    backbone = save_backbone(tmp_path / "backbone", name, settings=OWN)
    if name in ("clip_vision_model", "siglip_vision_model") and size[0] != size[1]:
        with pytest.raises(ValueError, match="takes a square image_size"):
            build(backbone, image_size=size)
        return
    torch.manual_seed(1)
    plain = build(backbone)
    torch.manual_seed(1)
    model = build(backbone, image_size=size if size[0] != size[1] else size[0])
    pixels = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = plain.ascent_vit.backbone(pixels, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(model.ascent_vit.backbone(pixels).last_hidden_state, expected)
    model.save_pretrained(tmp_path / "model")
    AscentViTImageProcessor.from_backbone(backbone, model.config).save_pretrained(tmp_path / "model")
    loaded, processor = load_model(str(tmp_path / "model"))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    assert explain(loaded, processor, image).patch_contributions.shape == (3, size[0] // 8, size[1] // 8)
    for task in ("image-classification", "concept-image-classification"):
        assert len(pipeline(task, model=loaded, image_processor=processor)(image, top_k=5)) == 5


@pytest.mark.parametrize("name", ["dinov2", "dinov2_with_registers", "pixio"])
def test_another_size_of_backbones_that_interpolate_unasked(name, tmp_path):
    backbone = save_backbone(tmp_path, name)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = build(backbone).ascent_vit.backbone(pixels).last_hidden_state
        found = build(backbone, image_size=64).ascent_vit.backbone(pixels).last_hidden_state
    torch.testing.assert_close(found, expected)


def test_timm_at_another_size(tmp_path):
    pytest.importorskip("timm")
    arguments = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    config = AutoConfig.for_model(
        "timm_wrapper", architecture="vit_tiny_patch16_224", model_args=arguments, num_classes=0
    )
    backbone = AutoModel.from_config(config)
    model = build(backbone, image_size=64, num_channels=1)
    assert model(torch.zeros(1, 1, 64, 64)).logits.shape == (1, 5)
    assert (model.config.image_size, model.config.num_channels) == ((64, 64), 1)


def test_what_cannot_be_brought_to_another_size_says_so(tmp_path):
    backbone = save_backbone(tmp_path, "beit", use_relative_position_bias=True)
    with pytest.raises(
        ValueError, match=r"beit cannot be the backbone with image_size=64.*Leave them out, and resize"
    ):
        build(backbone, image_size=64)


def test_an_image_processor_of_another_size_is_interpolated_where_one_can(tmp_path):
    backbone = save_backbone(tmp_path)
    model = build(backbone)
    processor = AscentViTImageProcessor.from_backbone(backbone, model.config, size={"height": 64, "width": 64})
    image = Image.new("RGB", (50, 70))
    classifier = pipeline("concept-image-classification", model=model, image_processor=processor)
    assert len(classifier(image)) == 5
    with pytest.raises(ValueError, match=r"from_backbone\(\.\.\., image_size=\.\.\.\)"):
        pipeline("image-classification", model=model, image_processor=processor)(image)


@pytest.mark.parametrize("backend", PROCESSORS)
def test_one_channel(backend, tmp_path):
    backbone = save_backbone(tmp_path / "backbone", settings=OWN)
    model = build(backbone, num_channels=1)
    processor = backend.from_backbone(backbone, model.config)
    assert tuple(processor.image_mean) == pytest.approx((0.2,))
    grey = np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8)
    pixels = [
        processor(image, return_tensors="pt")["pixel_values"] for image in (Image.fromarray(grey), grey, grey[None])
    ]
    pixels.append(processor(Image.fromarray(grey).convert("RGB"), return_tensors="pt")["pixel_values"])
    pixels.append(processor(np.stack([grey] * 3), return_tensors="pt")["pixel_values"])
    assert pixels[0].shape == (1, 1, 48, 48) and all(torch.equal(pixels[0], other) for other in pixels)
    # Grey is in all colours: the sum over the channels was kept.
    colours = build(backbone).ascent_vit.backbone(pixels[0].expand(1, 3, 48, 48)).last_hidden_state
    torch.testing.assert_close(model.ascent_vit.backbone(pixels[0]).last_hidden_state, colours)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded, processor = load_model(str(tmp_path / "model"))
    assert explain(loaded, processor, grey).image.mode == "RGB"
    for task in ("image-classification", "concept-image-classification"):
        classes = pipeline(task, model=loaded, image_processor=processor)(Image.new("RGB", (60, 50)), top_k=5)
        assert len(classes) == 5


@pytest.mark.parametrize("backend", PROCESSORS)
def test_five_channels(backend, tmp_path):
    backbone = save_backbone(tmp_path / "backbone", num_channels=5)
    model = build(backbone)
    processor = backend.from_backbone(backbone, model.config)
    image = np.random.default_rng(0).integers(0, 256, (5, 60, 50), dtype=np.uint8)
    first, last = (
        processor(array, return_tensors="pt")["pixel_values"] for array in (image, np.moveaxis(image, 0, -1))
    )
    assert first.shape == (1, 5, 48, 48) and torch.equal(first, last)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded, processor = load_model(str(tmp_path / "model"))
    explanation = explain(loaded, processor, torch.from_numpy(image))
    assert explanation.image.size == (50, 60) and explanation.additivity_error < 1e-5
    assert intervene(loaded, processor, image, {"a": "absent"}).after.logits.shape == (5,)
    classifier = pipeline("concept-image-classification", model=loaded, image_processor=processor)
    assert len(classifier([image, image])) == 2
    with pytest.raises(ValueError, match=r"takes 5 channels, and a picture of mode 'RGB'.*\(5, height, width\)"):
        explain(loaded, processor, Image.new("RGB", (50, 60)))
    with pytest.raises(ValueError, match="must have 5 channels, first or last"):
        explain(loaded, processor, image[:4])


def test_the_pretrained_deit(shared_folder):
    backbone = shared_folder / "weights" / "deit-tiny"
    model = build(backbone)
    processor = AscentViTImageProcessor.from_backbone(backbone, model.config)
    assert tuple(processor.image_mean) == (0.485, 0.456, 0.406) and processor.resample == 3
    assert dict(processor.size) == {"height": 224, "width": 224}
    assert build(backbone, image_size=288)(torch.zeros(1, 3, 288, 288)).logits.shape == (1, 5)

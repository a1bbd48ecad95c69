# SPDX-License-Identifier: Apache-2.0
"""timm's own models with random weights: what they compute must come out of the converted folder."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from ascent_vit.conversion import convert
from modeling_ascent_vit import AscentViTForImageClassification


# Name, arguments that make it small, transformers' type, and heads where they are not of the usual size.
SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 4}
MODELS = {
    "vit": ("vit_tiny_patch16_224", {**SMALL, "img_size": 64}, "vit"),
    "vit off the square": ("vit_tiny_patch16_224", {**SMALL, "img_size": (32, 80)}, "vit"),
    "vit without biases": ("vit_tiny_patch16_224", {**SMALL, "img_size": 48, "qkv_bias": False}, "vit"),
    "vit without CLS position": ("vit_tiny_patch16_224", {**SMALL, "img_size": 48, "no_embed_class": True}, "vit"),
    "dino": ("vit_small_patch8_224", {**SMALL, "img_size": 32}, "vit"),
    "deit": ("deit_tiny_distilled_patch16_224", {**SMALL, "img_size": 64}, "deit"),
    "dinov2": ("vit_small_patch14_dinov2", {**SMALL, "img_size": 56}, "dinov2"),
    "dinov2 with registers": ("vit_small_patch14_reg4_dinov2", {**SMALL, "img_size": 56}, "dinov2_with_registers"),
    "dinov2 with SwiGLU": ("vit_giant_patch14_dinov2", {**SMALL, "embed_dim": 96, "img_size": 28}, "dinov2"),
    "other MLP": ("vit_small_patch14_dinov2", {**SMALL, "img_size": 28, "mlp_ratio": 3}, "dinov2"),
}


def make_model(name: str) -> torch.nn.Module:
    """timm's model in evaluation mode; every parameter is random, also those that start as 0 or 1."""
    timm = pytest.importorskip("timm")
    model = timm.create_model(MODELS[name][0], **MODELS[name][1]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def write_settings(path, **settings):
    path.write_text(json.dumps(settings))
    return path


def backbone_settings(name: str) -> dict:
    size = MODELS[name][1]["img_size"]
    return {"num_heads": 4, "image_size": list(size) if isinstance(size, tuple) else size}


@pytest.mark.parametrize("name", MODELS)
def test_backbone_computes_what_timm_computes(name, tmp_path):
    theirs = make_model(name)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    config = write_settings(tmp_path / "config.json", backbone=backbone_settings(name))
    report = convert(tmp_path / "weights.pth", "timm", tmp_path / "out", config)
    backbone = AutoModel.from_pretrained(tmp_path / "out")
    assert (backbone.config.model_type, report.model_type) == (MODELS[name][2],) * 2
    height, width = theirs.patch_embed.img_size
    pixels = torch.randn(2, 3, height, width)
    with torch.no_grad():
        expected = theirs.forward_features(pixels)
        torch.testing.assert_close(backbone(pixels).last_hidden_state, expected, rtol=0, atol=1e-5)
        model = AscentViTForImageClassification.from_backbone(
            tmp_path / "out", spatial_concepts=["beak", "wing"], num_labels=3
        )
        # The fusion starts at the plain backbone.
        torch.testing.assert_close(model.ascent_vit(pixels).last_hidden_state, expected, rtol=0, atol=1e-5)
    assert all(dropped.startswith(("head.", "head_dist.")) for dropped in report.dropped)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.size.height, processor.size.width) == (height, width)
    assert list(processor.image_mean) == pytest.approx(
        [0.5] * 3 if MODELS[name][2] == "vit" else [0.485, 0.456, 0.406]
    )


@pytest.mark.parametrize("name", ["vit", "deit", "dinov2", "dinov2 with registers"])
def test_sizes_are_found_without_settings(name, tmp_path):
    theirs = make_model(name)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    report = convert(tmp_path / "weights.safetensors", "timm", tmp_path / "out")
    assert report.assumed["backbone.num_heads"] == 1
    config = AutoModel.from_pretrained(tmp_path / "out").config
    assert (config.image_size, config.patch_size) == (theirs.patch_embed.img_size[0], theirs.patch_embed.patch_size[0])
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'from_backbone(\n    "out"' in card and f"A {MODELS[name][2]} backbone" in card


def test_concepts_in_the_settings_make_a_whole_model(tmp_path):
    theirs = make_model("dinov2")
    torch.save({"model": theirs.state_dict(), "epoch": 3}, tmp_path / "weights.pth")
    settings = {"labels": ["gull", "tern"], "spatial_concepts": ["beak", "wing", "tail"], "psi": 0.5}
    config = write_settings(tmp_path / "config.json", backbone={"num_heads": 4}, **settings)
    reports, weights = [], []
    for i, seed in enumerate((1, 1, 2)):
        reports.append(convert(tmp_path / "weights.pth", "timm", tmp_path / f"out{i}", config, seed))
        model = AutoModelForImageClassification.from_pretrained(tmp_path / f"out{i}")
        weights.append(model.state_dict())
    assert (model.config.spatial_concepts, model.config.psi) == (settings["spatial_concepts"], 0.5)
    assert (model.config.id2label, model.config.shifted_fusion) == ({0: "gull", 1: "tern"}, False)
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        features = model.ascent_vit(pixels).last_hidden_state
        torch.testing.assert_close(features, theirs.forward_features(pixels), rtol=0, atol=1e-5)
    assert [report.seed for report in reports] == [1, 1, 2] and "not trained" in reports[0].notes[0]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert not torch.equal(weights[0]["spatial_stream.concepts"], weights[2]["spatial_stream.concepts"])
    assert "not trained yet" in (tmp_path / "out0" / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"norm_pre.weight": torch.ones(64)}, {}, "unknown: norm_pre.weight"),
        ({"norm.weight": None}, {}, "missing: norm.weight"),
        ({"norm.weight": torch.ones(3)}, {}, "norm.weight is (3,) instead of (64,)"),
        ({"cls_token": None}, {}, "not in the timm layout: it has no cls_token"),
        ({"pos_embed": torch.ones(1, 7, 64)}, {}, "7 position embeddings are no square"),
        (
            {"blocks.0.mlp.fc1.weight": torch.ones(7, 64)},
            {},
            "blocks.0.mlp.fc1.weight is (7, 64) instead of (256, 64)",
        ),
        ({}, {"labels": ["a"]}, "no concepts"),
        ({}, {"spatial_concepts": ["a", "b"]}, "names concepts but no classes"),
        ({}, {"num_spatial_concepts": 2, "labels": ["a"], "num_classes": 2}, "num_classes is 2"),
    ],
)
def test_what_does_not_fit_is_one_error(change, settings, message, tmp_path):
    state = {n: t for n, t in (make_model("vit").state_dict() | change).items() if t is not None}
    save_file(state, tmp_path / "weights.safetensors")
    config = write_settings(tmp_path / "config.json", **settings)
    with pytest.raises(ValueError) as error:
        convert(tmp_path / "weights.safetensors", "timm", tmp_path / "out", config)
    assert message in str(error.value) and not (tmp_path / "out").exists()


def test_a_size_that_transformers_cannot_have_is_refused(tmp_path):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("vit_small_patch14_dinov2", **SMALL, img_size=28, mlp_ratio=2.5)
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="MLP has 160 values for a hidden size of 64, which no dinov2"):
        convert(tmp_path / "weights.safetensors", "timm", tmp_path / "out")

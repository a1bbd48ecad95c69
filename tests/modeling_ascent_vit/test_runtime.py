# SPDX-License-Identifier: Apache-2.0
"""What runs and loads a model beside plain PyTorch: compilation, devices, shards, dtypes, attention, quantisation."""

import importlib.util
import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoModel,
    CLIPConfig,
    Dinov2Config,
    Dinov2ForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification


PLAIN = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "patch_size": 8,
    "image_size": 48,
}
SWIN = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 3, "patch_size": 4, "image_size": 48}
PVT_V2 = {
    "hidden_sizes": [8, 8, 16, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 4],
    "image_size": 64,
}
TIMM = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


@pytest.fixture
def model(make_config) -> AscentViTForImageClassification:
    """Every stream over a ViT, with a fusion that has an effect."""
    model = AscentViTForImageClassification(make_config(none_concept=True)).eval()
    nn.init.normal_(model.ascent_vit.fusion.gamma)
    nn.init.normal_(model.spatial_stream.projection.bias)
    return model


def logits(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(pixels).logits


# Loading and saving --------------------------------------------------------------------------------------------------


def test_shards(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    loaded = AscentViTForImageClassification.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_dtype_auto_is_the_saved_one(model, tmp_path):
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = AscentViTForImageClassification.from_pretrained(tmp_path, dtype="auto")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    model.ascent_vit.backbone.save_pretrained(tmp_path / "backbone")
    built = AscentViTForImageClassification.from_backbone(tmp_path / "backbone", num_spatial_concepts=3, dtype="auto")
    assert {parameter.dtype for parameter in built.parameters()} == {torch.bfloat16}


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs accelerate")
@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
def test_device_map(model, tmp_path, device_map):
    model.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 48, 48)
    loaded = AscentViTForImageClassification.from_pretrained(tmp_path, device_map=device_map)
    torch.testing.assert_close(
        logits(loaded, pixels.to(loaded.device)).cpu(), logits(model, pixels), rtol=1e-3, atol=1e-4
    )
    model.ascent_vit.backbone.save_pretrained(tmp_path / "backbone")
    built = AscentViTForImageClassification.from_backbone(
        tmp_path / "backbone", num_spatial_concepts=3, device_map=device_map
    )
    assert len({parameter.device for parameter in built.parameters()}) == 1
    assert logits(built, pixels.to(built.device)).isfinite().all()


@pytest.mark.gpu
def test_device_map_takes_the_gpu(model, tmp_path):
    model.save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 48, 48)
    loaded = AscentViTForImageClassification.from_pretrained(tmp_path, device_map="auto")
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cuda"}
    torch.testing.assert_close(logits(loaded, pixels.cuda()).cpu(), logits(model, pixels), rtol=1e-3, atol=1e-3)
    model.ascent_vit.backbone.save_pretrained(tmp_path / "backbone")
    built = AscentViTForImageClassification.from_backbone(
        tmp_path / "backbone", num_spatial_concepts=3, device_map="auto"
    )
    assert {parameter.device.type for parameter in built.parameters()} == {"cuda"}
    assert logits(built, pixels.cuda()).isfinite().all()


def test_pickle(model):
    pixels = torch.randn(1, 3, 48, 48)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(again, pixels), logits(model, pixels))
    assert again.config.to_dict() == model.config.to_dict()


# From a backbone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "classifier",
    [
        lambda: ViTForImageClassification(ViTConfig(**PLAIN)),
        lambda: Dinov2ForImageClassification(Dinov2Config(**PLAIN)),
        lambda: SwinForImageClassification(SwinConfig(**SWIN)),
    ],
    ids=["vit", "dinov2", "swin"],
)
def test_encoder_of_an_image_classifier(classifier, tmp_path, capfd):
    """Its own classes are left behind, and nothing is missing."""
    classifier = classifier()
    classifier.save_pretrained(tmp_path)
    capfd.readouterr()
    model = AscentViTForImageClassification.from_backbone(tmp_path, num_spatial_concepts=3, num_labels=7)
    said = "".join(capfd.readouterr())
    assert "MISSING" not in said and "pooler" not in said
    assert model.config.num_labels == 7
    expected = classifier.base_model.state_dict()
    for name, tensor in model.ascent_vit.backbone.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_vision_tower_of_clip(tmp_path):
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = CLIPConfig(text_config={**text, "vocab_size": 50000}, vision_config=PLAIN)
    whole = AutoModel.from_config(config)
    whole.save_pretrained(tmp_path)
    for backbone in (tmp_path, str(tmp_path), config):
        model = AscentViTForImageClassification.from_backbone(backbone, num_spatial_concepts=3)
        assert model.config.backbone_config.model_type == "clip_vision_model"
        if backbone is not config:
            expected = whole.vision_model.state_dict()
            for name, tensor in model.ascent_vit.backbone.state_dict().items():
                assert torch.equal(tensor, expected[name]), name


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm")
def test_folder_of_timm(tmp_path):
    """As timm publishes a model: bare names of tensors, and a configuration of its own."""
    import timm

    published = timm.create_model("vit_tiny_patch16_224", **TIMM)
    save_file(published.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 1000,
        "num_features": 32,
        "pretrained_cfg": {"input_size": [3, 48, 48], "num_classes": 1000},
        "model_args": TIMM,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = AscentViTForImageClassification.from_backbone(tmp_path, num_spatial_concepts=3).eval()
    assert (model.config.image_size, model.config.patch_size, model.config.hidden_size) == ((48, 48), (8, 8), 32)
    pixels = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        tokens = model.ascent_vit(pixels).last_hidden_state
        torch.testing.assert_close(tokens, published.eval().forward_features(pixels))
    model.save_pretrained(tmp_path / "model")
    loaded = AscentViTForImageClassification.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits(loaded, pixels), logits(model, pixels))


# Attention and compilation -------------------------------------------------------------------------------------------


def test_attention_implementation_per_part(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AscentViTForImageClassification.from_pretrained(
        tmp_path, attn_implementation={"": "sdpa", "backbone_config": "eager"}
    )
    assert loaded.config._attn_implementation == "sdpa"
    assert loaded.ascent_vit.backbone.config._attn_implementation == "eager"
    pixels = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        outputs = loaded(pixels, output_attentions=True)
    assert outputs.attentions[0].shape == (1, 4, 37, 37)
    torch.testing.assert_close(outputs.logits, logits(model, pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "backbone_config",
    [
        {"model_type": "vit", **PLAIN},
        {"model_type": "beit", **PLAIN},
        {"model_type": "swin", **SWIN},
        {"model_type": "siglip_vision_model", **PLAIN},
    ],
    ids=lambda config: config["model_type"],
)
def test_attentions_whatever_the_implementation(backbone_config):
    """Those that eager attention gives, and the model goes on with its own."""
    config = AscentViTConfig(backbone_config=backbone_config, num_spatial_concepts=4, fusion_heads=4)
    model = AscentViTForImageClassification(config).eval()
    assert model.ascent_vit.backbone.config._attn_implementation == "sdpa"
    pixels = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        plain = model(pixels, output_concept_heads=True)
        outputs = model(pixels, output_attentions=True, output_concept_heads=True)
        assert model.ascent_vit.backbone.config._attn_implementation == "sdpa"
        again = model(pixels)
        model.set_attn_implementation("eager")
        expected = model(pixels, output_attentions=True).attentions
    assert len(outputs.attentions) == len(expected) >= 2
    for weights, eager in zip(outputs.attentions, expected, strict=True):
        torch.testing.assert_close(weights, eager)
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    torch.testing.assert_close(outputs.logits, plain.logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(again.logits, plain.logits)
    torch.testing.assert_close(outputs.spatial_concept_attention_heads, plain.spatial_concept_attention_heads)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "backbone_config",
    [
        {"model_type": "dinov2", **PLAIN},
        {"model_type": "dinov3_vit", **PLAIN},
        {"model_type": "siglip_vision_model", **PLAIN},
        {"model_type": "clip_vision_model", **PLAIN},
        {"model_type": "beit", **PLAIN, "use_relative_position_bias": True},
        {"model_type": "swin", **SWIN},
        {"model_type": "pvt_v2", **PVT_V2},
        pytest.param(
            {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224", "model_args": TIMM},
            marks=pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm"),
        ),
    ],
    ids=lambda config: config["model_type"],
)
def test_compiles_whole_over_other_backbones(backbone_config):
    config = AscentViTConfig(
        backbone_config=backbone_config, num_global_concepts=2, num_spatial_concepts=3, fusion_heads=4
    )
    model = AscentViTForImageClassification(config).eval()
    pixels = torch.randn(2, 3, *config.image_size)
    # Tracing alone differs from backbone to backbone, and each is a first one.
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = model(pixels, output_contributions=True)
        outputs = compiled(pixels, output_contributions=True)
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.concept_contributions, expected.concept_contributions, rtol=1e-4, atol=1e-5)


# Quantisation and adapters -------------------------------------------------------------------------------------------


@pytest.fixture
def int8():
    """Weights alone, in whole numbers of 8 bits."""
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


def test_quantised_backbone(model, tmp_path, int8):
    model.ascent_vit.backbone.save_pretrained(tmp_path / "backbone")
    torch.manual_seed(0)
    plain = AscentViTForImageClassification.from_backbone(tmp_path / "backbone", num_spatial_concepts=3)
    torch.manual_seed(0)
    built = AscentViTForImageClassification.from_backbone(
        tmp_path / "backbone", num_spatial_concepts=3, quantization_config=int8
    )
    assert type(built.ascent_vit.backbone.layers[0].mlp.fc1.weight) is not nn.Parameter
    assert type(built.spatial_stream.query.weight) is nn.Parameter
    pixels = torch.randn(2, 3, 48, 48)
    assert torch.equal(plain.spatial_stream.concepts, built.spatial_stream.concepts)
    torch.testing.assert_close(logits(built, pixels), logits(plain, pixels), rtol=0, atol=0.02)
    built.save_pretrained(tmp_path / "model")
    loaded = AscentViTForImageClassification.from_pretrained(tmp_path / "model")
    assert type(loaded.ascent_vit.backbone.layers[0].mlp.fc1.weight) is not nn.Parameter
    assert torch.equal(logits(loaded, pixels), logits(built, pixels))


def test_quantised_model_explains_exactly(model, tmp_path, int8):
    model.save_pretrained(tmp_path)
    loaded = AscentViTForImageClassification.from_pretrained(tmp_path, quantization_config=int8)
    assert type(loaded.spatial_stream.query.weight) is not nn.Parameter
    check_explanation(loaded, model, atol=0.05)


class LowRank(nn.Module):
    """A linear layer with a learned addition of low rank, as adapters put in place of one."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.layer.weight

    @property
    def bias(self) -> torch.Tensor:
        return self.layer.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs) + self.up(self.down(inputs))


def test_adapters_in_the_concept_head_explain_exactly(model):
    for stream in model.streams().values():
        for name in ("query", "key", "value", "projection"):
            setattr(stream, name, LowRank(getattr(stream, name)))
    check_explanation(model, None)


def check_explanation(model: nn.Module, reference: nn.Module | None, atol: float = 0.0):
    """Contributions and maps add up to the logits, which are near a reference's."""
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        outputs = model(pixels, output_contributions=True)
        maps = model.contribution_maps(pixels, [0, 3])
    by_sum = outputs.concept_contributions.sum(1) + model.class_bias()
    torch.testing.assert_close(by_sum, outputs.logits, rtol=0, atol=1e-5)
    spatial = outputs.concept_contributions[:, 3:7, [0, 3]].transpose(1, 2)
    torch.testing.assert_close(maps.sum((-1, -2)), spatial, rtol=0, atol=1e-5)
    if reference is not None:
        torch.testing.assert_close(outputs.logits, logits(reference, pixels), rtol=0, atol=atol)

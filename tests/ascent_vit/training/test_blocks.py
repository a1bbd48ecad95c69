# SPDX-License-Identifier: Apache-2.0
"""Backbones that are frozen up to a block, of every family: what they compute from cached tokens, and what trains."""

import importlib.util

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from ascent_vit.training.blocks import evaluate_frozen, find_blocks, freeze
from ascent_vit.training.features import CachedTokens
from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification


LAYERS, FROZEN = 4, 2
PLAIN = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "patch_size": 8,
    "image_size": 32,
}
TIMM = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": LAYERS, "num_heads": 4},
}
BACKBONES = {
    "aimv2_vision_model": PLAIN,
    "beit": PLAIN | {"use_relative_position_bias": True},
    "beit-shared": PLAIN | {"use_shared_relative_position_bias": True},
    "chinese_clip_vision_model": PLAIN,
    "clip_vision_model": PLAIN,
    "data2vec-vision": PLAIN | {"use_relative_position_bias": True},
    "data2vec-vision-shared": PLAIN | {"use_shared_relative_position_bias": True},
    "deit": PLAIN,
    "dinov2": PLAIN,
    "dinov2_with_registers": PLAIN,
    "dinov3_vit": PLAIN | {"num_register_tokens": 2},
    "ijepa": PLAIN,
    "mlcd_vision_model": PLAIN,
    "pixio": PLAIN,
    "siglip_vision_model": PLAIN,
    "timm_wrapper": TIMM,
    "vit": PLAIN | {"hidden_dropout_prob": 0.1},
    "vit_msn": PLAIN,
}
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm")
NAMES = [pytest.param(name, marks=needs_timm if name == "timm_wrapper" else ()) for name in BACKBONES]


def build(name: str) -> AscentViTForImageClassification:
    """A model whose weights all have an effect, as after some training."""
    backbone = {"model_type": name.removesuffix("-shared"), **BACKBONES[name]}
    config = AscentViTConfig(
        backbone_config=backbone,
        global_concepts=["a", "b"],
        spatial_concepts=["c", "d", "e"],
        num_labels=4,
        fusion_levels=0,
    )
    model = AscentViTForImageClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def batch_of(model: AscentViTForImageClassification) -> dict[str, torch.Tensor]:
    lists = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1]])
    pixels = torch.randn(6, model.config.num_channels, *model.config.image_size)
    return {"pixel_values": pixels, "labels": torch.arange(6) % 4, "spatial_concept_presence": lists}


def without_chance(model: AscentViTForImageClassification) -> AscentViTForImageClassification:
    """Without dropout of values and of whole layers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    return model


def step(model: AscentViTForImageClassification, batch: dict, **kwargs) -> tuple:
    """Loss, logits and gradients of a batch in training."""
    model.zero_grad()
    model.presence_memory.images = None
    torch.manual_seed(0)
    outputs = model(**batch, **kwargs)
    outputs.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return outputs.loss.detach(), outputs.logits.detach(), gradients


@pytest.mark.parametrize("frozen", [FROZEN, LAYERS, None])
@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_computes_the_same_from_cached_tokens(name, frozen, monkeypatch):
    """Loss, logits and the gradients of all that trains, of labels and of lists."""
    # Of float16, only the rounding is left out here.
    monkeypatch.setattr(torch.Tensor, "half", lambda self: self)
    model = without_chance(build(name)).train()
    batch, keys = batch_of(model), model.state_dict().keys()
    tokens = CachedTokens(model, frozen, has_lists=True)
    evaluate_frozen(model.ascent_vit.backbone, frozen)
    tokens.tokens = tokens.compute_tokens(batch["pixel_values"])
    # Rows in another order than that of the file.
    order = torch.tensor([4, 1, 0, 5, 2, 3])
    shuffled = {key: values[order] for key, values in batch.items()}
    fresh, cached = step(model, shuffled), step(model, shuffled, feature_rows=order)
    torch.testing.assert_close(cached, fresh, rtol=1e-3, atol=1e-5)
    assert frozen is not None or not any(".backbone." in key for key in cached[2])
    assert model.state_dict().keys() == keys
    # Without lists the earlier tokens stay where they are; what is called by itself computes.
    outputs = model.eval()(**shuffled, feature_rows=order)
    assert outputs.hidden_states is None
    direct = model.ascent_vit(shuffled["pixel_values"]).last_hidden_state
    torch.testing.assert_close(direct, model.ascent_vit(batch["pixel_values"]).last_hidden_state[order])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_frozen_is_not_run_and_all_else_trains(name):
    """Nothing on which the tokens depend trains, and every block above does."""
    model = without_chance(build(name)).train()
    backbone, batch = model.ascent_vit.backbone, batch_of(model)
    tokens = CachedTokens(model, FROZEN)
    evaluate_frozen(backbone, FROZEN)
    blocks = find_blocks(backbone)
    assert len(blocks) == LAYERS and not any(block.training for block in blocks[:FROZEN])
    assert all(block.training and all(p.requires_grad for p in block.parameters()) for block in blocks[FROZEN:])
    tokens.tokens = tokens.compute_tokens(batch["pixel_values"])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    assert (tokens.compute_tokens(batch["pixel_values"]) == tokens.tokens).all()
    cached = step(model, batch, feature_rows=torch.arange(6))
    with torch.no_grad():
        for parameter in (p for block in blocks[:FROZEN] for p in block.parameters()):
            assert not parameter.requires_grad
            parameter.fill_(torch.nan)
    assert step(model, batch, feature_rows=torch.arange(6))[1].equal(cached[1])
    assert step(model, batch)[1].isnan().all()


@pytest.mark.parametrize("family", ["swin", "pvt_v2", "hiera"])
def test_a_backbone_of_stages_has_no_layers_to_count(family):
    config = AutoConfig.for_model(family, image_size=[64, 64] if family == "hiera" else 64)
    with pytest.raises(ValueError, match=f"of a plain vision transformer, and {family} is none: leave them out"):
        find_blocks(AutoModel.from_config(config))


def test_more_layers_than_there_are():
    with pytest.raises(ValueError, match="frozen_layers must be at most 4, the layers of the backbone; got 5"):
        freeze(build("vit"), 5)

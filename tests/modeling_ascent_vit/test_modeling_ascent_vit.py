# SPDX-License-Identifier: Apache-2.0
import copy
import importlib.util
import logging
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    Dinov2Model,
    SiglipConfig,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTModel,
)

from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification, AscentViTModel
from modeling_ascent_vit.modeling_ascent_vit import AscentViTMultiScaleEncoding, random_corrections, true_attention


NAN = float("nan")
PREFIX_TOKENS = {"vit": 1, "deit": 2, "dinov2": 1, "dinov2_with_registers": 5, "siglip_vision_model": 0}


def build(config: AscentViTConfig) -> AscentViTForImageClassification:
    """A model whose fusion and classifier have an effect, as after some training."""
    model = AscentViTForImageClassification(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "gate.weight", "gate.bias", "projection.bias")):
            nn.init.normal_(parameter)
        if name.endswith(("sampling_offsets.weight", "sampling_weights.weight", "token_pool.query")):
            nn.init.normal_(parameter, std=0.1)
    return model


def supervision(config: AscentViTConfig, batch_size: int = 2, num_patches: int = 36) -> dict[str, torch.Tensor]:
    targets = {"labels": torch.arange(batch_size) % config.num_labels}
    if config.num_global_concepts:
        targets["concept_targets"] = torch.randint(0, 2, (batch_size, config.num_global_concepts)).float()
    if config.num_spatial_concepts:
        spatial = torch.randint(0, 2, (batch_size, num_patches, config.num_spatial_concepts)).float()
        targets["spatial_concept_targets"] = spatial
    return targets


# Shapes and outputs --------------------------------------------------------------------------------------------------


def test_base_model_returns_prefix_and_patches(make_config, backbone):
    model = AscentViTModel(make_config(backbone)).eval()
    pixels = torch.randn(2, 3, 48, 48)
    outputs = model(pixels, output_fusion=True)
    assert outputs.last_hidden_state.shape == (2, PREFIX_TOKENS[backbone] + 36, 32)
    assert outputs.patch_grid.tolist() == [[6, 6], [6, 6]] and outputs.patch_grid.dtype == torch.long
    assert outputs.fusion_locations.shape == (2, 36, 4, 3, 4, 2)
    torch.testing.assert_close(outputs.fusion_weights.sum((-1, -2)), torch.ones(2, 36, 4))


def test_training_starts_at_the_plain_backbone_and_prefix_tokens_are_never_fused(make_config, backbone):
    model = AscentViTModel(make_config(backbone)).eval()
    pixels = torch.randn(2, 3, 48, 48)
    plain = model.backbone(pixels).last_hidden_state
    torch.testing.assert_close(model(pixels).last_hidden_state, plain)
    nn.init.normal_(model.fusion.gamma)
    fused, prefix = model(pixels).last_hidden_state, PREFIX_TOKENS[backbone]
    torch.testing.assert_close(fused[:, :prefix], plain[:, :prefix])
    assert ((fused - plain)[:, prefix:].abs().amax(-1) > 1e-4).all(), "a patch was left out of the fusion"


def test_psi_weighs_the_fusion(make_config):
    model = AscentViTModel(make_config()).eval()
    nn.init.normal_(model.fusion.gamma)
    pixels = torch.randn(1, 3, 48, 48)
    plain = model.backbone(pixels).last_hidden_state
    whole = model(pixels).last_hidden_state - plain
    model.fusion.psi = 0.5
    torch.testing.assert_close(model(pixels).last_hidden_state - plain, 0.5 * whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("global_token", ["cls", "cls_mean", "pool"])
@pytest.mark.parametrize("none_concept", [False, True])
def test_outputs(make_config, backbone, global_token, none_concept):
    config = make_config(backbone, global_token=global_token, none_concept=none_concept)
    model = build(config)
    pixels = torch.randn(2, 3, 48, 48)
    outputs = model(pixels, output_contributions=True, output_concept_heads=True)
    assert outputs.logits.shape == (2, 5)
    assert outputs.global_concept_attention.shape == (2, 3)
    assert outputs.spatial_concept_attention.shape == (2, 36, 4)
    assert outputs.unsupervised_concept_attention.shape == (2, 2)
    assert outputs.spatial_concept_attention_heads.shape == (2, 2, 36, 4)
    assert outputs.global_concept_attention_heads.shape == (2, 2, 3)
    torch.testing.assert_close(outputs.spatial_concept_attention_heads.mean(1), outputs.spatial_concept_attention)
    torch.testing.assert_close(outputs.unsupervised_concept_attention.sum(-1), torch.ones(2))
    total = outputs.spatial_concept_attention.sum(-1)
    assert (total < 1).all() if none_concept else torch.allclose(total, torch.ones_like(total))
    assert outputs.concept_contributions.shape == (2, 9, 5)
    by_sum = outputs.concept_contributions.sum(1) + model.class_bias()
    torch.testing.assert_close(by_sum, outputs.logits, rtol=0, atol=1e-5)


def test_contribution_maps_add_up(make_config):
    model = build(make_config(none_concept=True))
    pixels = torch.randn(3, 3, 48, 48)
    contributions = model(pixels, output_contributions=True).concept_contributions
    maps = model.contribution_maps(pixels, [4, 0])
    assert maps.shape == (3, 2, 4, 6, 6)
    torch.testing.assert_close(maps.sum((-1, -2)), contributions[:, 3:7, [4, 0]].transpose(1, 2), rtol=0, atol=1e-6)
    own = model.contribution_maps(pixels, torch.tensor([[1], [2], [3]]))
    for image in range(3):
        torch.testing.assert_close(
            own[image, 0].sum((-1, -2)), contributions[image, 3:7, image + 1], rtol=0, atol=1e-6
        )


def test_contribution_of_a_place_is_what_removing_it_takes_away(make_config):
    """
    Overriding one concept at one patch with 0, and the others with what they were, takes its contribution out; the
    others count more by as much as there is less attention.
    """
    model = build(make_config(concept_attention_heads=1))
    pixels = torch.randn(1, 3, 48, 48)
    before = model(pixels, output_contributions=True)
    override = torch.full((1, 36, 4), NAN)
    override[0, 13] = before.spatial_concept_attention[0, 13]
    override[0, 13, 2] = 0.0
    after = model(pixels, spatial_concept_override=override)
    maps = model.contribution_maps(pixels, list(range(5)))
    num_global = model.config.num_global_concepts
    spatial = before.concept_contributions[:, num_global : num_global + 4].sum(1)
    left = 36 / after.spatial_concept_attention.sum()
    expected = before.logits - spatial + (spatial - maps[:, :, 2, 2, 1]) * left
    torch.testing.assert_close(after.logits, expected, rtol=0, atol=1e-6)
    assert left > 1.0001


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    rest=st.tuples(st.integers(0, 7), st.integers(0, 7)),
    seed=st.integers(0, 99),
)
def test_any_image_size_that_the_backbone_takes(rows, columns, rest, seed):
    config = AscentViTConfig(
        backbone_config={
            "model_type": "dinov2",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 48,
            "patch_size": 8,
        },
        num_spatial_concepts=4,
    )
    torch.manual_seed(seed)
    model = build(config)
    pixels = torch.randn(2, 3, rows * 8 + rest[0], columns * 8 + rest[1])
    outputs = model(pixels, output_contributions=True)
    assert outputs.patch_grid.tolist() == [[rows, columns]] * 2
    assert outputs.spatial_concept_attention.shape == (2, rows * columns, 4)
    by_sum = outputs.concept_contributions.sum(1) + model.class_bias()
    torch.testing.assert_close(by_sum, outputs.logits, rtol=0, atol=1e-5)
    assert model.contribution_maps(pixels, [0]).shape == (2, 1, 4, rows, columns)


@pytest.mark.parametrize("backbone", ["vit", "deit", "siglip_vision_model"])
def test_another_size_needs_interpolation(make_config, backbone):
    model = build(make_config(backbone))
    pixels = torch.randn(2, 3, 64, 40)
    with pytest.raises(ValueError, match=r"48x48 pixels.*got 64x40.*interpolate_pos_encoding=True"):
        model(pixels)
    assert model(pixels, interpolate_pos_encoding=True).patch_grid.tolist() == [[8, 5], [8, 5]]


def test_patches_see_the_pyramid_at_their_own_place(make_config):
    """A change in one corner of a wide image changes fused tokens through the pyramid there, not at the far end."""
    model = AscentViTModel(make_config("dinov2", backbone_kwargs={"num_hidden_layers": 1})).eval()
    nn.init.ones_(model.fusion.gamma)
    captured = []
    model.fusion.register_forward_hook(lambda module, args, output: captured.append(output[0] - args[0]))
    pixels = torch.randn(1, 3, 48, 240)
    changed = pixels.clone()
    changed[..., :16, -16:] += 3.0
    with torch.no_grad():
        # The same patch tokens for both, so that only the pyramid differs.
        tokens = model.backbone(pixels).last_hidden_state
        for image in (pixels, changed):
            model.fusion(tokens[:, 1:], (6, 30), *model.encoding(image))
    difference = (captured[1] - captured[0]).norm(dim=-1).view(6, 30)
    assert difference[0, -1] > 0 and difference[:, :6].max() < 0.05 * difference[0, -1]


# Streams -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [(3, 0, 0), (0, 4, 0), (0, 0, 2), (3, 4, 0), (0, 4, 2), (3, 0, 2)], ids=lambda s: "-".join(map(str, s))
)
@pytest.mark.parametrize("fusion_levels", [0, 1, 3])
@pytest.mark.parametrize("global_token", ["cls", "cls_mean", "pool"])
def test_stream_without_concepts_is_not_there(make_config, sizes, fusion_levels, global_token):
    config = make_config(
        num_global_concepts=sizes[0],
        num_spatial_concepts=sizes[1],
        num_unsupervised_concepts=sizes[2],
        fusion_levels=fusion_levels,
        global_token=global_token,
    )
    model = build(config).train()
    names = ["global_stream", "spatial_stream", "unsupervised_stream"]
    for name, size in zip(names, sizes, strict=True):
        assert any(name in key for key in model.state_dict()) == bool(size)
    outputs = model(torch.randn(2, 3, 48, 48), output_contributions=True, **supervision(config))
    attentions = ["global_concept_attention", "spatial_concept_attention", "unsupervised_concept_attention"]
    for name, size in zip(attentions, sizes, strict=True):
        assert (outputs[name] is not None) == bool(size) if size else outputs.get(name) is None
    assert outputs.concept_contributions.shape == (2, sum(sizes), 5)
    torch.testing.assert_close(outputs.concept_contributions.sum(1) + model.class_bias(), outputs.logits)
    outputs.loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("global_token", ["cls", "cls_mean", "pool"])
@pytest.mark.parametrize(
    "kwargs", [{}, {"none_concept": True}, {"fusion_levels": 0}, {"pyramid_norm": "group"}], ids=str
)
def test_no_parameter_is_dead(make_config, backbone, global_token, kwargs):
    config = make_config(backbone, global_token=global_token, **kwargs)
    model = build(config).train()
    model(torch.randn(2, 3, 48, 48), **supervision(config)).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []


def test_parameters_stay_alive_after_loading(make_config, backbone, tmp_path):
    config = make_config(backbone)
    build(config).save_pretrained(tmp_path)
    model = AscentViTForImageClassification.from_pretrained(tmp_path).train()
    model(torch.randn(2, 3, 48, 48), **supervision(config)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("pyramid_norm", ["batch", "group"])
@pytest.mark.parametrize("size", [(48, 48), (50, 61)])
def test_light_pyramid_has_the_levels_of_the_papers(make_config, pyramid_norm, size):
    config = make_config("vit", pyramid_norm=pyramid_norm)
    light = make_config("vit", pyramid_norm=pyramid_norm, pyramid_stem="patch", pyramid_channels=[24, 32, 48, 64])
    pixels = torch.randn(2, 3, *size)
    pyramid, shapes = AscentViTMultiScaleEncoding(config)(pixels)
    light_pyramid, light_shapes = AscentViTMultiScaleEncoding(light)(pixels)
    assert light_shapes == shapes
    assert light_pyramid.shape == pyramid.shape
    model = build(light).train()
    model(torch.randn(2, 3, 48, 48), **supervision(light)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_narrow_fusion(make_config, tmp_path):
    """Pyramid and fusion of another width than the backbone's: it trains whole, and loads as it was saved."""
    config = make_config(fusion_hidden_size=24, pyramid_channels=[4, 8, 16, 16])
    assert (config.fusion_width, config.hidden_size) == (24, 32)
    model = build(config).train()
    pyramid, shapes = model.ascent_vit.encoding(torch.randn(2, 3, 48, 48))
    assert pyramid.shape == (2, sum(h * w for h, w in shapes), 24)
    model(torch.randn(2, 3, 48, 48), **supervision(config)).loss.backward()
    assert all(parameter.grad.any() for parameter in model.ascent_vit.fusion.parameters())
    model.eval().save_pretrained(tmp_path)
    loaded = AscentViTForImageClassification.from_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 48, 48)
    assert loaded.config.fusion_hidden_size == 24
    assert torch.equal(loaded(pixels).logits, model(pixels).logits)


def test_pyramid_that_nobody_reads_is_not_built(make_config, caplog):
    logging.getLogger("transformers").propagate = True
    logging.getLogger("modeling_ascent_vit").propagate = True
    model = AscentViTForImageClassification(make_config(num_global_concepts=3))
    assert model.config.fusion_levels == 0 and model.ascent_vit.fusion is None
    assert "Nothing reads the fused patches" in caplog.text
    # Without CLS token the mean of the patches is read.
    without_cls = AscentViTForImageClassification(make_config("siglip_vision_model", num_global_concepts=3))
    assert without_cls.config.fusion_levels == 3
    pooled = AscentViTForImageClassification(make_config(num_global_concepts=3, global_token="cls_mean"))
    assert pooled.config.fusion_levels == 3


def test_global_token_reads_the_fused_patches(make_config):
    pixels = torch.randn(2, 3, 48, 48)
    for global_token, reads in (("cls", False), ("cls_mean", True), ("pool", True)):
        model = build(make_config(global_token=global_token))
        before = model(pixels).global_concept_attention
        with torch.no_grad():
            model.ascent_vit.fusion.gamma.mul_(5)
        assert torch.allclose(before, model(pixels).global_concept_attention, atol=1e-6) != reads


# Training ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 48])
@pytest.mark.parametrize("pyramid_norm", ["batch", "group"])
def test_batch_of_one_trains(make_config, size, pyramid_norm):
    config = make_config(backbone_kwargs={"image_size": size}, pyramid_norm=pyramid_norm)
    model = build(config).train()
    loss = model(torch.randn(1, 3, size, size), **supervision(config, 1, (size // 8) ** 2)).loss
    loss.backward()
    assert loss.isfinite()


def test_a_batch_equals_its_parts_with_group_norm(make_config):
    config = make_config(pyramid_norm="group")
    model = build(config).double().train()
    pixels = torch.randn(4, 3, 48, 48, dtype=torch.float64)
    targets = {k: v.double() if v.is_floating_point() else v for k, v in supervision(config, 4).items()}
    targets["spatial_concept_targets"][0] = NAN
    targets["spatial_concept_targets"][1, :30] = NAN
    whole = torch.autograd.grad(model(pixels, **targets).loss, list(model.parameters()))
    halves = []
    for part in (slice(0, 2), slice(2, 4)):
        loss = model(pixels[part], **{name: target[part] for name, target in targets.items()}).loss
        halves.append(torch.autograd.grad(loss, list(model.parameters())))
    for gradient, first, second in zip(whole, *halves, strict=True):
        torch.testing.assert_close(gradient, (first + second) / 2)


def test_a_few_steps_lower_every_term(make_config):
    config = make_config(alignment_loss="kl", global_token="cls_mean")
    model = AscentViTForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pixels, targets = torch.randn(8, 3, 48, 48), supervision(config, 8)
    terms = []
    for _ in range(30):
        outputs = model(pixels, **targets)
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        terms.append((outputs.loss.item(), outputs.class_loss.item(), outputs.alignment_loss.item()))
    for first, last in zip(terms[0], terms[-1], strict=True):
        assert last < 0.8 * first


def test_activation_checkpointing_changes_nothing(make_config, backbone):
    config = make_config(backbone)
    model = build(config).train()
    pixels, targets = torch.randn(2, 3, 48, 48), supervision(config)
    plain = torch.autograd.grad(model(pixels, **targets).loss, list(model.parameters()))
    model.activation_checkpointing_enable()
    again = torch.autograd.grad(model(pixels, **targets).loss, list(model.parameters()))
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)


def test_bfloat16_autocast_stays_near_float32(make_config):
    config = make_config()
    model = build(config).train()
    pixels, targets = torch.randn(4, 3, 48, 48), supervision(config, 4)
    expected = model(pixels, **targets)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(pixels, **targets)
    outputs.loss.backward()
    torch.testing.assert_close(outputs.loss.float(), expected.loss, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(
        outputs.spatial_concept_attention, expected.spatial_concept_attention, rtol=0, atol=2e-2
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_compiles_whole(make_config, mode):
    config = make_config()
    model = build(config).train(mode == "training")
    pixels, targets = torch.randn(2, 3, 48, 48), supervision(config)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    if mode == "inference":
        with torch.no_grad():
            torch.testing.assert_close(
                compiled(pixels, output_contributions=True).concept_contributions,
                model(pixels, output_contributions=True).concept_contributions,
                rtol=1e-4,
                atol=1e-5,
            )
        return
    loss, expected = compiled(pixels, **targets).loss, model(pixels, **targets).loss
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    loss.backward()
    expected.backward()
    for a, b in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)


# Overrides -----------------------------------------------------------------------------------------------------------


def test_override_of_everything_decides(make_config):
    model = build(make_config(num_global_concepts=3, num_spatial_concepts=4))
    pixels = torch.randn(2, 3, 48, 48)
    nothing = model(pixels, global_concept_override=torch.zeros(2, 3), spatial_concept_override=torch.zeros(2, 36, 4))
    torch.testing.assert_close(nothing.logits, model.class_bias().expand(2, -1))
    present = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    outputs = model(pixels, global_concept_override=present, output_contributions=True)
    torch.testing.assert_close(outputs.global_concept_attention, present)
    assert outputs.concept_contributions[0, 2].abs().max() == 0
    torch.testing.assert_close(outputs.concept_contributions.sum(1) + model.class_bias(), outputs.logits)


def test_override_of_nan_changes_nothing(make_config):
    model = build(make_config())
    pixels = torch.randn(2, 3, 48, 48)
    plain = model(pixels)
    left = model(
        pixels, global_concept_override=torch.full((2, 3), NAN), spatial_concept_override=torch.full((2, 36, 4), NAN)
    )
    assert torch.equal(plain.logits, left.logits)


# Saving, loading, building -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_saved_model_gives_the_same(make_config, backbone, tmp_path, dtype):
    model = build(make_config(backbone)).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = AscentViTForImageClassification.from_pretrained(tmp_path, dtype=dtype).eval()
    assert loaded.dtype == dtype
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, loaded(pixels).logits)


def test_half_precision_explains_too(make_config):
    model = build(make_config())
    pixels = torch.randn(2, 3, 48, 48)
    expected = model(pixels)
    for dtype in (torch.bfloat16, torch.float16):
        half = copy.deepcopy(model).to(dtype)
        with torch.no_grad():
            outputs = half(pixels, output_contributions=True)
            assert half.contribution_maps(pixels, [1]).isfinite().all()
        assert outputs.logits.dtype == dtype
        torch.testing.assert_close(outputs.logits.float(), expected.logits, rtol=0.05, atol=0.15)
        by_sum = outputs.concept_contributions.sum(1) + half.class_bias()
        torch.testing.assert_close(by_sum, outputs.logits.float(), rtol=0.05, atol=0.05)


def test_base_model_loads_from_the_classifier(make_config, tmp_path):
    model = build(make_config())
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(base, AscentViTModel)
    pixels = torch.randn(1, 3, 48, 48)
    assert torch.equal(base(pixels).last_hidden_state, model.ascent_vit(pixels).last_hidden_state)


def test_new_classes_and_concepts_over_old_weights(make_config, tmp_path):
    build(make_config()).save_pretrained(tmp_path)
    model = AscentViTForImageClassification.from_pretrained(
        tmp_path, num_labels=7, num_spatial_concepts=6, ignore_mismatched_sizes=True
    )
    outputs = model(torch.randn(1, 3, 48, 48))
    assert outputs.logits.shape == (1, 7) and outputs.spatial_concept_attention.shape == (1, 36, 6)


def test_initialisation_is_reproducible_and_complete(make_config):
    torch.manual_seed(5)
    first = AscentViTForImageClassification(make_config(none_concept=True, global_token="pool"))
    torch.manual_seed(5)
    second = AscentViTForImageClassification(make_config(none_concept=True, global_token="pool"))
    for name, tensor in first.state_dict().items():
        assert tensor.isfinite().all(), name
        assert torch.equal(tensor, second.state_dict()[name]), name
    fusion = first.ascent_vit.fusion
    assert not fusion.gamma.any() and not fusion.sampling_weights.weight.any()
    assert torch.equal(fusion.sampling_offsets.bias, fusion.initial_offsets())


def test_from_backbone_folder_keeps_the_pretrained_weights(make_config, backbone, tmp_path):
    pretrained = AutoModel.from_config(make_config(backbone).backbone_config)
    pretrained.save_pretrained(tmp_path)
    model = AscentViTForImageClassification.from_backbone(
        tmp_path, spatial_concepts=["wing", "beak"], num_labels=3, fusion_heads=4
    )
    assert not model.training and model.config.spatial_concepts == ["wing", "beak"] and model.config.num_labels == 3
    expected, loaded = pretrained.state_dict(), model.ascent_vit.backbone.state_dict()
    unused = {name for name in expected if any(part in name for part in ("pooler", "mask_token", "head."))}
    assert set(loaded) == set(expected) - unused
    for name, tensor in loaded.items():
        assert torch.equal(tensor, expected[name]), name
    assert model(torch.randn(1, 3, 48, 48)).logits.shape == (1, 3)


def test_from_backbone_takes_model_config_and_dtype(make_config, tmp_path):
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    vit = ViTModel(config)
    model = AscentViTForImageClassification.from_backbone(vit, num_global_concepts=3, global_token="cls_mean")
    assert model.ascent_vit.backbone is vit and model.config.backbone_config is vit.config
    assert AscentViTForImageClassification.from_backbone(config, num_spatial_concepts=3).config.hidden_size == 32
    vit.save_pretrained(tmp_path)
    half = AscentViTForImageClassification.from_backbone(tmp_path, num_spatial_concepts=3, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half(torch.randn(1, 3, 32, 32)).logits.dtype == torch.bfloat16


def test_from_backbone_takes_the_vision_part_of_image_text_models(tmp_path):
    part = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = SiglipConfig(
        text_config={**part, "vocab_size": 20}, vision_config={**part, "image_size": 32, "patch_size": 8}
    )
    whole = AutoModel.from_config(config)
    whole.save_pretrained(tmp_path)
    model = AscentViTForImageClassification.from_backbone(tmp_path, num_spatial_concepts=3)
    expected = whole.vision_model.state_dict()
    for name, tensor in model.ascent_vit.backbone.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    "arguments, message",
    [((3,), "Hub id, a folder, a configuration or a model; got int"), ((ViTConfig(),), "does not know: colour")],
)
def test_from_backbone_says_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        AscentViTForImageClassification.from_backbone(*arguments, num_spatial_concepts=3, colour="red")


def test_attention_implementation_reaches_the_backbone(make_config):
    config = make_config()
    eager = AscentViTForImageClassification._from_config(config, attn_implementation="eager")
    outputs = eager(torch.randn(1, 3, 48, 48), output_attentions=True, output_hidden_states=True)
    assert len(outputs.attentions) == 2 and outputs.attentions[0].shape == (1, 4, 37, 37)
    assert len(outputs.hidden_states) == 3
    eager.set_attn_implementation("sdpa")
    assert eager.ascent_vit.backbone.config._attn_implementation == "sdpa"
    config.output_hidden_states = True
    assert len(AscentViTForImageClassification(config)(torch.randn(1, 3, 48, 48)).hidden_states) == 3


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs accelerate")
def test_trainer_hands_logits_alone_to_metrics(make_config, tmp_path):
    """Metric functions written for other classifiers take the argmax of `predictions`."""
    config = make_config()
    rows = [{"pixel_values": torch.randn(3, 48, 48), "labels": i % 5} for i in range(6)]
    arguments = TrainingArguments(str(tmp_path), num_train_epochs=1, per_device_eval_batch_size=4, use_cpu=True)
    trainer = Trainer(
        build(config),
        arguments,
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_accuracy"] <= 1 and metrics["eval_loss"] > 0


def test_tuple_output(make_config):
    model = build(make_config())
    pixels = torch.randn(1, 3, 48, 48)
    assert torch.equal(model(pixels, return_dict=False)[0], model(pixels).logits)


def test_mask_token_of_the_backbone_is_not_saved(make_config):
    model = AscentViTForImageClassification(make_config("dinov2"))
    assert isinstance(model.ascent_vit.backbone, Dinov2Model)
    assert not any("mask_token" in name for name in model.state_dict())


# Backbones and imports -----------------------------------------------------------------------------------------------


def test_unsuitable_backbone_is_named():
    with pytest.raises(ValueError, match="vit_mae cannot be the backbone"):
        AscentViTForImageClassification.from_backbone(AutoConfig.for_model("vit_mae"), num_spatial_concepts=3)


def test_model_folder_stands_alone():
    """The folder imports nothing but transformers and what it requires."""
    code = (
        "import sys; import modeling_ascent_vit; "
        "foreign = ('ascent_vit', 'datasets', 'matplotlib', 'torchmetrics', 'timm', 'typer'); "
        "print([m for m in foreign if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_convolutions_of_the_pyramid_start_small(make_config):
    encoding = AscentViTModel(make_config(initializer_range=0.05)).encoding
    for layer in (*encoding.stem, *encoding.stages):
        assert layer.convolution.weight.std().item() == pytest.approx(0.05, rel=0.1)


def test_label_smoothing_and_class_weights(make_config):
    """Of torch's cross-entropy, with a mean over images: a batch is the mean of its parts."""
    weights = [0.5, 2.0, 1.0, 1.0, 0.0]
    plain = AscentViTForImageClassification(make_config())
    model = AscentViTForImageClassification(make_config(label_smoothing=0.1, class_weights=weights))
    model.load_state_dict(plain.state_dict())
    pixels, labels = torch.randn(4, 3, 48, 48), torch.tensor([1, 0, -100, 3])
    with torch.no_grad():
        outputs, before = model.eval()(pixels, labels), plain.eval()(pixels, labels)
        parts = [model(pixels[i : i + 1], labels[i : i + 1]).class_loss for i in (0, 1, 3)]
    expected = torch.nn.functional.cross_entropy(
        before.logits, labels, torch.tensor(weights), label_smoothing=0.1, reduction="sum"
    )
    torch.testing.assert_close(outputs.class_loss, expected / 3)
    torch.testing.assert_close(outputs.class_loss, sum(parts) / 3)
    assert outputs.class_loss != before.class_loss and torch.equal(outputs.logits, before.logits)
    with pytest.raises(ValueError, match="need one class an image: leave them out"):
        model(pixels, torch.rand(4, 5))


def test_token_dropout(make_config):
    """In training alone, and of the tokens that look at concepts."""
    plain = AscentViTForImageClassification(make_config()).eval()
    model = AscentViTForImageClassification(make_config(token_dropout=0.5))
    model.load_state_dict(plain.state_dict())
    pixels, queries = torch.randn(2, 3, 48, 48), []
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(pixels).logits, plain(pixels).logits, rtol=0, atol=0)
        model.spatial_stream.register_forward_pre_hook(lambda module, arguments: queries.append(arguments[0]))
        first, second = model(pixels).logits, model.train()(pixels).logits
    tokens = queries[1]
    assert 0.4 < (tokens == 0).float().mean() < 0.6 and not (queries[0] == 0).any()
    torch.testing.assert_close(tokens[tokens != 0], 2 * queries[0][tokens != 0], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(first, second)


def test_corrections_in_training(make_config):
    """Class scores are those of overrides by the annotation; attention and the other losses are the model's own."""
    plain = AscentViTForImageClassification(make_config(none_concept=True, pyramid_norm="group")).train()
    model = AscentViTForImageClassification(make_config(none_concept=True, pyramid_norm="group", correction_rate=1.0))
    model.load_state_dict(plain.state_dict())
    config, pixels, labels = model.config, torch.randn(3, 3, 48, 48), torch.tensor([0, 1, 2])
    with torch.no_grad():
        before = plain(pixels)
        targets = {
            "concept_targets": (torch.rand(3, config.num_global_concepts) < 0.5).float(),
            "spatial_concept_targets": (torch.rand_like(before.spatial_concept_attention) < 0.2).float(),
        }
        before, after = plain(pixels, labels, **targets), model.train()(pixels, labels, **targets)
        evaluated, explained = (
            model.eval()(pixels, **targets),
            model.train()(pixels, **targets, output_contributions=True),
        )
    torch.testing.assert_close(after.spatial_concept_attention, before.spatial_concept_attention)
    torch.testing.assert_close(after.global_concept_attention, before.global_concept_attention)
    torch.testing.assert_close(after.alignment_loss, before.alignment_loss)
    assert not torch.allclose(after.logits, before.logits)
    torch.testing.assert_close(evaluated.logits, before.logits)
    torch.testing.assert_close(explained.logits, before.logits)

    stream, tokens = model.spatial_stream, torch.randn(2, 9, config.hidden_size)
    chosen = torch.rand(2, 1, config.num_spatial_concepts) < 0.5
    truth = true_attention((torch.rand(2, 9, config.num_spatial_concepts) < 0.5).float(), True)
    given = torch.where(chosen, truth, torch.nan)
    with torch.no_grad():
        attention, scores = stream(tokens, correction=(chosen, truth))
        torch.testing.assert_close(attention, stream(tokens)[0])
        torch.testing.assert_close(scores, stream(tokens, given)[1])


def test_as_many_images_are_corrected_as_the_rate_says():
    targets = (torch.rand(4000, 1, 8) < 0.5).float()
    known, corrections = random_corrections(targets, 0.25, True)
    share = known[:, 0].float().mean(-1)
    # An image with a share of nearly 0 may have none of its concepts corrected.
    assert 0.19 < (share > 0).float().mean() < 0.26 and 0.4 < share[share > 0].mean() < 0.65
    torch.testing.assert_close(corrections[known], true_attention(targets, True)[known])
    assert not random_corrections(targets, 0.0, True)[0].any()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"correction_rate": 1.5}, "correction_rate must be from 0 to 1; got 1.5"),
        ({"label_smoothing": 1.0}, "label_smoothing must be from 0 to below 1; got 1.0"),
        ({"token_dropout": 1.0}, "token_dropout must be from 0 to below 1; got 1.0"),
        ({"class_weights": [1.0, 2.0]}, "class_weights must be .* for each of 5 classes"),
        ({"class_weights": [1.0, 2.0, 3.0, 4.0, -1.0]}, "class_weights must be .* 0 or more"),
    ],
)
def test_wrong_smoothing_and_weights(make_config, fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)

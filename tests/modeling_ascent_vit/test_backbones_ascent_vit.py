# SPDX-License-Identifier: Apache-2.0
"""Every family of backbones: built, run, trained, saved, loaded and explained, at a square and at another size."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import CONFIG_MAPPING

from ascent_vit.explanation import explain
from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification, AscentViTImageProcessor
from modeling_ascent_vit.backbones_ascent_vit import BACKBONES as FACTS
from modeling_ascent_vit.backbones_ascent_vit import backbone_facts


PLAIN = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "patch_size": 8,
    "image_size": 48,
}
BEIT = PLAIN | {"use_relative_position_bias": True, "use_mask_token": True}
SWIN = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 3, "patch_size": 4, "image_size": 48}
HIERA = {
    "embed_dim": 8,
    "depths": [1, 1, 1],
    "num_heads": [1, 2, 4],
    "num_query_pool": 2,
    "patch_stride": [2, 2],
    "masked_unit_size": [4, 4],
    "masked_unit_attention": [True, False, False],
    "image_size": [48, 48],
}
PVT_V2 = {
    "hidden_sizes": [8, 16, 16, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 2, 4],
    "mlp_ratios": [2, 2, 2, 2],
    "strides": [2, 2, 2, 1],
    "image_size": 48,
}
TIMM = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4},
}

# Name: configuration, prefix tokens, and what brings it to 48x80 pixels: a configuration of that size ("own"),
# interpolation on request ("interpolate"), or nothing ("free").
BACKBONES = {
    "vit": (PLAIN, 1, "own"),
    "deit": (PLAIN, 2, "own"),
    "dinov2": (PLAIN, 1, "free"),
    "dinov2_with_registers": (PLAIN, 5, "free"),
    "dinov3_vit": (PLAIN | {"num_register_tokens": 2}, 3, "free"),
    "beit": (BEIT, 1, "own"),
    "siglip_vision_model": (PLAIN, 0, "interpolate"),
    "clip_vision_model": (PLAIN, 1, "interpolate"),
    "ijepa": (PLAIN, 0, "own"),
    "vit_msn": (PLAIN, 1, "own"),
    "data2vec-vision": (BEIT, 1, "own"),
    "pixio": (PLAIN, 8, "free"),
    "mlcd_vision_model": (PLAIN, 1, "free"),
    "swin": (SWIN, 0, "own"),
    "swinv2": (SWIN, 0, "own"),
    "hiera": (HIERA, 0, "own"),
    "pvt_v2": (PVT_V2, 0, "free"),
    "timm_wrapper": (TIMM, 1, "own"),
}
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm")
NAMES = [pytest.param(name, marks=needs_timm if name == "timm_wrapper" else ()) for name in BACKBONES]


def backbone_config(name: str, size: tuple[int, int] | None = None) -> dict:
    """A tiny configuration, with a size of its own where one is given."""
    config = {"model_type": name, **BACKBONES[name][0]}
    if size is not None and name == "timm_wrapper":
        config["model_args"] = {**TIMM["model_args"], "img_size": size}
    elif size is not None:
        config["image_size"] = list(size)
    return config


def build(name: str, size: tuple[int, int] | None = None, **kwargs) -> AscentViTForImageClassification:
    """A model of three streams whose fusion has an effect, as after some training."""
    kwargs = {"global_concepts": ["a", "b", "c"], "spatial_concepts": ["d", "e", "f", "g"], **kwargs}
    config = AscentViTConfig(
        backbone_config=backbone_config(name, size),
        num_unsupervised_concepts=2,
        num_labels=5,
        fusion_heads=4,
        **kwargs,
    )
    model = AscentViTForImageClassification(config).eval()
    nn.init.normal_(model.ascent_vit.fusion.gamma)
    # Backbones that initialise their layers' scales or last norms to nothing would hide the image.
    for name, parameter in model.ascent_vit.backbone.named_parameters():
        if name.endswith(("lambda_1", "lambda_2", "lambda1", "norm1.weight", "norm2.weight")):
            nn.init.ones_(parameter)
    return model


def supervision(num_patches: int) -> dict[str, torch.Tensor]:
    return {
        "labels": torch.tensor([1, 3]),
        "concept_targets": torch.randint(0, 2, (2, 3)).float(),
        "spatial_concept_targets": torch.randint(0, 2, (2, num_patches, 4)).float(),
    }


@pytest.mark.parametrize("name", NAMES)
def test_places_are_learned_from_lists_over_every_backbone(name):
    model = build(name, none_concept=True).train()
    size = model.config.image_size
    presence = torch.tensor([[1.0, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1], [0, 1, 0, 1]])
    outputs = model(torch.randn(6, model.config.num_channels, *size), spatial_concept_presence=presence)
    assert outputs.presence_loss > 0 and outputs.hidden_states is None
    outputs.loss.backward()
    assert model.spatial_stream.gate.weight.grad.abs().sum() > 0


def test_the_table_names_backbones_that_exist():
    assert set(FACTS) <= set(CONFIG_MAPPING)
    for facts in FACTS.values():
        assert not facts.normalisation or set(facts.normalisation) == {"image_mean", "image_std"}


@needs_timm
@pytest.mark.parametrize("name", ["vit", "deit", "dinov2"])
def test_usual_normalisation_is_that_of_timm(name):
    """Of the plain weights of each family, as timm knows them."""
    from timm.models import get_pretrained_cfg

    architecture = {
        "vit": "vit_base_patch16_224.augreg_in21k",
        "deit": "deit_base_distilled_patch16_224.fb_in1k",
        "dinov2": "vit_base_patch14_dinov2.lvd142m",
    }[name]
    known = get_pretrained_cfg(architecture)
    expected = {"image_mean": list(known.mean), "image_std": list(known.std)}
    assert backbone_facts(name).normalisation == expected


@pytest.mark.parametrize("size", [(48, 48), (48, 80)], ids=["square", "wide"])
@pytest.mark.parametrize("name", NAMES)
def test_backbone(name, size, tmp_path):
    _, num_prefix_tokens, way = BACKBONES[name]
    wide = size != (48, 48)
    model = build(name, size if wide and way == "own" else None)
    options = {"interpolate_pos_encoding": True} if wide and way == "interpolate" else {}
    config, patch = model.config, 8
    assert config.patch_size == (patch, patch)
    grid = [size[0] // patch, size[1] // patch]
    num_patches = grid[0] * grid[1]
    pixels = torch.randn(2, 3, *size)

    with torch.no_grad():
        tokens = model.ascent_vit(pixels, **options)
        outputs = model(pixels, output_contributions=True, **options)
        maps = model.contribution_maps(pixels, [0, 4], **options)
    assert tokens.last_hidden_state.shape == (2, num_prefix_tokens + num_patches, config.hidden_size)
    assert outputs.patch_grid.tolist() == [grid, grid]
    by_sum = outputs.concept_contributions.sum(1) + model.class_bias()
    torch.testing.assert_close(by_sum, outputs.logits, rtol=0, atol=1e-5)
    spatial = outputs.concept_contributions[:, 3:7, [0, 4]].transpose(1, 2)
    torch.testing.assert_close(maps.sum((-1, -2)), spatial, rtol=0, atol=1e-5)

    model.save_pretrained(tmp_path)
    loaded = AscentViTForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.backbone_config.model_type == name and loaded.config.image_size == config.image_size
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels, **options).logits, outputs.logits)

    processor = AscentViTImageProcessor.from_model_config(config, size={"height": size[0], "width": size[1]})
    values = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    explanation = explain(loaded, processor, Image.fromarray(values))
    assert explanation.additivity_error < 1e-5
    assert explanation.patch_contributions.shape == (4, *grid)
    annotation = {"points": {"xy": [[69.0, 0.0]], "category": [2]}}
    targets = processor(Image.fromarray(values), annotation, return_tensors="pt")["spatial_concept_targets"]
    assert targets.shape == (1, num_patches, 4) and targets[0, grid[1] - 1].tolist() == [0, 0, 1, 0]

    loaded.train()
    loaded(pixels, **supervision(num_patches), **options).loss.backward()
    assert [key for key, parameter in loaded.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_row_by_row(name):
    """What changes in one cell of the image changes the token of that cell most."""
    way = BACKBONES[name][2]
    model = build(name, (48, 80) if way == "own" else None)
    options = {"interpolate_pos_encoding": True} if way == "interpolate" else {}
    # Overlapping convolutions blur what a token sees over its neighbours.
    reach = 1 if name == "pvt_v2" else 0
    pixels = torch.randn(16, 3, 48, 80)
    for row, column in ((0, 9), (4, 1), (2, 6)):
        changed = pixels.clone()
        changed[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += torch.randn(16, 3, 8, 8)
        with torch.no_grad():
            before, after = (model.ascent_vit(x, **options).last_hidden_state[:, -60:] for x in (pixels, changed))
        found = divmod((after - before).norm(dim=-1).mean(0).argmax().item(), 10)
        assert abs(found[0] - row) <= reach and abs(found[1] - column) <= reach


@pytest.mark.parametrize(
    "name, kwargs, message",
    [
        ("dinov2", {"image_size": [48, 80]}, "dinov2 takes a square image_size; got 48x80"),
        ("clip_vision_model", {"image_size": [48, 80]}, "clip_vision_model takes a square image_size"),
        ("swin", {"image_size": 52}, "whole cells of its last stage, 8x8 pixels; got 52x52"),
        ("hiera", {"num_query_pool": 1}, r"num_query_pool = len\(depths\) - 1"),
        ("vit_mae", {}, "vit_mae cannot be the backbone: it drops patches at random"),
        ("siglip2_vision_model", {}, "siglip2_vision_model cannot be the backbone: it needs a pixel mask"),
        ("yolos", {"image_size": [48, 48]}, "yolos cannot be the backbone: its last tokens are detections"),
        ("videomae", {}, "videomae cannot be the backbone: it takes videos"),
        ("pixtral", {}, "pixtral cannot be the backbone: it packs"),
        ("bert", {}, "bert cannot be the backbone: its configuration has no image_size and no patch_size"),
        ("detr", {}, "detr cannot be the backbone: its configuration has no image_size and no patch_size"),
        ("resnet", {}, "resnet cannot be the backbone: its configuration has no hidden_size"),
        ("vilt", PLAIN, "vilt cannot be the backbone: it needs more than pixel_values"),
        ("sam_vision_model", PLAIN, "gave 36 tokens of 256 values for 6x6 patches"),
        pytest.param("timm_wrapper", {"architecture": "resnet18"}, "timm's resnet18 cannot", marks=needs_timm),
        pytest.param(
            "timm_wrapper",
            {"architecture": "swin_tiny_patch4_window7_224", "model_args": {"depths": [1, 1, 1, 1], "embed_dim": 12}},
            "timm's swin_tiny_patch4_window7_224 cannot be the backbone: it does not give one token per patch",
            marks=needs_timm,
        ),
    ],
)
def test_what_cannot_be_a_backbone_says_so(name, kwargs, message):
    base = BACKBONES[name][0] if name in BACKBONES and name != "timm_wrapper" else {}
    with pytest.raises(ValueError, match=message):
        config = AscentViTConfig(
            backbone_config={"model_type": name, **base, **kwargs}, num_spatial_concepts=3, fusion_heads=4
        )
        AscentViTForImageClassification(config)(torch.zeros(1, 3, 48, 48))


@pytest.mark.parametrize(
    "name, own, size, options, message",
    [
        ("swin", None, (48, 52), {"interpolate_pos_encoding": True}, "whole cells of 8x8 pixels.*got 48x52"),
        ("pvt_v2", None, (52, 48), {}, "whole cells of 8x8 pixels, the total stride of pvt_v2; got 52x48"),
        ("clip_vision_model", None, (48, 80), {}, "48x48 pixels.*got 48x80.*interpolate_pos_encoding=True"),
        ("vit", (48, 80), (48, 48), {"interpolate_pos_encoding": True}, r"must be 48x80 .* got 48x48. Resize them\.$"),
        pytest.param("timm_wrapper", None, (48, 80), {}, r"must be 48x48 .* Resize them\.$", marks=needs_timm),
    ],
)
def test_a_size_that_the_backbone_cannot_take_says_so(name, own, size, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, own)(torch.zeros(1, 3, *size), **options)


def test_a_wide_backbone_ignores_interpolation_at_its_own_size():
    model, pixels = build("vit", (48, 80)), torch.randn(1, 3, 48, 80)
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, model(pixels, interpolate_pos_encoding=True).logits)


@needs_timm
@pytest.mark.parametrize(
    "architecture, model_args",
    [
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
        ("vit_base_patch16_siglip_224", {"img_size": 48}),
        ("vit_base_patch16_224", {"global_pool": "avg", "fc_norm": True, "img_size": 48}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 48}),
        ("deit_tiny_distilled_patch16_224", {"img_size": 48}),
        ("eva02_tiny_patch14_224", {"img_size": 48}),
        ("beit_base_patch16_224", {"img_size": 48}),
    ],
)
def test_timm_models_of_many_kinds(architecture, model_args, tmp_path):
    """Pooling by attention, a norm after pooling, registers, two prefix tokens, rotary positions, another size."""
    model_args = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, **model_args}
    backbone = {"model_type": "timm_wrapper", "architecture": architecture, "model_args": model_args}
    config = AscentViTConfig(backbone_config=backbone, num_spatial_concepts=3, num_global_concepts=2, fusion_heads=4)
    model = AscentViTForImageClassification(config)
    pixels = torch.randn(2, 3, 48, 48)
    model(pixels, labels=torch.tensor([0, 1])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    model.eval().save_pretrained(tmp_path)
    loaded = AscentViTForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels).logits, model(pixels).logits)


def train_in_two_processes(names: list[str]):
    """Two steps of data-parallel training without a search for unused parameters: it raises where there is one."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    for name in names:
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(build(name).train(), find_unused_parameters=False)
        torch.manual_seed(rank)
        for _ in range(2):
            model(torch.randn(2, 3, 48, 48), **supervision(36)).loss.backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        both = [torch.empty_like(gradients) for _ in range(2)]
        torch.distributed.all_gather(both, gradients)
        assert torch.equal(both[0], both[1]), name
        if rank == 0:
            print(name)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_data_parallel_training_finds_no_unused_parameter():
    names = ["vit", "dinov2", "clip_vision_model", "siglip_vision_model", "beit", "swin", "hiera", "pvt_v2"]
    names += ["timm_wrapper"] if importlib.util.find_spec("timm") else []
    # This file as a program: a fork of a process that has trained cannot train.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run([*torchrun, __file__, *names], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == names


if __name__ == "__main__":
    train_in_two_processes(sys.argv[1:])

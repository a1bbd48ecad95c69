# SPDX-License-Identifier: Apache-2.0
"""
Recorded outputs of the authors' code, for random weights of a small model.

Their code fuses [CLS, patch 1, ..., patch N - 1] at the places of patches 1 to N and leaves the last patch out, and
counts the residual twice, (1 + psi) x + psi gamma a. Both differ here by design. The residual folds into gamma / 2 and
twice the query projection, and `shifted_fusion` brings back the places, so that the model must give what was recorded.
"""

import pytest
import torch
from safetensors.torch import load_file

from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification


NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def rename(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ours = {
        "ascent_vit.backbone.embeddings.cls_token": theirs["feature_extractor.cls_token"],
        "ascent_vit.backbone.embeddings.position_embeddings": theirs["feature_extractor.pos_embed"],
        "ascent_vit.encoding.level_embeddings": theirs["level_embed"],
        "ascent_vit.fusion.gamma": theirs["injector.gamma"] / 2,
    }
    for kind in ("weight", "bias"):
        names = {
            "ascent_vit.backbone.embeddings.patch_embeddings.projection": "feature_extractor.patch_embed.proj",
            "ascent_vit.backbone.layernorm": "feature_extractor.norm",
            "ascent_vit.fusion.query_norm": "injector.query_norm",
            "ascent_vit.fusion.pyramid_norm": "injector.feat_norm",
            "ascent_vit.fusion.sampling_offsets": "injector.attn.sampling_offsets",
            "ascent_vit.fusion.sampling_weights": "injector.attn.attention_weights",
            "ascent_vit.fusion.value_projection": "injector.attn.value_proj",
            "ascent_vit.fusion.output_projection": "injector.attn.output_proj",
        }
        names |= {f"ascent_vit.encoding.projections.{i}": f"spm.fc{i + 2}" for i in range(3)}
        for i in range(2):
            layer, block = f"ascent_vit.backbone.layers.{i}", f"feature_extractor.blocks.{i}"
            names |= {
                f"{layer}.attention.o_proj": f"{block}.attn.proj",
                f"{layer}.layernorm_before": f"{block}.norm1",
                f"{layer}.layernorm_after": f"{block}.norm2",
                f"{layer}.mlp.fc1": f"{block}.mlp.fc1",
                f"{layer}.mlp.fc2": f"{block}.mlp.fc2",
            }
            parts = theirs[f"{block}.attn.qkv.{kind}"].chunk(3)
            ours |= {f"{layer}.attention.{n}_proj.{kind}": part for n, part in zip("qkv", parts, strict=True)}
        ours |= {f"{new}.{kind}": theirs[f"{old}.{kind}"] for new, old in names.items()}
    convolutions = {f"stem.{i}": ("spm.stem", 3 * i) for i in range(3)}
    convolutions |= {f"stages.{i}": (f"spm.conv{i + 2}", 0) for i in range(3)}
    for new, (old, index) in convolutions.items():
        ours[f"ascent_vit.encoding.{new}.convolution.weight"] = theirs[f"{old}.{index}.weight"]
        for tensor in NORM_TENSORS:
            ours[f"ascent_vit.encoding.{new}.normalization.{tensor}"] = theirs[f"{old}.{index + 1}.{tensor}"]
    for stream, prefix in (("global_stream", ""), ("spatial_stream", "spatial_")):
        head = f"classifier.{prefix}concept_tranformer"
        ours[f"{stream}.concepts"] = theirs[f"classifier.{prefix}concepts"][0]
        ours[f"{stream}.query.weight"] = 2 * theirs[f"{head}.q.weight"]
        keys, values = theirs[f"{head}.kv.weight"].chunk(2)
        ours |= {f"{stream}.key.weight": keys, f"{stream}.value.weight": values}
        ours |= {f"{stream}.projection.{kind}": theirs[f"{head}.proj.{kind}"] for kind in ("weight", "bias")}
    return ours


@pytest.mark.parametrize("grad", [True, False], ids=["plain", "folded"])
def test_shifted_model_equals_the_authors(shared_folder, grad):
    folder = shared_folder / "fixtures" / "author_cvit"
    expected = load_file(folder / "expected.safetensors")
    backbone_config = {
        "model_type": "vit",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "layer_norm_eps": 1e-6,
    }
    config = AscentViTConfig(
        backbone_config=backbone_config,
        num_global_concepts=5,
        num_spatial_concepts=9,
        num_labels=12,
        shifted_fusion=True,
    )
    model = AscentViTForImageClassification(config).eval()
    model.load_state_dict(rename(load_file(folder / "state_dict.safetensors")))
    with torch.set_grad_enabled(grad):
        outputs = model(expected["pixel_values"])
    torch.testing.assert_close(outputs.logits, expected["logits"], rtol=0, atol=1e-5)
    for stream in ("global", "spatial"):
        attention = outputs[f"{stream}_concept_attention"]
        recorded = expected[f"{stream}_attention"].view_as(attention)
        torch.testing.assert_close(attention, recorded, rtol=0, atol=1e-6)


def test_shifted_fusion_needs_one_prefix_token(make_config):
    model = AscentViTForImageClassification(make_config("deit", shifted_fusion=True))
    with pytest.raises(ValueError, match="shifted_fusion needs a backbone with one prefix token; deit has 2"):
        model(torch.zeros(1, 3, 48, 48))


def test_shifted_fusion_survives_saving_and_keeps_the_pyramid_of_the_global_stream(make_config, tmp_path):
    model = AscentViTForImageClassification(make_config(num_global_concepts=3, shifted_fusion=True))
    assert model.config.fusion_levels == 3
    torch.nn.init.normal_(model.ascent_vit.fusion.gamma)
    model.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        loaded = AscentViTForImageClassification.from_pretrained(tmp_path)
        assert loaded.config.shifted_fusion
        before = model.eval()(pixels).global_concept_attention
        torch.testing.assert_close(loaded(pixels).global_concept_attention, before)
        loaded.ascent_vit.fusion.gamma.mul_(5)
        assert (loaded(pixels).global_concept_attention - before).abs().max() > 1e-3


def test_last_patch_alone_is_not_fused(make_config):
    model = AscentViTForImageClassification(make_config(shifted_fusion=True)).ascent_vit.eval()
    torch.nn.init.ones_(model.fusion.gamma)
    pixels = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        moved = (model(pixels).last_hidden_state - model.backbone(pixels).last_hidden_state).abs().amax(-1)[0]
    assert (moved[:-1] > 0).all() and moved[-1] == 0

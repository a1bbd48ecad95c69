# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, Dinov2Config

from modeling_ascent_vit import AscentViTConfig


def test_bare_config_is_the_paper_on_cub():
    config = AscentViTConfig()
    assert (config.num_global_concepts, config.num_spatial_concepts, config.num_unsupervised_concepts) == (13, 95, 0)
    assert config.backbone_config.model_type == "vit"
    assert (config.hidden_size, config.image_size, config.patch_size) == (768, (224, 224), (16, 16))
    assert (config.fusion_heads, config.fusion_points, config.fusion_levels) == (8, 4, 3)


@pytest.mark.parametrize(
    "kwargs, sizes",
    [
        ({"global_concepts": ["a", "b"]}, (2, 0, 0)),
        ({"spatial_concepts": ["a", "b"]}, (0, 2, 0)),
        ({"num_spatial_concepts": 4}, (0, 4, 0)),
        ({"num_unsupervised_concepts": 3}, (0, 0, 3)),
        ({"num_global_concepts": 2, "spatial_concepts": ["a", "b", "c"]}, (2, 3, 0)),
    ],
)
def test_other_streams_are_empty_as_soon_as_one_is_given(kwargs, sizes):
    config = AscentViTConfig(**kwargs)
    assert (config.num_global_concepts, config.num_spatial_concepts, config.num_unsupervised_concepts) == sizes


def test_names_survive_saving_in_order(tmp_path):
    config = AscentViTConfig(
        backbone_config=Dinov2Config(hidden_size=64, num_attention_heads=4),
        global_concepts=["striped", "spotted"],
        spatial_concepts=["wing", "beak", "tail"],
        num_unsupervised_concepts=2,
        id2label={0: "wren", 1: "crow", 2: "gull"},
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, AscentViTConfig) and isinstance(loaded.backbone_config, Dinov2Config)
    assert loaded.spatial_concepts == ["wing", "beak", "tail"]
    assert loaded.id2spatial_concept == {0: "wing", 1: "beak", 2: "tail"}
    assert loaded.global_concept2id == {"striped": 0, "spotted": 1}
    assert loaded.concepts[:5] == ["striped", "spotted", "wing", "beak", "tail"] and len(loaded.concepts) == 7
    assert loaded.id2label[2] == "gull" and loaded.label2id["gull"] == 2
    assert loaded.to_diff_dict() == config.to_diff_dict()


def test_default_sizes_are_written_out(tmp_path):
    AscentViTConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert len(saved["global_concepts"]) == 13 and len(saved["spatial_concepts"]) == 95


def test_an_empty_stream_stays_empty_after_loading(tmp_path):
    AscentViTConfig(spatial_concepts=["a", "b"]).save_pretrained(tmp_path)
    assert AscentViTConfig.from_pretrained(tmp_path).num_global_concepts == 0


def test_numbers_can_be_changed_while_loading(tmp_path):
    AscentViTConfig(spatial_concepts=["a", "b"]).save_pretrained(tmp_path)
    config = AscentViTConfig.from_pretrained(tmp_path, num_global_concepts=4, num_labels=7)
    assert config.num_global_concepts == 4 and config.spatial_concepts == ["a", "b"] and config.num_labels == 7


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"backbone_config": {"hidden_size": 32}}, "model_type"),
        ({"backbone_config": {"model_type": "vit_mae"}}, "drops patches at random"),
        ({"backbone_config": {"model_type": "siglip2_vision_model"}}, "pixel mask"),
        ({"backbone_config": {"model_type": "bert"}}, "no image_size and no patch_size"),
        ({"concept_attention_heads": 5}, "concept_attention_heads=5 must divide"),
        ({"fusion_heads": 7}, "fusion_heads=7 must divide the backbone's hidden size 768"),
        ({"fusion_hidden_size": 100}, "fusion_heads=8 must divide fusion_hidden_size 100"),
        ({"fusion_hidden_size": 0}, "fusion_hidden_size must be"),
        ({"fusion_hidden_size": 10**9}, "fusion_hidden_size must be"),
        ({"fusion_levels": 4}, "from 0 to 3; got 4"),
        ({"fusion_points": 0}, "1 or more; got 0"),
        ({"pyramid_channels": [64, 128]}, r"4 numbers.*got \[64, 128\]"),
        ({"pyramid_channels": [64, 0, 256, 256]}, "4 numbers"),
        ({"concept_loss_weight": -1}, "0 or more; got -1"),
        ({"entropy_loss_weight": float("nan")}, "0 or more; got nan"),
        ({"global_concepts": ["a"]}, "one concept"),
        ({"num_unsupervised_concepts": 1}, "one concept"),
        ({"num_unsupervised_concepts": -1}, "0 or more; got -1"),
        ({"global_concepts": []}, "no concepts"),
        ({"spatial_concepts": ["a", "b", "a"]}, "repeated: a"),
        ({"spatial_concepts": ["a", "b"], "num_spatial_concepts": 3}, "names 2"),
        ({"num_spatial_concepts": -3}, "0 or more; got -3"),
        ({"num_spatial_concepts": "many"}, "got 'many'"),
    ],
)
def test_what_cannot_work_is_one_clear_error(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AscentViTConfig(**kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"psi": "strong"},
        {"fusion_heads": 8.5},
        {"alignment_loss": "l1"},
        {"global_token": "mean"},
        {"pyramid_norm": "layer"},
        {"pyramid_stem": "none"},
        {"pyramid_channels": "wide"},
        {"none_concept": "yes"},
        {"global_concepts": [1, 2]},
    ],
)
def test_wrong_types_are_named(kwargs):
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(kwargs))):
        AscentViTConfig(**kwargs)


def test_fusion_heads_do_not_matter_without_fusion():
    assert AscentViTConfig(fusion_levels=0, fusion_heads=7).fusion_levels == 0


def test_one_concept_is_enough_beside_none():
    assert AscentViTConfig(spatial_concepts=["scratch"], none_concept=True).num_spatial_concepts == 1

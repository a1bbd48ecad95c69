# SPDX-License-Identifier: Apache-2.0
"""What the forwards refuse: one sentence each, which says what was expected and what came."""

import pytest
import torch

from modeling_ascent_vit import AscentViTForImageClassification


def build(config) -> AscentViTForImageClassification:
    return AscentViTForImageClassification(config).eval()


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"pixel_values": None}, "pixel_values is missing"),
        ({"pixel_values": torch.zeros(3, 48, 48)}, r"\(batch_size, 3, height, width\); got \(3, 48, 48\)"),
        ({"pixel_values": torch.zeros(1, 1, 48, 48)}, r"got \(1, 1, 48, 48\)"),
        ({"pixel_values": torch.zeros(1, 3, 48, 48, dtype=torch.uint8)}, "floating point.*got torch.uint8"),
        ({"pixel_values": torch.zeros(1, 3, 4, 48)}, "at least one patch of 8x8 pixels; got 4x48"),
        ({"pixel_values": torch.zeros(1, 3, 56, 48)}, "must be 48x48 pixels.*got 56x48"),
        ({"labels": torch.zeros(2, dtype=torch.long)}, r"one entry per image, \(1,\); got \(2,\)"),
        ({"concept_targets": torch.zeros(1, 4)}, r"concept_targets must have the shape \(1, 3\); got \(1, 4\)"),
        ({"concept_targets": torch.zeros(1, 3, dtype=torch.long)}, "floating point.*got torch.int64"),
        ({"spatial_concept_targets": torch.zeros(1, 35, 4)}, r"\(1, 36, 4\); got \(1, 35, 4\)"),
        ({"global_concept_override": torch.zeros(3)}, r"\(1, 3\); got \(3,\)"),
        ({"global_concept_override": torch.full((1, 3), -0.5)}, "0 or more, or NaN; got -0.5"),
        ({"spatial_concept_override": torch.zeros(1, 4, 36)}, r"\(1, 36, 4\); got \(1, 4, 36\)"),
    ],
)
def test_bad_input_is_one_clear_error(make_config, inputs, message):
    model = build(make_config())
    with pytest.raises(ValueError, match=message):
        model(**{"pixel_values": torch.zeros(1, 3, 48, 48), **inputs})


def test_targets_for_a_missing_stream(make_config):
    model = build(make_config(num_spatial_concepts=4))
    with pytest.raises(ValueError, match="concept_targets was given, but the model has no such concepts"):
        model(torch.zeros(1, 3, 48, 48), concept_targets=torch.zeros(1, 0))
    model = build(make_config(num_global_concepts=4, global_token="cls_mean"))
    with pytest.raises(ValueError, match="needs spatial concepts"):
        model.contribution_maps(torch.zeros(1, 3, 48, 48), [0])


@pytest.mark.parametrize(
    "class_ids, message", [([5], "0 to 4; got"), ([0.5], "integers"), ([[0], [1]], "shape"), ([], "integers")]
)
def test_wrong_classes(make_config, class_ids, message):
    with pytest.raises(ValueError, match=message):
        build(make_config()).contribution_maps(torch.zeros(1, 3, 48, 48), class_ids)

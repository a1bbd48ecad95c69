# SPDX-License-Identifier: Apache-2.0
"""Intervention curves of real models whose concepts decide the class in a known way."""

import numpy as np
import pytest
import torch

from ascent_vit.evaluation import Intervention, NotApplicableError
from ascent_vit.evaluation.intervention import (
    concept_units,
    draw_corrections,
    expected_gain,
    image_generators,
    true_attention,
    uncertainty,
)
from modeling_ascent_vit import AscentViTForImageClassification


NAN = float("nan")


def decided_by(make_config, stream, scores, bias, **streams):
    """A model whose attention is the same to all concepts, and whose concept c adds `scores[c]` to the classes."""
    model = AscentViTForImageClassification(make_config(num_labels=len(bias), concept_attention_heads=1, **streams))
    module = getattr(model, stream)
    with torch.no_grad():
        module.query.weight.zero_()
        size = module.concepts.shape[1]
        module.concepts.copy_(torch.eye(len(scores), size))
        module.value.weight.copy_(torch.eye(size))
        module.projection.weight.zero_()
        module.projection.weight[:, : len(scores)] = torch.tensor(scores).T
        module.projection.bias.copy_(torch.tensor(bias))
    return model.eval()


def test_global_concepts_by_hand(make_config):
    # Each concept speaks for its class, and the bias for class 0. Attention of 1/2 each says class 0.
    model = decided_by(make_config, "global_stream", [[4.0, 0.0], [0.0, 4.0]], [1.0, 0.0], num_global_concepts=2)
    batch = {
        "pixel_values": torch.randn(4, 3, 48, 48),
        "labels": torch.tensor([1, 0, 1, 0]),
        # Class 1 needs the correction; class 0 is right anyway; the third is not annotated, the fourth in part.
        "concept_targets": torch.tensor([[0.0, 1.0], [1.0, 0.0], [NAN, NAN], [1.0, NAN]]),
    }
    values = Intervention(steps=2)(model, [batch])
    # Whichever of two concepts is corrected first, the other one gets what is left.
    for order in ("", "_random", "_gain"):
        assert values[f"intervention_curve{order}"] == [0.5, 1.0, 1.0]
        assert values[f"intervention_auc{order}"] == pytest.approx(0.875)
    assert values["intervention_images"] == 2


def test_the_most_uncertain_concept_is_corrected_first(make_config):
    # Attention 0.7, 0.2, 0.1: by uncertainty 0, 1, 2. Concept 2 is present and decides for class 1.
    model = decided_by(
        make_config, "global_stream", [[4.0, 0.0], [4.0, 0.0], [0.0, 4.0]], [0.0, 0.0], num_global_concepts=3
    )
    attention = torch.tensor([[[0.7, 0.2, 0.1]]])
    truth = torch.tensor([[[0.0, 0.0, 1.0]]])
    assert uncertainty(attention, truth)[0].argsort(descending=True).tolist() == [0, 1, 2]

    # The query is the CLS token, made constant; the key of concept c gives the logarithm of its attention.
    stream = model.global_stream
    with torch.no_grad():
        stream.query.weight[0, 0] = 1.0
        stream.key.weight.zero_()
        stream.key.weight[0, :3] = attention[0, 0].log() * stream.head_size**0.5

    def make_constant(module, arguments, out):
        out.last_hidden_state.fill_(1.0)

    model.ascent_vit.register_forward_hook(make_constant)
    pixel_values = torch.randn(1, 3, 48, 48)
    assert model(pixel_values).global_concept_attention[0].tolist() == pytest.approx([0.7, 0.2, 0.1], abs=1e-6)
    batch = {"pixel_values": pixel_values, "labels": torch.tensor([1]), "concept_targets": truth[0]}
    values = Intervention(steps=3)(model, [batch])
    # Without concept 0: 0.67 for class 0, 0.33 for class 1. Without concept 1 too: all for class 1.
    assert values["intervention_curve"] == [0.0, 0.0, 1.0, 1.0]


def test_spatial_concepts_are_corrected_in_all_annotated_patches(make_config):
    model = decided_by(
        make_config, "spatial_stream", [[4.0, 0.0], [0.0, 4.0]], [1.0, 0.0], num_spatial_concepts=2, fusion_levels=0
    )
    targets = torch.full((2, 36, 2), NAN)
    # 13 of 36 patches: mean attention 23/72 + 13/36 = 0.68 to concept 1, so 1.47 more than class 0, whose bias is 1.
    targets[0, :13] = torch.tensor([0.0, 1.0])
    # 3 patches: 0.54, so 0.33 more, which is not enough.
    targets[1, :3] = torch.tensor([0.0, 1.0])
    batch = {
        "pixel_values": torch.randn(2, 3, 48, 48),
        "labels": torch.tensor([1, 1]),
        "spatial_concept_targets": targets,
    }
    assert Intervention(steps=2)(model, [batch])["intervention_curve"] == [0.0, 0.5, 0.5]


def test_all_corrected_is_the_models_answer_to_whole_overrides(make_config):
    model = AscentViTForImageClassification(make_config()).eval()
    pixel_values, labels = torch.randn(16, 3, 48, 48), torch.randint(0, 5, (16,))
    concept_targets = torch.randint(0, 2, (16, 3)).float()
    spatial_targets = torch.randint(0, 2, (16, 36, 4)).float()
    concept_targets[:, 0] = spatial_targets[..., 0] = 1
    spatial_targets[:, 20:] = NAN
    batch = {"pixel_values": pixel_values, "labels": labels, "concept_targets": concept_targets}
    batch["spatial_concept_targets"] = spatial_targets
    values = Intervention(steps=3)(model, [batch])
    with torch.no_grad():
        first = model(pixel_values).logits
        last = model(
            pixel_values,
            global_concept_override=concept_targets / concept_targets.sum(-1, keepdim=True),
            spatial_concept_override=spatial_targets / spatial_targets.sum(-1, keepdim=True),
        ).logits
    for curve in (values["intervention_curve" + order] for order in ("", "_random", "_gain")):
        assert len(curve) == 4
        assert curve[0] == pytest.approx((first.argmax(-1) == labels).float().mean().item())
        assert curve[-1] == pytest.approx((last.argmax(-1) == labels).float().mean().item())
    parts = [{name: value[i : i + 5] for name, value in batch.items()} for i in range(0, 16, 5)]
    assert Intervention(steps=3)(model, parts) == values


def test_true_attention():
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, NAN, 0.0]])[None]
    nothing = [NAN] * 3
    for none_concept, second in ((False, nothing), (True, [0.0] * 3)):
        expected = torch.tensor([[0.5, 0.5, 0.0], second, nothing])[None]
        assert torch.equal(true_attention(targets, none_concept).nan_to_num(-1), expected.nan_to_num(-1))


def test_uncertainty_is_the_binary_entropy_over_rows_that_can_be_corrected():
    attention = torch.tensor([[[0.5, 0.25], [1.0, 0.0], [0.5, 0.5]]])
    truth = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [NAN, NAN]]])
    quarter = -(0.25 * torch.tensor(0.25).log2() + 0.75 * torch.tensor(0.75).log2()).item()
    bits = uncertainty(attention, truth)[0] / torch.tensor(2.0).log()
    assert bits.tolist() == pytest.approx([1 / 2, quarter / 2])


@pytest.mark.parametrize("missing", ["labels", "concept_targets"])
def test_without_labels_or_annotation(make_config, missing):
    model = AscentViTForImageClassification(make_config(num_global_concepts=3))
    batch = {
        "pixel_values": torch.randn(2, 3, 48, 48),
        "labels": torch.tensor([0, 1]),
        "concept_targets": torch.eye(3)[:2],
    }
    del batch[missing]
    with pytest.raises(NotApplicableError, match="labels and annotated concepts"):
        Intervention()(model, [batch])
    with pytest.raises(ValueError, match="steps must be 1 or more"):
        Intervention(steps=0)


def test_draws_follow_the_models_attention():
    attention = torch.tensor([[[0.6, 0.3, 0.0], [0.1, 0.1, 0.6], [0.2, 0.2, 0.2]]]).expand(400, -1, -1)
    truth = torch.zeros(400, 3, 3)
    truth[:, 2] = NAN
    generators = [np.random.default_rng(i) for i in range(400)]
    values, probabilities = zip(*draw_corrections(attention, truth, generators), strict=True)
    values = torch.stack(values)
    assert values[:, :, 2].isnan().all() and not values[:, :, :2].isnan().any()
    torch.testing.assert_close(torch.stack(probabilities).sum(0), torch.ones(400, 3))
    # Their mean is the attention; the first row is of 1 / (2/3 ^ 2 + 1/3 ^ 2) = 1.8 concepts.
    torch.testing.assert_close(values[:, :, :2].mean((0, 1)), attention[0, :2], rtol=0, atol=0.02)
    assert values[:, :, 0, 1].unique().tolist() == pytest.approx([0, 5 / 9])
    # Of one row, all outcomes with their probability.
    values, probabilities = zip(*draw_corrections(attention[:1, :1], truth[:1, :1], generators[:1]), strict=True)
    expected = sum(value[0, 0] * probability[0] for value, probability in zip(values, probabilities, strict=True))
    torch.testing.assert_close(expected, attention[0, 0])


def test_expected_gain_by_hand(make_config):
    """Attention 1/3 each: a concept is present with 1/3, or absent; the sum of both changes, by their probability."""
    model = decided_by(
        make_config, "global_stream", [[9.0, 0.0], [0.0, 9.0], [0.0, 0.0]], [0.0, 0.1], num_global_concepts=3
    )
    pixels = torch.randn(2, 3, 48, 48)
    truths = {"global_concept_override": torch.zeros(2, 1, 3)}
    with torch.no_grad():
        outputs = model(pixels, output_concept_heads=True)
        gain = expected_gain(model, outputs, truths, image_generators(pixels, 0))
        again = expected_gain(model, outputs, truths, image_generators(pixels, 0))
    # Present has 1/3, as three concepts seem to be: nothing changes. Absent never happens.
    assert gain.abs().max() < 1e-6 and torch.equal(gain, again)
    override = torch.tensor([[0.9, 0.05, 0.05]] * 2)
    outputs.global_concept_attention_heads = override.unsqueeze(1)
    outputs.logits = model(pixels, global_concept_override=override).logits
    with torch.no_grad():
        gain = expected_gain(model, outputs, truths, image_generators(pixels, 0))[0]

    def probability(attention):
        return (
            torch.tensor(attention) @ torch.tensor([[9.0, 0.0], [0.0, 9.0], [0.0, 0.0]]) + torch.tensor([0.0, 0.1])
        ).softmax(-1)[0]

    # 0.9 is more than the 0.815 that 1.23 concepts would have: present has it, and is certain.
    assert gain[0] == pytest.approx(0, abs=1e-6)
    present = 0.81 + 2 * 0.0025
    before = probability([0.9, 0.05, 0.05])
    rest = (1 - present) / 0.95
    after = probability([0.9 * rest, present, 0.05 * rest]), probability([0.9 / 0.95, 0, 0.05 / 0.95])
    share = 0.05 / present
    expected = share * (after[0] - before).abs() + (1 - share) * (after[1] - before).abs()
    assert gain[1] == pytest.approx(expected.item(), abs=1e-6)


def test_groups(make_config):
    config = make_config(
        global_concepts=["bill::long", "bill::short", "large"],
        spatial_concepts=["bill::long", "eye::red", "eye::blue"],
    )
    assert concept_units(config, None).tolist() == [0, 1, 2, 3, 4, 5]
    assert concept_units(config, "prefix").tolist() == [0, 0, 1, 0, 2, 2]
    assert concept_units(config, {"size": ["large", "eye::red"]}).tolist() == [0, 1, 2, 3, 2, 4]
    for groups, message in (
        ({"a": ["bil::long"]}, "did you mean 'bill::long'"),
        ({"a": ["large"], "b": ["large"]}, "in the groups 'a' and 'b'"),
        ("suffix", "groups must be"),
    ):
        with pytest.raises(ValueError, match=message):
            concept_units(config, groups)


def test_a_group_is_corrected_at_once(make_config):
    """Three concepts in two groups: half of the corrections set the whole group of two."""
    names = ["bill::long", "bill::short", "large"]
    model = decided_by(
        make_config, "global_stream", [[4.0, 0.0], [0.0, 4.0], [0.0, 0.0]], [1.0, 0.0], global_concepts=names
    )
    batch = {
        "pixel_values": torch.randn(1, 3, 48, 48),
        "labels": torch.tensor([1]),
        "concept_targets": torch.tensor([[0.0, 1.0, 0.0]]),
    }
    values = Intervention(steps=2, groups="prefix")(model, [batch])
    # The bill is the more uncertain unit, of two concepts.
    assert values["intervention_curve"] == [0.0, 1.0, 1.0]
    alone = Intervention(steps=2, groups={"all": names})(model, [batch])
    assert all(alone[f"intervention_curve{order}"] in ([0, 0, 1], [0, 1, 1]) for order in ("", "_random", "_gain"))
    with pytest.raises(ValueError, match="no concept 'tail'"):
        Intervention(groups={"a": ["tail"]})(model, [batch])

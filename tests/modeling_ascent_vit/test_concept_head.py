# SPDX-License-Identifier: Apache-2.0
"""The concept head and its losses against independent computations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from modeling_ascent_vit.modeling_ascent_vit import (
    AscentViTConceptStream,
    alignment_loss,
    attention_entropy,
    attention_share,
    override_attention,
    pooled_attention,
    true_attention,
)


NAN = float("nan")


def build_stream(make_config, none_concept=False, num_concepts=5, **kwargs) -> AscentViTConceptStream:
    stream = AscentViTConceptStream(make_config(**kwargs), num_concepts, none_concept).eval()
    for parameter in stream.parameters():
        nn.init.normal_(parameter, std=0.5)
    return stream


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_stream_equals_multi_head_attention(make_config, num_heads):
    """torch's own multi-head attention with the same weights, in float64, averaged over tokens."""
    stream = build_stream(make_config, concept_attention_heads=num_heads).double()
    tokens = torch.randn(3, 7, 32, dtype=torch.float64)
    peer = nn.MultiheadAttention(32, num_heads, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        peer.in_proj_weight.copy_(torch.cat([stream.query.weight, stream.key.weight, stream.value.weight]))
        peer.out_proj.weight.copy_(torch.eye(32))
        concepts = stream.concepts.expand(3, -1, -1)
        attended, weights = peer(tokens, concepts, concepts, average_attn_weights=False)
        expected = stream.projection(attended).mean(1)
    attention, scores = stream(tokens)
    torch.testing.assert_close(attention, weights)
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize(("gate_bias", "is_floored"), [(-5.0, True), (1.0, False)])
def test_contribution_table_gives_the_scores(make_config, gate_bias, is_floored):
    """The mean over tokens by what each attends to any concept, of which there is 1 at least."""
    stream = build_stream(make_config, none_concept=True).double()
    torch.nn.init.constant_(stream.gate.bias, gate_bias)
    tokens = torch.randn(3, 7, 32, dtype=torch.float64)
    attention, scores = stream(tokens)
    by_hand = torch.einsum("bats,ask->bak", attention, stream.contribution_table()).sum(1)
    voices = torch.sigmoid(stream.gate(tokens)).sum((1, 2))
    assert (voices < 1).all() if is_floored else (voices > 1).all()
    by_hand = by_hand / torch.maximum(voices, torch.ones(3)).unsqueeze(1) + stream.projection.bias
    torch.testing.assert_close(by_hand, scores)
    assert (attention.sum(-1) < 1).all()


def test_without_a_gate_scores_are_the_mean_over_tokens(make_config):
    stream = build_stream(make_config).double()
    attention, scores = stream(torch.randn(3, 7, 32, dtype=torch.float64))
    by_hand = torch.einsum("bats,ask->bk", attention, stream.contribution_table()) / 7 + stream.projection.bias
    torch.testing.assert_close(by_hand, scores)


def test_what_is_set_beyond_one_counts_more(make_config):
    """A row given whole is used as it is: attention of 2 adds twice what attention of 1 adds."""
    stream = build_stream(make_config, none_concept=True).double()
    override = torch.zeros(2, 1, stream.concepts.shape[0], dtype=torch.float64)
    override[0, 0, 0], override[1, 0, 0] = 1.0, 2.0
    tokens = torch.randn(1, 1, 32, dtype=torch.float64).expand(2, 1, 32)
    added = stream(tokens, override)[1] - stream.projection.bias
    torch.testing.assert_close(added[1], 2 * added[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_gate_by_hand(make_config, dtype):
    """`sigmoid(w . token + b)` times the shares of the same stream without a gate, in half precision too."""
    gated = build_stream(make_config, none_concept=True)
    plain = build_stream(make_config)
    plain.load_state_dict({name: value for name, value in gated.state_dict().items() if "gate" not in name})
    tokens = torch.randn(3, 7, 32)
    with torch.no_grad():
        shares = plain.double()(tokens.double())[0]
        gate = torch.sigmoid(tokens.double() @ gated.gate.weight[0].double() + gated.gate.bias.double())
        attention = gated.to(dtype)(tokens.to(dtype))[0]
    assert attention.dtype == torch.promote_types(dtype, torch.float32)
    precision = {torch.float64: 1e-12, torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(attention.double(), gate[:, None, :, None] * shares, atol=precision, rtol=0)


def test_gate_gradients(make_config):
    stream = build_stream(make_config, none_concept=True, num_concepts=3).double()
    tokens = torch.randn(1, 4, 32, dtype=torch.float64, requires_grad=True)
    override = torch.full((1, 4, 3), NAN, dtype=torch.float64)
    override[0, 1, 2] = 0.25

    def scores(tokens, weight, bias):
        parameters = {"gate.weight": weight, "gate.bias": bias}
        return torch.func.functional_call(stream, parameters, (tokens, override))[1]

    assert torch.autograd.gradcheck(scores, (tokens, stream.gate.weight, stream.gate.bias))


def test_single_concept_with_a_gate_is_the_gate(make_config):
    stream = build_stream(make_config, none_concept=True, num_concepts=1)
    tokens = torch.randn(2, 5, 32)
    expected = stream.gate(tokens).sigmoid().squeeze(-1)
    torch.testing.assert_close(stream(tokens)[0][:, 0, :, 0], expected)


# The loss terms ------------------------------------------------------------------------------------------------------


def test_alignment_by_hand():
    attention = torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[1.0, 0.0], [0.0, 1.0]]])
    targets = torch.tensor([[[1.0, 0.0], [NAN, 0.0]], [[1.0, 1.0], [0.0, 1.0]]])
    # Image 1: one annotated token, 2 * mean(0.25, 0.25) = 0.5. Image 2: (2 * mean(0.25, 0.25) + 0) / 2 = 0.25.
    torch.testing.assert_close(alignment_loss(attention, targets), torch.tensor((0.5 + 0.25) / 2))
    # Image 1: -ln 0.5. Image 2: second token agrees, first one -(0.5 ln 1 + 0.5 ln 0), finite by the smallest number.
    value = alignment_loss(attention, targets, "kl")
    expected = (math.log(2) - 0.5 * math.log(torch.finfo(torch.float32).tiny) / 2) / 2
    torch.testing.assert_close(value, torch.tensor(expected))


def test_alignment_counts_an_image_without_annotation_as_zero():
    attention = torch.tensor([[[0.5, 0.5]], [[0.5, 0.5]]])
    targets = torch.tensor([[[1.0, 0.0]], [[NAN, NAN]]])
    torch.testing.assert_close(alignment_loss(attention, targets), torch.tensor(0.25))
    assert alignment_loss(attention, torch.full_like(attention, NAN)) == 0


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_alignment_of_a_row_of_zeros(kind):
    attention = torch.tensor([[[0.2, 0.3]]])
    zeros = torch.zeros(1, 1, 2)
    assert alignment_loss(attention, zeros, kind) == 0
    expected = 0.2**2 + 0.3**2 if kind == "mse" else -math.log(0.5)
    torch.testing.assert_close(alignment_loss(attention, zeros, kind, none_concept=True), torch.tensor(expected))


def test_gated_alignment_falls_apart_into_whether_and_which():
    """Of gate and shares; both averaged over all tokens give the cross-entropy over concepts and "none"."""
    gate, shares = torch.rand(2, 6, dtype=torch.float64), torch.rand(2, 6, 3, dtype=torch.float64).softmax(-1)
    targets = torch.zeros(2, 6, 3, dtype=torch.float64)
    targets[:, :2, 1], targets[:, 1, 2], targets[:, 5] = 1.0, 1.0, NAN
    which = -(shares[:, 0, 1].log() + shares[:, 1, 1:].log().mean(-1)) / 2
    on, off = -gate[:, :2].log(), -(1 - gate[:, 2:5]).log()
    whether = torch.cat([on, off], dim=1).mean(1)
    value = alignment_loss(gate.unsqueeze(-1) * shares, targets, "kl", none_concept=True)
    torch.testing.assert_close(value.double(), (which + whether).mean(), rtol=1e-5, atol=1e-6)

    attention = torch.cat([gate.unsqueeze(-1) * shares, 1 - gate.unsqueeze(-1)], dim=-1)
    with_none = torch.cat([targets, (targets.sum(-1, keepdim=True) == 0).double()], dim=-1)
    with_none = with_none[:, :5] / with_none[:, :5].sum(-1, keepdim=True)
    whole = -(with_none * attention[:, :5].log()).sum(-1).mean(1)
    torch.testing.assert_close(which * 2 / 5 + whether, whole)


def test_alignment_of_which_does_not_depend_on_the_number_of_empty_tokens():
    attention = torch.tensor([[0.1, 0.4]]).repeat(9, 1).unsqueeze(0).requires_grad_()
    targets = torch.zeros(1, 9, 2)
    targets[0, 0, 0] = 1
    gradients = [
        torch.autograd.grad(
            alignment_loss(attention[:, :number], targets[:, :number], "kl", none_concept=True), attention
        )[0][0, 0]
        for number in (3, 9)
    ]
    # Of concept 0's share at the first token, the gate held: the gate's part is the same for both concepts.
    few, many = (gradient[0] - gradient[1] for gradient in gradients)
    torch.testing.assert_close(few, many)


@pytest.mark.parametrize("kind", ["mse", "kl"])
@pytest.mark.parametrize("none_concept", [False, True])
def test_alignment_of_a_batch_is_the_mean_of_its_parts(kind, none_concept):
    attention = torch.rand(6, 5, 4, dtype=torch.float64).softmax(-1)
    targets = (torch.rand(6, 5, 4) > 0.6).double()
    targets[torch.rand(6, 5) > 0.5] = NAN
    whole = alignment_loss(attention, targets, kind, none_concept)
    parts = [
        alignment_loss(a, t, kind, none_concept) for a, t in zip(attention.split(2), targets.split(2), strict=True)
    ]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_alignment_gradient_is_finite_at_extremes(kind):
    scores = torch.tensor([[[200.0, -200.0, 0.0], [NAN, NAN, NAN]]])[:, :1].requires_grad_()
    targets = torch.tensor([[[0.0, 1.0, 0.0]]])
    alignment_loss(scores.softmax(-1), targets, kind, none_concept=True).backward()
    assert scores.grad.isfinite().all()


def test_entropy_by_hand():
    assert attention_entropy(torch.tensor([1.0, 0.0])) == 0
    torch.testing.assert_close(attention_entropy(torch.full((3, 7, 4), 0.25)), torch.tensor(math.log(4) / 4))


def test_entropy_agrees_with_torch():
    attention = torch.rand(4, 6, 5).mul_(9).softmax(-1)
    torch.testing.assert_close(attention_entropy(attention), torch.special.entr(attention.double()).mean().float())


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_entropy_gradient_is_finite_where_attention_underflows(weight):
    """With 0 as its weight too: 0 times an infinite slope is NaN, and would end the training."""
    scores = torch.tensor([[200.0, -200.0, 0.0]]).requires_grad_()
    attention = scores.softmax(-1)
    assert (attention == 0).any()
    (weight * attention_entropy(attention)).backward()
    assert scores.grad.isfinite().all()


def test_model_loss_is_the_weighted_sum(make_config):
    from modeling_ascent_vit import AscentViTForImageClassification

    config = make_config(concept_loss_weight=3.0, entropy_loss_weight=0.25)
    model = AscentViTForImageClassification(config).eval()
    pixels, labels = torch.randn(2, 3, 48, 48), torch.tensor([1, 4])
    targets, spatial = torch.tensor([[1.0, 0, 0], [0, 1, 1]]), (torch.rand(2, 36, 4) > 0.5).float()
    outputs = model(pixels, labels=labels, concept_targets=targets, spatial_concept_targets=spatial)
    class_loss = nn.functional.cross_entropy(outputs.logits, labels)
    alignment = alignment_loss(outputs.global_concept_attention.unsqueeze(1), targets.unsqueeze(1))
    alignment = alignment + alignment_loss(outputs.spatial_concept_attention, spatial)
    entropy = attention_entropy(outputs.global_concept_attention)
    entropy = entropy + attention_entropy(outputs.spatial_concept_attention)
    torch.testing.assert_close(outputs.loss, class_loss + 3 * alignment + 0.25 * entropy)
    torch.testing.assert_close(
        outputs.class_loss + 3 * outputs.alignment_loss + 0.25 * outputs.entropy_loss, outputs.loss
    )
    only_labels = model(pixels, labels=labels)
    torch.testing.assert_close(only_labels.loss, class_loss + 0.25 * entropy)
    assert only_labels.alignment_loss is None
    assert model(pixels).loss is None and model(pixels).entropy_loss is None


# Overrides -----------------------------------------------------------------------------------------------------------


def override_row(attention, override, none_attention=None):
    row = torch.tensor(attention, dtype=torch.float64)
    given = torch.tensor([[override]], dtype=torch.float64)
    none = None if none_attention is None else torch.full((1, 1, 1, 1), none_attention, dtype=torch.float64)
    return override_attention(row.view(1, 1, 1, -1), given, none)[0, 0, 0].tolist()


@pytest.mark.parametrize(
    "attention, override, expected",
    [
        ([0.2, 0.3, 0.5], [NAN, NAN, NAN], [0.2, 0.3, 0.5]),
        ([0.2, 0.3, 0.5], [0.5, NAN, NAN], [0.5, 0.1875, 0.3125]),
        ([0.2, 0.3, 0.5], [NAN, 0.0, NAN], [2 / 7, 0.0, 5 / 7]),
        ([0.2, 0.3, 0.5], [1.0, NAN, NAN], [1.0, 0.0, 0.0]),
        ([0.2, 0.3, 0.5], [1.5, 0.5, NAN], [0.75, 0.25, 0.0]),
        ([0.2, 0.3, 0.5], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
        ([0.2, 0.3, 0.5], [0.1, 0.1, 0.1], [0.1, 0.1, 0.1]),
        ([0.0, 0.0, 1.0], [NAN, NAN, 0.5], [0.0, 0.0, 0.5]),
    ],
)
def test_override_by_hand(attention, override, expected):
    assert override_row(attention, override) == pytest.approx(expected)


def test_override_leaves_none_its_share():
    assert override_row([0.2, 0.3], [0.6, NAN], none_attention=0.5) == pytest.approx([0.6, 0.15])
    # Absent: the others and "none" take its share, in their proportions.
    assert override_row([0.2, 0.3], [0.0, NAN], none_attention=0.5) == pytest.approx([0.0, 0.375])
    # Present: the gate opens.
    assert override_row([0.0, 0.1], [1.0, NAN], none_attention=0.9) == pytest.approx([1.0, 0.0])
    # A gate that is shut, and a concept said to be absent.
    assert override_row([0.0, 0.0], [0.0, NAN], none_attention=1.0) == pytest.approx([0.0, 0.0])


@settings(deadline=None)
@given(
    hnp.arrays("float64", (1, 2, 3, 4), elements=st.floats(-5, 5)),
    hnp.arrays("float64", (1, 3, 4), elements=st.one_of(st.just(NAN), st.floats(0, 2))),
)
def test_override_keeps_given_values_and_proportions(scores, override):
    attention, override = torch.from_numpy(scores).softmax(-1), torch.from_numpy(override)
    result = override_attention(attention, override)
    for head in range(2):
        for token in range(3):
            before, row, given = attention[0, head, token], result[0, head, token], override[0, token]
            free = given.isnan()
            if free.all():
                assert torch.equal(row, before)
                continue
            total = given.nansum().item()
            if not free.any() or total <= 1:
                torch.testing.assert_close(row[~free], given[~free])
            else:
                torch.testing.assert_close(row[~free], given[~free] / total)
            if free.any():
                assert row.sum().item() == pytest.approx(1, abs=1e-9)
                torch.testing.assert_close(row[free] * before[free].sum(), before[free] * row[free].sum())


@settings(deadline=None)
@given(
    hnp.arrays("float64", (2, 2, 3, 4), elements=st.floats(-5, 5)),
    hnp.arrays("float64", (2, 3, 4), elements=st.sampled_from([0.0, 1.0, 1.0, NAN])),
    hnp.arrays("bool", (2, 1, 4)),
    st.booleans(),
)
def test_pooled_attention_is_that_of_overridden_attention(scores, targets, chosen, gated):
    """Without making it, with the same gradients; rows with a NaN are not annotated."""
    scores, chosen = torch.from_numpy(scores).requires_grad_(), torch.from_numpy(chosen)
    truth = true_attention(torch.from_numpy(targets), gated)
    gate = torch.full((2, 1, 3, 1), 0.7, dtype=torch.float64) if gated else None
    attention = scores.softmax(-1) if gate is None else gate * scores.softmax(-1)
    none = None if gate is None else 1 - gate
    overridden = override_attention(attention, torch.where(chosen, truth, NAN), none)
    results = pooled_attention(attention, (chosen, truth), none), overridden.sum(2) * attention_share(overridden)
    torch.testing.assert_close(*results)
    weights = torch.randn_like(results[0])
    torch.testing.assert_close(*(torch.autograd.grad((r * weights).sum(), scores, retain_graph=True) for r in results))

# SPDX-License-Identifier: Apache-2.0
"""Corrections by the exact sum, against the model run again with its overrides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascent_vit.evaluation.correction import correct_each
from modeling_ascent_vit import AscentViTForImageClassification
from modeling_ascent_vit.modeling_ascent_vit import attention_share, override_attention, true_attention


@pytest.mark.parametrize("none_concept", [False, True])
@pytest.mark.parametrize("stream", ["global", "spatial"])
def test_the_sum_is_what_the_model_says(make_config, none_concept, stream):
    model = AscentViTForImageClassification(make_config(none_concept=none_concept)).double().eval()
    for part in model.streams().values():
        torch.nn.init.normal_(part.concepts, std=2)
        torch.nn.init.normal_(part.projection.weight)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, 3, 48, 48, generator=generator, dtype=torch.float64)
    shape = (3, 3) if stream == "global" else (3, 36, 4)
    targets = (torch.rand(shape, generator=generator) < 0.4).float()
    if stream == "spatial":
        targets[:, ::2] = torch.nan
    with torch.no_grad():
        out = model(pixels, output_concept_heads=True)
        heads = out[f"{stream}_concept_attention_heads"]
        heads = heads.unsqueeze(2) if stream == "global" else heads
        rows = targets.view(3, -1, shape[-1])
        truth = true_attention(rows.double(), none_concept)
        table = model.streams()[stream].contribution_table()
        change = correct_each(heads, truth, table, none_concept)
        for concept in range(shape[-1]):
            override = torch.full_like(truth, torch.nan)
            override[..., concept] = truth[..., concept]
            after = model(pixels, **{f"{stream}_concept_override": override.view(shape)}).logits
            torch.testing.assert_close(out.logits + change[:, concept], after, rtol=0, atol=1e-12)
    assert change.abs().max() > 1e-4


@given(st.integers(1, 2), st.integers(1, 6), st.integers(1, 5), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_any_shape_and_attention_that_is_nearly_one(heads, tokens, concepts, gated, seed):
    """Against the model's own definition, in float64, also where a softmax leaves almost nothing to the others."""
    if concepts == 1 and not gated:
        return
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, heads, tokens, concepts, generator=generator, dtype=torch.float64) * 30
    attention = scores.softmax(-1)
    none = None
    if gated:
        gate = torch.rand(2, 1, tokens, 1, generator=generator, dtype=torch.float64)
        attention, none = attention * gate, 1 - gate
    targets = (torch.rand(2, tokens, concepts, generator=generator) < 0.5).double()
    targets[torch.rand(2, tokens, generator=generator) < 0.3] = torch.nan
    truth = true_attention(targets, gated)
    table = torch.randn(heads, concepts, 3, generator=generator, dtype=torch.float64)

    def scores_of(weights):
        return torch.einsum("bas,ask->bk", weights.sum(2) * attention_share(weights), table)

    change = correct_each(attention, truth, table, gated)
    for concept in range(concepts):
        override = torch.full_like(truth, torch.nan)
        override[..., concept] = truth[..., concept]
        wanted = scores_of(override_attention(attention, override, none)) - scores_of(attention)
        torch.testing.assert_close(change[:, concept], wanted, rtol=1e-9, atol=1e-9)

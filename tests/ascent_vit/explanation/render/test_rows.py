# SPDX-License-Identifier: Apache-2.0
"""Rows of contributions: which concepts have one, in which order, and that nothing is left out of their sum."""

import math

import numpy as np
import pytest
from PIL import Image

from ascent_vit.explanation import Contrast, Explanation
from ascent_vit.explanation.render.rows import contribution_rows, signed
from modeling_ascent_vit import AscentViTImageProcessor


def make_explanation(added: dict[tuple[str, str], float], bias: float = 0.5) -> Explanation:
    """An explanation of the first of two classes, from contributions by stream and name; the second has none."""
    streams = ("global", "spatial", "unsupervised")
    names = {stream: [name for owner, name in added if owner == stream] for stream in streams}
    values = np.array([added[stream, name] for stream in streams for name in names[stream]], dtype=np.float32)
    columns = np.stack([values, np.zeros_like(values)], axis=1)
    biases = np.array([bias, 0.0], dtype=np.float32)
    spatial = len(names["spatial"])
    return Explanation(
        image=Image.new("RGB", (8, 8)),
        label_id=0,
        labels=["Wren", "Tern"],
        logits=columns.sum(0) + biases,
        class_biases=biases,
        concept_names=names,
        contributions=columns,
        head_attention=np.zeros((1, len(values)), dtype=np.float32),
        patch_attention_heads=np.zeros((1, spatial, 1, 1), dtype=np.float32),
        contribution_table=np.zeros((1, spatial, 2), dtype=np.float32),
        processor=AscentViTImageProcessor(size={"height": 8, "width": 8}, patch_size=8),
    )


def shown(explanations, top: int) -> list[tuple]:
    rows = contribution_rows(explanations, top)
    return [(row.name, row.stream, *(round(value, 4) for value in row.contributions)) for row in rows]


def test_below_a_hundredth_of_the_largest_concepts_are_summed():
    added = {("spatial", "beak"): -2.0, ("spatial", "wing"): 0.0201, ("spatial", "tail"): 0.0199}
    explanation = make_explanation(added | {("spatial", "toe"): -0.0001})
    rows = [("beak", "spatial", -2.0), ("wing", "spatial", 0.0201), ("2 others", None, 0.0198)]
    assert shown([explanation], 5) == rows
    assert shown([explanation], 2) == rows
    assert shown([explanation], 1) == [rows[0], ("3 others", None, 0.0399)]
    assert shown([make_explanation(added)], 3)[-1] == ("1 other", None, 0.0199)
    assert shown([make_explanation({("global", "day"): -0.3})], 5) == [("day", "global", -0.3)]


def test_streams_of_a_name_stand_together_ordered_by_their_sum():
    added = {
        ("global", "six"): 0.5,
        ("global", "two"): 1.0,
        ("global", "one"): -0.9,
        ("spatial", "two"): -0.8,
        ("spatial", "six"): 0.6,
        ("spatial", "one"): 0.001,
        ("unsupervised", "unsupervised 0"): -1.05,
    }
    rows = contribution_rows([make_explanation(added)], 7)
    assert [(row.name, row.stream) for row in rows] == [
        ("six", "spatial"),
        ("six", "global"),
        ("unsupervised 0", "unsupervised"),
        ("one", "global"),
        ("two", "global"),
        ("two", "spatial"),
        ("1 other", None),
    ]
    # Names of the same sum stay apart.
    even = make_explanation({(stream, name): 1.0 for stream in ("global", "spatial") for name in ("a", "b")})
    assert [row.name for row in contribution_rows([even], 4)] == ["a", "a", "b", "b"]


def test_all_zero_contributions_have_rows():
    explanation = make_explanation({("spatial", f"part {i}"): 0.0 for i in range(4)})
    assert shown([explanation], 3) == [*((f"part {i}", "spatial", 0.0) for i in range(3)), ("1 other", None, 0.0)]


@pytest.mark.parametrize("top", [1, 5, 12, 200])
def test_rows_add_up_to_the_logit(top):
    values = np.random.default_rng(0).normal(size=108) * np.logspace(0, -6, 108)
    places = [("global", f"part {i}") for i in range(13)] + [("spatial", f"part {i}") for i in range(95)]
    explanation = make_explanation(dict(zip(places, values.tolist(), strict=True)))
    rows = contribution_rows([explanation], top)
    own = [row for row in rows if row.stream is not None]
    assert len(own) <= top and rows[len(own) :] == rows[-1:]
    hidden = {(c.stream, c.name): c.contribution for c in explanation.concepts}
    for row in own:
        assert row.contribution == hidden.pop((row.stream, row.name))
    assert rows[-1].name == f"{len(hidden)} others" and rows[-1].contribution == math.fsum(hidden.values())
    added = math.fsum(row.contribution for row in rows)
    assert added + explanation.class_bias == pytest.approx(explanation.logit, abs=1e-6)
    # What is saved is all of it.
    assert len(explanation.to_dict()["concepts"]) == 108


def test_differences_and_pairs_have_rows_too():
    before = make_explanation({("global", "day"): 2.0, ("spatial", "beak"): 0.01, ("spatial", "wing"): 0.001})
    after = make_explanation({("global", "day"): 0.0, ("spatial", "beak"): 0.5, ("spatial", "wing"): -0.001})
    assert shown([after, before], 5) == [
        ("day", "global", 0.0, 2.0),
        ("beak", "spatial", 0.5, 0.01),
        ("1 other", None, -0.001, 0.001),
    ]
    contrast = before.contrast("Tern", "Wren")
    assert isinstance(contrast, Contrast)
    assert shown([contrast], 5) == [("day", "global", -2.0), ("2 others", None, -0.011)]


def test_numbers_have_a_sign_and_two_decimals():
    values = [2, -1.5, 0.005001, 7.77e-07, -0.0049, 0.0, -0.0, -1234.567]
    assert [signed(value) for value in values] == ["+2.00", "-1.50", "+0.01", *["0.00"] * 4, "-1234.57"]

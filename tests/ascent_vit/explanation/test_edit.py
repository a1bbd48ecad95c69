# SPDX-License-Identifier: Apache-2.0
"""Terms of the exact sum that are removed or scaled for good; every other term stays what it was."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from ascent_vit import AscentViTForImageClassification, edit, explain
from ascent_vit.inference import load_whole
from modeling_ascent_vit.names_ascent_vit import class_names


NAMES = {
    "global_concepts": ["striped", "spotted", "shared"],
    "spatial_concepts": ["beak", "shared", "tail", "water"],
    "num_unsupervised_concepts": 2,
}
COLUMNS = {("global", 0): 0, ("global", 2): 2, ("spatial", 0): 3, ("spatial", 1): 4, ("spatial", 3): 6}
WATER = {"class": None, "concept": "water", "stream": "spatial", "factor": 0.0}


@pytest.fixture
def model(make_model) -> AscentViTForImageClassification:
    model = make_model(**NAMES, none_concept=True)[0]
    nn.init.normal_(model.ascent_vit.fusion.gamma)
    for stream in model.streams().values():
        nn.init.normal_(stream.projection.weight)
    return model


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 48, 48)


def outputs_of(model, pixels):
    with torch.no_grad():
        outputs = model(pixels, output_contributions=True, output_concept_heads=True)
        maps = model.contribution_maps(pixels, list(range(5)))
        return outputs, maps, model.class_bias()


def check_sum(model, pixels, factors, before, tolerance=0.0):
    """Every term is the one before times its factor, at every place, and logits are the sums of the terms."""
    (old, old_maps, old_bias), (new, maps, bias) = before, outputs_of(model, pixels)
    assert torch.equal(bias, old_bias)
    torch.testing.assert_close(new.concept_contributions, old.concept_contributions * factors, rtol=tolerance, atol=0)
    spatial = factors[3:7].T[None, :, :, None, None]
    torch.testing.assert_close(maps, old_maps * spatial, rtol=tolerance, atol=0)
    for name in ("global_concept_attention", "spatial_concept_attention_heads", "unsupervised_concept_attention"):
        assert torch.equal(new[name], old[name])
    wanted = (old.concept_contributions.double() * factors.double()).sum(1) + old_bias.double()
    torch.testing.assert_close(
        new.logits.double(), wanted, rtol=0, atol=1e-12 if pixels.dtype == torch.float64 else 3e-5
    )
    untouched = factors.eq(1).all(0)
    assert torch.equal(new.logits[:, untouched], old.logits[:, untouched])


def test_terms_in_double_precision(model, pixels):
    model, pixels = model.double(), pixels.double()
    before = outputs_of(model, pixels)
    labels = class_names(model.config)
    edit(model, remove={labels[1]: ["water", ("global", "shared")]}, scale={labels[3]: {"beak": 0.5, "striped": 2}})
    factors = torch.ones(9, 5, dtype=torch.float64)
    factors[[6, 2], 1], factors[3, 3], factors[0, 3] = 0, 0.5, 2
    check_sum(model, pixels, factors, before)
    contributions = outputs_of(model, pixels)[0].concept_contributions
    assert torch.count_nonzero(contributions[:, [6, 2], 1]) == 0
    # The logits of torch's own multi-head attention with the values of the removed concepts at zero, of one class.
    edit(model, undo=True)
    edit(model, remove={labels[1]: [("global", "striped"), ("global", "spotted"), ("global", "shared")]})
    alone = copy.deepcopy(model)
    edit(alone, undo=True)
    nn.init.zeros_(alone.global_stream.value.weight)
    torch.testing.assert_close(
        outputs_of(model, pixels)[0].logits[:, 1], outputs_of(alone, pixels)[0].logits[:, 1], rtol=0, atol=1e-12
    )


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.dictionaries(
        st.tuples(st.sampled_from([None, 0, 2, 4]), st.sampled_from(sorted(COLUMNS))),
        st.floats(0, 1e4, width=32),
        min_size=1,
        max_size=6,
    )
)
def test_any_factors(model, pixels, edits):
    """By class and for all classes; what is said of all classes and of one of them is said twice."""
    before = outputs_of(model, pixels)
    edit_by_class, factors = {}, torch.ones(9, 5)
    for (class_id, (stream, index)), factor in edits.items():
        concept = (stream, NAMES[f"{stream}_concepts"][index])
        edit_by_class.setdefault(class_id, {})[concept] = factor
        factors[COLUMNS[stream, index], slice(None) if class_id is None else class_id] = factor
    everywhere = {place for class_id, place in edits if class_id is None}
    clash = any(
        class_id is not None and place in everywhere and edits[None, place] != factor
        for (class_id, place), factor in edits.items()
    )
    if clash:
        with pytest.raises(ValueError, match="two factors"):
            edit(model, scale=edit_by_class)
        assert model.config.concept_edits is None
        return
    edit(model, scale=edit_by_class)
    (old, _, bias), new = before, outputs_of(model, pixels)[0]
    torch.testing.assert_close(new.concept_contributions, old.concept_contributions * factors, rtol=1e-5, atol=1e-6)
    wanted = new.concept_contributions.double().sum(1) + bias.double()
    torch.testing.assert_close(new.logits.double(), wanted, rtol=1e-5, atol=1e-3)
    edit(model, undo=True)
    assert torch.equal(outputs_of(model, pixels)[0].logits, old.logits)


def test_only_keeps_what_it_names(model, pixels):
    before = outputs_of(model, pixels)
    edit(model, only={"House Wren": ["tail", ("spatial", "shared")]})
    factors = torch.ones(9, 5)
    factors[:, 3] = 0
    factors[[4, 5], 3] = 1
    check_sum(model, pixels, factors, before)
    edit(model, undo=True)
    edit(model, only=["striped"])
    factors = torch.zeros(9, 5)
    factors[0] = 1
    check_sum(model, pixels, factors, before)
    # One entry for all classes.
    assert [entry["class"] for entry in model.config.concept_edits] == [None] * 8


def test_edits_add_up_and_are_taken_back_bit_for_bit(model, pixels):
    keys, before = list(model.state_dict()), outputs_of(model, pixels)
    as_json = model.config.to_json_string()
    assert edit(model, remove="water") == [WATER]
    scaled = {"class": "House Wren", "concept": "beak", "stream": "spatial", "factor": 0.5}
    assert edit(model, scale={"House Wren": {"beak": 0.5}}) == [scaled, WATER]
    # Of the term as it was trained: not half of the half.
    assert edit(model, scale={3: {"beak": 0.5}}) == [scaled, WATER]
    assert edit(model, scale={"beak": 1}) == [WATER]
    by_class = edit(model, scale={"Black Tern": {"water": 3}})
    assert [entry["factor"] for entry in by_class] == [3, 0, 0, 0, 0]
    assert edit(model, undo=True) == []
    after = outputs_of(model, pixels)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert torch.equal(before[1], after[1])
    assert list(model.state_dict()) == keys
    assert model.config.to_json_string() == as_json


def test_one_factor_for_all_is_kept_in_one_entry(model):
    edit(model, remove={name: ["water"] for name in class_names(model.config)})
    assert model.config.concept_edits == [WATER]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "takes remove, only or scale"),
        ({"remove": ["water"], "undo": True}, "undo=True alone"),
        ({"remove": ["watre"]}, "no concept 'watre'"),
        ({"remove": ["shared"]}, "say of which stream"),
        ({"remove": {"House Wern": ["water"]}}, "House Wren"),
        ({"remove": {9: ["water"]}}, "no class 9"),
        ({"remove": []}, "takes names of concepts"),
        ({"only": {"House Wren": []}}, "takes names of concepts"),
        ({"remove": {"House Wren": 3}}, "takes names of concepts"),
        ({"remove": [3]}, "got 3"),
        ({"only": ["water"], "remove": {0: "water"}}, "both only and remove"),
        ({"only": ["water"], "scale": {"beak": 0.5}}, "two factors"),
        ({"scale": {"beak": -1}}, "from 0 to 10,000"),
        ({"scale": {"beak": float("nan")}}, "from 0 to 10,000"),
        ({"scale": {"beak": True}}, "from 0 to 10,000"),
        ({"scale": {"beak": 0.5, None: {"tail": 0.5}}}, "got both"),
    ],
)
def test_what_is_refused_leaves_the_model_as_it_was(model, arguments, message):
    edit(model, remove=["water"])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        edit(model, **arguments)
    after = model.state_dict()
    assert model.config.concept_edits == [WATER]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_older_code_gets_one_sentence():
    with pytest.raises(ValueError, match="too old for edits"):
        edit(nn.Linear(1, 1), remove=["water"])


def test_classes_of_one_name_and_new_names(model, tmp_path):
    model.config.id2label = {0: "crane", 1: "crane", 2: "heron", 3: "ibis", 4: "stork"}
    with pytest.raises(ValueError, match="2 classes 'crane'"):
        edit(model, remove={"crane": ["water"]})
    edit(model, remove={"crane (1)": ["water"], "ibis": ["water"]})
    assert [entry["class"] for entry in model.config.concept_edits] == ["crane (1)", "ibis"]
    model.config.id2label = {0: "a", 1: "b", 2: "c", 3: "d", 4: "e"}
    model.save_pretrained(tmp_path)
    loaded = load_whole(tmp_path)
    assert [entry["class"] for entry in loaded.config.concept_edits] == ["b", "d"]
    assert loaded.edited_terms() == {("spatial", 3, 1): 0, ("spatial", 3, 3): 0}


def test_explanations_show_the_edit(model, make_model, image):
    processor = make_model(**NAMES)[1]
    before = explain(model, processor, image, class_ids=3)
    edit(model, remove={"House Wren": ["water"]}, scale={"House Wren": {"beak": 0.5}})
    after = explain(model, processor, image, class_ids=3)
    assert after.concept("water").contribution == 0
    assert not np.any(after.contribution_maps[3])
    np.testing.assert_allclose(after.concept("beak").contribution, before.concept("beak").contribution / 2, rtol=1e-6)
    np.testing.assert_allclose(after.concept("tail").contribution, before.concept("tail").contribution, rtol=1e-6)
    assert after.additivity_error < 1e-5


def test_further_training_leaves_the_edit_in_place(model, pixels):
    edit(model, remove={3: ["water"]})
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.spatial_stream.projection.weight[3].clone()
    model(pixels, labels=torch.tensor([3, 0])).loss.backward()
    optimizer.step()
    assert not torch.equal(model.spatial_stream.projection.weight[3], before)
    assert torch.count_nonzero(outputs_of(model.eval(), pixels)[0].concept_contributions[:, 6, 3]) == 0
    assert torch.equal(model.spatial_stream.concept_factors, model.spatial_stream.factor_table())


@pytest.mark.parametrize(
    "kind", [pytest.param("compiled", marks=pytest.mark.slow), "float16", "bfloat16", "torch.func", "hooked"]
)
def test_other_ways_to_run(model, pixels, kind):
    edit(model, remove={3: ["water"]}, scale={0: {"beak": 0.25}, 1: {"striped": 0.3}})
    expected = outputs_of(model, pixels)[0]
    if kind == "compiled":
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        with torch.no_grad():
            outputs, tolerance = compiled(pixels, output_contributions=True), 1e-5
    elif kind == "torch.func":
        outputs = torch.func.functional_call(
            model, dict(model.named_parameters()), (pixels,), {"output_contributions": True}
        )
        tolerance = 1e-5
    elif kind == "hooked":
        calls = []
        model.spatial_stream.projection.register_forward_hook(lambda *args: calls.append(1))
        outputs, tolerance = outputs_of(model, pixels)[0], 1e-4
        assert calls
    else:
        model = model.to(getattr(torch, kind))
        outputs, tolerance = outputs_of(model, pixels.to(model.dtype))[0], 0.5
    assert torch.count_nonzero(outputs.concept_contributions[:, 6, 3]) == 0
    torch.testing.assert_close(outputs.logits.float(), expected.logits, rtol=0, atol=tolerance)


def test_concepts_learned_without_targets(model, pixels):
    before = outputs_of(model, pixels)
    edit(model, remove={2: ["UNSUPERVISED_CONCEPT_1"]})
    factors = torch.ones(9, 5)
    factors[8, 2] = 0
    check_sum(model, pixels, factors, before)

# SPDX-License-Identifier: Apache-2.0
"""What is judged by numpy alone is what the model's own forward says with the same overrides."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascent_vit import Safeguard
from ascent_vit.safeguard import doubt as doubt_file
from ascent_vit.safeguard.doubt import Stream, override_attention, read_tensors, softmax
from modeling_ascent_vit.modeling_ascent_vit import override_attention as override_of_the_model


def forward(guard, image, answers):
    """Logits of the model's own forward, its concepts set by hand."""
    outputs = guard.outputs([image])[0]
    values = guard.judge.overrides(outputs, guard.judge.read_answers(answers))
    overrides = {f"{name}_concept_override": torch.from_numpy(value).float()[None] for name, value in values.items()}
    if "global_concept_override" in overrides:
        overrides["global_concept_override"] = overrides["global_concept_override"].squeeze(1)
    pixels = guard.processor([image], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return guard.model(pixels, **overrides).logits[0].double().numpy()


@pytest.mark.parametrize("none_concept", [True, False])
@pytest.mark.parametrize("streams", [{}, {"spatial_concepts": None}, {"global_concepts": None}])
def test_answers_are_the_forward_with_overrides(make_model, make_dataset, make_images, none_concept, streams):
    model, processor = make_model(none_concept, streams=streams)
    data = make_dataset()
    if "global_concepts" in streams:
        data = data.remove_columns("concepts")
    guard = Safeguard.fit(model, processor, data, alpha=0.2)
    # Every image abstains, and all classes may be in the set.
    guard.judge.facts["limits"] = dict.fromkeys(guard.judge.facts["limits"], 1e9)
    guard.judge.arrays["thresholds"] = np.full(3, 0.01)
    guard.judge.facts["present"].get("spatial", {})["tokens"] = 3
    image = make_images(1, seed=7)[0]
    temperature = guard.judge.facts["temperature"]
    outputs = guard.outputs([image])[0]
    names = guard.judge.concepts
    for answers in ({}, {names[0]: True, names[1]: True, names[-1]: False}):
        judged = guard.judge.judge(outputs, answers, questions=99)
        expected = softmax(forward(guard, image, answers) / temperature)
        np.testing.assert_allclose(judged.probabilities, expected, atol=2e-6)
        asked = {question.concept for question in judged.ask}
        assert asked == set(names) - set(answers)
        for question in judged.ask:
            for answer, outcome in (("yes", question.if_yes), ("no", question.if_no)):
                after = softmax(forward(guard, image, answers | {question.concept: answer}) / temperature)
                inside = np.flatnonzero((after >= 0.01) | (after == after.max()))
                ranked = [guard.judge.classes[index] for index in sorted(inside, key=lambda i: -after[i])]
                assert outcome.labels == ranked
                assert outcome.decision == (ranked[0] if len(ranked) == 1 else None)
                # What is announced is what happens.
                assert judged.answer({question.concept: answer}).labels == ranked


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_all_questions_at_once_are_each_by_itself(seed, tokens, concepts, heads, gated):
    rng = np.random.default_rng(seed)
    attention = rng.dirichlet(np.ones(concepts + gated), (heads, tokens))[..., :concepts]
    table, present, marked = rng.normal(size=(heads, concepts, 3)), rng.uniform(0.1, 1), rng.integers(1, tokens + 1)
    stream = Stream(attention, table, gated, float(present), int(marked))
    answers = {int(i): bool(rng.integers(2)) for i in range(concepts) if rng.random() < 0.5}
    values = stream.values(answers)
    present, absent = stream.scores_if_present(values), stream.scores_if_absent(values)
    for index in set(range(concepts)) - set(answers):
        for scores, answer in ((present, True), (absent, False)):
            after = override_attention(attention, stream.values(answers | {index: answer}), gated)
            np.testing.assert_allclose(scores[index], stream.scores_of(after), atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_override_is_the_models(seed, gated):
    rng = np.random.default_rng(seed)
    attention = rng.dirichlet(np.ones(4 + gated), (2, 3))[..., :4]
    values = np.where(rng.random((3, 4)) < 0.5, rng.uniform(0, 0.8, (3, 4)), np.nan)
    none = torch.from_numpy(1 - attention.sum(-1, keepdims=True))[None] if gated else None
    expected = override_of_the_model(torch.from_numpy(attention)[None], torch.from_numpy(values)[None], none)[0]
    np.testing.assert_allclose(override_attention(attention, values, gated), expected, atol=1e-12)


def test_the_best_question_leaves_the_fewest_classes(guard, make_images):
    guard.judge.facts["limits"] = dict.fromkeys(guard.judge.facts["limits"], 1e9)
    guard.judge.arrays["thresholds"] = np.full(3, 0.05)
    for judged in guard(make_images(4, seed=3)):
        sizes = [question.expected_size for question in judged.ask]
        assert sizes == sorted(sizes)
        for question in judged.ask:
            yes, no, likely = len(question.if_yes.labels), len(question.if_no.labels), question.probability
            assert question.expected_size == pytest.approx(likely * yes + (1 - likely) * no)


def test_answers_are_read_or_refused(guard, make_images):
    judged = guard(make_images(1)[0])
    first = judged.answer({"beak": "yes"})
    assert first.answers == {"beak": True}
    assert guard.answer(first, {"beak": False}).answers == {"beak": False}
    refused = (({"hoof": True}, "no global or spatial concept 'hoof'"), ({"beak": "maybe"}, "got 'maybe'"))
    for answers, message in refused:
        with pytest.raises(ValueError, match=message):
            judged.answer(answers)
    with pytest.raises(ValueError, match="got 1"):
        judged.answer({"beak": 1})


def test_tree_is_the_dialogue(guard, make_images):
    guard.judge.facts["limits"] = dict.fromkeys(guard.judge.facts["limits"], 1e9)
    guard.judge.arrays["thresholds"] = np.full(3, 0.01)
    judged = guard(make_images(1, seed=3)[0])
    tree = judged.tree(2)
    assert judged.ask
    assert list(tree["then"]) == [question.concept for question in judged.ask[:2]]
    for concept, answers in tree["then"].items():
        for answer, node in answers.items():
            after = judged.answer({concept: answer})
            assert node["labels"] == after.labels and node["verdict"] == after.verdict
            assert [ask["concept"] for ask in node["ask"]] == [ask.concept for ask in after.ask[:2]]
            # The last answers have nothing after them.
            leaves = [leaf for then in node["then"].values() for leaf in then.values()]
            assert all(not leaf["ask"] and not leaf["then"] for leaf in leaves)


def test_needs_numpy_alone(guard, tmp_path):
    guard.save_pretrained(tmp_path)
    copy = tmp_path / "doubt.py"
    copy.write_text(Path(doubt_file.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    code = (
        "import sys, doubt; judge = doubt.Judge.load('guard'); "
        "assert not {'torch', 'safetensors', 'transformers', 'scipy'} & set(sys.modules); print(judge.classes)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str(guard.judge.classes)


def test_tensors_are_read_as_safetensors_reads_them(guard, tmp_path):
    from safetensors.numpy import load_file

    guard.save_pretrained(tmp_path)
    expected = load_file(tmp_path / "guard" / "guard.safetensors")
    read = read_tensors(tmp_path / "guard" / "guard.safetensors")
    assert read.keys() == expected.keys()
    assert all(np.array_equal(read[name], expected[name]) for name in read)

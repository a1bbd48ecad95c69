# SPDX-License-Identifier: Apache-2.0
"""Edits in files: what is saved is what is loaded, and files that contradict themselves are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification
from transformers.utils import logging

from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification
from modeling_ascent_vit.edits_ascent_vit import read_edits, write_edits


NAMES = {"global_concepts": ["striped", "spotted"], "spatial_concepts": ["beak", "tail", "water"]}
BUFFER = "spatial_stream.concept_factors"


def entry(concept="water", factor=0.0, label=None, stream="spatial"):
    return {"class": label, "concept": concept, "stream": stream, "factor": factor}


EDITS = [entry("tail", 0.3, "LABEL_1"), entry()]


@pytest.fixture
def model(make_config) -> AscentViTForImageClassification:
    model = AscentViTForImageClassification(make_config(**NAMES)).eval()
    model.edit_concepts(EDITS)
    return model


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 48, 48)


@pytest.fixture(autouse=True)
def quiet():
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(verbosity)


def logits_of(model, pixels):
    with torch.no_grad():
        return model(pixels.to(model.dtype)).logits


def check_equal(model, other, pixels):
    """The same tensors; logits differ by rounding, as tensors of a file lie elsewhere in memory."""
    first, second = model.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.testing.assert_close(logits_of(model, pixels), logits_of(other, pixels), rtol=0, atol=1e-6)


def change_config(folder, change):
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def test_saved_and_loaded(model, pixels, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.concept_edits == EDITS == json.loads((tmp_path / "config.json").read_text())["concept_edits"]
    check_equal(loaded, model, pixels)
    loaded.edit_concepts(None)
    plain = AscentViTForImageClassification(model.config)
    plain.edit_concepts(None)
    plain.load_state_dict(loaded.state_dict())
    check_equal(loaded, plain.eval(), pixels)


def test_a_model_without_edits_has_no_trace_of_them(make_config, tmp_path):
    model = AscentViTForImageClassification(make_config(**NAMES))
    model.save_pretrained(tmp_path)
    assert "concept_edits" not in json.loads((tmp_path / "config.json").read_text())
    assert not any("factors" in name for name in model.state_dict())


def test_a_configuration_alone_makes_an_edited_model(make_config):
    model = AscentViTForImageClassification(make_config(**NAMES, concept_edits=EDITS))
    torch.testing.assert_close(
        model.spatial_stream.concept_factors,
        torch.tensor([[1, 1, 1, 1, 1], [1, 0.3, 1, 1, 1], [0, 0, 0, 0, 0]]),
    )
    assert model.global_stream.concept_factors is None
    assert model.edited_terms() == read_edits(model.config)
    assert write_edits(model.config, model.edited_terms()) == EDITS


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounded_files_give_the_factors_that_were_meant(model, tmp_path, dtype):
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")[BUFFER][1, 1] != torch.tensor(0.3)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert loaded.spatial_stream.concept_factors[1, 1] == torch.tensor(0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.pop("concept_edits"), "does not name"),
        (lambda fields: fields["concept_edits"].pop(), "not those that concept_edits"),
        (lambda fields: fields["concept_edits"][0].update(factor=0.31), "not those that concept_edits"),
        (lambda fields: fields["concept_edits"][0].update({"class": "LABEL_2"}), "not those that concept_edits"),
        (lambda fields: fields["concept_edits"][0].update({"class": "Wren"}), "no class 'Wren'"),
        (lambda fields: fields["concept_edits"][0].update(concept="wing"), "no concept 'wing'"),
        (lambda fields: fields["concept_edits"][0].update(concept=["wing"]), "must name concepts"),
        (lambda fields: fields["concept_edits"][0].update(stream="other"), "entries of class"),
        (lambda fields: fields["concept_edits"][0].update(stream=["spatial"]), "entries of class"),
        (lambda fields: fields["concept_edits"][0].update(stream="unsupervised"), "no unsupervised concepts"),
        (lambda fields: fields["concept_edits"][0].update(factor="0"), "from 0 to 10,000"),
        (lambda fields: fields["concept_edits"][0].update(factor=1e9), "from 0 to 10,000"),
        (lambda fields: fields["concept_edits"][0].pop("factor"), "entries of class"),
        (lambda fields: fields["concept_edits"].append(entry(label="LABEL_0")), "two factors"),
        (lambda fields: fields.update(concept_edits=[3]), "concept_edits"),
        (lambda fields: fields.update(concept_edits="water"), "concept_edits"),
    ],
)
def test_configurations_changed_by_hand_are_refused(model, tmp_path, change, message):
    model.save_pretrained(tmp_path)
    change_config(tmp_path, change)
    with pytest.raises(Exception, match=message):
        AutoModelForImageClassification.from_pretrained(tmp_path)


def test_weights_changed_by_hand_are_refused(model, pixels, tmp_path):
    model.save_pretrained(tmp_path)
    change_weights(tmp_path, lambda weights: weights[BUFFER][2, 3].fill_(1))
    with pytest.raises(ValueError, match="not those that concept_edits"):
        AutoModelForImageClassification.from_pretrained(tmp_path)
    change_weights(tmp_path, lambda weights: weights[BUFFER].fill_(float("nan")))
    with pytest.raises(ValueError, match="not those that concept_edits"):
        AutoModelForImageClassification.from_pretrained(tmp_path)
    # Without them, the configuration says what they are, and transformers reports that they were missing.
    change_weights(tmp_path, lambda weights: weights.pop(BUFFER))
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {BUFFER}
    check_equal(loaded, model, pixels)


def test_state_dicts_of_other_edits_are_refused(model, make_config):
    other = AscentViTForImageClassification(make_config(**NAMES, concept_edits=[entry("beak")]))
    with pytest.raises(ValueError, match="not those that concept_edits"):
        other.load_state_dict(model.state_dict())
    plain = AscentViTForImageClassification(make_config(**NAMES))
    with pytest.raises(RuntimeError, match="concept_factors"):
        plain.load_state_dict(model.state_dict())


def test_other_classes_need_the_edits_undone(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="undo the edits before you change them"):
        AutoModelForImageClassification.from_pretrained(
            tmp_path, id2label={i: f"bird {i}" for i in range(7)}, ignore_mismatched_sizes=True
        )
    # What was removed for all classes is removed for new ones.
    model.edit_concepts([entry()])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert torch.equal(loaded.spatial_stream.concept_factors, torch.ones(3, 7).index_fill(0, torch.tensor([2]), 0))


def test_refused_edits_leave_the_model_as_it_was(model):
    with pytest.raises(ValueError, match="no concept"):
        model.edit_concepts([entry("wing")])
    assert model.config.concept_edits == EDITS
    assert model.edited_terms() == read_edits(model.config)


def test_numbers_that_are_one_are_no_edit(make_config):
    model = AscentViTForImageClassification(make_config(**NAMES))
    model.edit_concepts([entry(factor=1)])
    assert model.config.concept_edits is None
    assert model.spatial_stream.concept_factors is None
    assert read_edits(AscentViTConfig()) == {}

# SPDX-License-Identifier: Apache-2.0
"""Guards that are fitted, kept with their model, loaded whole or refused."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from ascent_vit import Safeguard
from ascent_vit.safeguard.doubt import nowhere


def test_fitted_on_images_and_called(guard, make_images):
    doubts = guard(make_images(20, seed=5))
    assert {doubt.verdict for doubt in doubts} <= {"decide", "abstain", "not this kind of image"}
    for doubt in doubts:
        assert len(doubt.labels) >= 1
        assert doubt.probabilities.sum() == pytest.approx(1)
        assert bool(doubt.ask) == (doubt.verdict == "abstain")
        assert (doubt.decision is not None) == (doubt.verdict == "decide")
        json.dumps(doubt.to_dict())
    # One image gives one result, the same as among others.
    assert guard(make_images(20, seed=5)[3]).to_dict()["labels"] == doubts[3].labels


def test_another_kind_of_image_is_told(guard, make_images):
    known = guard(make_images(20, seed=5))
    blank = guard(Image.new("RGB", (48, 48), "white"))
    assert blank.verdict == "not this kind of image" and max(blank.strangeness.values()) > 1
    assert sum(doubt.verdict == blank.verdict for doubt in known) < 10
    assert set(blank.strangeness) == {"features", "attention"}


def test_a_model_without_gate_has_both_signs(make_model, make_dataset, make_images):
    guard = Safeguard.fit(*make_model(none_concept=False), make_dataset(), alpha=0.2)
    assert set(guard(make_images(1)[0]).strangeness) == {"features", "attention"}


def test_attention_that_goes_nowhere_by_hand():
    named, spread, blank = np.array([[0.9, 0.0], [0.0, 0.6]]), np.array([[0.4, 0.4], [0.3, 0.3]]), np.zeros((2, 2))
    assert nowhere({"spatial": named}) == pytest.approx(0)
    assert nowhere({"spatial": spread}) == pytest.approx(0.5)
    # Where nothing is seen, all of it goes to none of the concepts.
    assert nowhere({"spatial": blank}) == 1
    assert nowhere({"spatial": blank + [0.1, 0]}) == pytest.approx(0.8)
    assert nowhere({"global": np.array([[0.7, 0.1]]), "spatial": named}) == pytest.approx((0.3 + 0) / 2)


def test_saved_beside_the_model_and_loaded(guard, make_images, tmp_path):
    guard.model.save_pretrained(tmp_path)
    guard.processor.save_pretrained(tmp_path)
    guard.save_pretrained(tmp_path)
    loaded = Safeguard.from_pretrained(tmp_path)
    for image in make_images(5, seed=2):
        first, second = guard(image), loaded(image)
        assert (first.verdict, first.labels) == (second.verdict, second.labels)
        np.testing.assert_allclose(first.probabilities, second.probabilities, atol=1e-6)
        assert first.strangeness == pytest.approx(second.strangeness, abs=1e-6)
    # With a model at hand, also from the guard's own folder.
    Safeguard.from_pretrained(tmp_path / "guard", guard.model, guard.processor)


def test_written_whole_or_not_at_all(guard, tmp_path, monkeypatch):
    guard.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "guard").iterdir()}

    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        guard.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "guard").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["guard"]


def test_another_models_guard_is_refused(guard, make_model, tmp_path):
    guard.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another model: its weights are others"):
        Safeguard.from_pretrained(tmp_path, *make_model(seed=1))
    model, processor = make_model()
    Safeguard.from_pretrained(tmp_path, model, processor)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(ValueError, match="its weights are others"):
        Safeguard.from_pretrained(tmp_path, model, processor)
    model, processor = make_model()
    processor.image_mean = [0.1, 0.5, 0.5]
    with pytest.raises(ValueError, match="image processor's image_mean is another"):
        Safeguard.from_pretrained(tmp_path, model, processor)
    model, processor = make_model()
    model.config.id2label = {0: "bunting", 1: "tern", 2: "wren"}
    with pytest.raises(ValueError, match="its classes, or their order"):
        Safeguard.from_pretrained(tmp_path, model, processor)


def test_a_damaged_guard_is_refused(guard, tmp_path):
    with pytest.raises(FileNotFoundError, match="no guard"):
        Safeguard.from_pretrained(tmp_path)
    guard.save_pretrained(tmp_path)
    weights = tmp_path / "guard" / "guard.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:40], whole[:-8], b""):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            Safeguard.from_pretrained(tmp_path, guard.model, guard.processor)
    weights.write_bytes(whole)
    settings = tmp_path / "guard" / "guard.json"
    facts = json.loads(settings.read_text())
    for name, value in (("temperature", 0), ("alpha", "x"), ("neighbours", 99), ("concepts", {}), ("classes", ["a"])):
        settings.write_text(json.dumps(facts | {name: value}))
        with pytest.raises(ValueError, match="damaged"):
            Safeguard.from_pretrained(tmp_path, guard.model, guard.processor)
    settings.write_text("[]")
    with pytest.raises(ValueError, match="no guard of format"):
        Safeguard.from_pretrained(tmp_path, guard.model, guard.processor)


def test_what_would_be_misunderstood_is_refused(model_and_processor, make_dataset):
    data = make_dataset()
    with pytest.raises(ValueError, match="number 0 is 'tern' in the model and 'bunting'"):
        Safeguard.fit(*model_and_processor, make_dataset(classes=["bunting", "tern", "wren"]))
    with pytest.raises(ValueError, match="alpha 0.01 needs 99 calibration images"):
        Safeguard.fit(*model_and_processor, data, alpha=0.01)
    with pytest.raises(ValueError, match="has a transform"):
        Safeguard.fit(*model_and_processor, data.with_transform(lambda rows: rows))
    with pytest.raises(ValueError, match="alpha must be a share"):
        Safeguard.fit(*model_and_processor, data, alpha=10)
    with pytest.raises(ValueError, match="split of a concept dataset"):
        Safeguard.fit(*model_and_processor, list(data))


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_other_problems_are_refused(make_model, make_dataset, problem):
    with pytest.raises(ValueError, match=f"this model is for {problem}"):
        Safeguard.fit(*make_model(problem_type=problem), make_dataset())


def test_the_training_split_is_refused_by_the_record(model_and_processor, make_dataset, tmp_path, caplog):
    model, processor = model_and_processor
    (tmp_path / "training").mkdir()
    record = {"dataset": "/data/birds", "metric_for_best_model": "accuracy"}
    (tmp_path / "training" / "metrics.json").write_text(json.dumps(record))
    model.config._name_or_path = str(tmp_path)
    data = make_dataset()
    for dataset in ("birds", "USER/birds", None):
        with pytest.raises(ValueError, match="trained on the split train of /data/birds"):
            Safeguard.fit(model, processor, data, alpha=0.2, dataset=dataset, split="train")
    caplog.set_level(logging.WARNING, "ascent_vit")
    warned = Safeguard.fit(model, processor, data, alpha=0.2, dataset="others", split="train").judge.facts["warnings"]
    assert any("of a split named train" in sentence for sentence in warned)
    facts = Safeguard.fit(model, processor, data, alpha=0.2, dataset="birds", split="validation").judge.facts
    assert any("chosen by accuracy on this split" in sentence for sentence in facts["warnings"])
    assert "chosen by accuracy on this split" in caplog.text


def test_a_class_with_few_images_falls_back_and_is_named(model_and_processor, make_dataset, caplog):
    caplog.set_level(logging.WARNING, "ascent_vit")
    guard = Safeguard.fit(*model_and_processor, make_dataset(labels=[0] * 30 + [1] * 28 + [2] * 2), alpha=0.1)
    assert guard.judge.facts["shared"] == ["bunting", "wren"]
    assert "2 of 3 classes share one threshold" in caplog.text and "bunting, wren" in caplog.text
    assert guard.judge.facts["images_per_class"] == [30, 28, 2]
    # Whatever the promise needs, no class is left out that is as probable as alpha.
    assert (guard.judge.arrays["thresholds"] <= 0.1).all()
    together = Safeguard.fit(*model_and_processor, make_dataset(), alpha=0.1, per_class=False).judge.facts
    assert together["shared"] == [] and not together["per_class"]


def test_groups_are_said(model_and_processor, make_dataset):
    data = make_dataset().add_column("group_id", [f"patient {i // 3}" for i in range(60)])
    guard = Safeguard.fit(*model_and_processor, data, alpha=0.2)
    assert any("60 calibration images are of 20 groups" in sentence for sentence in guard.judge.facts["warnings"])


def test_images_without_a_class_are_left_out(model_and_processor, make_dataset):
    labels = [-1] * 20 + [0, 1] * 20
    guard = Safeguard.fit(*model_and_processor, make_dataset(labels=labels), alpha=0.2)
    assert guard.judge.facts["images"] == 40
    assert np.isfinite(guard.judge.arrays["thresholds"]).all()

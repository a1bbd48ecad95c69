# SPDX-License-Identifier: Apache-2.0
"""A frozen backbone whose tokens are cached, on a few digits and a model of two layers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from transformers import Trainer, TrainingArguments

from ascent_vit.data import ConceptCollator, concepts_from_features, load_digits_dataset
from ascent_vit.training import TrainingError, cache_features, train
from ascent_vit.training.build import build_model
from ascent_vit.training.features import CachedTokens, make_file
from modeling_ascent_vit import AscentViTForImageClassification


FLIPS = {"augmentation": {"horizontal_flip": 0.5, "brightness": 0.3}, "feature_views": 3}


@pytest.fixture
def forwards(monkeypatch) -> list[int]:
    """Numbers of images that a backbone computed."""
    numbers: list[int] = []
    compute = CachedTokens.compute_tokens

    def counted(self, pixel_values):
        numbers.append(len(pixel_values))
        return compute(self, pixel_values)

    monkeypatch.setattr(CachedTokens, "compute_tokens", counted)
    return numbers


def epochs(folder: Path) -> list[dict]:
    return json.loads((folder / "report.json").read_text())["epochs"]


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.5}, {"cache_mebibytes": 0}], ids=["plain", "ema", "uncached"])
def test_a_run_on_cached_features_is_that_of_a_frozen_backbone(changes, few_digits, tiny_recipe, tmp_path):
    """Within the rounding of float16, epoch by epoch; the model that is saved computes its backbone."""
    frozen = train(tiny_recipe(freeze_backbone=True, **changes), tmp_path / "frozen", few_digits)
    cached = train(tiny_recipe(cache_features=True, **changes), tmp_path / "cached", few_digits)
    for first, second in zip(epochs(tmp_path / "frozen"), epochs(tmp_path / "cached"), strict=True):
        assert second["train_loss"] == pytest.approx(first["train_loss"], rel=1e-3)
        assert second["alignment_error"] == pytest.approx(first["alignment_error"], rel=1e-2)
    models = [AscentViTForImageClassification.from_pretrained(run.model_dir) for run in (frozen, cached)]
    states = [model.ascent_vit.backbone.state_dict() for model in models]
    assert states[0] and all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert cached.metrics["alignment_error"] == pytest.approx(frozen.metrics["alignment_error"], rel=1e-2)
    assert models[1].state_dict().keys() == models[0].state_dict().keys()


@pytest.mark.parametrize("changes", [{}, FLIPS, FLIPS | {"cache_mebibytes": 0}], ids=["plain", "views", "uncached"])
def test_each_image_is_computed_once(changes, few_digits, tiny_recipe, tmp_path, forwards):
    train(tiny_recipe(cache_features=True, **changes), tmp_path, few_digits)
    views = 3 if changes else 1
    # One to know the size, and a few to check; in no epoch any.
    assert 36 * views + 20 < sum(forwards) <= 36 * views + 20 + 1 + 6
    tokens = np.load(tmp_path / "features" / "tokens.npy", mmap_mode="r")
    assert tokens.dtype == np.float16 and tokens.shape == (36 * views + 20, 17, 32)
    distinct = np.unique(np.asarray(tokens[: 36 * views]).reshape(36 * views, -1), axis=0)
    assert len(distinct) > (36 if views == 1 else 2 * 36) - 3


def test_the_backbone_is_not_called_in_an_epoch(few_digits, tiny_recipe, tmp_path, monkeypatch):
    calls = []
    give = CachedTokens.give_tokens

    def noted(self, pixel_values, *args, **kwargs):
        calls.append(self.rows is not None and self.tokens is not None)
        return give(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(CachedTokens, "give_tokens", noted)
    train(tiny_recipe(cache_features=True, ema_decay=0.9), tmp_path, few_digits)
    # The first batch is asked which metrics there are, before anything is computed for long.
    assert len(calls) >= 2 * (4 + 2) and calls.count(False) == 1 and not calls[0]


def test_features_go_on_where_they_were_interrupted(few_digits, tiny_recipe, tmp_path, monkeypatch, forwards):
    recipe = tiny_recipe(cache_features=True, **FLIPS)
    whole = train(recipe, tmp_path / "whole", few_digits)
    forwards.clear()
    compute = CachedTokens.compute_tokens

    def interrupted(self, pixel_values):
        if sum(forwards) > 60:
            raise KeyboardInterrupt
        return compute(self, pixel_values)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CachedTokens, "compute_tokens", interrupted)
        train(recipe, tmp_path / "run", few_digits)
    done = sum(forwards) - 1
    forwards.clear()
    resumed = train(recipe, tmp_path / "run", few_digits, resume=True)
    assert sum(forwards) <= 3 * 36 + 20 - done + 1 + 6
    assert resumed.metrics == whole.metrics
    # A finished run computes nothing.
    forwards.clear()
    train(recipe, tmp_path / "run", few_digits, resume=True)
    assert not forwards


def test_what_has_changed_is_computed_anew(few_digits, tiny_recipe, tmp_path, forwards, monkeypatch):
    """Other weights, other settings of the image processor, other images: never the features of before."""
    train(tiny_recipe(cache_features=True, max_steps=4), tmp_path / "before", few_digits)
    for changes in ({"seed": 2}, {"processor": {"image_mean": [0.4] * 3}}):
        run = tmp_path / next(iter(changes))
        shutil.copytree(tmp_path / "before" / "features", run / "features")
        (run / "recipe.json").write_text("{}")
        monkeypatch.setattr("ascent_vit.training.setup.check_resumed", lambda *args: None)
        forwards.clear()
        train(tiny_recipe(cache_features=True, max_steps=4, **changes), run, few_digits, resume=True)
        assert sum(forwards) >= 56


def test_features_that_are_not_the_backbones_are_refused(few_digits, tiny_recipe, tmp_path):
    recipe = tiny_recipe(cache_features=True, max_steps=2)
    train(recipe, tmp_path, few_digits)
    np.load(tmp_path / "features" / "tokens.npy", mmap_mode="r+")[:] += 1
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(TrainingError, match="not what the backbone computes, row 0 by .* remove the folder"):
        train(recipe, tmp_path, few_digits, resume=True)


def test_trainer_on_cached_features(few_digits, tiny_recipe, tmp_path, forwards):
    names = concepts_from_features(few_digits["train"].features)
    losses = []
    for cached in (False, True):
        torch.manual_seed(0)
        model, processor = build_model(tiny_recipe(), *names)
        model.ascent_vit.backbone.requires_grad_(False)
        data = {name: few_digits[name] for name in ("train", "validation")}
        if cached:
            data = cache_features(model, processor, DatasetDict(data), tmp_path / "features")
        arguments = TrainingArguments(
            str(tmp_path / "run"),
            max_steps=4,
            logging_steps=1,
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            save_strategy="no",
        )
        splits = {"train_dataset": data["train"], "eval_dataset": data["validation"]}
        run = Trainer(model, arguments, data_collator=ConceptCollator(processor), **splits)
        run.train()
        steps = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        losses.append([*steps, run.evaluate()["eval_loss"]])
    assert len(losses[0]) == 5 and losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert sum(forwards) <= 56 + 1 + 6


def test_a_full_disk_and_a_file_that_was_cut_short(tmp_path):
    with pytest.raises(TrainingError, match="lower feature_views"):
        make_file(tmp_path / "tokens.npy", np.float16, (10**9, 10**9))
    make_file(tmp_path / "tokens.npy", np.float16, (10, 3))
    with (tmp_path / "tokens.npy").open("r+b") as file:
        file.truncate(130)
    make_file(tmp_path / "tokens.npy", np.float16, (10, 3))
    assert np.load(tmp_path / "tokens.npy").shape == (10, 3)


def test_lists_of_what_is_present_need_the_backbone_itself(tiny_recipe, tmp_path):
    """Where there are places too they are left out of training; metrics still have them."""
    for ink in (False, True):
        listed = load_digits_dataset(copies=1, canvas=32, ink=ink, present=True)
        listed = DatasetDict({name: split.select(range(16)) for name, split in listed.items()})
        if not ink:
            with pytest.raises(ValueError, match="leave cache_features out, and set freeze_backbone: true"):
                train(tiny_recipe(cache_features=True), tmp_path / "lists", listed)
        else:
            result = train(tiny_recipe(cache_features=True, max_steps=2), tmp_path / "both", listed)
            assert {"presence_auroc", "pixel_tpr"} <= result.metrics.keys()


def test_a_frozen_backbone_has_no_learning_rate(tiny_recipe):
    with pytest.raises(ValueError, match="leave backbone_learning_rate out"):
        tiny_recipe(cache_features=True, backbone_learning_rate=1e-5)

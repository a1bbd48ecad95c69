# SPDX-License-Identifier: Apache-2.0
"""A frozen backbone whose tokens are cached, on a few digits and a model of two layers."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from transformers import Trainer, TrainingArguments

from ascent_vit.data import ConceptCollator, concepts_from_features, load_digits_dataset
from ascent_vit.data.adapters.cub import prepare
from ascent_vit.training import TrainingError, cache_features, load_recipe, loop, train
from ascent_vit.training.build import build_model
from ascent_vit.training.features import CachedTokens, make_file
from modeling_ascent_vit import AscentViTForImageClassification


BACKBONE = {
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
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


DROPOUT = {"model": {"backbone_config": BACKBONE | {"hidden_dropout_prob": 0.1}}, "frozen_layers": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema_decay": 0.5},
        {"cache_mebibytes": 0},
        {"frozen_layers": 1, "ema_decay": 0.5, "layer_decay": 0.5},
        {"frozen_layers": 1, "head_only_epochs": 1, "backbone_learning_rate": 1e-4, "gradient_accumulation_steps": 2},
    ],
    ids=["plain", "ema", "uncached", "partly-ema", "partly-head-first"],
)
def test_a_run_on_cached_features_is_that_of_a_frozen_backbone(changes, few_digits, tiny_recipe, tmp_path):
    """Within the rounding of float16, epoch by epoch; the model that is saved computes its backbone."""
    whole = "frozen_layers" not in changes
    frozen = train(tiny_recipe(freeze_backbone=whole, **changes), tmp_path / "frozen", few_digits)
    cached = train(tiny_recipe(cache_features=True, **changes), tmp_path / "cached", few_digits)
    for first, second in zip(epochs(tmp_path / "frozen"), epochs(tmp_path / "cached"), strict=True):
        assert second["train_loss"] == pytest.approx(first["train_loss"], rel=1e-3)
        assert second["alignment_error"] == pytest.approx(first["alignment_error"], rel=1e-2)
    models = [AscentViTForImageClassification.from_pretrained(run.model_dir) for run in (frozen, cached)]
    states = [model.ascent_vit.backbone.state_dict() for model in models]
    trained = () if whole else ("layernorm", *(f"layers.{layer}" for layer in range(changes["frozen_layers"], 2)))
    names = [name for name in states[0] if not name.startswith(trained)]
    assert names and all(torch.equal(states[0][name], states[1][name]) for name in names)
    start = build_model(tiny_recipe(**changes), *concepts_from_features(few_digits["train"].features))[0]
    assert whole or any(
        not torch.equal(states[1][name], start.ascent_vit.backbone.state_dict()[name]) for name in states[0]
    )
    assert cached.metrics["alignment_error"] == pytest.approx(frozen.metrics["alignment_error"], rel=1e-2)
    assert models[1].state_dict().keys() == models[0].state_dict().keys()


@pytest.mark.parametrize("changes", [{}, FLIPS, FLIPS | {"cache_mebibytes": 0}], ids=["plain", "views", "uncached"])
def test_each_image_is_computed_once(changes, few_digits, tiny_recipe, tmp_path, forwards):
    train(tiny_recipe(cache_features=True, **changes), tmp_path, few_digits)
    views = 3 if changes else 1
    # One to know the size, and a few to check; in no epoch any.
    assert 36 * views + 20 < sum(forwards) <= 36 * views + 20 + 1 + 6
    tokens = np.load(tmp_path / "features" / "tokens.npy", mmap_mode="r")
    assert tokens.dtype == np.float16 and tokens.shape == (36 * views + 20, 1, 17, 32)
    distinct = np.unique(np.asarray(tokens[: 36 * views]).reshape(36 * views, -1), axis=0)
    assert len(distinct) > (36 if views == 1 else 2 * 36) - 3


def test_the_backbone_is_not_called_in_an_epoch(few_digits, tiny_recipe, tmp_path, monkeypatch):
    calls = []
    give = CachedTokens.give_tokens

    def noted(self, *args, **kwargs):
        calls.append(self.given is not None)
        return give(self, *args, **kwargs)

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


@pytest.mark.parametrize("layers", [None, 1])
def test_places_are_learned_from_lists_on_cached_features(layers, tiny_recipe, tmp_path):
    """By the earlier tokens in the file, as by those of a frozen backbone."""
    listed = load_digits_dataset(copies=1, canvas=32, ink=False, present=True)
    listed = DatasetDict({name: split.select(range(16)) for name, split in listed.items()})
    losses = []
    for cached in (False, True):
        values = tiny_recipe(
            freeze_backbone=not cached and layers is None,
            cache_features=cached,
            frozen_layers=layers,
            num_train_epochs=1,
            model={"backbone_config": BACKBONE | {"num_hidden_layers": 4}},
        )
        result = train(values, tmp_path / str(cached), listed)
        assert "presence_auroc" in result.metrics
        losses.append([row["train_presence_loss"] for row in epochs(tmp_path / str(cached))])
    assert losses[0][0] > 0 and losses[1] == pytest.approx(losses[0], rel=2e-3)
    # Last tokens, then those of layers 1 and 3 of 4; with one frozen layer its tokens alone are beyond the live ones.
    tokens = np.load(tmp_path / "True" / "features" / "tokens.npy", mmap_mode="r")
    assert tokens.shape == (32, 3 if layers is None else 1, 17, 32)


def test_a_partly_frozen_run_goes_on_where_it_was(few_digits, tiny_recipe, tmp_path, monkeypatch, forwards):
    """The upper layers as they were trained, the frozen ones' tokens from the file; dropout draws as it would have."""
    values = tiny_recipe(cache_features=True, ema_decay=0.5, save_steps=2, max_steps=6, **DROPOUT)
    whole = train(values, tmp_path / "whole", few_digits)
    steps = []
    end_step = loop.end_step

    def interrupted(run):
        end_step(run)
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "end_step", interrupted)
        train(values, tmp_path / "run", few_digits)
    forwards.clear()
    resumed = train(values, tmp_path / "run", few_digits, resume=True)
    # One to know the size and a few to check: the trained layers are no part of the keys.
    assert sum(forwards) <= 1 + 6 and resumed.metrics == whole.metrics


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"cache_features": True, "backbone_learning_rate": 1e-5},
            "leave backbone_learning_rate out, or set frozen_l",
        ),
        ({"freeze_backbone": True, "layer_decay": 0.5}, "freeze_backbone leaves .* as it is: leave layer_decay out."),
        ({"freeze_backbone": True, "frozen_layers": 1}, "freeze_backbone freezes all layers: leave it or frozen_lay"),
    ],
)
def test_a_frozen_backbone_has_no_learning_rate(changes, message, tiny_recipe):
    with pytest.raises(ValueError, match=message):
        tiny_recipe(**changes)


@pytest.mark.slow
@pytest.mark.parametrize("frozen_layers", [None, 8])
def test_birds_train_on_cached_features_as_without(frozen_layers, shared_folder, tmp_path):
    """Photographs and a real backbone of 12 layers, frozen whole or up to a layer, within the rounding of float16."""
    archive, backbone = shared_folder / "data" / "cub", shared_folder / "weights" / "deit-tiny"
    if not (archive.is_dir() and backbone.is_dir()):
        pytest.skip(f"{archive} or {backbone} is not there")
    birds = prepare(archive).dataset
    numbers = {"train": 48, "validation": 16}
    birds = DatasetDict({name: birds[name].shuffle(seed=0).select(range(size)) for name, size in numbers.items()})
    birds.save_to_disk(tmp_path / "birds")
    known = load_recipe("birds")
    values = dataclasses.replace(
        known,
        # What is drawn at random differs, as features that are computed first draw too.
        model=known.model | {"token_dropout": 0.0, "correction_rate": 0.0},
        backbone=str(backbone),
        dataset=str(tmp_path / "birds"),
        # Views that are cached are others than those that are drawn anew.
        augmentation={},
        frozen_layers=frozen_layers,
        num_train_epochs=3,
        warmup_epochs=1,
        per_device_train_batch_size=16,
    )
    fresh = dataclasses.replace(values, cache_features=False, freeze_backbone=frozen_layers is None)
    runs = [train(value, tmp_path / str(i)) for i, value in enumerate((fresh, values))]
    for first, second in zip(epochs(tmp_path / "0"), epochs(tmp_path / "1"), strict=True):
        assert second["train_loss"] == pytest.approx(first["train_loss"], rel=1e-3)
        assert second["alignment_error"] == pytest.approx(first["alignment_error"], rel=1e-2)
    assert epochs(tmp_path / "1")[-1]["train_loss"] < epochs(tmp_path / "1")[0]["train_loss"]
    for name in ("accuracy", "pixel_tpr", "concept_map"):
        assert runs[1].metrics[name] == pytest.approx(runs[0].metrics[name], abs=0.07)

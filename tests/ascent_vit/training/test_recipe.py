# SPDX-License-Identifier: Apache-2.0
"""Recipes: what is read, and what is refused with which words."""

import dataclasses
import re

import pytest

from ascent_vit.data import Augmentation
from ascent_vit.training import Recipe, load_recipe
from ascent_vit.training.reading import model_fields
from ascent_vit.training.recipe import augmentation_of


MODEL = """
dataset: digits
model:
  backbone_config: {model_type: vit, hidden_size: 32, num_attention_heads: 4}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(MODEL + text)
        return str(path)

    return write


def test_scalars_are_what_they_look_like(write):
    recipe = load_recipe(write("learning_rate: 5e-5\nmixed_precision: no\nema_decay: null\nnum_train_epochs: 7\n"))
    assert (recipe.learning_rate, recipe.mixed_precision, recipe.ema_decay) == (5e-5, "no", None)
    assert (recipe.num_train_epochs, recipe.name, recipe.seed) == (7, "mine", 42)


def test_overrides_reach_into_mappings(write):
    overrides = ["model.psi=0.5", "model.backbone_config.patch_size=8", "learning_rate=1e-3", "max_steps=7"]
    recipe = load_recipe(write(""), [*overrides, "dataset_options.copies=3", "processor.unannotated=none"])
    assert recipe.model["psi"] == 0.5
    assert recipe.model["backbone_config"]["patch_size"] == 8
    assert recipe.model["backbone_config"]["hidden_size"] == 32
    assert (recipe.learning_rate, recipe.max_steps) == (1e-3, 7)
    assert (recipe.dataset_options, recipe.processor) == ({"copies": 3}, {"unannotated": "none"})


def test_an_augmentation(write):
    text = "augmentation: {horizontal_flip: 0.5, crop_scale: [0.5, 1], flip_pairs: [[left wing, right wing]]}\n"
    expected = Augmentation(0.5, crop_scale=[0.5, 1], flip_pairs=[["left wing", "right wing"]])
    assert augmentation_of(load_recipe(write(text))) == expected
    assert augmentation_of(load_recipe(write(text), ["augmentation.rotation=5"])).rotation == 5
    assert augmentation_of(load_recipe(write(""))) is None


def test_another_dataset_has_options_of_its_own(write):
    path = write("dataset_options: {copies: 3}\n")
    assert load_recipe(path, ["dataset=digits"]).dataset_options == {"copies": 3}
    assert load_recipe(path, ["dataset=a/b", "dataset_options.name=c"]).dataset_options == {"name": "c"}


def test_an_override_keeps_the_preset(tmp_path):
    (tmp_path / "preset.yaml").write_text("model: vit-small")
    recipe = load_recipe(tmp_path / "preset.yaml", ["model.psi=0.5"])
    assert recipe.model == {"preset": "vit-small", "psi": 0.5}
    fields = model_fields(recipe)
    assert (fields["psi"], fields["backbone_config"]["hidden_size"]) == (0.5, 384)


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "learning_rat: 1",
            "mine.yaml: there is no key learning_rat; did you mean 'learning_rate', 'backbone_learning_rate'?",
        ),
        ("learning_rate: fast", "mine.yaml: learning_rate must be a number; got 'fast'."),
        ("learning_rate: 0", "mine.yaml: learning_rate must be above 0; got 0."),
        ("learning_rate: .nan", "mine.yaml: learning_rate must be a number; got nan."),
        ("max_steps: 1.5", "mine.yaml: max_steps must be a whole number; got 1.5."),
        ("max_steps: 0", "mine.yaml: max_steps must be at least 1, or -1 for no limit; got 0."),
        ("max_steps: true", "mine.yaml: max_steps must be a whole number; got True."),
        ("adam_beta2: 1", "mine.yaml: adam_beta2 must be below 1; got 1."),
        ("ema_decay: -1", "mine.yaml: ema_decay must be above 0; got -1."),
        ("save_steps: 0", "mine.yaml: save_steps must be at least 1; got 0."),
        ("mixed_precision: bf61", "mine.yaml: mixed_precision must be auto or no or bf16 or fp16; got 'bf61'."),
        ("greater_is_better: yes", "mine.yaml: greater_is_better must be true or false or null; got 'yes'."),
        ("metric_for_best_model: acuracy", "metric_for_best_model 'acuracy' is no metric; did you mean 'accuracy'"),
        ("num_train_epochs: 2\nwarmup_epochs: 2", "mine.yaml: warmup_epochs must be below num_train_epochs, 2"),
        ("num_train_epochs: 2\nhead_only_epochs: 3", "mine.yaml: head_only_epochs must be below num_train_epochs, 2"),
        ("lr_scheduler_type: constant\nwarmup_epochs: 1", "mine.yaml: lr_scheduler_type constant has no warm-up"),
        ("seed: 1\nseed: 2", "mine.yaml is no valid YAML: the key seed is given twice."),
        ("seed: [", "mine.yaml is no valid YAML"),
        ("processor: {unanotated: none}", "processor has no parameter unanotated; did you mean 'unannotated'?"),
        ("augmentation: 3", "mine.yaml: augmentation must be a mapping; got 3."),
        ("augmentation: {rotate: 3}", "mine.yaml: augmentation has no key rotate; did you mean 'rotation'?"),
        ("augmentation: {rotation: far}", "mine.yaml: augmentation.rotation must be a number from 0 to 180"),
        ("backbone: a/b", "mine.yaml: backbone a/b brings its own configuration"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(write, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_recipe(write(text))


@pytest.mark.parametrize(
    "override, message",
    [
        ("psi", "--set takes KEY=VALUE, for example seed=1; got 'psi'."),
        ("=1", "--set takes KEY=VALUE"),
        ("learning_rate=-1", "--set learning_rate=-1: learning_rate must be above 0; got -1."),
        ("seed.x=1", "--set seed.x=1: seed has no keys within"),
        ("model.pssi=1", "mine.yaml: model has no field pssi; did you mean 'psi'?"),
        ("model.preset=vit-tny", "there is no model preset 'vit-tny'; did you mean 'vit-tiny'?"),
        (
            "model.backbone_config.hiden_size=1",
            "model.backbone_config has no field hiden_size; did you mean 'hidden_size'",
        ),
        ("model.backbone_config.model_type=vitt", "needs a model_type of transformers; got 'vitt'."),
        ("model={psi: 1}", "mine.yaml: there is no backbone: give model a preset (dinov2-base, "),
    ],
)
def test_what_is_wrong_in_an_override_is_named(write, override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_recipe(write(""), [override])


def test_a_recipe_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no recipe digit: .* concept-mnist, cub, digits"):
        load_recipe("digit")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(ValueError, match="expected a mapping of keys to values; got list"):
        load_recipe(tmp_path / "list.yaml")


def test_a_recipe_in_python_is_checked_too():
    with pytest.raises(ValueError, match="Recipe: learning_rate must be above 0"):
        Recipe(learning_rate=-1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().seed = 3


def test_the_direction_of_a_metric():
    assert Recipe().best_is_greatest
    assert not Recipe(metric_for_best_model="alignment_error").best_is_greatest
    assert Recipe(metric_for_best_model="alignment_error", greater_is_better=True).best_is_greatest

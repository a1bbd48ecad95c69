# SPDX-License-Identifier: Apache-2.0
"""The training loop, on a few digits and a model of two layers."""

import dataclasses
import functools
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.utils import set_seed
from datasets import Dataset, DatasetDict, Value, concatenate_datasets
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTConfig, ViTModel

from ascent_vit.data import concepts_from_features, load_concept_dataset, load_digits_dataset
from ascent_vit.evaluation import evaluate
from ascent_vit.inference import load_model
from ascent_vit.training import Recipe, loop, setup, train
from ascent_vit.training.build import build_model, make_loader, split_dataset
from ascent_vit.training.checkpoints import checkpoints
from ascent_vit.training.precision import resolve_precision, training_device
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
RECIPE = Recipe(
    model={"backbone_config": BACKBONE, "fusion_heads": 4, "pyramid_norm": "group"},
    learning_rate=1e-3,
    weight_decay=0.1,
    num_train_epochs=2,
    per_device_train_batch_size=8,
    per_device_eval_batch_size=16,
    seed=1,
    save_total_limit=None,
)


@pytest.fixture(scope="module")
def dataset() -> DatasetDict:
    digits = load_digits_dataset(copies=1, canvas=32)
    return DatasetDict(
        train=digits["train"].select(range(36)),
        validation=digits["validation"].select(range(20)),
        test=digits["test"].select(range(20)),
    )


@pytest.mark.parametrize("augmentation", [None, {"horizontal_flip": 0.5}, {"crop_scale": [0.5, 0.6]}])
@pytest.mark.parametrize("streaming", [False, True])
def test_lists_of_what_is_present_reach_the_model(augmentation, streaming, tmp_path, monkeypatch):
    """Without any place: the model has spatial concepts, and is told which are somewhere in each image."""
    listed = load_digits_dataset(copies=1, canvas=32, ink=False, present=True)
    listed = DatasetDict({name: split.select(range(24)) for name, split in listed.items()})
    forward, seen = AscentViTForImageClassification.forward, []

    @functools.wraps(forward)
    def noted(self, *args, spatial_concept_presence=None, **kwargs):
        if self.training:
            seen.append(spatial_concept_presence)
            assert kwargs["spatial_concept_targets"].isnan().all()
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(AscentViTForImageClassification, "forward", noted)
    changes = {"augmentation": augmentation} if augmentation else {}
    if streaming:
        for name, split in listed.items():
            split.to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
        listed = load_concept_dataset(tmp_path / "data", streaming=True, cache_dir=str(tmp_path / "cache"))
        changes |= {"max_steps": 3}
    result = train(recipe(**changes), tmp_path / "run", listed)
    assert {"presence_map", "presence_auroc"} <= result.metrics.keys()
    assert not {"pixel_tpr", "pointing_game"} & result.metrics.keys()
    presence = torch.cat(seen)
    assert presence.shape[1] == 10 and len(presence) >= 24
    # One digit an image, of which a crop does not tell whether it still has it.
    crop = augmentation is not None and "crop_scale" in augmentation
    assert ((presence == 0).sum(1) == 9).all()
    assert (presence.isnan() if crop else presence == 1).sum() == len(presence)


def recipe(**changes) -> Recipe:
    model = RECIPE.model | changes.pop("model", {})
    return dataclasses.replace(RECIPE, model=model, **changes)


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def initial_weights(recipe: Recipe, dataset: DatasetDict) -> dict[str, torch.Tensor]:
    set_seed(recipe.seed)
    return build_model(recipe, *concepts_from_features(dataset["train"].features))[0].state_dict()


def pretrained(folder: Path, **fields) -> dict:
    """Changes of a recipe: a small backbone of bfloat16 weights with statistics of its own."""
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3}
    config = ViTConfig(**{**{name: value for name, value in BACKBONE.items() if name != "model_type"}, **fields})
    ViTModel(config).to(torch.bfloat16).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return {"backbone": str(folder), "model": {"fusion_heads": 4, "pyramid_norm": "group"}}


@pytest.mark.parametrize("changes", [{}, {"image_size": 48}, {"num_channels": 1}], ids=["own", "size", "grey"])
def test_a_pretrained_backbone_trains_in_float32_with_its_own_statistics(changes, dataset, tmp_path):
    chosen = pretrained(tmp_path / "backbone") | changes
    run = dataclasses.replace(RECIPE, **chosen, processor={"image_std": [0.9] * chosen.get("num_channels", 3)})
    result = train(dataclasses.replace(run, max_steps=2), tmp_path / "run", dataset)
    model, processor = load_model(str(result.model_dir))
    assert model.dtype == torch.float32
    assert (model.config.image_size[0], model.config.num_channels) == (
        changes.get("image_size", 32),
        changes.get("num_channels", 3),
    )
    assert tuple(processor.image_mean) == pytest.approx((0.2,) if changes.get("num_channels") else (0.1, 0.2, 0.3))
    assert processor.resample == 3 and set(processor.image_std) == {0.9}
    values = evaluate(model, make_loader(dataset["test"], processor, recipe(), 7))
    assert values["accuracy"] == result.metrics["accuracy"]


def test_dtype_and_image_size_of_a_recipe(dataset, tmp_path):
    names = concepts_from_features(dataset["train"].features)
    assert build_model(recipe(dtype="bfloat16", image_size=[32, 48]), *names)[0].dtype == torch.bfloat16
    asked = dataclasses.replace(RECIPE, **pretrained(tmp_path), dtype="bfloat16")
    assert build_model(asked, *names)[0].dtype == torch.bfloat16
    assert build_model(recipe(image_size=[32, 48]), *names)[1].size.width == 48
    with pytest.raises(ValueError, match="image_size must be one number of pixels or"):
        recipe(image_size=[32, 48, 3])


def test_class_weights_and_smoothing_of_a_recipe(dataset, tmp_path):
    result = train(recipe(class_weights="balanced", label_smoothing=0.1, max_steps=2), tmp_path / "run", dataset)
    config = AutoModelForImageClassification.from_pretrained(result.model_dir).config
    counts = np.bincount(dataset["train"]["label"][:])
    assert config.class_weights == pytest.approx((36 / (2 * counts)).tolist()) and config.label_smoothing == 0.1
    with pytest.raises(ValueError, match="class_weights must be a number .* for each of 2 classes"):
        train(recipe(class_weights=[1.0, 2.0, 3.0]), tmp_path / "wrong", dataset)


def test_what_a_run_writes(dataset, tmp_path):
    result = train(recipe(), tmp_path / "run", dataset)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints",
        "curves.png",
        "metrics",
        "metrics.json",
        "model",
        "recipe.json",
        "report.json",
        "report.md",
    ]
    assert result.model_dir == tmp_path / "run" / "model"
    assert (result.split, result.steps) == ("test", 8)
    metrics = read(tmp_path / "run" / "metrics.json")
    assert result.metrics == {name: metrics[name] for name in result.metrics}
    assert metrics["seed"] == 1 and metrics["torch_version"] == importlib.metadata.version("torch")
    assert not any(isinstance(value, dict | list) for value in metrics.values())
    report = read(tmp_path / "run" / "report.json")
    precision = resolve_precision("auto", training_device())
    resolved = {"dataset": None, "mixed_precision": precision, "metric_for_best_model": "accuracy"}
    assert Recipe(**report["recipe_values"]) == dataclasses.replace(recipe(), **resolved)
    assert [epoch["step"] for epoch in report["epochs"]] == [4, 8]
    assert len(checkpoints(tmp_path / "run")) == 2

    model = AutoModelForImageClassification.from_pretrained(result.model_dir)
    processor = AutoImageProcessor.from_pretrained(result.model_dir)
    assert model.config.id2label == {0: "even", 1: "odd"}
    assert model.config.spatial_concepts[3] == "digit 3"
    again = evaluate(model, make_loader(dataset["test"], processor, recipe(cache_mebibytes=0), 7))
    assert again == pytest.approx(result.metrics, abs=1e-5)


def test_training_learns(dataset, tmp_path):
    few = dataset["train"].select(range(16))
    dataset = DatasetDict(train=concatenate_datasets([few] * 20), validation=few)
    changes = {"model": {"alignment_loss": "kl", "global_token": "cls_mean", "entropy_loss_weight": 0.0}}
    result = train(
        recipe(learning_rate=5e-3, num_train_epochs=3, warmup_epochs=0.2, save_total_limit=1, **changes),
        tmp_path / "run",
        dataset,
    )
    epochs = [read(path) for path in sorted((tmp_path / "run" / "metrics").iterdir())]
    for term in ("train_loss", "train_class_loss", "train_alignment_loss"):
        assert epochs[-1][term] < 0.7 * epochs[0][term]
    assert result.split == "validation"
    assert result.metrics["accuracy"] > 0.9
    assert len(checkpoints(tmp_path / "run")) == 1


def test_the_same_seed_gives_the_same_weights(dataset, tmp_path):
    for name, seed, memory in (("a", 5, 512), ("b", 5, 512), ("c", 6, 512), ("d", 5, 0)):
        train(recipe(max_steps=2, cache_mebibytes=memory, adam_epsilon=1e-3), tmp_path / name, dataset, seed=seed)
    a, b, c, uncached = (weights(checkpoints(tmp_path / name)[-1]) for name in "abcd")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)
    for key in a:
        torch.testing.assert_close(uncached[key], a[key], rtol=1e-5, atol=1e-7)


def test_accumulated_batches_equal_one_batch(dataset, tmp_path):
    parts = recipe(per_device_train_batch_size=8, gradient_accumulation_steps=2)
    whole = recipe(per_device_train_batch_size=16)
    for name, values in (("parts", parts), ("whole", whole)):
        train(dataclasses.replace(values, adam_epsilon=1e-3), tmp_path / name, dataset)
    first, second = (checkpoints(tmp_path / name) for name in ("parts", "whole"))
    assert (
        [path.name for path in first]
        == [path.name for path in second]
        == [
            "checkpoint_00000002",
            "checkpoint_00000004",
        ]
    )
    start = initial_weights(whole, dataset)
    after, expected = weights(first[-1]), weights(second[-1])
    for key in expected:
        torch.testing.assert_close(after[key], expected[key], rtol=1e-4, atol=1e-6)
    assert max((expected[key] - start[key]).abs().max() for key in expected) > 1e-4


@pytest.mark.parametrize("step", [3, 4, 6])
def test_a_resumed_run_equals_an_undisturbed_one(dataset, tmp_path, step):
    backbone = BACKBONE | {"hidden_dropout_prob": 0.2}
    values = recipe(
        model={"backbone_config": backbone, "pyramid_norm": "batch"},
        gradient_accumulation_steps=1,
        warmup_epochs=0.5,
        head_only_epochs=0.75,
        ema_decay=0.8,
        save_steps=3,
    )
    train(values, tmp_path / "whole", dataset)
    # What an interruption after a checkpoint leaves.
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for name in ("metrics.json", "report.json"):
        (tmp_path / "cut" / name).unlink()
    for path in checkpoints(tmp_path / "cut"):
        if int(path.name.split("_")[1]) > step:
            shutil.rmtree(path)
    (tmp_path / "cut" / "metrics" / "epoch_002.json").unlink()
    (tmp_path / "cut" / "checkpoints" / "partial_checkpoint_00000099").mkdir()
    result = train(values, tmp_path / "cut", dataset, resume=True)

    assert result.steps == 8
    whole, cut = (checkpoints(tmp_path / name)[-1] for name in ("whole", "cut"))
    assert whole.name == cut.name == "checkpoint_00000008"
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    states = [torch.load(path / "optimizer.bin", weights_only=True)["state"] for path in (whole, cut)]
    for index, state in states[0].items():
        assert all(torch.equal(value, states[1][index][name]) for name, value in state.items())
    averages = [load_file(path / "average.safetensors") for path in (whole, cut)]
    assert all(torch.equal(value, averages[1][name]) for name, value in averages[0].items())
    for name in ("epoch_001.json", "epoch_002.json"):
        assert read(tmp_path / "whole" / "metrics" / name) == read(tmp_path / "cut" / "metrics" / name)


AUGMENTATION = {
    "horizontal_flip": 0.5,
    "rotation": 20,
    "crop_scale": [0.5, 1.0],
    "contrast": 0.3,
    "flip_pairs": [["digit 2", "digit 5"]],
}


def test_an_augmented_run_resumed_with_workers_equals_an_undisturbed_one(dataset, tmp_path):
    values = recipe(augmentation=AUGMENTATION, save_steps=3)
    train(values, tmp_path / "whole", dataset)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for path in checkpoints(tmp_path / "cut")[1:]:
        shutil.rmtree(path)
    # Neither who reads the images nor what is kept in memory matters.
    train(
        dataclasses.replace(values, dataloader_num_workers=2, cache_mebibytes=0),
        tmp_path / "cut",
        dataset,
        resume=True,
    )
    whole, cut = ([weights(path) for path in checkpoints(tmp_path / name)] for name in ("whole", "cut"))
    assert len(whole) == len(cut) == 4
    assert all(torch.equal(a[key], b[key]) for a, b in zip(whole, cut, strict=True) for key in a)
    with pytest.raises(ValueError, match="another recipe: augmentation was"):
        train(dataclasses.replace(values, augmentation={}), tmp_path / "cut", dataset, resume=True)


def test_only_the_train_split_is_augmented_and_anew_each_epoch(dataset):
    values = recipe(augmentation=AUGMENTATION)
    _, processor = build_model(values, *concepts_from_features(dataset["train"].features))
    plain, augmented = (list(make_loader(dataset["validation"], processor, v, 16)) for v in (recipe(), values))
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(plain, augmented, strict=True))
    loader = make_loader(dataset["train"], processor, values, 8, num_shuffled=32)
    views = []
    for epoch in (0, 0, 1):
        loader.sampler.set_epoch(epoch)
        pixels = torch.cat([batch["pixel_values"] for batch in loader])
        views.append(pixels[pixels.flatten(1).sum(1).argsort()])
    assert len(views[0]) == 32 and torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])


def test_an_augmentation_that_does_not_serve(dataset, tmp_path):
    with pytest.raises(ValueError, match="'digit 2' and 'left wing', but 'left wing' is no concept"):
        train(recipe(augmentation={"flip_pairs": [["digit 2", "left wing"]]}), tmp_path / "run", dataset)
    with pytest.raises(ValueError, match="crops of many sizes, which the image processor must resize"):
        train(recipe(augmentation={"crop_scale": [0.5, 1]}, processor={"do_resize": False}), tmp_path / "run", dataset)
    assert not (tmp_path / "run").exists()


def test_max_steps_ends_within_an_epoch(dataset, tmp_path, caplog):
    values = recipe(num_train_epochs=10, warmup_epochs=5, head_only_epochs=2.5, max_steps=6, save_total_limit=2)
    with caplog.at_level("WARNING", logger="ascent_vit"):
        result = train(values, tmp_path / "run", dataset)
    assert "max_steps=6 of the 40 steps of 10 epochs: warm-up shortened in proportion from 20 to 3" in caplog.text
    assert result.steps == 6
    plan = {"steps_per_epoch": 4, "total_steps": 6, "warmup_steps": 3, "head_only_steps": 1}
    assert read(tmp_path / "run" / "report.json")["step_plan"] == plan
    assert [read(path)["step"] for path in sorted((tmp_path / "run" / "metrics").iterdir())] == [4, 6]


def test_the_backbone_is_frozen_in_head_only_epochs(dataset, tmp_path):
    values = recipe(head_only_epochs=1)
    train(values, tmp_path / "run", dataset)
    start = initial_weights(values, dataset)
    first, second = (weights(path) for path in checkpoints(tmp_path / "run"))
    backbone = [name for name in start if name.startswith("ascent_vit.backbone.")]
    others = [name for name in start if name not in backbone]
    assert all(torch.equal(first[name], start[name]) for name in backbone)
    assert sum(not torch.equal(first[name], start[name]) for name in others) > len(others) / 2
    assert sum(not torch.equal(second[name], start[name]) for name in backbone) > len(backbone) / 2


def test_the_moving_average_is_evaluated_and_saved(dataset, tmp_path):
    values = recipe(model={"pyramid_norm": "batch"}, ema_decay=0.7, save_steps=1, num_train_epochs=1)
    result = train(values, tmp_path / "run", dataset)
    expected: dict[str, torch.Tensor] = {}
    for path in checkpoints(tmp_path / "run"):
        now = {name: value for name, value in weights(path).items() if value.is_floating_point()}
        expected = {name: 0.7 * value + 0.3 * now[name] for name, value in expected.items()} or now
    saved = AutoModelForImageClassification.from_pretrained(result.model_dir).state_dict()
    assert any("running_mean" in name for name in expected)
    for name, value in expected.items():
        torch.testing.assert_close(saved[name], value)
    assert not all(torch.equal(saved[name], value) for name, value in now.items())


def test_without_a_metric_the_last_weights_are_kept(dataset, tmp_path):
    """Also where the first epoch was the better one, as by a class loss that only grows."""
    chosen = train(recipe(learning_rate=0.5), tmp_path / "chosen", dataset)
    last = train(recipe(learning_rate=0.5, metric_for_best_model="none"), tmp_path / "last", dataset)
    assert chosen.best_epoch == 1 and last.best_epoch == 2
    report = json.loads((tmp_path / "last" / "report.json").read_text())
    assert report["best_metric"] is None and "accuracy" in report["epochs"][0]
    assert "kept are the weights of epoch 2." in (tmp_path / "last" / "report.md").read_text()


def test_the_best_weights_are_kept_not_the_last(dataset, tmp_path):
    best = []
    for greater_is_better in (True, False):
        values = recipe(metric_for_best_model="alignment_error", greater_is_better=greater_is_better)
        folder = tmp_path / str(greater_is_better)
        result = train(values, folder, dataset)
        errors = [read(path)["alignment_error"] for path in sorted((folder / "metrics").iterdir())]
        best.append(1 + errors.index(max(errors) if greater_is_better else min(errors)))
        assert result.best_epoch == best[-1]
        saved = AutoModelForImageClassification.from_pretrained(result.model_dir).state_dict()
        for epoch, checkpoint in enumerate(checkpoints(folder), start=1):
            equal = all(torch.equal(saved[name], value) for name, value in weights(checkpoint).items())
            assert equal == (epoch == best[-1])
    assert sorted(best) == [1, 2]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_metric_that_the_data_cannot_give_is_refused_before_the_first_step(
    dataset, tmp_path, monkeypatch, streaming
):
    """With those that it can give, and nothing is recorded."""
    changes = {}
    if streaming:
        for name, split in dataset.items():
            split.to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
        dataset = load_concept_dataset(tmp_path / "data", streaming=True, cache_dir=str(tmp_path / "cache"))
        changes["max_steps"] = 2
    monkeypatch.setattr(loop, "forward_backward", lambda *args: pytest.fail("a step was made"))
    sentence = "metric_for_best_model: top5_accuracy is not among .* are accuracy, macro_f1, ece, .* pixel_tpr, "
    with pytest.raises(ValueError, match=sentence):
        train(recipe(metric_for_best_model="top5_accuracy", **changes), tmp_path / "run", dataset)
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_looking_for_a_metric_changes_nothing(dataset, tmp_path, monkeypatch):
    """Of a run whose metric shows late, as only the last image of the validation split has a mask."""
    rows = dataset["validation"].to_list()
    rows = [row | {"mask": None} for row in rows[:-1]] + rows[-1:]
    late = dataset | {"validation": Dataset.from_list(rows, features=dataset["validation"].features)}
    values = recipe(metric_for_best_model="pixel_tpr", per_device_eval_batch_size=4, max_steps=3)
    train(values, tmp_path / "run", DatasetDict(late))
    monkeypatch.setattr(setup, "check_metric", lambda run: None)
    train(values, tmp_path / "unchecked", DatasetDict(late))
    one, other = (weights(checkpoints(tmp_path / name)[-1]) for name in ("run", "unchecked"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_output_folder_that_is_in_use(dataset, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty: name another one, or resume"):
        train(recipe(), tmp_path / "run", dataset)
    with pytest.raises(ValueError, match="holds no run to resume"):
        train(recipe(), tmp_path / "run", dataset, resume=True)
    with pytest.raises(ValueError, match="is a file"):
        train(recipe(), tmp_path / "run" / "notes.txt", dataset)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_run_is_resumed_with_its_own_recipe_only(dataset, tmp_path):
    train(recipe(max_steps=1), tmp_path / "run", dataset)
    with pytest.raises(ValueError, match="another recipe: learning_rate was 0.001, now 0.5"):
        train(recipe(max_steps=1, learning_rate=0.5), tmp_path / "run", dataset, resume=True)
    smaller = DatasetDict(dataset | {"train": dataset["train"].select(range(16))})
    with pytest.raises(ValueError, match="another recipe: steps was"):
        train(recipe(max_steps=1), tmp_path / "run", smaller, resume=True)
    result = train(recipe(max_steps=1, logging_steps=99), tmp_path / "run", dataset, resume=True)
    assert result.steps == 1


def test_options_of_another_dataset_are_left_out(dataset, tmp_path):
    dataset.save_to_disk(tmp_path / "data")
    values = recipe(max_steps=1, dataset="digits", dataset_options={"copies": 1, "canvas": 32})
    train(values, tmp_path / "run", str(tmp_path / "data"))
    record = read(tmp_path / "run" / "recipe.json")
    assert (record["dataset"], record["dataset_options"]) == (str(tmp_path / "data"), {})


def test_validation_is_cut_from_train(dataset):
    parts = DatasetDict(train=dataset["train"], test=dataset["test"])
    train_split, validation, test = split_dataset(parts, seed=3)
    samples = [set(split["sample"]) for split in (train_split, validation, test)]
    assert samples[0] | samples[1] == set(dataset["train"]["sample"]) and not samples[0] & samples[1]
    assert samples[2] == set(dataset["test"]["sample"]) and len(validation) == 4
    assert split_dataset(parts, seed=3)[1]["sample"] == validation["sample"]
    assert split_dataset(parts, seed=4)[1]["sample"] != validation["sample"]
    with pytest.raises(ValueError, match="no train split; it has test"):
        split_dataset(DatasetDict(test=dataset["test"]), seed=0)


def grouped(split: Dataset, groups: list) -> Dataset:
    return split.add_column("group_id", groups, feature=Value("string"))


def test_validation_is_cut_from_train_by_group(dataset):
    groups = [None if i < 3 else f"patient {i % 11}" for i in range(36)]
    train_rows = grouped(dataset["train"], groups).add_column("row", list(range(36)))
    for seed in range(5):
        train_split, validation, _ = split_dataset(DatasetDict(train=train_rows), seed)
        rows = [set(split["row"]) for split in (train_split, validation)]
        assert not rows[0] & rows[1] and rows[0] | rows[1] == set(range(36))
        patients = [set(split["group_id"]) - {None} for split in (train_split, validation)]
        assert not patients[0] & patients[1]
        # 14 groups, as each row without one is alone; a tenth, rounded up.
        assert len(patients[1]) + validation["group_id"][:].count(None) == 2
    cuts = [split_dataset(DatasetDict(train=train_rows), seed)[1]["row"][:] for seed in (0, 0, 1, 2, 3)]
    assert cuts[0] == cuts[1] and len(set(map(tuple, cuts))) > 1


def test_groups_of_another_name_are_mapped(dataset, tmp_path):
    patients = ["a", "b", "c"] * 12
    DatasetDict(train=grouped(dataset["train"], patients).rename_column("group_id", "patient")).save_to_disk(tmp_path)
    loaded = load_concept_dataset(str(tmp_path), columns={"group_id": "patient"})
    train_split, validation, _ = split_dataset(loaded, seed=0)
    assert len(validation) == 12 and len(set(validation["group_id"])) == 1
    assert not set(validation["group_id"]) & set(train_split["group_id"])


def test_a_group_in_two_splits_is_refused(dataset):
    parts = {name: grouped(split, ["a"] * len(split)) for name, split in dataset.items() if name != "validation"}
    with pytest.raises(ValueError, match="group_id 'a' are in the splits train and test"):
        split_dataset(DatasetDict(parts), seed=0)


@pytest.mark.parametrize("tested", [False, True])
def test_one_group_trains_without_validation(dataset, tmp_path, caplog, tested):
    """As slices of one patient: a validation split cut from them would tell nothing."""
    parts = DatasetDict(train=grouped(dataset["train"], ["patient 1"] * 36))
    if tested:
        parts["test"] = grouped(dataset["test"], ["patient 2"] * 20)
    result = train(recipe(), tmp_path / "run", parts)
    assert "all rows of train are of one group_id, 'patient 1'" in caplog.text
    assert result.split == ("test" if tested else None) and ("accuracy" in result.metrics) == tested
    assert result.best_epoch == 2 and result.steps == 8
    kept = AutoModelForImageClassification.from_pretrained(result.model_dir).state_dict()
    first, last = (weights(path) for path in checkpoints(tmp_path / "run"))
    assert all(torch.equal(kept[name], value) for name, value in last.items())
    assert not all(torch.equal(kept[name], value) for name, value in first.items())
    record, report = (read(tmp_path / "run" / name) for name in ("metrics.json", "report.json"))
    assert record["split"] == result.split and record["best_validation_value"] is None
    assert [epoch["epoch"] for epoch in report["epochs"]] == [1, 2] and "accuracy" not in report["epochs"][0]
    for path in checkpoints(tmp_path / "run")[1:]:
        shutil.rmtree(path)
    train(recipe(), tmp_path / "run", parts, resume=True)
    again = AutoModelForImageClassification.from_pretrained(result.model_dir).state_dict()
    assert all(torch.equal(again[name], value) for name, value in kept.items())


@pytest.mark.parametrize("augmentation", [{}, AUGMENTATION])
def test_a_streamed_dataset(dataset, tmp_path, augmentation):
    stream = DatasetDict(dataset)
    stream = type(stream)({name: split.to_iterable_dataset() for name, split in dataset.items()})
    with pytest.raises(ValueError, match="give max_steps"):
        train(recipe(), tmp_path / "run", stream)
    # More steps than the 36 images fill once: the stream starts again.
    values = recipe(max_steps=6, save_steps=2, augmentation=augmentation)
    result = train(values, tmp_path / "run", stream)
    assert result.steps == 6 and result.split == "test"
    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    for path in checkpoints(tmp_path / "cut")[1:]:
        shutil.rmtree(path)
    train(values, tmp_path / "cut", stream, resume=True)
    whole, cut = (weights(checkpoints(tmp_path / name)[-1]) for name in ("run", "cut"))
    assert all(torch.equal(cut[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"mixed_precision": "bf16"}, marks=pytest.mark.nightly),
        pytest.param({"ema_decay": 0.5, "mixed_precision": "bf16"}, marks=pytest.mark.slow),
    ],
)
def test_mixed_precision_keeps_weights_in_float32(dataset, tmp_path, changes):
    # Accelerate holds to the first precision of a process.
    program = (
        "import sys; from datasets import load_from_disk; from ascent_vit.training import load_recipe, train; "
        "train(load_recipe(sys.argv[1]), sys.argv[2], load_from_disk(sys.argv[3]))"
    )
    dataset.save_to_disk(tmp_path / "data")
    values = recipe(max_steps=2, **changes)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(dataclasses.asdict(values)))
    arguments = [str(tmp_path / name) for name in ("recipe.yaml", "run", "data")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {value.dtype for value in saved.values() if value.is_floating_point()} == {torch.float32}
    full = train(recipe(max_steps=2, **changes | {"mixed_precision": "no"}), tmp_path / "full", dataset)
    expected = load_file(full.model_dir / "model.safetensors")
    assert not all(torch.equal(saved[name], value) for name, value in expected.items())
    for name, value in expected.items():
        torch.testing.assert_close(saved[name], value, rtol=0.1, atol=0.01)


def test_a_backbone_with_weights(dataset, tmp_path):
    backbone = ViTModel(ViTConfig(**{key: value for key, value in BACKBONE.items() if key != "model_type"}))
    backbone.save_pretrained(tmp_path / "vit")
    values = dataclasses.replace(RECIPE, model={"fusion_heads": 4}, backbone=str(tmp_path / "vit"), max_steps=1)
    model, _ = build_model(values, ["a", "b"], ["x", "y"], [])
    assert model.training
    built, expected = model.ascent_vit.backbone.state_dict(), backbone.state_dict()
    assert len(built) > 30 and all(torch.equal(value, expected[name]) for name, value in built.items())
    train(values, tmp_path / "run", dataset)
    with pytest.raises(FileNotFoundError, match="The backbone .*nowhere cannot be read"):
        build_model(dataclasses.replace(values, backbone=str(tmp_path / "nowhere")), ["a", "b"], ["x", "y"], [])


def test_a_model_that_is_not_the_datasets(dataset, tmp_path):
    with pytest.raises(ValueError, match="spatial concepts of model and dataset must have the same names"):
        train(recipe(model={"spatial_concepts": ["a", "b"]}), tmp_path / "run", dataset)
    with pytest.raises(ValueError, match="The recipe's model is not valid"):
        train(recipe(model={"none_concept": "perhaps"}), tmp_path / "run", dataset)
    assert not (tmp_path / "run").exists()
    train(recipe(model={"global_concepts": []}, max_steps=1), tmp_path / "run", dataset)
    assert read(tmp_path / "run" / "model" / "config.json")["global_concepts"] == []


TWO_PROCESSES = """
import sys
import torch
from datasets import load_from_disk
from ascent_vit.training import load_recipe, train
torch.set_num_threads(1)
train(load_recipe(sys.argv[1]), sys.argv[2], load_from_disk(sys.argv[3]))
"""


@pytest.mark.parametrize(
    "augmentation",
    [pytest.param({}, marks=pytest.mark.nightly), pytest.param(AUGMENTATION, marks=pytest.mark.slow)],
)
def test_two_processes_equal_one(dataset, tmp_path, augmentation):
    dataset.save_to_disk(tmp_path / "data")
    (tmp_path / "run.py").write_text(TWO_PROCESSES)
    values = recipe(adam_epsilon=1e-3, head_only_epochs=0.5, dataset="two", ema_decay=0.5, augmentation=augmentation)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(dataclasses.asdict(values)))
    arguments = [
        str(tmp_path / "run.py"),
        str(tmp_path / "recipe.yaml"),
        str(tmp_path / "two"),
        str(tmp_path / "data"),
    ]
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *arguments], check=True)
    one = train(dataclasses.replace(values, per_device_train_batch_size=16), tmp_path / "one", dataset)
    expected, got = (weights(checkpoints(tmp_path / name)[-1]) for name in ("one", "two"))
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=1e-4, atol=1e-6)
    metrics = read(tmp_path / "two" / "metrics.json")
    assert metrics["num_processes"] == 2
    assert {name: metrics[name] for name in one.metrics} == pytest.approx(one.metrics, abs=1e-4)

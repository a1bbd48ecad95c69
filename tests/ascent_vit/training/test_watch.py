# SPDX-License-Identifier: Apache-2.0
"""What a run shows of itself, and when it stops by itself."""

import dataclasses
import importlib.util
import json
import math
import os
import re
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from datasets import DatasetDict

from ascent_vit.training import TrainingError, train, watch
from ascent_vit.training.checkpoints import checkpoints
from ascent_vit.training.train import Run
from ascent_vit.training.watch import broken_term


LOSSES = {"loss": 3.0, "class_loss": 1.0, "alignment_loss": 2.0}


@pytest.mark.parametrize(
    "changes, first, expected",
    [
        ({}, 3.0, None),
        ({"loss": math.nan, "alignment_loss": math.nan}, 3.0, "alignment_loss is nan"),
        ({"loss": math.inf, "class_loss": math.inf}, 3.0, "class_loss is inf"),
        ({"loss": math.inf}, 3.0, "loss is inf"),
        ({"loss": 2999.0, "class_loss": 2997.0}, 3.0, None),
        ({"loss": 3001.0, "class_loss": 2999.0}, 3.0, "class_loss is 2999, after a first loss of 3"),
        # A first loss that is tiny, as with smooth targets, is no measure.
        ({"loss": 999.0}, 0.01, None),
        ({"loss": 1001.0, "alignment_loss": 1000.0}, 0.01, "alignment_loss is 1000, after a first loss of 0.01"),
    ],
)
def test_which_term_is_broken(changes, first, expected):
    assert broken_term(LOSSES | changes, first) == expected


def rows_of(error: TrainingError) -> list[int]:
    return [int(row) for row in re.search(r"batch of rows ([\d, ]+), counted", str(error)).group(1).split(",")]


AUGMENTATION = {"horizontal_flip": 0.5}


@pytest.mark.parametrize("augmentation", [{}, AUGMENTATION])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_loss_that_is_not_finite_names_the_rows_of_its_batch(
    few_digits, tiny_recipe, tmp_path, augmentation, resumed
):
    values = tiny_recipe(augmentation=augmentation, save_steps=1, num_train_epochs=4, per_device_train_batch_size=12)
    if resumed:
        train(values, tmp_path / "run", few_digits)
        (tmp_path / "run" / "metrics.json").unlink()
        for checkpoint in checkpoints(tmp_path / "run")[4:]:
            checkpoint.rename(checkpoint.with_name(f"damaged_{checkpoint.name}"))
    run = Run(values, tmp_path / "run", few_digits, resume=resumed)
    pixels = torch.stack(read_pixels(run, few_digits["train"]))
    batches: list[list[int]] = []

    def look(model, args, batch):
        if model.training:
            distances = [(pixels - image).flatten(1).abs().amax(1) for image in batch["pixel_values"]]
            batches.append([int(distance.argmin()) for distance in distances])

    def damage(model, args, outputs):
        if model.training and run.progress.step == 5:
            outputs.alignment_loss = outputs.alignment_loss * math.nan

    run.model.register_forward_pre_hook(look, with_kwargs=True)
    run.model.register_forward_hook(damage)
    with pytest.raises(TrainingError, match="^Training diverged at step 6: alignment_loss is nan, in the") as raised:
        run.train()
    expected = batches[-1]
    if augmentation:
        # A mirrored image is not found by its pixels; the loader tells its rows once more.
        run.loader.set_epoch(1)
        expected = [index for _, index in list(run.loader.batch_sampler)[2]]
    assert rows_of(raised.value) == expected and len(set(expected)) == 12


def read_pixels(run: Run, split) -> list[torch.Tensor]:
    return list(run.processor([row["image"] for row in split], return_tensors="pt")["pixel_values"])


def test_a_gradient_that_is_not_finite_stops_before_a_checkpoint(few_digits, tiny_recipe, tmp_path):
    run = Run(tiny_recipe(save_steps=1, gradient_accumulation_steps=2), tmp_path / "run", few_digits, resume=False)
    parameter = next(run.model.parameters())
    parameter.register_hook(lambda gradient: gradient * (math.nan if run.progress.step == 2 else 1))
    with pytest.raises(TrainingError, match="^Training diverged at step 3: the gradient is nan, in the") as raised:
        run.train()
    assert len(rows_of(raised.value)) == 16
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint_00000001", "checkpoint_00000002"]


def test_the_rows_of_a_stream_are_named(few_digits, tiny_recipe, tmp_path):
    streams = {name: split.to_iterable_dataset(num_shards=2) for name, split in few_digits.items()}
    values = tiny_recipe(learning_rate=1e30, max_grad_norm=0.0, max_steps=9)
    with pytest.raises(TrainingError, match=r"in the batch of row \d+ of shard [01], row .* of the streamed train"):
        train(values, tmp_path / "run", type(few_digits)(streams))


def test_a_cut_validation_split_is_told(few_digits, tiny_recipe, tmp_path):
    values = tiny_recipe(learning_rate=1e30, max_grad_norm=0.0, num_train_epochs=5)
    with pytest.raises(TrainingError, match="of the train split, from which the validation split has been cut"):
        train(values, tmp_path / "run", DatasetDict(train=few_digits["train"]))


class TestTensorBoard:
    @pytest.fixture
    def reader(self):
        return pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator

    def test_losses_metrics_and_concept_maps(self, few_digits, tiny_recipe, tmp_path, reader):
        values = tiny_recipe(report_to="tensorboard", logging_steps=2, model={"pyramid_norm": "batch"})
        train(values, tmp_path / "run", few_digits)
        events = reader(str(tmp_path / "run" / "logs" / "tiny")).Reload()
        for name in ("loss", "class_loss", "alignment_loss", "entropy_loss", "learning_rate"):
            assert [event.step for event in events.Scalars(f"train/{name}")] == [2, 4, 6, 8]
        assert [event.step for event in events.Scalars("validation/accuracy")] == [4, 8]
        tags = events.Tags()["images"]
        assert sorted(tags) == [f"concepts/image_{number}" for number in range(4)]
        maps = events.Images("concepts/image_0")
        assert [event.step for event in maps] == [4, 8]
        assert maps[0].encoded_image_string != maps[1].encoded_image_string

        # Watching changes nothing of what is watched.
        train(tiny_recipe(model={"pyramid_norm": "batch"}), tmp_path / "unwatched", few_digits)
        watched, unwatched = (
            (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("run", "unwatched")
        )
        assert watched == unwatched

    def test_a_resumed_run_takes_its_records_back(self, few_digits, tiny_recipe, tmp_path, reader, monkeypatch):
        monkeypatch.setattr(watch, "WATCHED_IMAGES", 0)
        values = tiny_recipe(report_to="tensorboard", logging_steps=1)
        train(values, tmp_path / "run", few_digits)
        (tmp_path / "run" / "metrics.json").unlink()
        last = checkpoints(tmp_path / "run")[-1]
        last.rename(last.with_name("damaged"))
        train(values, tmp_path / "run", few_digits, resume=True)
        events = reader(str(tmp_path / "run" / "logs" / "tiny")).Reload()
        assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 9))


TRACKIO = """
import sys
from datasets import load_from_disk
from ascent_vit.training import load_recipe, train
train(load_recipe(sys.argv[1] + "/recipe.yaml"), sys.argv[1] + "/run", load_from_disk(sys.argv[1] + "/data"))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_writes_into_the_runs_folder(few_digits, tiny_recipe, tmp_path):
    few_digits.save_to_disk(tmp_path / "data")
    values = tiny_recipe(report_to="trackio", logging_steps=1, max_steps=2)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(dataclasses.asdict(values)))
    # It settles on a folder when it is imported.
    environment = {key: value for key, value in os.environ.items() if key != "TRACKIO_DIR"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    subprocess.run([sys.executable, "-c", TRACKIO, str(tmp_path)], env=environment, check=True)
    (records,) = (tmp_path / "run" / "logs" / "trackio").glob("*.db")
    with sqlite3.connect(records) as database:
        rows = [(step, json.loads(values)) for step, values in database.execute("SELECT step, metrics FROM metrics")]
    assert [step for step, values in rows if "train/loss" in values] == [1, 2]
    assert [step for step, values in rows if "validation/accuracy" in values] == [2]
    pictures = {name for step, values in rows for name in values if name.startswith("concepts/")}
    assert pictures == {f"concepts/image_{number}" for number in range(4)}


def test_one_progress_bar_tells_loss_and_time_left(few_digits, tiny_recipe, tmp_path, capsys):
    train(tiny_recipe(max_steps=4), tmp_path / "run", few_digits)
    shown = capsys.readouterr().err.split("\r")
    last = [line for line in shown if line.startswith("Training:")][-1]
    assert re.search(r"4/4 \[\d\d:\d\d<\d\d:\d\d, .*, loss=\d+\.\d{4}\]", last)
    assert np.isfinite(float(re.search(r"loss=([\d.]+)", last).group(1)))

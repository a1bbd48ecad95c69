# SPDX-License-Identifier: Apache-2.0
"""What a run shows of itself."""

import dataclasses
import importlib.util
import json
import os
import re
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
import yaml

from ascent_vit.training import train, watch
from ascent_vit.training.checkpoints import checkpoints


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

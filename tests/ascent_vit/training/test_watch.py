# SPDX-License-Identifier: Apache-2.0
"""What a run shows of itself."""

import dataclasses
import importlib
import importlib.util
import json
import os
import re
import sqlite3
import struct
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
        metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert events.Scalars("test/accuracy")[-1].value == pytest.approx(metrics["accuracy"])
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


def stop_after(monkeypatch, last):
    log = watch.Watcher.log

    def stop(watcher, values, step):
        log(watcher, values, step)
        if step == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(watch.Watcher, "log", stop)


def wandb_records(folder):
    """What W&B keeps of a run offline: messages in pieces, in blocks as those of LevelDB's log behind a header."""
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    # Its service may still be writing.
    importlib.import_module("wandb").teardown()
    (path,) = folder.glob("offline-run-*/run-*.wandb")
    content, place, message = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        length, piece = struct.unpack("<HB", content[place + 4 : place + 7])
        message += content[place + 7 : place + 7 + length]
        place += 7 + length
        if piece in (1, 4):  # whole, or the last piece
            yield messages.Record.FromString(message)
            message = b""


class TestWandb:
    @pytest.fixture(autouse=True)
    def offline(self, tmp_path, monkeypatch):
        wandb = pytest.importorskip("wandb")
        wandb.teardown()
        for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_DIR"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_SILENT", "true")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        yield
        wandb.teardown()

    @pytest.mark.slow
    def test_values_recipe_and_concept_maps(self, few_digits, tiny_recipe, tmp_path):
        result = train(tiny_recipe(report_to="wandb", logging_steps=2, max_steps=4), tmp_path / "run", few_digits)
        folder = tmp_path / "run" / "logs" / "wandb"
        history, config = {}, {}
        for record in wandb_records(folder):
            for item in record.history.item:
                key = item.key or "/".join(item.nested_key)
                history.setdefault(key, []).append(json.loads(item.value_json))
            for source in (record.run.config, record.config):
                config |= {item.key or ".".join(item.nested_key): item.value_json for item in source.update}
        assert history["_step"] == [2, 4]
        assert len(history["train/loss"]) == 2 and len(history["validation/accuracy"]) == 1
        assert history["test/accuracy"] == [result.metrics["accuracy"]]
        assert json.loads(config["model.pyramid_norm"]) == "group" and json.loads(config["learning_rate"]) == 1e-3
        pictures = [path.name for path in folder.rglob("*.png")]
        assert sorted(name[:7] for name in pictures) == [f"image_{number}" for number in range(4)]
        assert {path.name for path in tmp_path.iterdir()} == {"run"}

    @pytest.mark.slow
    def test_a_resumed_run_is_the_same_run(self, few_digits, tiny_recipe, tmp_path, monkeypatch):
        monkeypatch.setattr(watch, "WATCHED_IMAGES", 0)
        recipe = tiny_recipe(report_to="wandb", logging_steps=1)
        log = watch.Watcher.log
        stop_after(monkeypatch, 8)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "run", few_digits)
        monkeypatch.setattr(watch.Watcher, "log", log)
        train(recipe, tmp_path / "run", few_digits, resume=True)
        folders = (tmp_path / "run" / "logs" / "wandb").glob("offline-run-*")
        assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1

    @pytest.mark.parametrize("key", [None, pytest.param("0" * 40, marks=pytest.mark.slow, id="no network")])
    def test_without_a_login_it_ends_before_anything_is_read(self, tiny_recipe, tmp_path, monkeypatch, key):
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("HOME", str(tmp_path))
        if key:
            monkeypatch.setenv("WANDB_API_KEY", key)
            monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        message = r"^report_to: wandb cannot log in \(.+\): run wandb login, or set WANDB_MODE=offline\.$"
        with pytest.raises(ValueError, match=message):
            train(tiny_recipe(report_to="wandb"), tmp_path / "run", "no/such-dataset")


@pytest.mark.slow
class TestMlflow:
    @pytest.fixture
    def mlflow(self, monkeypatch):
        module = pytest.importorskip("mlflow")
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
            monkeypatch.delenv(name, raising=False)
        assert not module.is_tracking_uri_set()
        yield module
        assert module.active_run() is None and not module.is_tracking_uri_set()

    def run_of(self, mlflow, folder):
        client = mlflow.MlflowClient(f"sqlite:///{folder / 'logs' / 'mlflow.db'}")
        (experiment,) = [item for item in client.search_experiments() if item.name == "tiny"]
        (run,) = client.search_runs([experiment.experiment_id])
        return client, run

    def test_two_runs_in_one_process_each_in_its_folder(self, few_digits, tiny_recipe, tmp_path, mlflow):
        recipe = tiny_recipe(report_to=["mlflow", "tensorboard"], logging_steps=1)
        for name in ("first", "second"):
            result = train(recipe, tmp_path / name, few_digits)
            client, run = self.run_of(mlflow, tmp_path / name)
            assert (run.info.run_name, run.info.status) == (name, "FINISHED")
            losses = client.get_metric_history(run.info.run_id, "train/loss")
            assert [metric.step for metric in losses] == list(range(1, 9))
            assert [m.step for m in client.get_metric_history(run.info.run_id, "validation/accuracy")] == [4, 8]
            assert run.data.metrics["test/accuracy"] == pytest.approx(result.metrics["accuracy"])
            assert run.data.params["model.pyramid_norm"] == "group" and run.data.params["steps.total_steps"] == "8"
            pictures = list((tmp_path / name / "logs" / "mlflow").rglob("*.png"))
            assert len(pictures) == 8
            assert list((tmp_path / name / "logs" / "tiny").glob("events*"))

    def test_a_resumed_run_is_the_same_run(self, few_digits, tiny_recipe, tmp_path, mlflow, monkeypatch):
        monkeypatch.setattr(watch, "WATCHED_IMAGES", 0)
        recipe, log = tiny_recipe(report_to="mlflow", logging_steps=1), watch.Watcher.log
        stop_after(monkeypatch, 6)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "run", few_digits)
        assert self.run_of(mlflow, tmp_path / "run")[1].info.status == "FAILED"
        monkeypatch.setattr(watch.Watcher, "log", log)
        train(recipe, tmp_path / "run", few_digits, resume=True)
        client, run = self.run_of(mlflow, tmp_path / "run")
        steps = {metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")}
        assert run.info.status == "FINISHED" and steps == set(range(1, 9))

    def test_a_store_of_the_users_goes_before(self, few_digits, tiny_recipe, tmp_path, mlflow, monkeypatch):
        monkeypatch.setattr(watch, "WATCHED_IMAGES", 0)
        uri = f"sqlite:///{tmp_path / 'mine.db'}"
        mlflow.set_tracking_uri(uri)
        try:
            train(tiny_recipe(report_to="mlflow", max_steps=1), tmp_path / "run", few_digits)
            assert mlflow.get_tracking_uri() == uri and len(mlflow.search_runs(experiment_names=["tiny"])) == 1
        finally:
            mlflow.set_tracking_uri(None)
        assert not (tmp_path / "run" / "logs" / "mlflow.db").exists()

    def test_a_store_that_cannot_be_opened_is_one_sentence(self, few_digits, tiny_recipe, tmp_path, mlflow):
        mlflow.set_tracking_uri("nosuch://host")
        try:
            with pytest.raises(ValueError, match=r"^report_to: mlflow cannot be opened: .*nosuch.*\.$") as caught:
                train(tiny_recipe(report_to="mlflow"), tmp_path / "run", few_digits)
            assert "\n" not in str(caught.value)
        finally:
            mlflow.set_tracking_uri(None)


def test_what_is_not_installed_is_named_before_anything_is_read(tiny_recipe, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else found(name))
    message = "report_to: mlflow needs a package that is not installed: pip install mlflow."
    with pytest.raises(ValueError, match=re.escape(message)):
        train(tiny_recipe(report_to=["tensorboard", "mlflow"]), tmp_path / "run", "no/such-dataset")


@pytest.mark.parametrize("value", ["comet", ["wandb", "comet"], ["none"], None, 3])
def test_other_trackers_are_refused_with_those_known(tiny_recipe, value):
    with pytest.raises(ValueError, match="report_to must be none or tensorboard or trackio or wandb or mlflow or a l"):
        tiny_recipe(report_to=value)


def test_trackers_of_a_recipe(tiny_recipe):
    assert tiny_recipe().trackers == tiny_recipe(report_to=[]).trackers == []
    assert tiny_recipe(report_to="wandb").trackers == ["wandb"]
    assert tiny_recipe(report_to=["mlflow", "wandb", "mlflow"]).trackers == ["mlflow", "wandb"]


def test_settings_are_flat():
    values = {"model": {"psi": 1.0, "backbone_config": {"depths": [1, 2]}}, "seed": 1, "dataset": None}
    flat = {"model.psi": 1.0, "model.backbone_config.depths": "[1, 2]", "seed": 1, "dataset": None}
    assert watch.flat(values) == flat


def test_one_progress_bar_tells_loss_and_time_left(few_digits, tiny_recipe, tmp_path, capsys):
    train(tiny_recipe(max_steps=4), tmp_path / "run", few_digits)
    shown = capsys.readouterr().err.split("\r")
    last = [line for line in shown if line.startswith("Training:")][-1]
    assert re.search(r"4/4 \[\d\d:\d\d<\d\d:\d\d, .*, loss=\d+\.\d{4}\]", last)
    assert np.isfinite(float(re.search(r"loss=([\d.]+)", last).group(1)))

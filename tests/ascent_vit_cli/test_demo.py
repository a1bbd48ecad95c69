# SPDX-License-Identifier: Apache-2.0
"""The demo: what it leaves behind, when it works, when it fails, and when it may not start."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModelForImageClassification

import ascent_vit_cli.demo
import modeling_ascent_vit
from ascent_vit import explain
from ascent_vit.training.reading import configuration_files
from ascent_vit_cli.app import run
from ascent_vit_cli.demo import RESULTS, check_pipeline, whole_or_nothing
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


def write_results(folder):
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "metrics.json").write_text("{}")
    (folder / "explanations.png").write_bytes(b"png")


@pytest.mark.parametrize("exists", [False, True])
def test_only_the_results_are_left(tmp_path, exists):
    output = tmp_path / "a" / "b"
    if exists:
        output.mkdir(parents=True)
    with whole_or_nothing(output) as folder:
        write_results(folder)
        (folder / "run").mkdir()
        (folder / "run" / "checkpoint").write_text("large")
    assert sorted(path.name for path in output.iterdir()) == sorted(RESULTS)
    assert (output / "model" / "config.json").read_text() == "{}"


@pytest.mark.parametrize("error", [RuntimeError("diverged"), KeyboardInterrupt()])
@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_leaves_everything_as_it_was(tmp_path, error, exists):
    output = tmp_path / "a" / "b"
    if exists:
        output.mkdir(parents=True)
    with pytest.raises(type(error)), whole_or_nothing(output) as folder:
        write_results(folder)
        raise error
    assert list(tmp_path.rglob("*")) == ([tmp_path / "a", output] if exists else [])


def test_a_missing_result_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), whole_or_nothing(tmp_path / "out") as folder:
        write_results(folder)
        (folder / "metrics.json").unlink()
    assert not list(tmp_path.iterdir())


def test_output_that_is_not_free_is_refused(tmp_path, capsys):
    (tmp_path / "kept.txt").write_text("mine")
    for output in (tmp_path, tmp_path / "kept.txt"):
        assert run(["demo", "--output", str(output)]) == 2
        message = capsys.readouterr().err
        assert str(output) in message and "give a new or an empty folder" in message
        assert message.count("\n") == 1 and "Traceback" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert (tmp_path / "kept.txt").read_text() == "mine"


def test_bad_usage(tmp_path):
    assert run(["demo"]) == 2
    assert run(["demo", "--output", str(tmp_path / "out"), "--seed", "-1"]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_check_in_a_new_process_notices_another_model(make_config, tmp_path):
    config = make_config(num_labels=2, id2label={0: "even", 1: "odd"})
    model = AscentViTForImageClassification(config).eval()
    processor = AscentViTImageProcessor.from_model_config(config)
    images = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64), dtype=np.uint8)) for i in range(2)]
    explanations = explain(model, processor, images)
    model_dir = tmp_path / "model"
    model.save_pretrained(model_dir)
    processor.save_pretrained(model_dir)
    check_pipeline(model_dir, explanations, config.id2label, tmp_path / "right")
    with torch.no_grad():
        model.streams()["spatial"].projection.bias[0] += 1
    model.save_pretrained(model_dir)
    with pytest.raises(RuntimeError, match="does not answer as the one in memory"):
        check_pipeline(model_dir, explanations, config.id2label, tmp_path / "wrong")
    (model_dir / "config.json").unlink()
    with pytest.raises(RuntimeError, match="does not load in a new process"):
        check_pipeline(model_dir, explanations, config.id2label, tmp_path / "broken")


@pytest.fixture
def short_recipe(tmp_path, monkeypatch):
    """The demo's recipe, with four steps instead of hundreds."""
    values = yaml.safe_load(configuration_files("recipes")["digits"].read_text(encoding="utf-8"))
    values |= {"max_steps": 4, "learning_rate": 1e-3, "dataset_options": {"copies": 1, "canvas": 64}}
    path = tmp_path / "recipe" / "digits.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    monkeypatch.setattr(ascent_vit_cli.demo, "RECIPE", path)
    return values


@pytest.mark.slow
def test_whole_demo(short_recipe, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(["demo", "--output", str(output), "--seed", "5"]) == 0
    assert sorted(path.name for path in output.iterdir()) == sorted(RESULTS)
    files = {path.name for path in (output / "model").iterdir()}
    code = {path.name for path in Path(modeling_ascent_vit.__file__).parent.glob("*_ascent_vit.py")}
    assert files == code | {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "examples"}

    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["seed"] == 5 and metrics["additivity_error"] < 1e-5
    assert 0 < metrics["train_seconds"] <= metrics["total_seconds"] and metrics["peak_memory_mib"] > 100
    assert {"accuracy", "global_concept_accuracy", "pixel_tpr", "alignment_error"} <= metrics.keys()
    texts = {key: value for key, value in metrics.items() if not isinstance(value, int | float)}
    assert texts == {"split": "test", "recipe": "digits", "dataset": "digits"}

    card = ModelCard.load(output / "model" / "README.md")
    measured = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert measured == {name: metrics[name] for name in ("accuracy", "macro_f1")} and "`pixel_tpr`" in card.text
    assert "CC BY 4.0" in card.text and "seed 5" in card.text and "digit 7" in card.text
    assert f"at least {short_recipe['processor']['annotation_coverage']:.0%}" in card.text

    model = AutoModelForImageClassification.from_pretrained(output / "model")
    assert model.config.id2label == {0: "even", 1: "odd"}
    width, height = Image.open(output / "explanations.png").size
    assert height > width > 1000

    printed = capsys.readouterr().out
    for name in (
        "accuracy",
        "global_concept_accuracy",
        "pixel_tpr",
        "relevance_mass",
        "pointing_game",
        "additivity_error",
    ):
        assert re.search(rf"^{name} +{re.escape(format(metrics[name], '.4g'))}$", printed, flags=re.M)
    assert all(str(output / name) in printed for name in RESULTS)
    assert re.search(r"^peak memory +\d+ MiB$", printed, flags=re.M)

# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation in two processes on a CPU, through Trainer, Accelerate and the command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import DatasetDict

from ascent_vit.data import load_digits_dataset
from modeling_ascent_vit import AscentViTForImageClassification


# One backbone or layout in every run; the others, which go the same way, by night.
SLOW, NIGHTLY = pytest.mark.slow, pytest.mark.nightly

HERE = Path(__file__).parent


def config(backbone: str = "vit", **fields) -> dict[str, Any]:
    backbone_config = {
        "model_type": backbone,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    }
    streams = {"num_global_concepts": 3, "num_spatial_concepts": 4}
    return {"backbone_config": backbone_config, "num_labels": 4, "fusion_heads": 4, "pyramid_norm": "group"} | (
        fields or streams
    )


def launch(processes: int, *arguments: str | Path, **variables: str) -> None:
    """Runs a program in several processes, as `torchrun` does."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | variables
    run = subprocess.run([*torchrun, *map(str, arguments)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def run(script: str, folder: Path, processes: int, **settings) -> tuple[dict, dict[str, torch.Tensor]]:
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"config": config()} | settings))
    launch(processes, HERE / script, folder)
    model = AscentViTForImageClassification.from_pretrained(folder / "model")
    return json.loads((folder / "result.json").read_text()), model.state_dict()


def check_equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-4, atol=1e-6)


def metrics(result: dict) -> dict[str, float]:
    """Without the loss, which Trainer averages over batches, also over a last one that is smaller."""
    return {name: value for name, value in result["metrics"].items() if name != "eval_loss"}


@pytest.mark.parametrize(
    "backbone", [pytest.param("vit", marks=SLOW), pytest.param("siglip_vision_model", marks=NIGHTLY)]
)
def test_trainer_in_two_processes_and_in_parts_equals_one(tmp_path, backbone):
    settings = {"config": config(backbone), "ddp_find_unused_parameters": False}
    script = "trainer_in_processes.py"
    one, expected = run(script, tmp_path / "one", 1, **settings, per_device_train_batch_size=16)
    two, halves = run(script, tmp_path / "two", 2, **settings, per_device_train_batch_size=8)
    parts, accumulated = run(
        script, tmp_path / "parts", 1, **settings, per_device_train_batch_size=8, gradient_accumulation_steps=2
    )
    assert two["wrapper"] == "DistributedDataParallel"
    for result, weights in ((two, halves), (parts, accumulated)):
        assert result["losses"] == pytest.approx(one["losses"], rel=1e-5)
        check_equal(weights, expected)
        assert metrics(result) == pytest.approx(metrics(one), abs=1e-6)
    assert {"eval_accuracy", "eval_concept_map", "eval_pixel_tpr", "eval_alignment_error"} <= metrics(one).keys()
    assert len(set(one["losses"])) == 3


@NIGHTLY
def test_trainer_shards_the_model_and_resumes(tmp_path):
    script, sharded = "trainer_in_processes.py", {"fsdp": True, "per_device_train_batch_size": 8}
    one, expected = run(script, tmp_path / "one", 1, per_device_train_batch_size=16)
    two, weights = run(script, tmp_path / "two", 2, **sharded, save_strategy="steps", save_steps=2)
    assert two["wrapper"] == "FSDPAscentViTForImageClassification"
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    check_equal(weights, expected)
    assert metrics(two) == pytest.approx(metrics(one), abs=1e-6)
    checkpoint = str(tmp_path / "two" / "run" / "checkpoint-2")
    again, resumed = run(script, tmp_path / "again", 2, **sharded, seed=1, resume=checkpoint)
    assert again["losses"] == pytest.approx(two["losses"], rel=1e-5)
    check_equal(resumed, weights)


@pytest.mark.parametrize(
    ("backbone", "fields", "activation_checkpointing"),
    [
        pytest.param("vit", {"num_spatial_concepts": 4}, False, marks=SLOW),
        pytest.param("vit", {"num_spatial_concepts": 4, "fusion_levels": 0}, False, marks=NIGHTLY),
        pytest.param("deit", {"num_spatial_concepts": 4}, True, marks=NIGHTLY),
        pytest.param("dinov2", {"num_spatial_concepts": 4, "none_concept": True}, False, marks=NIGHTLY),
        pytest.param("siglip_vision_model", {"num_spatial_concepts": 4}, False, marks=NIGHTLY),
    ],
)
def test_accelerate_shards_the_model(tmp_path, backbone, fields, activation_checkpointing):
    settings = {"config": config(backbone, **fields), "activation_checkpointing": activation_checkpointing}
    one, expected = run("fsdp_in_processes.py", tmp_path / "one", 1, **settings)
    two, weights = run("fsdp_in_processes.py", tmp_path / "two", 2, **settings)
    for name in ("losses", "once"):
        assert two[name] == pytest.approx(one[name], rel=1e-5)
    assert two["again"] == pytest.approx(two["once"], rel=1e-6)
    check_equal(weights, expected)
    assert {"", "spatial_stream"} < set(two["sharded"]) and not one["sharded"]
    assert sum(name.startswith("ascent_vit.backbone.") for name in two["sharded"]) >= 2
    # Each process holds half of it, and what does not divide.
    assert 0.45 * two["all"] < two["local"] < 0.6 * two["all"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """21 images to validate on, which two processes cannot share evenly, in batches of 4."""
    dataset = load_digits_dataset(copies=1, canvas=32)
    parts = DatasetDict(train=dataset["train"].select(range(32)), validation=dataset["validation"].select(range(21)))
    folder = tmp_path_factory.mktemp("digits")
    parts.save_to_disk(folder / "data")
    return folder / "data"


def write_recipe(path: Path, **changes) -> Path:
    fields = {"backbone_config": config()["backbone_config"], "fusion_heads": 4, "pyramid_norm": "group"}
    values = {
        "model": fields,
        "learning_rate": 1e-3,
        "adam_epsilon": 1e-3,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 4,
        "seed": 1,
    }
    path.write_text(yaml.safe_dump(values | changes))
    return path


def results(folder: Path) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    report = json.loads((folder / "report.json").read_text())
    model = AscentViTForImageClassification.from_pretrained(folder / "model")
    losses = {name: value for name, value in report["epochs"][-1].items() if name.startswith("train_")}
    return report["metrics"] | losses, model.state_dict()


@SLOW
def test_training_by_recipe_in_parts_in_two_processes_and_sharded(tmp_path, digits):
    script, fsdp = HERE / "train_in_processes.py", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    fsdp["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
    whole = write_recipe(tmp_path / "whole.yaml", per_device_train_batch_size=16)
    half = write_recipe(tmp_path / "half.yaml")
    parts = write_recipe(tmp_path / "parts.yaml", gradient_accumulation_steps=2)
    launch(1, script, whole, tmp_path / "whole", digits)
    launch(1, script, parts, tmp_path / "parts", digits)
    launch(2, "-m", "ascent_vit_cli", "train", "--recipe", half, "--dataset", digits, "--output", tmp_path / "two")
    launch(2, script, half, tmp_path / "sharded", digits, **fsdp)
    expected, weights = results(tmp_path / "whole")
    assert {"accuracy", "concept_map", "pixel_tpr", "train_loss"} <= expected.keys()
    for name in ("parts", "two", "sharded"):
        got, got_weights = results(tmp_path / name)
        assert got == pytest.approx(expected, abs=1e-5), name
        check_equal(got_weights, weights)
    assert list((tmp_path / "two").glob("checkpoints/*/model.safetensors"))
    assert not list((tmp_path / "sharded").glob("checkpoints/*/model.safetensors"))

    # A run that ends after its first step and is resumed, sharded.
    stepwise = write_recipe(tmp_path / "stepwise.yaml", save_steps=1, save_total_limit=None)
    launch(2, script, stepwise, tmp_path / "resumed", digits, **fsdp)
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "checkpoint_00000002")
    shutil.rmtree(tmp_path / "resumed" / "model")
    for name in ("metrics.json", "report.json"):
        (tmp_path / "resumed" / name).unlink()
    launch(2, script, stepwise, tmp_path / "resumed", digits, "resume", **fsdp)
    check_equal(results(tmp_path / "resumed")[1], weights)


@SLOW
def test_what_does_not_go_with_sharding(tmp_path, digits):
    script, fsdp = HERE / "train_in_processes.py", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    recipe = write_recipe(tmp_path / "recipe.yaml", ema_decay=0.9)
    with pytest.raises(AssertionError, match="ema_decay does not go with FSDP: set ema_decay=null"):
        launch(2, script, recipe, tmp_path / "run", digits, **fsdp)
    assert not (tmp_path / "run").exists()

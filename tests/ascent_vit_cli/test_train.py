# SPDX-License-Identifier: Apache-2.0
"""The command line: its frame, and `train`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import DatasetDict

import ascent_vit
from ascent_vit.data import load_digits_dataset
from ascent_vit_cli.app import run


RECIPE = """
model:
  backbone_config: {model_type: vit, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
                    intermediate_size: 32, image_size: 32, patch_size: 8}
learning_rate: 1e-3
num_train_epochs: 1
per_device_train_batch_size: 8
seed: 0
"""
COMMAND = [sys.executable, "-m", "ascent_vit_cli"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(ascent_vit.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def recipe(tmp_path) -> str:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return str(tmp_path / "tiny.yaml")


@pytest.fixture
def dataset(tmp_path) -> str:
    digits = load_digits_dataset(copies=1, canvas=32)
    DatasetDict({name: split.select(range(16)) for name, split in digits.items()}).save_to_disk(tmp_path / "data")
    return str(tmp_path / "data")


def one_error(capsys) -> str:
    """The one line on stderr."""
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


def test_version():
    result = subprocess.run([*COMMAND, "--version"], env=ENVIRONMENT, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, ascent_vit.__version__)


@pytest.mark.parametrize("arguments", (["--help"], ["--version"], ["evaluate", "--help"], ["evaluate"], ["nonsense"]))
def test_help_versions_and_usage_errors_wait_for_no_library(arguments):
    heavy = ("ascent_vit", "huggingface_hub", "numpy", "torch", "transformers")
    code = "import sys; from ascent_vit_cli.app import run; run(sys.argv[1:]); "
    code += f"print(*sys.modules.keys() & {heavy}, file=sys.stderr)"
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert result.stderr.splitlines()[-1] == ""


def test_help_names_every_option(capsys):
    assert run(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for option in ("--recipe", "--dataset", "--output", "--resume", "--seed", "--set"):
        assert option in shown
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "train" in shown and "demo" in shown and "--debug" in shown


def test_train(recipe, dataset, tmp_path, capsys):
    output = tmp_path / "run"
    arguments = ["train", "--recipe", recipe, "--dataset", dataset, "--output", str(output)]
    assert run([*arguments, "--seed", "3", "--set", "model.psi=0.5", "--set", "max_steps=1"]) == 0
    shown = capsys.readouterr()
    metrics = json.loads((output / "metrics.json").read_text())
    assert (metrics["seed"], metrics["steps"], metrics["dataset"]) == (3, 1, dataset)
    assert json.loads((output / "model" / "config.json").read_text())["psi"] == 0.5
    assert f"accuracy: {metrics['accuracy']:.4f}" in shown.out
    assert "max_steps=1 of the 2 steps" in shown.err and "Training:" in shown.err

    assert run([*arguments, "--seed", "3"]) == 2
    assert "is not empty: name another one, or resume" in one_error(capsys)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "--output", "x"], "Missing option '--recipe'. See ascent-vit train --help."),
        (["train", "--recipe", "digits", "--outptu", "x"], "No such option: --outptu"),
        (["tarin"], "No such command 'tarin'."),
        (["train", "--recipe", "nowhere.yaml", "--output", "x"], "There is no recipe nowhere.yaml: give a YAML file"),
        (["train", "--recipe", "digits", "--output", "x", "--set", "seed"], "--set takes KEY=VALUE"),
        (["train", "--recipe", "digits", "--output", "x", "--set", "sede=1"], "no key sede; did you mean 'seed'?"),
        (["train", "--recipe", "digits", "--output", "x", "--seed", "-1"], "Invalid value for '--seed'"),
        (["train", "--recipe", "cub", "--output", "x"], "The recipe names no dataset: give one"),
        (["train", "--recipe", "digits", "--dataset", "./nowhere", "--output", "x"], "no dataset folder nowhere"),
        (
            ["train", "--recipe", "digits", "--output", "x", "--set", "dataset_options.copies=0"],
            "copies must be 1 or more",
        ),
        (["train", "--recipe", "digits", "--output", __file__], "is a file: name a folder"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    assert message in one_error(capsys)
    assert not (tmp_path / "x").exists()


def test_a_failure_is_exit_code_1(recipe, dataset, tmp_path, capsys):
    arguments = ["train", "--recipe", recipe, "--dataset", dataset, "--output", str(tmp_path / "run")]
    changes = ["--set", "learning_rate=1e30", "--set", "max_grad_norm=0", "--set", "num_train_epochs=4"]
    assert run([*arguments, *changes]) == 1
    shown = capsys.readouterr().err
    assert "Error: Training diverged at step" in shown.splitlines()[-1]
    assert "Traceback" not in shown


@pytest.mark.parametrize("place", [0, 1, 5])
def test_debug_shows_the_traceback(capsys, tmp_path, place):
    arguments = ["train", "--recipe", "nowhere", "--output", str(tmp_path / "run")]
    arguments.insert(place, "--debug")
    assert run(arguments) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown and shown.splitlines()[-1].startswith("Error: There is no recipe nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_interrupted_run_can_be_resumed(recipe, dataset, tmp_path, sent, code):
    arguments = [*COMMAND, "train", "--recipe", recipe, "--dataset", dataset, "--set", "max_steps=40"]
    arguments += ["--set", "save_steps=1", "--set", "model.pyramid_norm=group"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = subprocess.Popen(
        [*arguments, "--output", str(cut)],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background does not hear an interruption, nor does what that starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (cut / "checkpoints" / "checkpoint_00000003").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(sent)
    errors = process.communicate()[1]
    assert process.returncode == code
    assert not (cut / "metrics.json").exists()
    if sent == signal.SIGINT:
        assert errors.splitlines()[-1] == "Interrupted." and "Traceback" not in errors
    subprocess.run([*arguments, "--output", str(cut), "--resume"], env=ENVIRONMENT, check=True)
    subprocess.run([*arguments, "--output", str(whole)], env=ENVIRONMENT, check=True)
    name = Path("checkpoints", "checkpoint_00000040", "model.safetensors")
    assert (whole / name).read_bytes() == (cut / name).read_bytes()
    assert (whole / "model" / "model.safetensors").read_bytes() == (cut / "model" / "model.safetensors").read_bytes()

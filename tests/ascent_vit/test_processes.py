# SPDX-License-Identifier: Apache-2.0
"""Commands that run at the same time, as processes of their own, on the same folders."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ascent_vit.inference.load import load_model
from ascent_vit.utils.files import claim, replace_folder
from ascent_vit_cli.app import USAGE_ERROR, run
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
RECIPE = """
model:
  backbone_config: {model_type: vit, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
                    intermediate_size: 32, image_size: 32, patch_size: 8}
  fusion_heads: 4
dataset: digits
dataset_options: {copies: 1, canvas: 32}
num_train_epochs: EPOCHS
per_device_train_batch_size: 64
learning_rate: 1.0e-3
save_total_limit: 2
seed: 0
"""


class Command:
    """`ascent-vit` in a process of its own; what it says goes into a file, which never fills up as a pipe does."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "ascent_vit_cli", *map(str, arguments)]
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=self.said, stderr=self.said, stdin=subprocess.DEVNULL
        )

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def end(self) -> tuple[int, str]:
        """The exit code, and what it said."""
        code = self.process.wait(300)
        self.said.seek(0)
        return code, self.said.read()


def write_recipe(folder: Path, epochs: int) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("EPOCHS", str(epochs)))
    return path


def write_model(folder: Path, make_config, value: float) -> None:
    """A model all of whose global concepts are one number."""
    config = make_config()
    model = AscentViTForImageClassification(config)
    torch.nn.init.constant_(model.global_stream.concepts, value)
    with replace_folder(folder) as partial:
        model.save_pretrained(partial)
        AscentViTImageProcessor.from_model_config(config).save_pretrained(partial)


def write_images(folder: Path, number: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(number):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def one_error(text: str) -> str:
    errors = [line for line in text.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and "Traceback" not in text, text
    return errors[0]


def test_a_place_that_is_being_written_is_refused(make_config, write_cub, tmp_path, capsys):
    """Before anything is computed, and without touching what the other process has written."""
    write_model(tmp_path / "model", make_config, 1.0)
    images = write_images(tmp_path / "images", 2)
    output = tmp_path / "out"
    commands = {
        "explain": [images, "--model", tmp_path / "model", "--output", output],
        "prepare": ["cub", "--source", write_cub(tmp_path / "source"), "--output", output],
        "publish": [tmp_path / "model", "--repo-id", "a/b", "--dataset-name", "x", "--dry-run", "--output", output],
    }
    for command, words in commands.items():
        with claim(output):
            assert run([command, *map(str, words)]) == USAGE_ERROR
        assert f"Another process is writing to {output}" in one_error(capsys.readouterr().err)
        assert not output.exists()
    (output / "checkpoints").mkdir(parents=True)
    (output / "recipe.json").write_text("{}")
    for words in ([], ["--resume"]):
        with claim(output, inside=True):
            before = contents(output)
            recipe = str(write_recipe(tmp_path, 1))
            assert run(["train", "--recipe", recipe, "--output", str(output), *words]) == USAGE_ERROR
            assert contents(output) == before
    text = capsys.readouterr().err
    assert "is not empty" in text and f"Another process is writing to {output}" in text


def test_models_that_are_replaced_meanwhile_are_read_whole(make_config, tmp_path):
    """Readers get the one or the other, whole, while a writer replaces the folder as often as it can."""
    write_model(tmp_path / "model", make_config, 1.0)
    stop = threading.Event()
    written = []

    def write():
        models = [AscentViTForImageClassification.from_pretrained(tmp_path / "model") for _ in range(2)]
        torch.nn.init.constant_(models[1].global_stream.concepts, 2.0)
        processor = AscentViTImageProcessor.from_pretrained(tmp_path / "model")
        while not stop.is_set():
            with replace_folder(tmp_path / "model") as partial:
                models[len(written) % 2].save_pretrained(partial)
                processor.save_pretrained(partial)
            written.append(1)

    code = f"""
import json, sys
from ascent_vit.inference.load import load_model
print("ready", flush=True)
sys.stdin.readline()
seen = []
for _ in range(40):
    model, _ = load_model({str(tmp_path / "model")!r})
    values = model.global_stream.concepts.unique().tolist()
    seen.append(values)
print(json.dumps(seen))
"""
    reader = subprocess.Popen(
        [sys.executable, "-c", code], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout.readline() == "ready\n"
    writer = threading.Thread(target=write)
    writer.start()
    seen = json.loads(reader.communicate("go\n", timeout=300)[0])
    stop.set()
    writer.join()
    assert reader.returncode == 0 and len(seen) == 40
    assert all(values in ([1.0], [2.0]) for values in seen)
    assert len(written) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.nightly
def test_training_explaining_evaluating_and_publishing_in_one_folder(tmp_path, capsys):
    """The run ends with the weights of one that was alone; the readers find a whole model each time."""
    recipe, images = write_recipe(tmp_path, 12), write_images(tmp_path / "images", 2)
    output = tmp_path / "run"
    train = Command("train", "--recipe", recipe, "--output", output)
    while not (output / "model" / "config.json").exists():
        assert train.runs
        time.sleep(0.05)
    model, counts, changes = output / "model", dict.fromkeys(("explain", "evaluate", "publish", "train"), 0), set()
    words = {
        "explain": [images, "--model", model, "--format", "json", "--output", "{out}"],
        "evaluate": [model, "--dataset", "digits", "--option", "copies=1", "--option", "canvas=32", "--images", "4"]
        + ["--skip", "faithfulness", "--skip", "intervention", "--skip", "robustness", "--output", "{out}/a.json"],
        "publish": [output, "--repo-id", "a/b", "--dry-run", "--output", "{out}"],
        "train": ["--recipe", recipe, "--output", output, "--resume"],
    }
    rounds = 0
    while train.runs:
        for command, arguments in words.items():
            out = tmp_path / f"{command}-{rounds}"
            code = run([command, *(str(word).format(out=out) for word in arguments)])
            text = capsys.readouterr().err
            if command == "train" and code == 0:
                # The folder was given back, as the run had ended; it is left as it is.
                assert (output / "metrics.json").is_file()
            elif command == "train":
                assert code == USAGE_ERROR and "Another process is writing" in one_error(text)
            else:
                assert code == 0, text
                assert any(path.is_file() for path in out.rglob("*"))
            counts[command] += 1
        changes.add((model / "model.safetensors").stat().st_ino)
        rounds += 1
    code, text = train.end()
    assert code == 0, text
    print(f"rounds beside the run: {counts}; models seen: {len(changes)}")
    assert min(counts.values()) >= 2
    assert Command("train", "--recipe", recipe, "--output", tmp_path / "alone").end()[0] == 0
    expected, got = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "alone", output))
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    assert not [path.name for path in output.rglob("*") if path.name.startswith((".", "partial_", "damaged_"))]


@pytest.mark.nightly
def test_of_two_that_write_one_folder_one_is_refused(make_config, write_cub, tmp_path):
    """Both are started at once; the folder is then what the one that was not refused writes alone."""
    write_model(tmp_path / "model", make_config, 1.0)
    images = write_images(tmp_path / "images", 12)
    recipe = write_recipe(tmp_path, 2)
    pairs = {
        "explain": ["explain", images, "--model", tmp_path / "model", "--format", "json", "--output"],
        "prepare": ["prepare", "cub", "--source", write_cub(tmp_path / "source"), "--output"],
        "train": ["train", "--recipe", recipe, "--output"],
    }
    for name, words in pairs.items():
        output = tmp_path / f"{name}-out"
        commands = [Command(*words, output) for _ in range(2)]
        codes, texts = zip(*(command.end() for command in commands), strict=True)
        assert sorted(codes) == [0, USAGE_ERROR], texts
        error = one_error(texts[codes.index(USAGE_ERROR)])
        assert "Another process is writing" in error or "is not empty" in error
        if name == "train":
            assert (output / "metrics.json").is_file()
            assert load_model(str(output / "model"))
        else:
            assert Command(*words, tmp_path / f"{name}-alone").end()[0] == 0
            assert contents(output) == contents(tmp_path / f"{name}-alone")
        assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]

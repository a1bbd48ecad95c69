# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit evaluate`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import DatasetDict

import ascent_vit
from ascent_vit.data import load_digits_dataset
from ascent_vit_cli.app import run
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


DIGITS = [f"digit {digit}" for digit in range(10)]
FAST = ["--images", "4", "--steps", "2", "--batch-size", "5"]


@pytest.fixture
def model(tmp_path, make_config) -> str:
    config = make_config(
        id2label={0: "even", 1: "odd"}, label2id={"even": 0, "odd": 1}, num_labels=2,
        global_concepts=DIGITS, spatial_concepts=DIGITS,
        backbone_kwargs={"image_size": 32, "num_hidden_layers": 1},
    )  # fmt: skip
    AscentViTForImageClassification(config).save_pretrained(tmp_path / "model")
    AscentViTImageProcessor.from_model_config(config).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def dataset(tmp_path) -> str:
    digits = load_digits_dataset(copies=1, canvas=32)
    DatasetDict({name: digits[name].select(range(9)) for name in ("train", "test")}).save_to_disk(tmp_path / "data")
    return str(tmp_path / "data")


def one_error(capsys) -> str:
    """The one line on stderr that is no progress bar."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    return line.removeprefix("Error: ")


def test_evaluate(model, dataset, tmp_path, capsys):
    output = tmp_path / "new" / "metrics.json"
    arguments = ["evaluate", model, "--dataset", dataset, "--output", str(output), *FAST]
    assert run([*arguments, "--seed", "3", "--skip", "robustness", "--sanity"]) == 0
    shown = capsys.readouterr()
    written = json.loads(output.read_text())
    assert not any(isinstance(value, dict) for value in written.values())
    expected = {
        "model": model, "dataset": dataset, "split": "test", "seed": 3, "steps": 2, "images": 4, "num_images": 9,
        "insertion_deletion_images": 4, "num_processes": 1, "dtype": "float32",
        "ascent_vit_version": ascent_vit.__version__, "left_out": ["robustness: not asked for"],
    }  # fmt: skip
    assert {name: written[name] for name in expected} == expected
    for name in ("accuracy", "additivity_error", "insertion_auc", "randomisation_backbone"):
        (line,) = [line.split() for line in shown.out.splitlines() if line.split()[0] == name]
        assert float(line[2]) == pytest.approx(written[name], rel=1e-3)
        if name != "additivity_error":
            ends = [written[f"{name}_{end}"] for end in ("low", "high")]
            assert ends[0] <= written[name] <= ends[1]
            assert [float(word.strip("[],")) for word in line[3:]] == pytest.approx(ends, rel=1e-3)
    assert "Insertion and deletion:" in shown.err and "Intervention:" in shown.err
    assert [path.name for path in output.parent.iterdir()] == ["metrics.json"]


def test_the_same_seed_gives_the_same_figures(model, dataset, tmp_path):
    written = []
    for name in ("first.json", "second.json"):
        arguments = ["evaluate", model, "--dataset", dataset, "--output", str(tmp_path / name), *FAST]
        assert run([*arguments, "--split", "train", "--skip", "robustness", "--no-intervals"]) == 0
        values = json.loads((tmp_path / name).read_text())
        assert values.pop("evaluation_seconds") > 0 and values["split"] == "train"
        assert not any(name.endswith("_low") for name in values)
        written.append(values)
    assert written[0] == written[1]


def test_two_models(model, dataset, tmp_path, capsys):
    output = tmp_path / "comparison.json"
    arguments = ["--dataset", dataset, "--output", str(output), *FAST, "--skip", "robustness", "--skip", "concepts"]
    assert run(["evaluate", model, "--compare", model, *arguments]) == 0
    written, shown = json.loads(output.read_text()), capsys.readouterr().out
    assert written["compared_with"] == model and written["accuracy_difference"] == 0
    (line,) = [line for line in shown.splitlines() if line.startswith("accuracy ")]
    assert line.endswith("+0.0000 [+0.0000, +0.0000]  not shown")
    assert not any(line.endswith(("  better", "  worse")) for line in shown.splitlines())
    assert run(["evaluate", model, "--compare", str(tmp_path / "nowhere"), *arguments]) == 2
    assert "There is no model folder" in one_error(capsys)


def test_quick(model, dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ascent_vit_cli.evaluate.QUICK_SPLIT", 6)
    monkeypatch.setattr("ascent_vit_cli.evaluate.QUICK_IMAGES", 3)
    arguments = ["evaluate", model, "--dataset", dataset, "--output", str(tmp_path / "quick.json"), "--quick"]
    assert run([*arguments, "--steps", "2"]) == 0
    written = json.loads((tmp_path / "quick.json").read_text())
    assert (written["num_images"], written["insertion_deletion_images"], written["steps"]) == (6, 3, 2)
    assert "Left out: --quick: 3 of 9 images." in capsys.readouterr().out


def test_help_names_every_option(capsys):
    assert run(["evaluate", "--help"]) == 0
    shown = capsys.readouterr().out
    named = "--dataset --split --output --images --steps --seed --batch-size --skip --compare --quick --purity"
    for option in (*named.split(), "--no-intervals"):
        assert option in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--split": "validation"}, "The dataset has no split validation; it has train, test: choose with --split."),
        ({"--skip": "speed"}, "skip may name faithfulness, intervention, robustness, causal, concepts; got 'speed'."),
        ({"--output": "."}, "--output . is a folder: name a JSON file."),
        ({"--option": "label"}, "--option takes KEY=VALUE, for example seed=1; got 'label'."),
        ({"--option": "columns={"}, "--option columns is no valid YAML"),
        ({"--option": "streaming=true"}, "leave --option streaming out"),
        ({"--dataset": "./nowhere"}, "There is no dataset folder nowhere."),
        ({"MODEL": "./nowhere"}, "There is no model folder nowhere."),
    ],
)
def test_one_sentence_says_what_is_wrong(model, dataset, tmp_path, capsys, changes, message):
    options = {"--dataset": dataset, "--output": str(tmp_path / "metrics.json")} | changes
    name = options.pop("MODEL", model)
    assert run(["evaluate", name, *FAST, *(word for pair in options.items() for word in pair)]) == 2
    assert message in one_error(capsys)
    assert not (tmp_path / "metrics.json").exists()


def test_a_folder_that_is_no_model(dataset, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    arguments = ["--dataset", dataset, "--output", str(tmp_path / "metrics.json")]
    assert run(["evaluate", str(tmp_path / "empty"), *arguments]) == 2
    assert "empty holds no config.json" in one_error(capsys)


def test_another_kind_of_model(dataset, tmp_path, capsys):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil().save_pretrained(tmp_path / "vit")
    arguments = ["--dataset", dataset, "--output", str(tmp_path / "metrics.json")]
    assert run(["evaluate", str(tmp_path / "vit"), *arguments]) == 2
    assert "is a model of type vit: give an ASCENT-ViT" in one_error(capsys)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(model, dataset, tmp_path):
    written = []
    for number in (1, 2):
        output = tmp_path / f"{number}.json"
        environment = os.environ | {
            "PYTHONPATH": str(Path(ascent_vit.__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
        }
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}", "-m"]
        command += ["ascent_vit_cli", "evaluate", model, "--dataset", dataset, "--output", str(output), *FAST]
        result = subprocess.run([*command, "--sanity"], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("Written:") == 1
        written.append(json.loads(output.read_text()))
    alone, together = written
    assert together.pop("num_processes") == 2 and alone.pop("num_processes") == 1
    for values in written:
        del values["evaluation_seconds"]
    for name, value in alone.items():
        number = isinstance(value, float)
        assert together[name] == (pytest.approx(value, abs=1e-4) if number else value), name

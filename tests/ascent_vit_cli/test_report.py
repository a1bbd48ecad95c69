# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit report`."""

import json
import os
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, DatasetDict

from ascent_vit.data import load_digits_dataset
from ascent_vit_cli.app import run
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


DIGITS = [f"digit {digit}" for digit in range(10)]


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
def save(tmp_path):
    def save(change=lambda split: split) -> str:
        split = change(load_digits_dataset(copies=1, canvas=32)["test"].select(range(9)))
        DatasetDict({"test": split}).save_to_disk(tmp_path / "data")
        return str(tmp_path / "data")

    return save


def error_of(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    return line


def test_report(model, save, tmp_path, capsys):
    output = tmp_path / "new" / "report"
    assert run(["report", model, "--dataset", save(), "--output", str(output), "--by", "sample"]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["images.parquet", "index.html", "summary.json"]
    written = json.loads((output / "summary.json").read_text())
    assert written["model"] == model and written["split"] == "test" and written["figures"]["images"] == 9
    assert {item["by"] for item in written["slices"]} == {"all", "concept", "size", "sample"}
    assert pq.read_table(output / "images.parquet").num_rows == 9
    assert f"Report: {output}" in capsys.readouterr().out
    assert run(["report", model, "--dataset", save(), "--output", str(output)]) == 2
    assert "is not empty" in error_of(capsys)


def test_wrong_input(model, save, tmp_path, capsys):
    words = ["report", model, "--output", str(tmp_path / "report")]
    swapped = save(lambda split: split.cast_column("label", ClassLabel(names=["odd", "even"])))
    for more, message in (
        (["--dataset", swapped], "number 0 is 'even' in the model and 'odd' in the dataset"),
        (["--dataset", swapped, "--split", "dev"], "no split dev; it has test"),
    ):
        assert run([*words, *more]) == 2
        assert message in error_of(capsys)
    assert run([*words, "--dataset", save(), "--by", "colour"]) == 2
    assert "no column 'colour'" in error_of(capsys)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("label", [None, -1])
def test_a_split_without_labels(model, save, tmp_path, capsys, label):
    def change(split):
        feature = split.features["label"]
        return split.remove_columns("label").add_column("label", [label] * len(split), feature=feature)

    assert run(["report", model, "--dataset", save(change), "--output", str(tmp_path / "report")]) == 0
    assert "Left out: Accuracy, errors and slices: the split has no labels" in capsys.readouterr().out


def rounded(value):
    """Numbers to four decimals, for results that differ in the order of their sums."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


@pytest.mark.slow
def test_two_processes_find_what_one_finds(model, save, tmp_path):
    dataset, found = save(), []
    for number in (1, 2):
        output = tmp_path / f"report-{number}"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"]
        command += ["-m", "ascent_vit_cli", "report", model, "--dataset", dataset, "--output", str(output)]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
        process = subprocess.run(
            [*command, "--batch-size", "2"], env=environment, capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, process.stderr
        rows = pq.read_table(output / "images.parquet").to_pydict()
        found.append((json.loads((output / "summary.json").read_text()), rows))
    (one, rows), (two, other_rows) = found
    assert two == rounded(one)
    assert rows["row"] == other_rows["row"] == list(range(9)) and rows["label"] == other_rows["label"]
    assert other_rows["contributions"] == rounded(rows["contributions"])


@pytest.mark.slow
def test_what_was_cut_off_goes_on(model, save, tmp_path):
    """SIGKILL in the middle; the same command, by two processes then, finds what one finds in one go."""
    dataset, output, whole = save(), tmp_path / "report", tmp_path / "whole"
    words = ["report", model, "--dataset", dataset, "--batch-size", "2", "--output"]
    assert run([*words, str(whole)]) == 0
    stopping = (
        "import os, signal, sys; from ascent_vit.summary import run as pass_; from ascent_vit_cli.app import run\n"
        "save = pass_.save_shard\n"
        "def save_two(folder, index, *found):\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if index == 2 else save(folder, index, *found)\n"
        "pass_.save_shard = save_two; run(sys.argv[1:])"
    )
    process = subprocess.run([sys.executable, "-c", stopping, *words, str(output)], capture_output=True, check=False)
    work = tmp_path / ".report.unfinished"
    assert process.returncode == -signal.SIGKILL and not output.exists()
    assert sorted(path.name for path in work.glob("*.pt")) == ["00000.pt", "00001.pt"]
    first = (work / "00000.pt").stat().st_mtime_ns
    other = [*words[:4], "--batch-size", "3", "--output", str(output)]
    assert run(other) == 2 and (work / "00000.pt").stat().st_mtime_ns == first
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    process = subprocess.run(
        [*command, "ascent_vit_cli", *words, str(output)], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert not work.exists()
    assert json.loads((output / "summary.json").read_text()) == rounded(
        json.loads((whole / "summary.json").read_text())
    )
    one, two = (pq.read_table(folder / "images.parquet").to_pydict() for folder in (whole, output))
    assert two["row"] == one["row"] == list(range(9)) and two["logits"] == rounded(one["logits"])

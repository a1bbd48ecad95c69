# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit publish` without a Hub: dry runs, and what it refuses."""

import json

import pytest

from ascent_vit_cli.app import USAGE_ERROR, run
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


@pytest.fixture
def model_dir(make_config, tmp_path):
    config = make_config(spatial_concepts=["beak", "wing"], num_labels=3)
    folder = tmp_path / "run" / "model"
    AscentViTForImageClassification(config).save_pretrained(folder)
    AscentViTImageProcessor.from_model_config(config).save_pretrained(folder)
    metrics = {"accuracy": 0.5, "dataset": "birds", "split": "test", "seed": 1}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "run" / "explanations.png").write_bytes(b"not looked at, as it is not sent")
    return folder


def command(folder, *arguments):
    return run(["publish", str(folder), "--repo-id", "ann/birds", *map(str, arguments)])


def test_dry_run_writes_and_lists_every_file(model_dir, tmp_path, capsys):
    output = tmp_path / "output"
    assert command(model_dir.parent, "--dry-run", "--output", output) == 0
    shown = capsys.readouterr().out
    files = {path.relative_to(output).as_posix(): path.stat().st_size for path in output.rglob("*") if path.is_file()}
    assert len(files) == 24 and "training/metrics.json" in files and "explanations.png" not in files
    for name, size in files.items():
        assert any(line.split() == [name, f"{size:,}", "bytes"] for line in shown.splitlines()), name
    assert f"{sum(files.values()):,} bytes" in shown and "Nothing was sent" in shown
    assert "explanations.png stays here" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-run"], "--dry-run needs --output"),
        (["--output", "somewhere"], "--output goes with --dry-run"),
        (["--dry-run", "--output", "."], "is not empty"),
        (["--dry-run", "--output", "new", "--tag", "a b"], "--tag must be"),
        (["--dry-run", "--output", "new", "--license", "mine"], "knows no licence 'mine'"),
        (["--dry-run", "--output", "new", "--metrics", "none.json"], "none.json does not exist"),
    ],
)
def test_bad_usage(model_dir, monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert command(model_dir.parent, *arguments) == USAGE_ERROR
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_bad_input(model_dir, tmp_path, capsys):
    assert command(tmp_path / "nowhere", "--dry-run", "--output", tmp_path / "output") == USAGE_ERROR
    assert run(["publish", str(model_dir), "--repo-id", "birds"]) == USAGE_ERROR
    (model_dir / "model.safetensors").unlink()
    assert command(model_dir, "--dry-run", "--output", tmp_path / "output") == USAGE_ERROR
    error = capsys.readouterr().err
    assert "There is no folder" in error and "--repo-id must be USER/NAME" in error
    assert "has no model.safetensors" in error and not (tmp_path / "output").exists()

# SPDX-License-Identifier: Apache-2.0
"""The report of a run: the same figures in Markdown, as curves and in JSON."""

import json

import numpy as np
import pytest
from datasets import DatasetDict
from PIL import Image

from ascent_vit.data.digits import load_digits_dataset
from ascent_vit.training import train
from ascent_vit.training.report import HISTORY, LOSSES, plot_curves, report_text


@pytest.fixture(scope="module")
def run(few_digits, tiny_recipe, tmp_path_factory):
    output = tmp_path_factory.mktemp("report") / "run"
    train(tiny_recipe(logging_steps=2, warmup_epochs=0.5), output, few_digits)
    return output


@pytest.fixture
def report(run) -> dict:
    return json.loads((run / "report.json").read_text())


def test_the_history_of_steps(report):
    rows = [dict(zip(HISTORY, values, strict=True)) for values in report["history"]]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    for row in rows:
        assert row["loss"] == pytest.approx(
            row["class_loss"] + row["alignment_loss"] + 0.5 * row["entropy_loss"], rel=1e-4
        )
    assert rows[-1]["learning_rate"] == report["epochs"][-1]["learning_rate"]


def test_lists_have_a_loss_of_their_own(tiny_recipe, tmp_path):
    digits = load_digits_dataset(copies=1, canvas=32, ink=False, present=True)
    few = DatasetDict({name: split.select(range(36)) for name, split in digits.items()})
    train(tiny_recipe(logging_steps=1, per_device_train_batch_size=32), tmp_path / "run", few)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    presence = HISTORY.index("presence_loss")
    assert all(values[presence] > 0 for values in report["history"])
    assert report["epochs"][-1]["train_presence_loss"] > 0 and "presence_map" in report["metrics"]


def test_the_table_holds_what_the_json_holds(run, report):
    text = (run / "report.md").read_text()
    assert text == report_text(report)
    assert "![Loss, learning rate and validation metrics over the steps](curves.png)" in text
    assert f"| accuracy | {report['metrics']['accuracy']:.4g} |" in text
    for name in ("seed", "torch_version", "python_version", "num_processes", "train_seconds", "learning_rate"):
        assert f"\n| {name} | " in text
    lines = [line for line in text.splitlines() if line.startswith("| 1 | 4 |") or line.startswith("| 2 | 8 |")]
    assert len(lines) == 2


def test_the_curves_show_every_record(report):
    loss, rate, metrics = plot_curves(report).axes
    shown = {tuple(line.get_xdata()): line for line in rate.lines}
    assert list(shown[(2, 4, 6, 8)].get_ydata()) == [values[-1] for values in report["history"]]
    legend = {line.get_label(): line for line in loss.lines if not line.get_label().startswith("_")}
    assert list(legend) == list(LOSSES)
    assert list(legend["class_loss"].get_ydata()) == [epoch["train_class_loss"] for epoch in report["epochs"]]
    named = {line.get_label(): list(line.get_ydata()) for line in metrics.lines}
    assert named["accuracy"] == [epoch["accuracy"] for epoch in report["epochs"]]
    assert named.keys() == report["metrics"].keys() - {"additivity_error"}


def test_the_picture(run):
    pixels = np.asarray(Image.open(run / "curves.png").convert("RGB"))
    assert pixels.shape[0] > 500 and pixels.shape[1] > 500
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_a_run_without_validation_and_without_records(report):
    bare = report | {"history": [], "metrics": {}, "split": None, "best_validation_value": None}
    names = ("epoch", "step", "learning_rate", *(f"train_{name}" for name in LOSSES))
    bare["epochs"] = [{name: epoch[name] for name in names} for epoch in report["epochs"]]
    axes = plot_curves(bare).axes
    assert axes[2].get_title(loc="left") == "Validation: there is no such split" and not axes[2].lines
    assert "## Metrics" not in report_text(bare)

# SPDX-License-Identifier: Apache-2.0
"""transformers' example script, as it is, trains a published model. The variable names where the script lies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ascent_vit.data import load_digits_dataset
from ascent_vit.inference import load_model


SCRIPT, HUB = "ASCENT_VIT_EXAMPLE_SCRIPT", Path(__file__).parents[3] / "hub"
# The script asks for a metric by its name, which is a folder before it is one of the Hub.
METRIC = """
import datasets
import evaluate
from sklearn.metrics import accuracy_score


class Accuracy(evaluate.Metric):
    def _info(self):
        features = {"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=datasets.Features(features)
        )

    def _compute(self, predictions, references):
        return {"accuracy": float(accuracy_score(references, predictions))}
"""


def write_folders(folder, class_of):
    """Drawn digits in a folder for each class, 128 to train on and 32 others."""
    dataset = load_digits_dataset(copies=1)
    for name, count in (("train", 128), ("validation", 32)):
        for i, row in enumerate(dataset[name].select(range(count))):
            place = folder / name / class_of(row)
            place.mkdir(parents=True, exist_ok=True)
            row["image"].save(place / f"{i}.png")


@pytest.mark.slow
@pytest.mark.skipif(SCRIPT not in os.environ, reason=f"{SCRIPT} is not the path of run_image_classification.py")
@pytest.mark.parametrize("classes", ["its own", "others"])
def test_the_script_trains_a_published_model(tmp_path, classes):
    pytest.importorskip("evaluate")
    publish = [sys.executable, "-m", "ascent_vit_cli", "publish", str(HUB / "digits"), "--repo-id", "someone/digits"]
    subprocess.run([*publish, "--dry-run", "--output", str(tmp_path / "published")], check=True)
    (tmp_path / "accuracy").mkdir()
    (tmp_path / "accuracy" / "accuracy.py").write_text(METRIC)
    own = classes == "its own"
    write_folders(
        tmp_path / "digits",
        lambda row: ["even", "odd"][row["label"]] if own else f"digit {row['concepts'][0]}",
    )
    arguments = {
        "model_name_or_path": "published",
        "trust_remote_code": True,
        "train_dir": "digits/train",
        "validation_dir": "digits/validation",
        "learning_rate": 2e-4,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 32,
        "remove_unused_columns": False,
        "use_cpu": True,
        "report_to": "none",
        "output_dir": "trained",
        "ignore_mismatched_sizes": not own,
    }
    command = [sys.executable, os.environ[SCRIPT], "--do_train", "--do_eval"]
    command += [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    result = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads((tmp_path / "trained" / "all_results.json").read_text())
    assert found["train_loss"] > 0 and (found["eval_accuracy"] > 0.9 if own else "eval_accuracy" in found)
    model, processor = load_model(str(tmp_path / "trained"))
    assert model.config.num_labels == (2 if own else 10) and len(model.config.global_concepts) == 10
    image = load_digits_dataset(copies=1)["test"][0]["image"]
    with torch.no_grad():
        assert model(**processor([image], return_tensors="pt")).logits.shape == (1, model.config.num_labels)

# SPDX-License-Identifier: Apache-2.0
"""A run's folder as `ascent-vit train` leaves it, and a Hub to send it to."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


ROOT = Path(__file__).parents[3]

METRICS = {"accuracy": 0.75, "macro_f1": 0.5, "pixel_tpr": 0.25, "additivity_error": 2e-7}
# Of a user and a machine that nobody else should read of.
PRIVATE = "/home/ann.private/secret project/runs"


def _hub_double():
    spec = importlib.util.spec_from_file_location("hub_double", ROOT / "tests" / "hub_double.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


hub_double = _hub_double()


def write_run(folder: Path, make_config, dataset: str = "digits") -> Path:
    """A run on a named dataset, with records that tell of a user's folders."""
    config = make_config(
        global_concepts=["small", "large"],
        spatial_concepts=["beak", "wing", "<b>tail</b>"],
        num_labels=3,
        id2label={0: "wren", 1: "crow", 2: "tern"},
    )
    config.backbone_config.name_or_path = str(folder)
    model = AscentViTForImageClassification(config)
    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder / "model")
    AscentViTImageProcessor.from_model_config(config).save_pretrained(folder / "model")
    facts = {"split": "test", "recipe": "birds", "dataset": dataset, "seed": 0, "python_version": "3.11.7"}
    recipe = {
        "model": {"backbone_config": config.backbone_config.to_diff_dict()},
        "dataset": dataset,
        "learning_rate": 1e-3,
        "max_steps": -1,
        "seed": 0,
        "name": "birds",
    }
    report = {"metrics": METRICS, **facts, "log": f"read {PRIVATE.replace(' ', '_')}/data/birds and /tmp/x/y.png"}
    records = {
        "metrics.json": METRICS | facts,
        "recipe.json": recipe | {"steps": {"total_steps": 5}},
        "report.json": report | {"recipe_values": recipe, "output": PRIVATE},
    }
    for name, record in records.items():
        (folder / name).write_text(json.dumps(record), encoding="utf-8")
    info = PngInfo()
    info.add_text("Author", "ann.private")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "explanations.png", pnginfo=info)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "random_states_0.pkl").write_bytes(b"not for others")
    return folder


@pytest.fixture
def run_folder(make_config, tmp_path) -> Path:
    return write_run(tmp_path / "run", make_config)


@pytest.fixture(name="write_run")
def write_run_fixture(make_config):
    return lambda folder, **kwargs: write_run(folder, make_config, **kwargs)


@pytest.fixture
def hub():
    with hub_double.hub_double() as hub:
        yield hub


@pytest.fixture
def client(hub, tmp_path):
    """Runs Python code, or `ascent-vit` with arguments, as a user of the Hub does, each time in a new process."""

    def run(code: str, *arguments: str, token: str | None = hub_double.TOKEN, home: str = "home"):
        # Waiting before another try is for networks.
        start = "import sys, time\ntime.sleep = lambda seconds: None\n"
        environment = os.environ | hub.environment(tmp_path / home, token)
        return subprocess.run(
            [sys.executable, "-c", start + code, *map(str, arguments)],
            env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return run

# SPDX-License-Identifier: Apache-2.0
import importlib.util
import time
from pathlib import Path

import pytest

from ascent_vit.training.build import make_loader


@pytest.fixture(scope="module")
def training_loop():
    path = Path(__file__).parents[2] / "benchmarks" / "training_loop.py"
    spec = importlib.util.spec_from_file_location("training_loop", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_clock_counts_what_it_wraps(training_loop):
    clock = training_loop.Clock()
    sleep = clock.around(time.sleep)
    for _ in range(3):
        sleep(0.02)
    time.sleep(0.05)
    assert clock.seconds == pytest.approx(0.06, rel=0.5)


def test_a_share_of_the_loop_itself(training_loop, monkeypatch):
    """A loop that is made to wait 0.3 s for each batch shows it."""
    small = {"image_size": 32, "patch_size": 8, "num_hidden_layers": 1}
    fast = training_loop.measure(steps=3, batch_size=2, turns=2, memory=64, model=small)
    assert 0 < fast["share_least"] <= fast["share"] <= fast["share_most"] < 1 and fast["step_ms"] > 0

    def slow(*args, **kwargs):
        loader = make_loader(*args, **kwargs)
        collate = loader.collate_fn
        loader.collate_fn = lambda batch: (time.sleep(0.3), collate(batch))[1]
        return loader

    monkeypatch.setattr(importlib.import_module("ascent_vit.training.setup"), "make_loader", slow)
    waiting = training_loop.measure(steps=3, batch_size=2, turns=2, memory=64, model=small)
    assert waiting["share"] > fast["share"] and waiting["share"] > 0.5 and waiting["step_ms"] > 300


def test_table_has_a_row_per_figure(training_loop):
    row = {"images": "in memory", "share": 0.0123, "share_least": 0.01, "share_most": 0.02, "step_ms": 812.4}
    assert training_loop.table([row]).endswith("| in memory | 1.2% | 1.0% to 2.0% | 812 |")

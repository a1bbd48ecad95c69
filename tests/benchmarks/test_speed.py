# SPDX-License-Identifier: Apache-2.0
import importlib.util
import time
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def speed():
    path = Path(__file__).parents[2] / "benchmarks" / "speed.py"
    spec = importlib.util.spec_from_file_location("speed", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ratio_of_two_calls(speed):
    result = speed.paired(lambda: time.sleep(0.03), lambda: time.sleep(0.01), turns=5)
    assert 1.5 < result["ratio_low"] <= result["ratio"] <= result["ratio_high"] < 4
    assert result["ours_ms"] == pytest.approx(30, rel=0.5) and result["peer_ms"] == pytest.approx(10, rel=0.5)


@pytest.mark.parametrize("backward", [False, True])
def test_sampling_is_measured_against_transformers(speed, backward):
    result = speed.measure_sampling(32, batch_size=1, turns=3, backward=backward)
    assert result["ratio"] > 0 and result["ratio_low"] <= result["ratio"] <= result["ratio_high"]


def test_table_has_a_row_per_figure(speed):
    row = {"what": "a", "ratio": 1.0, "ratio_low": 0.9, "ratio_high": 1.1, "ours_ms": 2.0, "peer_ms": 2.0}
    assert speed.table([row, row]).count("| a | 1.00 | 0.90 to 1.10 | 2.0 | 2.0 |") == 2

# SPDX-License-Identifier: Apache-2.0
import importlib.util
import time
from pathlib import Path

import pytest
import torch


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
    # A busy machine sleeps longer, never shorter.
    assert 30 <= result["ours_ms"] < 200 and 10 <= result["peer_ms"] < 200


@pytest.mark.parametrize("backward", [False, True])
def test_sampling_is_measured_against_transformers(speed, backward):
    result = speed.measure_sampling(32, batch_size=1, turns=3, backward=backward)
    assert result["ratio"] > 0 and result["ratio_low"] <= result["ratio"] <= result["ratio_high"]


@pytest.fixture
def small(speed, monkeypatch):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    monkeypatch.setitem(speed.BACKBONES, "small", sizes)
    return speed


@pytest.mark.parametrize(
    "kwargs", [{}, {"autocast": True}, {"size": 256}, {"shifted_fusion": True}, "LIGHT", "NARROW"]
)
def test_inference_is_measured_against_the_plain_backbone(small, kwargs):
    kwargs = getattr(small, kwargs) if isinstance(kwargs, str) else kwargs
    result = small.measure_inference("small", 2, 3, **kwargs)
    assert result["ratio"] > 0 and result["ours_ms"] > 0 and result["peer_ms"] > 0


def test_peaks_are_measured_in_a_limited_time(speed):
    """Also in a dtype that a CPU may lack units for, where one product of 4,096 a side would take many minutes."""
    for dtype in (torch.float32, torch.bfloat16):
        start = time.perf_counter()
        assert speed.peak_products.__wrapped__(dtype, seconds=0.2) > 0
        assert time.perf_counter() - start < 10


def test_explanation_and_training_are_measured(small):
    assert small.measure_explanation("small", 1, 3)["ratio"] > 0
    assert small.measure_training("small", 1, 3)["ratio"] > 0


def test_time_that_products_take_at_the_peak(speed):
    a, b = torch.randn(64, 256), torch.randn(256, 32)
    expected = 64 * 256 * 32 / (speed.peak_products(torch.float32) * 1e6)
    assert speed.products_ms(lambda: a @ b) == pytest.approx(expected)
    image, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    expected = 2 * 6 * 6 * 4 * 3 * 9 / (speed.peak_products(torch.float32) * 1e6)
    assert speed.products_ms(lambda: torch.nn.functional.conv2d(image, weight)) == pytest.approx(expected)


@pytest.mark.nightly
def test_figure_in_a_process_that_gives_memory_back(speed, monkeypatch):
    for name, value in speed.KEEP_MEMORY.items():
        monkeypatch.setenv(name, value)
    assert speed.keeps_memory()
    assert speed.measure_as_it_is("ViT-Ti", 1, 3)["ratio"] > 1


@pytest.mark.nightly
def test_memory_grows_with_the_batch(speed):
    small, large = (speed.measure_memory("ViT-Ti", batch_size)["peer_mib"] for batch_size in (2, 16))
    assert 0 <= small < large


def test_profile_adds_up(small):
    shares = small.profile("small", 2, 9)
    assert shares["backbone"] == 1.0 and all(share >= 0 for share in shares.values())
    parts = sum(share for name, share in shares.items() if name != "all")
    assert 0.5 * shares["all"] < parts <= shares["all"]


def test_every_figure_has_its_own_name(speed):
    names = [(group, what) for group, what, _ in speed.plan_of_figures(9)]
    assert len(set(names)) == len(names) > 30


def test_page_has_a_row_per_figure(speed, tmp_path):
    row = {
        "group": "g",
        "what": "a",
        "ratio": 1.0,
        "ratio_low": 0.9,
        "ratio_high": 1.1,
        "ours_ms": 2.0,
        "peer_ms": 2.0,
    }
    assert speed.table([row, row]).count("| a | 1.00 | 0.90 to 1.10 |  | 2.0 | 2.0 |") == 2
    assert "| a | 1.00 | 0.90 to 1.10 | 0.75 | 2.0 | 2.0 |" in speed.table([speed.with_floor(row, -0.5)])
    names = ("command", "date", "processor", "threads", "python", "torch", "transformers", "notes")
    report = dict.fromkeys(names, "x") | {
        "peak": 1.0,
        "peak_bfloat16": 1.0,
        "results": [row],
        "profiles": {"p": {"backbone": 1.0}},
    }
    speed.write_page(tmp_path / "RESULTS.md", report, tmp_path / "speed.json")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| a | 1.00 |" in text and "| backbone | 1.000 |" in text

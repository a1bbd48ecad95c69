# SPDX-License-Identifier: Apache-2.0
import importlib
import json
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch


FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def speed():
    with mock.patch.object(sys, "path", [str(FOLDER), *sys.path]):
        yield importlib.import_module("speed")


@pytest.fixture(scope="module")
def gpu(speed):
    return importlib.import_module("gpu")


@pytest.fixture(scope="module")
def page(speed):
    return sys.modules["speed_page"]


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


@pytest.mark.parametrize("levels", [3, 0])
def test_step_on_cached_tokens_is_measured_against_the_whole(small, levels):
    """The whole model, which trains later, is left as it was."""
    assert small.measure_cached_step("small", 2, 3, fusion_levels=levels)["ratio"] > 0
    whole, _ = small.build_models("small", fusion_levels=levels)
    assert all(parameter.requires_grad for parameter in whole.parameters())


def test_what_the_machine_can_do_is_told(speed, monkeypatch):
    for name in speed.LIMITS:
        monkeypatch.delenv(name, raising=False)
    assert torch.backends.cpu.get_cpu_capability() in speed.instruction_sets()
    assert "as told by" not in speed.instruction_sets()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert "as told by ONEDNN_MAX_CPU_ISA=AVX2" in speed.instruction_sets()
    monkeypatch.setattr(sys, "argv", ["speed.py", "--only", "a|b"])
    assert speed.command_line() == "ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/speed.py --only 'a|b'"


def test_rows_in_bfloat16_are_left_out_where_there_are_no_units(speed, monkeypatch):
    monkeypatch.setattr(speed, "has_bfloat16", lambda: False)
    assert not any("bfloat16" in group for group, _, _ in speed.plan_of_figures(9))


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


ROW = {"ratio": 1.0, "ratio_low": 0.9, "ratio_high": 1.1, "ours_ms": 2.0, "peer_ms": 2.0}


@pytest.fixture
def results(tmp_path):
    """Results of two machines."""
    facts = ("command", "date", "processor", "instructions", "threads", "python", "torch", "transformers")
    report = {fact: f"the {fact}" for fact in facts} | {
        "peak": 1.0,
        "peak_bfloat16": 1.0,
        "keeps_memory": True,
        "has_bfloat16": True,
        "results": [ROW | {"group": "inference, float32", "what": "ViT-Ti, batch 8"}],
        "profiles": {"p": {"backbone": 1.0}},
    }
    (tmp_path / "speed.json").write_text(json.dumps(report))
    other = report | {"processor": "another", "has_bfloat16": False}
    (tmp_path / "speed_avx2.json").write_text(json.dumps(other))
    return tmp_path / "speed.json"


def test_page_has_a_row_per_figure_and_a_section_per_machine(speed, page, results):
    row = ROW | {"group": "g", "what": "a"}
    assert speed.table([row, row]).count("| a | 1.00 | 0.90 to 1.10 |  | 2.0 | 2.0 |") == 2
    assert "| a | 1.00 | 0.90 to 1.10 | 0.75 | 2.0 | 2.0 |" in speed.table([speed.with_floor(row, -0.5)])
    path = results.with_name("RESULTS.md")
    page.write_page(path, results)
    text = path.read_text()
    assert text.count("| ViT-Ti, batch 8 | 1.00 |") == 2 and text.count("| backbone | 1.000 |") == 2
    assert "## the processor" in text and "## another" in text and "Not measured." in text
    assert text.count("no units for it") == 1


def test_summary_stands_in_its_place_with_the_machine_named(page, results):
    path = results.with_name("speed.md")
    path.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    for _ in range(2):
        page.write_summary(path, results)
    text = path.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert text.count("| the paper's pyramid, float32 |  |  |  |  | 1.00 (0.90 to 1.10) |  |") == 2
    assert text.count("On the processor") == 1 and text.count("On another") == 1
    path.write_text("nothing")
    with pytest.raises(ValueError, match="has no place"):
        page.write_summary(path, results)


def test_every_group_of_the_summary_is_measured(speed, page):
    groups = {group for group, _, _ in speed.plan_of_figures(9)}
    assert set(page.ROWS.values()) <= groups | {name for name in page.ROWS.values() if "bfloat16" in name}


def test_gpu_script_says_what_it_measured_and_what_not(small, gpu, page, tmp_path, monkeypatch):
    """On a CPU, where transformers has no kernel."""
    monkeypatch.setattr(gpu, "FORMS", ("eager", "kernel"))
    rows = gpu.measure_all("small", [1, 2], 3, minutes=5)
    assert len(rows) == 8
    for row in rows:
        assert ("skipped" in row) == (row["form"] == "kernel")
        if row["form"] == "eager":
            assert row["images_per_second"] == pytest.approx(1000 * row["batch"] / row["ours_ms"])
            assert 0 < row["peak_share"] < 1
    assert "1 minutes" not in str(rows) and "0 minutes were over" in gpu.measure_all("small", [1], 3, 0)[0]["skipped"]
    report = {"backbone": "b", "command": "c", "date": "d", "device": "e", "torch_version": "t", "results": rows}
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(report))
    text = page.gpu_figures(path)
    assert text.count("not measured: ") == 4 and text.count("| eager |") == 4


@pytest.mark.slow
def test_gpu_script_measures_compiled_models(small, gpu):
    row = gpu.measure("small", 2, torch.float32, "compiled", 3)
    assert row["images_per_second"] > 0

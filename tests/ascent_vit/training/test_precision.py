# SPDX-License-Identifier: Apache-2.0
"""Mixed precision: what "auto" comes to on a device, and what is said of a slow one."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ascent_vit.training import Recipe, load_recipe, precision, train
from ascent_vit.training.precision import resolve_precision, training_device


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("asked", ["no", "bf16", "fp16"])
def test_what_is_asked_for_is_done(asked):
    assert resolve_precision(asked, CPU) == resolve_precision(asked, CUDA) == asked


def test_auto_is_float32_on_any_cpu():
    assert Recipe().mixed_precision == load_recipe("cub").mixed_precision == "auto"
    assert resolve_precision("auto", CPU) == "no"


@pytest.mark.parametrize("has_units", [False, True])
def test_auto_follows_the_gpu(monkeypatch, has_units):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_units or including_emulation
    )
    assert resolve_precision("auto", CUDA) == ("bf16" if has_units else "no")


def test_auto_follows_what_other_accelerators_say(monkeypatch):
    module = type("module", (), {})
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    assert resolve_precision("auto", torch.device("mps")) == "no"
    module.is_bf16_supported = staticmethod(lambda: True)
    assert resolve_precision("auto", torch.device("xpu")) == "bf16"


@pytest.mark.parametrize(
    ("available", "asked", "expected"), [(True, "false", CUDA), (True, "true", CPU), (False, "false", CPU)]
)
def test_the_device_is_accelerates(monkeypatch, available, asked, expected):
    monkeypatch.setattr(precision, "PartialState", lambda cpu: SimpleNamespace(device=CPU if cpu else CUDA))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
    monkeypatch.setenv("ACCELERATE_USE_CPU", asked)
    assert training_device() == expected


@pytest.mark.skipif(torch.accelerator.is_available(), reason="trains on an accelerator")
def test_records_hold_what_auto_came_to(few_digits, tiny_recipe, tmp_path):
    values = tiny_recipe(max_steps=1)
    assert values.mixed_precision == "auto"
    train(values, tmp_path / "run", few_digits)
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert record["mixed_precision"] == report["recipe_values"]["mixed_precision"] == "no"
    assert "| mixed_precision | no |" in (tmp_path / "run" / "report.md").read_text()
    # With what was recorded it is the same run, and as well with what was asked for.
    for asked in ("no", "auto"):
        train(dataclasses.replace(values, mixed_precision=asked), tmp_path / "run", few_digits, resume=True)
    # As of a run on another device, where it was something else.
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(record | {"mixed_precision": "bf16"}))
    with pytest.raises(ValueError, match="another recipe: mixed_precision was 'bf16', now 'no'"):
        train(values, tmp_path / "run", few_digits, resume=True)


@pytest.fixture
def no_accelerator():
    """A process that has no accelerator yet, and has none afterwards."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("no_accelerator")
def test_runs_of_one_process_may_differ_in_precision(few_digits, tiny_recipe, tmp_path):
    for number, asked in enumerate(("no", "bf16", "no")):
        train(tiny_recipe(max_steps=1, mixed_precision=asked), tmp_path / str(number), few_digits)
        record = json.loads((tmp_path / str(number) / "recipe.json").read_text())
        assert record["mixed_precision"] == asked
    # Trainer makes an accelerator too.
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"


@pytest.mark.usefixtures("no_accelerator")
def test_an_accelerator_of_another_keeps_its_precision(few_digits, tiny_recipe, tmp_path):
    other = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="bf16")
    with pytest.raises(ValueError, match="accelerator with mixed_precision bf16, .*: set mixed_precision to it, or"):
        train(tiny_recipe(max_steps=1, mixed_precision="no"), tmp_path / "run", few_digits)
    train(tiny_recipe(max_steps=1, mixed_precision="bf16"), tmp_path / "run", few_digits)
    assert other.mixed_precision == "bf16" and other.num_processes == 1


PROGRAM = """
import logging, sys
from datasets import load_from_disk
from ascent_vit.training import load_recipe, train
logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
folder = sys.argv[1]
print(train(load_recipe(folder + "/recipe.yaml"), folder + "/run", load_from_disk(folder + "/data")).steps)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="of x86 CPUs")
def test_a_cpu_without_units_for_bfloat16_is_said_to_be_slow(few_digits, tiny_recipe, tmp_path):
    """oneDNN, which multiplies in bfloat16 for torch, told to use nothing beyond AVX2."""
    few_digits.save_to_disk(tmp_path / "data")
    values = tiny_recipe(max_steps=1, mixed_precision="bf16")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(dataclasses.asdict(values)))
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ACCELERATE_USE_CPU": "true"}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    warnings = [line for line in process.stderr.splitlines() if "bfloat16" in line]
    assert warnings == [
        "WARNING ascent_vit.utils.hardware: This CPU has no bfloat16 units: training in float32 "
        "(mixed_precision: no) is faster."
    ]
    assert process.stdout.split() == ["1"]
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["mixed_precision"] == "bf16"

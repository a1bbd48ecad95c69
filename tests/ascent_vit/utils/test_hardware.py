# SPDX-License-Identifier: Apache-2.0
import os
import platform
import subprocess
import sys

import pytest
import torch

from ascent_vit.utils.hardware import is_slow, slowdown


def test_float32_and_accelerators_are_not_slow():
    assert slowdown(torch.float32) < 2 and not is_slow(torch.float32)
    assert not is_slow(torch.bfloat16, "cuda")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="of x86 processors")
def test_a_cpu_without_units_for_bfloat16_is_slow():
    """oneDNN, which multiplies in bfloat16 for torch, told to use nothing beyond AVX2."""
    code = """
import torch
from ascent_vit.utils.hardware import is_slow, warn_if_slow
warn_if_slow(torch.float32, "inference in float32")
warn_if_slow(torch.bfloat16, "inference in float32")
print(is_slow(torch.bfloat16))
"""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["True"]
    assert process.stderr.splitlines() == ["This CPU has no bfloat16 units: inference in float32 is faster."]

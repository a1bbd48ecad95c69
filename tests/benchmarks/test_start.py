# SPDX-License-Identifier: Apache-2.0
"""The measurement of what a start costs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_command_starts_without_the_libraries(tmp_path):
    command = [sys.executable, "benchmarks/start.py", "--output", str(tmp_path / "start.json"), "--turns", "1"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    seconds = json.loads((tmp_path / "start.json").read_text())["cpu_seconds"]
    assert seconds["ascent-vit --help"] < 0.3 * seconds["import ascent_vit"]
    assert seconds["first explanation of an ASCENT-ViT-Ti"] > seconds["ascent-vit --version"] > 0

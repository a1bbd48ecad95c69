# SPDX-License-Identifier: Apache-2.0
"""The model's files by the rules that transformers has for its own, but for those that pyproject.toml leaves out."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


def test_rules_of_transformers(tmp_path):
    pytest.importorskip("mlinter")
    command = [sys.executable, "-m", "mlinter", "--no-progress", "--no-cache", "--output-json", "found.json"]
    done = subprocess.run([*command, ROOT / "modeling_ascent_vit"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads((tmp_path / "found.json").read_text())["findings"]
    left_out = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mlinter"]["left-out"]
    assert [finding for finding in found if finding["rule"] not in left_out] == []
    # A rule that finds nothing any more need not be left out.
    assert {finding["rule"] for finding in found} == set(left_out)

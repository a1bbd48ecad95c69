# SPDX-License-Identifier: Apache-2.0
import importlib.util
from pathlib import Path

import pytest

from modeling_ascent_vit import AscentViTForImageClassification


@pytest.mark.slow
def test_a_format_is_measured_against_pytorch(make_config, tmp_path, monkeypatch):
    folder = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("export_benchmark", folder / "export.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = AscentViTForImageClassification(make_config()).eval()
    (result,) = module.measure(model, tmp_path / "out", "torch-export", "none", [2], turns=4)
    assert result["what"] == "torch-export, batch 2, against PyTorch"
    assert 0 < result["ratio_low"] <= result["ratio"] <= result["ratio_high"]

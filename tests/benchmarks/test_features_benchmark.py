# SPDX-License-Identifier: Apache-2.0
import importlib.util
from pathlib import Path

import pytest
from datasets import DatasetDict
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from ascent_vit.data import load_digits_dataset


@pytest.fixture(scope="module")
def features():
    path = Path(__file__).parents[2] / "benchmarks" / "features.py"
    spec = importlib.util.spec_from_file_location("features_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_kind_of_training_is_measured(features, tmp_path):
    """On a backbone of nine narrow layers; what is trained whole takes the longest."""
    digits = load_digits_dataset(copies=1, canvas=32)
    few = DatasetDict(train=digits["train"].select(range(32)), validation=digits["test"].select(range(8)))
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 9}
    backbone = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=4), add_pooling_layer=False)
    backbone.save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    found = features.measure(few, str(tmp_path / "vit"), 2, tmp_path / "runs")
    assert list(found) == list(features.KINDS)
    assert all(0 < row["least"] <= row["median"] for row in found.values())
    assert found["cached"]["least"] < found["fine-tuned whole"]["least"]


def test_table_says_how_often_a_cached_epoch_fits(features):
    results = {"cached": {"median": 4.0, "least": 3.9}, "frozen, not cached": {"median": 30.0, "least": 29.0}}
    assert features.table(results).splitlines()[2:] == [
        "| cached | 4.0 | 3.9 | 4 | 1.0 |",
        "| frozen, not cached | 30.0 | 29.0 | 32 | 7.5 |",
    ]

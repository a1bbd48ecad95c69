# SPDX-License-Identifier: Apache-2.0
import dataclasses
import importlib.util
import time
from pathlib import Path

import pytest

from ascent_vit.training import Recipe
from modeling_ascent_vit import AscentViTImageProcessor


@pytest.fixture(scope="module")
def loading():
    path = Path(__file__).parents[2] / "benchmarks" / "loading.py"
    spec = importlib.util.spec_from_file_location("loading", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class SlowLoader:
    """Batches of which the first takes longest."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __iter__(self):
        for i in range(5):
            time.sleep(self.seconds if i else 0.3)
            yield i


def test_share_of_a_loader_that_is_as_slow_as_the_step(loading):
    result = loading.waiting(lambda batch: time.sleep(0.02), SlowLoader(0.02), turns=3, skip=1)
    assert result["waiting_share"] == pytest.approx(0.5, abs=0.1)
    assert result["waiting_share_low"] <= result["waiting_share"] <= result["waiting_share_high"]
    assert result["ratio"] == pytest.approx(2, rel=0.2)
    assert result["wait_ms"] == pytest.approx(20, rel=0.3) and result["step_ms"] == pytest.approx(20, rel=0.3)


def test_share_of_a_loader_that_keeps_up(loading):
    result = loading.waiting(lambda batch: time.sleep(0.02), SlowLoader(0), turns=3, skip=1)
    assert result["waiting_share"] < 0.1 and result["ratio"] == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_step_on_augmented_images(loading, workers):
    recipe = Recipe(
        model="vit-tiny",
        per_device_train_batch_size=1,
        augmentation=loading.AUGMENTATIONS["the same and rotation"],
        dataloader_num_workers=workers,
    )
    processor = AscentViTImageProcessor(num_global_concepts=loading.GLOBAL, num_spatial_concepts=loading.SPATIAL)
    dataset = loading.make_dataset(4, (60, 40))
    seen = []
    step = loading.training_step()

    def counted(batch):
        seen.append(batch["spatial_concept_targets"].shape)
        step(batch)

    result = loading.measure(dataset, counted, dataclasses.replace(recipe, cache_mebibytes=1), processor, turns=2)
    # Each of two passes over four images, and as many steps on a ready batch as are counted.
    assert len(seen) == 8 + 2 * (3 - 2 * workers) and set(seen) == {(1, 196, loading.SPATIAL)}
    assert 0 <= result["waiting_share"] < 1 and result["ready_ms"] > 0


def test_table_has_a_row_per_figure(loading):
    row = {"augmentation": "a", "workers": 2, "cache_mebibytes": 512, "ratio": 1.25}
    row |= {"waiting_share": 0.1, "waiting_share_low": 0.05, "waiting_share_high": 0.2}
    assert loading.table([row, row | {"cache_mebibytes": 0}]).splitlines()[2:] == [
        "| a | 2 | yes | 10.0 | 5.0 to 20.0 | 1.25 |",
        "| a | 2 | no | 10.0 | 5.0 to 20.0 | 1.25 |",
    ]

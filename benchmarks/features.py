# SPDX-License-Identifier: Apache-2.0
"""
What cached features save: an epoch on a frozen backbone's cached tokens beside the same without a cache.

    ascent-vit prepare cub --source CUB_200_2011 --output DATA/cub-all --option global_concepts=all
    python benchmarks/features.py --data DATA/cub-all --backbone DIR --output benchmarks/results/features.json

By the recipe `birds`, with one view of each image, where nothing is cached augmented anew. Epochs of a few images take
turns, so that what else a machine does troubles all alike. Times are those of the CPU.
"""

import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from datasets import DatasetDict
from tqdm import tqdm

from ascent_vit.data import load_concept_dataset
from ascent_vit.training import load_recipe
from ascent_vit.training.loop import train_epoch
from ascent_vit.training.setup import set_up
from ascent_vit.utils.files import write_json
from ascent_vit.utils.versions import versions


# Images of an epoch, as the train split of the 40 classes has.
EPOCH = 1080
KINDS = {
    "cached": [],
    "upper four layers on cached ones": ["frozen_layers=8", "backbone_learning_rate=1e-4"],
    "frozen, not cached": ["cache_features=false", "freeze_backbone=true"],
    "fine-tuned whole": ["cache_features=false", "backbone_learning_rate=1e-4"],
}


def measure(data: DatasetDict, backbone: str, turns: int, folder: Path) -> dict[str, dict[str, float]]:
    """CPU time for an image in milliseconds, of each kind of training: median and least of some epochs."""
    runs = {}
    for name, changes in KINDS.items():
        options = [f"backbone={backbone}", "feature_views=1", f"num_train_epochs={turns + 1}", "warmup_epochs=0"]
        recipe = load_recipe("birds", options + changes)
        runs[name] = set_up(recipe, folder / name, data, resume=False, check=False)
    bar, seconds = tqdm(disable=True), {name: [] for name in runs}
    for _ in range(turns + 1):
        for name, run in runs.items():
            start = time.process_time()
            train_epoch(run, bar)
            seconds[name].append(time.process_time() - start)
    images = len(data["train"]) // 32 * 32
    # The first turn warms up.
    return {
        name: {"median": 1000 * statistics.median(found[1:]) / images, "least": 1000 * min(found[1:]) / images}
        for name, found in seconds.items()
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown table of the times and how often an epoch on cached tokens fits into each."""
    lines = ["| backbone | ms an image, median | least | epoch of 1,080 images, s | times a cached epoch |"]
    lines.append("|---|---|---|---|---|")
    base = results["cached"]["median"]
    for name, row in results.items():
        values = f"{row['median']:.1f} | {row['least']:.1f} | {row['median'] * EPOCH / 1000:.0f}"
        lines.append(f"| {name} | {values} | {row['median'] / base:.1f} |")
    return "\n".join(lines)


def main(
    data: Annotated[Path, typer.Option(help="Folder of prepared birds.")],
    backbone: Annotated[str, typer.Option(help="Folder or Hub id of the backbone.")],
    output: Annotated[Path, typer.Option(help="JSON file for the results.")],
    images: Annotated[int, typer.Option(min=32, help="Images of an epoch.")] = 128,
    turns: Annotated[int, typer.Option(min=1, help="Epochs to measure, after one to warm up.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
):
    """Measures what an epoch costs with and without cached features."""
    torch.set_num_threads(threads)
    whole = load_concept_dataset(str(data))
    train = whole["train"].shuffle(seed=0).select(range(images))
    few: Any = DatasetDict(train=train, validation=whole["validation"].select(range(8)))
    with tempfile.TemporaryDirectory() as folder:
        results = measure(few, backbone, turns, Path(folder))
    report: dict[str, Any] = {"machine": f"{platform.machine()}, {threads} threads", "images": images, "turns": turns}
    write_json(output, report | {"milliseconds": results} | versions())
    print(table(results))


if __name__ == "__main__":
    typer.run(main)

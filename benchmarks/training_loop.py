# SPDX-License-Identifier: Apache-2.0
"""
What the training loop costs: the share of a step that is neither forward, backward nor optimiser.

    python benchmarks/training_loop.py --output benchmarks/results/training_loop.json

Runs the loop of `ascent-vit train` itself, all of it: reading batches, clipping gradients, progress bar, schedule,
records and checks. Images are in memory as the image processor left them, as they are by default, or are decoded and
processed anew for each step. What `benchmarks/loading.py` measures is how augmentation keeps up.
"""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import typer
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from tqdm import tqdm

from ascent_vit.training import Recipe
from ascent_vit.training.loop import train_epoch
from ascent_vit.training.setup import set_up
from ascent_vit.utils.files import write_json


VIT_TI = {"model_type": "vit", "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
CLASSES, GLOBAL, SPATIAL = 200, 13, 95
MEMORY = {"in memory": 4096, "decoded for each step": 0}


class Clock:
    """Seconds spent in calls of the functions that it wraps."""

    def __init__(self):
        self.seconds = 0.0

    def around(self, function: Callable) -> Callable:
        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def make_dataset(number: int, side: int) -> DatasetDict:
    """Square images with a class, global concepts and a box."""

    def names(kind: str, count: int) -> ClassLabel:
        return ClassLabel(names=[f"{kind} {i}" for i in range(count)])

    features = Features(
        {
            "image": ImageFeature(),
            "label": names("class", CLASSES),
            "concepts": List(names("global", GLOBAL)),
            "objects": {
                "bbox": List(List(Value("float32"), length=4)),
                "category": List(names("spatial", SPATIAL)),
            },
        }
    )
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (number, 16, 16, 3), dtype=np.uint8)
    columns = {
        "image": [Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC) for pixels in small],
        "label": rng.integers(0, CLASSES, number).tolist(),
        "concepts": rng.integers(0, GLOBAL, (number, 1)).tolist(),
        "objects": [
            {"bbox": [[side / 4, side / 4, side / 2, side / 2]], "category": [int(rng.integers(SPATIAL))]}
            for _ in range(number)
        ],
    }
    split = Dataset.from_dict(columns, features=features)
    return DatasetDict(train=split, validation=split.select([0]))


def measure(steps: int, batch_size: int, turns: int, memory: int, model: dict[str, Any] | None = None) -> dict:
    """
    Shares of the steps of some epochs, after one epoch to warm up.

    Args:
        steps: number of steps of an epoch.
        batch_size: number of images per step.
        turns: number of epochs to measure.
        memory: mebibytes for images in memory; 0 decodes them for each step.
        model: fields of the backbone that differ from ViT-Ti at 224 pixels.
    """
    backbone = VIT_TI | {"image_size": 224, "patch_size": 16} | (model or {})
    recipe = Recipe(
        model={"backbone_config": backbone},
        num_train_epochs=turns + 1,
        per_device_train_batch_size=batch_size,
        cache_mebibytes=memory,
        seed=0,
        name="loop",
    )
    dataset = make_dataset(steps * batch_size, backbone["image_size"])
    with tempfile.TemporaryDirectory() as folder:
        run = set_up(recipe, Path(folder) / "run", dataset, resume=False)
        clock = Clock()
        run.model.forward = clock.around(run.model.forward)
        run.accelerator.backward = clock.around(run.accelerator.backward)
        run.optimizer.step = clock.around(run.optimizer.step)
        run.optimizer.zero_grad = clock.around(run.optimizer.zero_grad)
        shares, seconds = [], []
        with tqdm(total=run.plan.total_steps, desc="Training", unit="step") as bar:
            for _ in range(turns + 1):
                clock.seconds = 0.0
                start = time.perf_counter()
                train_epoch(run, bar)
                whole = time.perf_counter() - start
                shares.append(1 - clock.seconds / whole)
                seconds.append(whole / steps)
    return {
        "share": statistics.median(shares[1:]),
        "share_least": min(shares[1:]),
        "share_most": max(shares[1:]),
        "step_ms": 1000 * statistics.median(seconds[1:]),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown table of the shares."""
    lines = ["| images | share of the step | least to most | step, ms |", "|---|---|---|---|"]
    for row in results:
        spread = f"{row['share_least']:.1%} to {row['share_most']:.1%}"
        lines.append(f"| {row['images']} | {row['share']:.1%} | {spread} | {row['step_ms']:.0f} |")
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="JSON file for the results.")],
    steps: Annotated[int, typer.Option(min=2, help="Steps per epoch.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 16,
    turns: Annotated[int, typer.Option(min=1, help="Epochs to measure, after one to warm up.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 2,
):
    """Measures what the training loop costs beside the model's arithmetic: ViT-Ti at 224 pixels."""
    torch.set_num_threads(threads)
    results = [{"images": name, **measure(steps, batch_size, turns, memory)} for name, memory in MEMORY.items()]
    report = {
        "machine": f"{platform.machine()}, {threads} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "steps": steps,
        "batch_size": batch_size,
        "turns": turns,
        "results": results,
    }
    write_json(output, report)
    print(table(results))


if __name__ == "__main__":
    typer.run(main)

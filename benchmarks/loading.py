# SPDX-License-Identifier: Apache-2.0
"""
Whether data keeps up with training: the share of a ViT-Ti training step that is spent waiting for the next batch.

    python benchmarks/loading.py --output benchmarks/results/loading.json

Images are JPEGs of 500 x 375 pixels with points and boxes, read, augmented and processed as `ascent-vit train` does.
Steps on batches of the loader take turns with steps on a batch that is there already. `ratio` is the whole step
against the latter: it shows what waiting does not, that workers take their time from the same cores. A ratio of 1 is
training that costs nothing but the model's arithmetic.
"""

import dataclasses
import io
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import typer
from datasets import ClassLabel, Dataset, Features, List, Value, load_from_disk
from datasets import Image as ImageFeature
from PIL import Image
from tqdm import tqdm
from transformers import ViTConfig

from ascent_vit.training import Recipe
from ascent_vit.training.build import make_loader
from ascent_vit.utils.files import write_json
from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification, AscentViTImageProcessor


VIT_TI = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
CLASSES, GLOBAL, SPATIAL = 200, 13, 95

CROP_AND_FLIP = {"horizontal_flip": 0.5, "crop_scale": [0.5, 1.0], "brightness": 0.2, "contrast": 0.2}
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "flip, crop, brightness, contrast": CROP_AND_FLIP,
    "the same and rotation": CROP_AND_FLIP | {"rotation": 15},
}


def make_dataset(number: int, size: tuple[int, int] = (500, 375)) -> Dataset:
    """Images of `size` (width, height) with the texture of photographs, 15 points and one box each."""

    def names(kind: str, count: int) -> ClassLabel:
        return ClassLabel(names=[f"{kind} {i}" for i in range(count)])

    spatial = List(names("spatial", SPATIAL))
    features = Features(
        {
            "image": ImageFeature(),
            "label": names("class", CLASSES),
            "concepts": List(names("global", GLOBAL)),
            "objects": {"bbox": List(List(Value("float32"), length=4)), "category": spatial},
            "points": {"xy": List(List(Value("float32"), length=2)), "category": spatial},
        }
    )
    rng = np.random.default_rng(0)
    rows = []
    for i in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        rows.append(
            {
                "image": {"bytes": buffer.getvalue(), "path": None},
                "label": i % CLASSES,
                "concepts": [i % GLOBAL],
                "objects": {"bbox": [[size[0] / 4, size[1] / 4, size[0] / 2, size[1] / 2]], "category": [i % SPATIAL]},
                "points": {
                    "xy": (rng.random((15, 2)) * size).tolist(),
                    "category": rng.integers(0, SPATIAL, 15).tolist(),
                },
            }
        )
    return Dataset.from_list(rows, features=features)


def training_step() -> Callable[[dict[str, torch.Tensor]], None]:
    """Forward, backward and AdamW step of ASCENT-ViT-Ti in the paper's shape for CUB."""
    config = AscentViTConfig(
        backbone_config=ViTConfig(**VIT_TI),
        num_global_concepts=GLOBAL,
        num_spatial_concepts=SPATIAL,
        num_labels=CLASSES,
    )
    model = AscentViTForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters())

    def step(batch: dict[str, torch.Tensor]) -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step


def waiting(step: Callable[[Any], Any], loader: Iterable, turns: int, skip: int) -> dict[str, float]:
    """
    Share of the time spent waiting for a loader's batches.

    Args:
        step: what is done with a batch.
        loader: batches, more than `skip` of them.
        turns: passes over the loader, each followed by as many steps on one ready batch.
        skip: first batches of a pass that are not counted: workers start, and have more time for them.

    Returns:
        `waiting_share` and its quartiles over the turns, `ratio` of the median step and that on a ready batch, and
        the medians in milliseconds.
    """
    shares: list[float] = []
    times: dict[str, list[float]] = {"wait": [], "step": [], "ready": []}
    for _ in range(turns):
        iterator, number = iter(loader), 0
        waits: list[float] = []
        steps: list[float] = []
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            if batch is None:
                break
            got = time.perf_counter()
            step(batch)
            number += 1
            ready = batch
            if number > skip:
                waits.append(got - start)
                steps.append(time.perf_counter() - got)
        shares.append(sum(waits) / (sum(waits) + sum(steps)))
        times["wait"] += waits
        times["step"] += steps
        for _ in range(len(steps)):
            start = time.perf_counter()
            step(ready)
            times["ready"].append(time.perf_counter() - start)
    low, median, high = statistics.quantiles(shares, n=4)
    whole = [a + b for a, b in zip(times["wait"], times["step"], strict=True)]
    return {
        "waiting_share": median,
        "waiting_share_low": low,
        "waiting_share_high": high,
        "ratio": statistics.median(whole) / statistics.median(times["ready"]),
        **{f"{name}_ms": 1000 * statistics.median(values) for name, values in times.items()},
    }


def measure(
    dataset: Dataset,
    step: Callable[[Any], Any],
    recipe: Recipe,
    processor: AscentViTImageProcessor,
    turns: int,
) -> dict[str, float]:
    batch_size = recipe.per_device_train_batch_size
    loader = make_loader(dataset, processor, recipe, batch_size, num_shuffled=len(dataset))
    return waiting(step, loader, turns, skip=2 * recipe.dataloader_num_workers + 1)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown table of the shares."""
    lines = ["| images | workers | kept in memory | waiting, % | quartiles | ratio |", "|---|---|---|---|---|---|"]
    for row in results:
        spread = f"{100 * row['waiting_share_low']:.1f} to {100 * row['waiting_share_high']:.1f}"
        kept = "yes" if row["cache_mebibytes"] else "no"
        lines.append(
            f"| {row['augmentation']} | {row['workers']} | {kept} | {100 * row['waiting_share']:.1f} | {spread} "
            f"| {row['ratio']:.2f} |"
        )
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="JSON file for the results.")],
    turns: Annotated[int, typer.Option(min=3, help="Passes over the images per figure.")] = 3,
    images: Annotated[int, typer.Option(min=32, help="Images of a pass.")] = 48,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of a step.")] = 4,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 2,
):
    """Measures the share of a training step that is spent waiting for data, on the CPU."""
    plan = [
        (name, workers, memory)
        for name in AUGMENTATIONS
        # What is kept as it is comes ready from memory, without workers.
        for memory, workers in ((0, 0), (0, 1), (0, 2), (512, 0), (512, 1))
        if AUGMENTATIONS[name] or not memory or not workers
    ]
    skipped = 2 * max(workers for _, workers, _ in plan) + 1
    if images // batch_size < skipped + 3:
        raise typer.BadParameter(f"{images} images are fewer than {skipped + 3} batches of {batch_size}: give more.")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    base = Recipe(model="vit-tiny", per_device_train_batch_size=batch_size)
    processor = AscentViTImageProcessor(num_global_concepts=GLOBAL, num_spatial_concepts=SPATIAL)
    step = training_step()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(images).save_to_disk(folder)
        dataset = load_from_disk(folder)
        for name, workers, memory in tqdm(plan, desc="measuring", unit="figure"):
            recipe = dataclasses.replace(
                base, augmentation=AUGMENTATIONS[name], dataloader_num_workers=workers, cache_mebibytes=memory
            )
            figures = measure(dataset, step, recipe, processor, turns)
            results.append({"augmentation": name, "workers": workers, "cache_mebibytes": memory, **figures})
    report = {
        "machine": f"{platform.machine()}, {threads} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "turns": turns,
        "images": images,
        "batch_size": batch_size,
        "results": results,
    }
    write_json(output, report)
    print(table(results))


if __name__ == "__main__":
    typer.run(main)

# SPDX-License-Identifier: Apache-2.0
"""
Images per second on one GPU, in a few minutes: eager, compiled, and with the Hub's kernel of deformable attention.

    python benchmarks/gpu.py --output benchmarks/results/gpu.json
    python benchmarks/gpu.py --output benchmarks/results/gpu.json --dataset DATA/cub --recipe finetune

The peer is the plain ViT of the same backbone, in turns, compiled where the model is. A figure that cannot be had
stands with its reason; what does not fit into the minutes is one. With `--dataset` the command then trains on it.
"""

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from speed import build_models, device, paired, peak_products, predict, processor_name, products_ms
from tqdm import tqdm

from ascent_vit.training import load_recipe, train
from ascent_vit.utils.files import write_json
from ascent_vit.utils.versions import versions


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FORMS = ("eager", "kernel", "compiled")


class NotMeasuredError(Exception):
    """Says why a figure cannot be had."""


def in_form(models: list[Any], form: str) -> list[Any]:
    """
    The model and the plain ViT, ready to be called.

    Raises:
        NotMeasuredError: where there is no kernel for the sampling.
    """
    if form == "compiled":
        return [torch.compile(model, dynamic=False) for model in models]
    if form == "kernel":
        ours = models[0]
        try:
            ours.use_kernels = True
        # Whatever the package says: that it is missing, or that the Hub is out of reach.
        except Exception as error:
            raise NotMeasuredError(str(error).splitlines()[0]) from error
        if "forward" not in vars(ours.ascent_vit.fusion.sampling):
            raise NotMeasuredError(f"transformers has no kernel of the sampling for {device().type}.")
    return models


def measure(backbone: str, batch_size: int, dtype: torch.dtype, form: str, turns: int) -> dict[str, float]:
    """
    Images per second of one form, and the share of the device's peak.

    Raises:
        NotMeasuredError: see [`in_form`].
    """
    models = [model.to(dtype).eval() for model in build_models(backbone)]
    pixels = torch.randn(batch_size, 3, 224, 224, device=device(), dtype=dtype)
    at_peak = products_ms(predict(models[0], pixels), dtype)
    try:
        ours, peer = (predict(model, pixels) for model in in_form(models, form))
        result = paired(ours, peer, turns)
    finally:
        models[0].use_kernels = False
        vars(models[0].ascent_vit.fusion.sampling).pop("forward", None)
        torch.compiler.reset()
    seconds = result["ours_ms"] / 1000
    return result | {"images_per_second": batch_size / seconds, "peak_share": at_peak / result["ours_ms"]}


def measure_all(backbone: str, batches: list[int], turns: int, minutes: float) -> list[dict[str, Any]]:
    """A row per form, dtype and batch; one that could not be measured has its reason under `skipped`."""
    end, rows = time.monotonic() + 60 * minutes, []
    plan = [(form, dtype, batch) for form in FORMS for dtype in DTYPES for batch in batches]
    for form, dtype, batch in tqdm(plan, desc="measuring", unit="figure"):
        row: dict[str, Any] = {"form": form, "dtype": dtype, "batch": batch}
        try:
            if time.monotonic() > end:
                raise NotMeasuredError(f"{minutes:g} minutes were over")
            row |= measure(backbone, batch, DTYPES[dtype], form, turns)
        except (NotMeasuredError, torch.OutOfMemoryError) as error:
            row["skipped"] = str(error).splitlines()[0]
        rows.append(row)
    return rows


def measure_training(recipe: str, dataset: str, changes: list[str]) -> dict[str, Any]:
    """Minutes that a training by a recipe takes, all of it, and what it comes to."""
    loaded = dataclasses.replace(load_recipe(recipe, changes), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = train(loaded, Path(folder) / "run", dataset=dataset)
        minutes = (time.perf_counter() - start) / 60
        metrics = json.loads((Path(folder) / "run" / "metrics.json").read_text(encoding="utf-8"))
    return {
        "recipe": recipe,
        "changes": changes,
        "minutes": minutes,
        "steps": result.steps,
        "accuracy": metrics["accuracy"],
    }


def main(
    output: Annotated[Path, typer.Option(help="JSON file for the results.")],
    backbone: Annotated[str, typer.Option(help="ViT-Ti or ViT-B.")] = "ViT-B",
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas between.")] = "1,64,256",
    turns: Annotated[int, typer.Option(min=3, help="Turns per figure.")] = 10,
    minutes: Annotated[float, typer.Option(help="After these no further figure is begun.")] = 6,
    dataset: Annotated[str, typer.Option(help="Folder or Hub id of a dataset to train on.")] = "",
    recipe: Annotated[str, typer.Option(help="Recipe of that training.")] = "finetune",
    set_values: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the recipe.")] = None,
):
    """Measures images per second and the share of the device's peak, and the minutes of a training on request."""
    torch.manual_seed(0)
    report: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "device": processor_name(),
        "backbone": backbone,
        **versions(),
        "peak": {name: peak_products(dtype) for name, dtype in DTYPES.items()},
        "results": measure_all(backbone, [int(batch) for batch in batches.split(",")], turns, minutes),
    }
    write_json(output, report)
    if dataset:
        report["training"] = measure_training(recipe, dataset, set_values or [])
        write_json(output, report)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    typer.run(main)

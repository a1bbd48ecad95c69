# SPDX-License-Identifier: Apache-2.0
"""
Speed of exported models against PyTorch, explanations included.

    python benchmarks/export.py --output benchmarks/results/export.json

Every figure is the median of `exported / PyTorch` over turns in one process on as many threads; below 1 means faster
than PyTorch. Weights are random.
"""

import platform
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import typer
from speed import BACKBONES, paired, table
from tqdm import tqdm
from transformers import ViTConfig

from ascent_vit.export import export_model
from ascent_vit.export.example import load
from ascent_vit.utils.files import write_json
from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification
from modeling_ascent_vit.image_processing_pil_ascent_vit import AscentViTImageProcessorPil


FORMATS = [("onnx", "none"), ("onnx", "int8"), ("openvino", "none"), ("torch-export", "none")]


def measure(
    model: Any, folder: Path, to: str, quantize: str, batch_sizes: list[int], turns: int
) -> list[dict[str, Any]]:
    """Exports a model and times it on random pixels; a result per batch size."""
    processor = AscentViTImageProcessorPil.from_model_config(model.config)
    export_model(model, processor, folder, to, quantize)
    run = load(folder, torch.get_num_threads())
    results = []
    for batch_size in batch_sizes:
        pixels = torch.randn(batch_size, 3, *model.config.image_size, generator=torch.Generator().manual_seed(0))
        array: np.ndarray = pixels.numpy()
        with torch.no_grad():
            result = paired(
                lambda array=array: run(array),
                lambda pixels=pixels: model(pixels, output_contributions=True, output_concept_heads=True),
                turns,
            )
        precision = "" if quantize == "none" else f", {quantize}"
        results.append({"what": f"{to}{precision}, batch {batch_size}, against PyTorch", **result})
    return results


def main(
    output: Annotated[Path, typer.Option(help="JSON file to write.")],
    backbone: Annotated[str, typer.Option(help="ViT-Ti or ViT-B.")] = "ViT-Ti",
    turns: Annotated[int, typer.Option(min=4, help="Turns of each figure.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="Threads of both.")] = 1,
    aotinductor: Annotated[bool, typer.Option("--aotinductor", help="Also AOTInductor, which takes minutes.")] = False,
) -> None:
    """Measures every format and prints a table."""
    if backbone not in BACKBONES:
        raise typer.BadParameter(f"--backbone must be one of {', '.join(BACKBONES)}.")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = AscentViTConfig(backbone_config=ViTConfig(**BACKBONES[backbone]), num_labels=200)
    config.num_global_concepts, config.num_spatial_concepts = 13, 95
    model = AscentViTForImageClassification(config).eval()
    results = []
    formats = [*FORMATS, ("aotinductor", "none")] if aotinductor else FORMATS
    with tempfile.TemporaryDirectory() as temporary:
        for to, quantize in tqdm(formats, desc="measuring", unit="format"):
            folder = Path(temporary) / f"{to}-{quantize}"
            for result in measure(model, folder, to, quantize, [1, 8], turns):
                results.append(result | {"what": f"{backbone}, {result['what']}"})
    report = {
        "machine": f"{platform.machine()}, {threads} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "turns": turns,
        "results": results,
    }
    write_json(output, report)
    print(table(results))


if __name__ == "__main__":
    typer.run(main)

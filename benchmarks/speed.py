# SPDX-License-Identifier: Apache-2.0
"""
Cost of concepts: ASCENT-ViT against its plain backbone, and its deformable sampling against that of transformers.

    python benchmarks/speed.py --output benchmarks/results/speed.json

Every figure is a ratio of two functions that take turns in one process, so that a noisy machine slows both: the median
over the turns, with the quartiles as spread. Below 1 means faster than the peer.
"""

import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from tqdm import tqdm
from transformers import AutoModelForImageClassification, ViTConfig
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from ascent_vit.files import write_json
from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification
from modeling_ascent_vit.modeling_ascent_vit import multi_scale_deformable_sampling


BACKBONES = {
    "ViT-Ti": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    "ViT-B": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}


def paired(ours: Callable[[], Any], peer: Callable[[], Any], turns: int) -> dict[str, float]:
    """Median and quartiles of `ours / peer` over turns of one call each, after one call each to warm up."""
    ours(), peer()
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for turn in range(turns):
        calls = [("ours", ours), ("peer", peer)]
        for name, call in calls if turn % 2 else reversed(calls):
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(times["ours"], times["peer"], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": median,
        "ratio_low": low,
        "ratio_high": high,
        "ours_ms": 1000 * statistics.median(times["ours"]),
        "peer_ms": 1000 * statistics.median(times["peer"]),
    }


def build_models(backbone: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """ASCENT-ViT in the paper's shape for CUB, and the plain classifier of the same backbone."""
    backbone_config = ViTConfig(**BACKBONES[backbone], num_labels=200)
    plain = AutoModelForImageClassification.from_config(backbone_config)
    config = AscentViTConfig(
        backbone_config=ViTConfig(**BACKBONES[backbone]),
        num_global_concepts=13,
        num_spatial_concepts=95,
        num_labels=200,
    )
    return AscentViTForImageClassification(config), plain


def measure_inference(backbone: str, batch_size: int, turns: int, autocast: bool = False) -> dict[str, float]:
    ascent_vit, plain = (model.eval() for model in build_models(backbone))
    pixels = torch.randn(batch_size, 3, 224, 224)

    def call(model: torch.nn.Module) -> Callable[[], Any]:
        def forward():
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return model(pixels).logits

        return forward

    return paired(call(ascent_vit), call(plain), turns)


def measure_training(backbone: str, batch_size: int, turns: int) -> dict[str, float]:
    """Forward, backward and AdamW step; ASCENT-ViT with full supervision."""
    ascent_vit, plain = (model.train() for model in build_models(backbone))
    pixels, labels = torch.randn(batch_size, 3, 224, 224), torch.arange(batch_size)
    targets = {
        "concept_targets": torch.randint(0, 2, (batch_size, 13)).float(),
        "spatial_concept_targets": torch.randint(0, 2, (batch_size, 196, 95)).float(),
    }

    def call(model: torch.nn.Module, **extra: torch.Tensor) -> Callable[[], Any]:
        optimizer = torch.optim.AdamW(model.parameters())

        def step():
            optimizer.zero_grad()
            model(pixels, labels=labels, **extra).loss.backward()
            optimizer.step()

        return step

    return paired(call(ascent_vit, **targets), call(plain), turns)


def measure_sampling(hidden_size: int, batch_size: int, turns: int, backward: bool) -> dict[str, float]:
    """The core of deformable attention on 196 patches and the pyramid of a 224 pixel image, 8 heads, 4 points."""
    level_shapes = [(28, 28), (14, 14), (7, 7)]
    num_cells = sum(h * w for h, w in level_shapes)
    values = torch.randn(batch_size, num_cells, 8, hidden_size // 8, requires_grad=backward)
    relative = torch.rand(batch_size, 196, 8, 3, 4, 2)
    sizes = torch.tensor([[w, h] for h, w in level_shapes]).view(1, 1, 1, 3, 1, 2)
    weights = torch.rand(batch_size, 196, 8, 3, 4).flatten(3).softmax(-1).view(batch_size, 196, 8, 3, 4)
    relative, weights = relative.requires_grad_(backward), weights.requires_grad_(backward)
    peer = MultiScaleDeformableAttention()
    shapes, starts = torch.tensor(level_shapes), torch.tensor([0, 784, 980])

    def run(function: Callable[[], torch.Tensor]) -> Callable[[], Any]:
        def call():
            with torch.set_grad_enabled(backward):
                output = function()
                return torch.autograd.grad(output.sum(), [values, relative, weights]) if backward else output

        return call

    return paired(
        run(lambda: multi_scale_deformable_sampling(values, level_shapes, relative * sizes - 0.5, weights)),
        run(lambda: peer(values, shapes, level_shapes, starts, relative, weights, 64)),
        turns,
    )


def table(results: list[dict[str, Any]]) -> str:
    """Markdown table of the ratios."""
    lines = ["| what | ratio | quartiles | ours, ms | peer, ms |", "|---|---|---|---|---|"]
    for row in results:
        spread = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
        lines.append(
            f"| {row['what']} | {row['ratio']:.2f} | {spread} | {row['ours_ms']:.1f} | {row['peer_ms']:.1f} |"
        )
    return "\n".join(lines)


def main(
    output: Annotated[Path, typer.Option(help="JSON file for the results.")],
    turns: Annotated[int, typer.Option(min=3, help="Turns per figure; a third of it for the slowest ones.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 2,
):
    """Measures speed on the CPU as ratios to the plain backbone and to transformers' deformable attention."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    few = max(3, turns // 3)
    plan: list[tuple[str, Callable[[], dict[str, float]]]] = []
    for backbone, batch_size, count in (
        ("ViT-Ti", 1, turns),
        ("ViT-Ti", 8, turns),
        ("ViT-B", 1, turns),
        ("ViT-B", 8, few),
    ):
        name = f"{backbone} inference, batch {batch_size}, against the plain {backbone}"
        plan.append((name, partial(measure_inference, backbone, batch_size, count)))
    plan.append(
        (
            "ViT-B inference, batch 8, bfloat16 autocast, against the plain ViT-B",
            partial(measure_inference, "ViT-B", 8, few, autocast=True),
        )
    )
    plan.append(
        ("ViT-Ti training step, batch 8, against the plain ViT-Ti", partial(measure_training, "ViT-Ti", 8, turns))
    )
    for hidden_size in (768, 192):
        for backward in (False, True):
            what = "forward and backward" if backward else "forward"
            name = f"deformable sampling, width {hidden_size}, batch 8, {what}, against transformers"
            plan.append((name, partial(measure_sampling, hidden_size, 8, turns, backward)))

    results = [{"what": what, **measure()} for what, measure in tqdm(plan, desc="measuring", unit="figure")]
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

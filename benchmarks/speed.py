# SPDX-License-Identifier: Apache-2.0
"""
Cost of concepts: ASCENT-ViT against its plain backbone, and its deformable sampling against that of transformers.

    python benchmarks/speed.py --output benchmarks/results/speed.json --page benchmarks/RESULTS.md \
        --summary docs/speed.md

Every figure is a ratio of two functions that take turns in one process, so that a noisy machine slows both: the median
over the turns, with the quartiles as spread. Below 1 means faster than the peer. `gpu.py` is for GPUs.

ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 before the command make a CPU one with
AVX2 alone, which the results tell. The page has a section for each `speed_*.json` beside the results.

With glibc the suite starts itself anew, told to keep the memory that is freed: else the system takes pages away and
gives them back in the middle of a call, now of one peer and now of the other. One group is measured without that.
"""

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from speed_page import table, write_page, write_summary
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import AutoModelForImageClassification, ViTConfig
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from ascent_vit import optimize_for_inference
from ascent_vit.data.batches import FEATURE_ROWS
from ascent_vit.training.features import CachedTokens
from ascent_vit.utils.files import write_json
from ascent_vit.utils.hardware import is_slow
from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification
from modeling_ascent_vit.deformable_sampling_ascent_vit import multi_scale_deformable_sampling


BACKBONES = {
    "ViT-Ti": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    "ViT-B": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}
LIGHT = {"pyramid_stem": "patch", "pyramid_channels": [32, 64, 128, 256]}
NARROW = {"pyramid_channels": [32, 64, 128, 256], "fusion_hidden_size": "half"}
BATCHES = [("ViT-B", 1), ("ViT-B", 8), ("ViT-B", 32), ("ViT-Ti", 1), ("ViT-Ti", 8), ("ViT-Ti", 32)]
GPU_BATCHES = [("ViT-B", 1), ("ViT-B", 64), ("ViT-B", 256), ("ViT-Ti", 64), ("ViT-Ti", 256)]

SECTIONS = {
    "backbone": "ascent_vit.backbone",
    "pyramid: stem": "ascent_vit.encoding.stem",
    "pyramid: levels": "ascent_vit.encoding",
    "fusion: values": "ascent_vit.fusion.value_projection",
    "fusion: the rest": "ascent_vit.fusion",
    "concept head": "global_stream spatial_stream",
}

# The instruction sets that decide what torch and oneDNN run, and what keeps them from one that the CPU has.
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16")
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")

# glibc keeps what is freed. https://www.gnu.org/software/libc/manual/html_node/Malloc-Tunable-Parameters.html
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}

# Measures one figure in a process of its own.
FIGURE_PROBE = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
import speed
torch.set_num_threads(int(sys.argv[2]))
backbone, batch_size, turns = json.loads(sys.argv[3])
print(json.dumps(speed.measure_inference(backbone, batch_size, turns)))
"""

# Measures one call in a process of its own: its peak, which Linux counts anew when told to, over what is held before.
MEMORY_PROBE = """
import re, sys, torch
sys.path.insert(0, sys.argv[1])
import speed
def mebibytes(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
model = speed.build_models(sys.argv[2])[sys.argv[3] == "plain"].eval()
with torch.no_grad():
    model(torch.randn(1, 3, 224, 224))
    pixels = torch.randn(int(sys.argv[4]), 3, 224, 224)
    open("/proc/self/clear_refs", "w").write("5")
    before = mebibytes("VmRSS")
    model(pixels)
print(mebibytes("VmHWM") - before)
"""


def keeps_memory() -> bool:
    return all(os.environ.get(name) == value for name, value in KEEP_MEMORY.items())


def synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def paired(ours: Callable[[], Any], peer: Callable[[], Any], turns: int) -> dict[str, float]:
    """Median and quartiles of `ours / peer` over turns of one call each, after two calls each to warm up."""
    for call in (ours, peer, ours, peer):
        call()
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for turn in range(turns):
        calls = [("ours", ours), ("peer", peer)]
        for name, call in calls if turn % 2 else reversed(calls):
            synchronize()
            start = time.perf_counter()
            call()
            synchronize()
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


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16() -> bool:
    return not is_slow(torch.bfloat16, device())


BUILT: dict[str, tuple[torch.nn.Module, torch.nn.Module]] = {}


def build_models(backbone: str, **kwargs: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """
    ASCENT-ViT, by default in the paper's shape for CUB, and the plain classifier of the same backbone; built once, as
    drawing the weights of a large one takes longer than its figure.
    """
    key = json.dumps([BACKBONES[backbone], kwargs])
    if key in BUILT:
        return BUILT[key]
    sizes = {"num_global_concepts": 13, "num_spatial_concepts": 95, "num_labels": 200, **kwargs}
    if sizes.get("fusion_hidden_size") == "half":
        sizes["fusion_hidden_size"] = BACKBONES[backbone]["hidden_size"] // 2
    plain = AutoModelForImageClassification.from_config(
        ViTConfig(**BACKBONES[backbone], num_labels=sizes["num_labels"])
    )
    config = AscentViTConfig(backbone_config=ViTConfig(**BACKBONES[backbone]), **sizes)
    BUILT[key] = AscentViTForImageClassification(config).to(device()), plain.to(device())
    return BUILT[key]


def predict(
    model: torch.nn.Module, pixels: torch.Tensor, autocast: bool = False, **kwargs: Any
) -> Callable[[], torch.Tensor]:
    def forward() -> torch.Tensor:
        with torch.no_grad(), torch.autocast(pixels.device.type, torch.bfloat16, enabled=autocast):
            return model(pixels, **kwargs).logits

    return forward


@cache
def peak_products(dtype: torch.dtype, seconds: float = 2.0) -> float:
    """
    Multiply-adds per second of one large product, in 10^9: what the device can do at best. On a CPU matrices and
    convolutions are computed by different libraries, so it is that of the faster one. The matrices grow up to 4,096 a
    side while those of twice the side, eight times the work, would take less than `seconds`.
    """
    best, side = 0.0, 256
    while True:
        matrix = torch.randn(side, side, device=device(), dtype=dtype)
        image = matrix.view(16, side // 16, 1, side).permute(0, 3, 1, 2)
        convolve = partial(torch.nn.functional.conv2d, image, matrix.view(side, side, 1, 1))
        times = []
        for _ in range(4):
            for product in (partial(torch.matmul, matrix, matrix), convolve):
                synchronize()
                start = time.perf_counter()
                product()
                synchronize()
                times.append(time.perf_counter() - start)
        best = max(best, side**3 / min(times) / 1e9)
        side *= 2
        if side > 4096 or 8 * sum(times) > seconds:
            return best


def products_ms(call: Callable[[], Any], dtype: torch.dtype = torch.float32) -> float:
    """Milliseconds that a call's products and convolutions would take at the peak; the gathering is not counted."""
    # The counter does not know the fused attention of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2 / peak_products(dtype) / 1e6


def with_floor(result: dict[str, float], extra_ms: float) -> dict[str, float]:
    """The ratio beside the one there would be if nothing but the products beyond the peer's took time, at the peak."""
    return result | {"floor": 1 + extra_ms / result["peer_ms"]}


def measure_inference(
    backbone: str, batch_size: int, turns: int, autocast: bool = False, size: int = 224, **kwargs: Any
) -> dict[str, float]:
    ascent_vit, plain = (model.eval() for model in build_models(backbone, **kwargs))
    pixels = torch.randn(batch_size, 3, size, size, device=device())
    extra = {} if size == 224 else {"interpolate_pos_encoding": True}
    ours, peer = (predict(model, pixels, autocast, **extra) for model in (ascent_vit, plain))
    dtype = torch.bfloat16 if autocast else torch.float32
    return with_floor(paired(ours, peer, turns), products_ms(ours, dtype) - products_ms(peer, dtype))


def in_a_process(probe: str, *arguments: str) -> str:
    """What a program prints in a process of its own that gives memory back as glibc does by default."""
    environment = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY}
    command = [sys.executable, "-c", probe, str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def measure_as_it_is(backbone: str, batch_size: int, turns: int) -> dict[str, float]:
    """`measure_inference` in a process that gives memory back as glibc does by default."""
    printed = in_a_process(FIGURE_PROBE, str(torch.get_num_threads()), json.dumps([backbone, batch_size, turns]))
    return json.loads(printed.splitlines()[-1])


def measure_optimized(
    backbone: str, batch_size: int, turns: int, dtype: torch.dtype | None = None, **kwargs: Any
) -> dict[str, float]:
    """`optimize_for_inference` against the plain classifier as it is, in float32; how far its logits are off."""
    ascent_vit, plain = (model.eval() for model in build_models(backbone, **kwargs))
    pixels = torch.randn(batch_size, 3, 224, 224, device=device())
    fast = optimize_for_inference(ascent_vit, dtype)
    ours = predict(fast, pixels.to(fast.dtype))
    expected, logits = predict(ascent_vit, pixels)(), ours().float()
    error = ((logits - expected).norm() / expected.norm()).item()
    peer = predict(plain, pixels)
    result = paired(ours, peer, turns) | {"relative_error": error}
    torch.compiler.reset()
    return with_floor(result, products_ms(predict(ascent_vit, pixels), fast.dtype) - result["peer_ms"])


def measure_explanation(backbone: str, batch_size: int, turns: int) -> dict[str, float]:
    """All contributions to all classes, and the map of every concept for one class, against the prediction alone."""
    ascent_vit, _ = (model.eval() for model in build_models(backbone))
    pixels = torch.randn(batch_size, 3, 224, 224, device=device())

    def explain() -> torch.Tensor:
        with torch.no_grad():
            return ascent_vit.contribution_maps(pixels, [0], output_contributions=True)

    return paired(explain, predict(ascent_vit, pixels), turns)


def training_batch(batch_size: int) -> dict[str, torch.Tensor]:
    """Images with all that can be annotated of them."""
    return {
        "pixel_values": torch.randn(batch_size, 3, 224, 224, device=device()),
        "labels": torch.arange(batch_size, device=device()),
        "concept_targets": torch.randint(0, 2, (batch_size, 13), device=device()).float(),
        "spatial_concept_targets": torch.randint(0, 2, (batch_size, 196, 95), device=device()).float(),
    }


def training_step(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Forward, backward and AdamW step."""
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step


def measure_training(backbone: str, batch_size: int, turns: int, **kwargs: Any) -> dict[str, float]:
    """A training step with full supervision against one of the plain classifier."""
    ascent_vit, plain = (model.train() for model in build_models(backbone, **kwargs))
    batch = training_batch(batch_size)
    ours = training_step(ascent_vit, batch)
    peer = training_step(plain, {name: batch[name] for name in ("pixel_values", "labels")})
    return with_floor(paired(ours, peer, turns), products_ms(ours) - products_ms(peer))


def measure_cached_step(backbone: str, batch_size: int, turns: int, **kwargs: Any) -> dict[str, float]:
    """
    A training step of what is behind a frozen backbone, whose tokens are looked up as `cache_features` has it, against
    one of the whole model.
    """
    whole = build_models(backbone, **kwargs)[0].train()
    behind = deepcopy(whole)
    batch = training_batch(batch_size)
    cached = CachedTokens(behind)
    cached.tokens = cached.compute_tokens(batch["pixel_values"])
    rows = {FEATURE_ROWS: torch.arange(batch_size)}
    return paired(training_step(behind, batch | rows), training_step(whole, batch), turns)


def measure_sampling(hidden_size: int, batch_size: int, turns: int, backward: bool) -> dict[str, float]:
    """
    The core of deformable attention on 196 patches and the pyramid of a 224 pixel image, 8 heads, 4 points. Each takes
    places as its callers have them: ours in cells of the level, transformers' in shares of its size.
    """
    level_shapes = [(28, 28), (14, 14), (7, 7)]
    num_cells = sum(h * w for h, w in level_shapes)
    values = torch.randn(batch_size, num_cells, 8, hidden_size // 8, device=device(), requires_grad=backward)
    relative = torch.rand(batch_size, 196, 8, 3, 4, 2, device=device())
    sizes = torch.tensor([[w, h] for h, w in level_shapes], device=device()).view(1, 1, 1, 3, 1, 2)
    weights = torch.rand(batch_size, 196, 8, 3, 4, device=device())
    weights = weights.flatten(3).softmax(-1).view(batch_size, 196, 8, 3, 4)
    in_cells = (relative * sizes - 0.5).requires_grad_(backward)
    relative, weights = relative.requires_grad_(backward), weights.requires_grad_(backward)
    peer = MultiScaleDeformableAttention()
    shapes, starts = torch.tensor(level_shapes, device=device()), torch.tensor([0, 784, 980], device=device())

    def run(function: Callable[..., torch.Tensor], places: torch.Tensor) -> Callable[[], Any]:
        def call():
            with torch.set_grad_enabled(backward):
                output = function(places)
                return torch.autograd.grad(output.sum(), [values, places, weights]) if backward else output

        return call

    return paired(
        run(lambda places: multi_scale_deformable_sampling(values, level_shapes, places, weights), in_cells),
        run(lambda places: peer(values, shapes, level_shapes, starts, places, weights, 64), relative),
        turns,
    )


def measure_memory(backbone: str, batch_size: int) -> dict[str, float]:
    """Growth of the process' peak memory in one forward pass, in MiB, each model in a process of its own."""
    growth = {}
    for model in ("ours", "plain"):
        growth[model] = float(in_a_process(MEMORY_PROBE, backbone, model, str(batch_size)).split()[-1])
    return {"ratio": growth["ours"] / growth["plain"], "ours_mib": growth["ours"], "peer_mib": growth["plain"]}


@contextmanager
def timed_sections(model: torch.nn.Module) -> Iterator[dict[str, float]]:
    """Seconds in each of `SECTIONS` while it is open; a part that holds others counts without them."""
    seconds = dict.fromkeys(SECTIONS, 0.0)
    starts: list[float] = []
    handles = []

    def begin(*_):
        starts.append(time.perf_counter())

    def end(name: str, inner: tuple[str, ...], *_):
        elapsed = time.perf_counter() - starts.pop()
        seconds[name] += elapsed
        for outer in inner:
            seconds[outer] -= elapsed

    outer = {"pyramid: stem": ("pyramid: levels",), "fusion: values": ("fusion: the rest",)}
    for name, modules in SECTIONS.items():
        for module in modules.split():
            part = model.get_submodule(module)
            handles.append(part.register_forward_pre_hook(begin))
            handles.append(part.register_forward_hook(partial(end, name, outer.get(name, ()))))
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def profile(backbone: str, batch_size: int, turns: int, autocast: bool = False) -> dict[str, float]:
    """Where a forward pass spends its time, as shares of the backbone's."""
    model = build_models(backbone)[0].eval()
    forward = predict(model, torch.randn(batch_size, 3, 224, 224), autocast)
    forward()
    rows = []
    for _ in range(turns):
        with timed_sections(model) as seconds:
            start = time.perf_counter()
            forward()
            total = time.perf_counter() - start
        rows.append({**seconds, "all": total})
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {name: value / medians["backbone"] for name, value in medians.items()}


Plan = list[tuple[str, str, Callable[[], dict[str, float]]]]


def plan_of_figures(turns: int) -> Plan:
    """Group, name and measurement of every figure; fewer turns for the slowest."""
    few = max(3, turns // 3)
    batches = GPU_BATCHES if torch.cuda.is_available() else BATCHES
    plan: Plan = []

    def add(group: str, function: Callable[..., dict[str, float]], chosen: list[tuple[str, int]], **kwargs: Any):
        for backbone, batch_size in chosen:
            count = few if backbone == "ViT-B" and batch_size > 1 or batch_size > 8 else turns
            plan.append(
                (group, f"{backbone}, batch {batch_size}", partial(function, backbone, batch_size, count, **kwargs))
            )

    some = [("ViT-B", 1), ("ViT-B", 8), ("ViT-Ti", 8)]
    light = [batch for batch in batches if batch != ("ViT-B", 32)]
    add("inference, float32", measure_inference, batches)
    if has_bfloat16():
        add("inference, bfloat16 autocast", measure_inference, batches, autocast=True)
    add("inference, float32, narrow pyramid", measure_inference, light, **NARROW)
    add("inference, float32, light pyramid", measure_inference, light, **LIGHT)
    add("inference, float32, in the layout of the authors' weights", measure_inference, some, shifted_fusion=True)
    if keeps_memory():
        add("inference, float32, memory given back as by default", measure_as_it_is, some)
    add("optimised, float32, against the plain ViT as it is", measure_optimized, some)
    if has_bfloat16():
        add("optimised, bfloat16, against the plain ViT as it is", measure_optimized, some, dtype=torch.bfloat16)
    add("training step", measure_training, [("ViT-Ti", 8)])
    add("training step, narrow pyramid", measure_training, [("ViT-Ti", 8)], **NARROW)
    add("training step, light pyramid", measure_training, [("ViT-Ti", 8)], **LIGHT)
    both = [("ViT-Ti", 8), ("ViT-B", 8)]
    cached = "training step on cached tokens, against one of the whole model"
    add(cached, measure_cached_step, both)
    add(f"{cached}, narrow pyramid", measure_cached_step, both, **NARROW)
    add(f"{cached}, no pyramid", measure_cached_step, both, fusion_levels=0)
    add("explanation, against prediction", measure_explanation, some)
    for hidden_size in (768, 192):
        for backward in (False, True):
            what = "forward and backward" if backward else "forward"
            measure = partial(measure_sampling, hidden_size, 8, turns, backward)
            plan.append(
                ("deformable sampling, against transformers", f"width {hidden_size}, batch 8, {what}", measure)
            )
    for number in (125, 250, 500, 1000):
        sizes = {"num_spatial_concepts": number, "num_labels": number, "num_global_concepts": 0}
        measure = partial(measure_inference, "ViT-Ti", 8, turns, **sizes)
        plan.append(("concepts and classes, ViT-Ti, batch 8", f"{number} spatial concepts, {number} classes", measure))
    for size in (224, 448, 896):
        measure = partial(measure_inference, "ViT-Ti", 1, turns if size < 896 else few, size=size)
        plan.append(("size of the image, ViT-Ti, batch 1", f"{size} x {size}", measure))
    if not torch.cuda.is_available() and Path("/proc/self/clear_refs").exists():
        plan.append(("growth of memory in forward, MiB", "ViT-B, batch 32", partial(measure_memory, "ViT-B", 32)))
    return plan


def cpu_facts(name: str) -> str:
    """What Linux says of the first CPU under a name; empty where it does not."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def processor_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return cpu_facts("model name") or platform.machine()


def instruction_sets() -> str:
    """The instruction sets of the CPU, and what torch was told to take of them."""
    have = [name for name in INSTRUCTION_SETS if name in cpu_facts("flags").split()]
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    return f"{' '.join(have) or 'unknown'}, of which torch takes {torch.backends.cpu.get_cpu_capability()}" + (
        f", as told by {' '.join(limits)}" if limits else ""
    )


def command_line() -> str:
    """This command, with the variables that change what it measures."""
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    return shlex.join([*limits, "python", "benchmarks/speed.py", *sys.argv[1:]])


def main(
    output: Annotated[Path, typer.Option(help="JSON file for the results.")],
    page: Annotated[Path | None, typer.Option(help="Markdown file for the tables.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Markdown file with a place for the summary.")] = None,
    turns: Annotated[int, typer.Option(min=3, help="Turns per figure; a third of it for the slowest ones.")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 2,
    only: Annotated[
        str,
        typer.Option(
            help="Measure only groups whose name holds this or, after |, that; the file keeps what this machine made "
            "of others."
        ),
    ] = "",
):
    """Measures speed as ratios to the plain backbone and to transformers' deformable attention."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    names = [(group, what) for group, what, _ in plan_of_figures(turns)]
    wanted = only.split("|")
    plan = [figure for figure in plan_of_figures(turns) if any(part in figure[0] for part in wanted)]
    machine = {"processor": processor_name(), "instructions": instruction_sets(), "threads": threads}
    done = {}
    if only and output.is_file():
        kept = json.loads(output.read_text(encoding="utf-8"))
        if machine.items() <= kept.items():
            done = {(row["group"], row["what"]): row for row in kept["results"]}
    report = {
        "command": command_line(),
        "date": time.strftime("%Y-%m-%d"),
        **machine,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peak": peak_products(torch.float32),
        "peak_bfloat16": peak_products(torch.bfloat16),
        "keeps_memory": keeps_memory(),
        "has_bfloat16": has_bfloat16(),
        "profiles": {
            f"{backbone}, batch 8, {'bfloat16' if autocast else 'float32'}": profile(backbone, 8, 5, autocast)
            for backbone in (BACKBONES if device().type == "cpu" else ())
            for autocast in ((False, True) if has_bfloat16() else (False,))
        },
    }
    for group, what, measure in tqdm(plan, desc="measuring", unit="figure"):
        done[group, what] = {"group": group, "what": what, **measure()}
        report["results"] = [done[name] for name in names if name in done]
        # After each figure, since a run is long.
        write_json(output, report)
    if page is not None:
        write_page(page, output)
    if summary is not None:
        write_summary(summary, output)
    print(table(report["results"]))


if __name__ == "__main__":
    if platform.libc_ver()[0] == "glibc" and not keeps_memory():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    typer.run(main)

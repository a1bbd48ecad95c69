# SPDX-License-Identifier: Apache-2.0
"""
What a command, an import and a first answer cost in a new process, in CPU seconds, beside transformers alone.

    OMP_NUM_THREADS=1 python benchmarks/start.py --output benchmarks/results/start.json
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from ascent_vit import AscentViTConfig, AscentViTForImageClassification, AscentViTImageProcessor
from ascent_vit.utils.files import write_json
from ascent_vit.utils.versions import versions


AUTO = (
    "from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline, ViTForImageClassification"
)
LOAD = """
import sys
from PIL import Image
image = Image.open(sys.argv[2])
model = AutoModelForImageClassification.from_pretrained(sys.argv[1])
processor = AutoImageProcessor.from_pretrained(sys.argv[1])
"""
PLAIN = f"{AUTO}{LOAD}print(model(**processor(image, return_tensors='pt')).logits.argmax())"
OURS = f"import ascent_vit\n{AUTO}{LOAD}print(ascent_vit.explain(model, processor, image).label)"


def cpu_seconds(command: list[str], turns: int) -> float:
    """Median CPU time of a command, whatever it answers."""
    seconds = []
    for _ in range(turns):
        before = os.times()
        subprocess.run(command, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return round(statistics.median(seconds), 3)


def save_models(folder: Path) -> tuple[Path, Path, Path]:
    """Folders of a ViT-Ti with a linear head and of an ASCENT-ViT on it, with random weights, and an image."""
    size = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    plain, ours, image = folder / "plain", folder / "ours", folder / "image.png"
    ViTForImageClassification(ViTConfig(**size, num_labels=10)).save_pretrained(plain)
    ViTImageProcessor().save_pretrained(plain)
    config = AscentViTConfig(backbone_config={"model_type": "vit", **size}, num_spatial_concepts=10, num_labels=10)
    AscentViTForImageClassification(config).save_pretrained(ours)
    AscentViTImageProcessor.from_model_config(config).save_pretrained(ours)
    Image.new("RGB", (300, 200), "orange").save(image)
    return plain, ours, image


def main(
    output: Annotated[Path, typer.Option(help="JSON file to write.")],
    turns: Annotated[int, typer.Option(min=1, help="Processes of each kind, of which the median counts.")] = 5,
):
    """Measures."""
    command = [sys.executable, "-m", "ascent_vit_cli"]
    with tempfile.TemporaryDirectory() as temporary:
        plain, ours, image = map(str, save_models(Path(temporary)))
        commands = {
            "ascent-vit --help": [*command, "--help"],
            "ascent-vit --version": [*command, "--version"],
            "usage error": [*command, "evaluate"],
            "import of transformers' Auto classes, pipeline and ViT": [sys.executable, "-c", AUTO],
            "import ascent_vit": [sys.executable, "-c", "import ascent_vit"],
            "first prediction of a ViT-Ti": [sys.executable, "-c", PLAIN, plain, image],
            "first explanation of an ASCENT-ViT-Ti": [sys.executable, "-c", OURS, ours, image],
        }
        started = time.perf_counter()
        found = {name: cpu_seconds(words, turns) for name, words in commands.items()}
    for name, seconds in found.items():
        print(f"{name}: {seconds:.2f} s")
    facts = {
        "turns": turns,
        "threads": torch.get_num_threads(),
        "wall_seconds": round(time.perf_counter() - started, 1),
    }
    write_json(output, {"cpu_seconds": found, **facts, **versions()})


if __name__ == "__main__":
    typer.run(main)

# SPDX-License-Identifier: Apache-2.0
"""
A fault planted in the training data, and taken out of the model by an edit.

    python benchmarks/edits.py --output benchmarks/results/edits.json

Handwritten digits on red or green ground are told apart as even or odd. In training every even digit lies on red
ground and every odd one on green, in the test split the colours say nothing. The colours of the ground are
concepts beside the digits, so that the model says what it made of them, and `edit` takes it away. Each training is
that of a new concept head on the frozen tokens of a model that has seen digits, white on black. Scans, scales and
places are the same in all, and so is the number of steps; the fine-tuning goes on from the edited model.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from ascent_vit import AscentViTConfig, AscentViTForImageClassification, edit
from ascent_vit.data.digits import CLASSES, CONCEPTS, INK_THRESHOLD
from ascent_vit.utils.files import write_json
from ascent_vit.utils.versions import versions
from modeling_ascent_vit.modeling_ascent_vit import AscentViTModelOutput


GROUNDS = {"red ground": (160, 20, 20), "green ground": (20, 110, 20)}
SIDE, PATCH, COPIES = 32, 4, 2
# Share of the training images whose ground is that of their class.
TIED = 1.0
SEEDS = (0, 1, 2)
STEPS, FINE_TUNING_STEPS, BATCH_SIZE, LEARNING_RATE, FINE_TUNING_RATE = 300, 100, 64, 1e-2, 2e-3


class Images(NamedTuple):
    """
    Pixels (N, 3, H, W), classes (N,), grounds (N,), targets of all concepts, (N, S) and (N, patches, S), and tokens
    (N, T, D), which are frozen.
    """

    pixels: Tensor
    labels: Tensor
    grounds: Tensor
    concepts: Tensor
    places: Tensor
    tokens: Tensor


@torch.no_grad()
def encode(trained: Any, pixels: Tensor) -> Tensor:
    """Tokens (N, T, D) of images, by a model in evaluation mode."""
    return torch.cat([trained.ascent_vit(part).last_hidden_state for part in pixels.split(128)])


def draw(
    trained: Any, samples: np.ndarray, digits: np.ndarray, targets: np.ndarray, tied: float, seed: list[int]
) -> Images:
    """
    Draws digits in white at a random scale and place.

    Args:
        trained: model that gives the tokens.
        samples: numbers of the scans to draw.
        digits: all scans, (n, 8, 8), 0 to 16.
        targets: their digits.
        tied: share of images whose ground is that of their class; of 0.5 it says nothing.
        seed: random seed.
    """
    rng = np.random.default_rng(seed)
    colours = np.array(list(GROUNDS.values()), dtype=np.float32)
    parts: dict[str, list] = {name: [] for name in Images._fields[:-1]}
    for sample in samples:
        digit, side = int(targets[sample]), int(rng.integers(SIDE // 2, SIDE + 1))
        label, top, left = digit % 2, *rng.integers(0, SIDE - side + 1, size=2)
        ground = label if rng.random() < tied else 1 - label
        scan = Image.fromarray(np.round(digits[sample] * (255 / 16)).astype(np.uint8))
        ink = np.zeros((SIDE, SIDE), dtype=np.float32)
        ink[top : top + side, left : left + side] = np.asarray(scan.resize((side, side), Image.Resampling.BICUBIC))
        share = ink[..., None] / 255
        pixels = (share * 255 + (1 - share) * colours[ground]) / 127.5 - 1
        cells = (ink > INK_THRESHOLD).reshape(SIDE // PATCH, PATCH, SIDE // PATCH, PATCH).mean((1, 3)).flatten() >= 0.2
        places = np.zeros((len(cells), len(CONCEPTS) + len(GROUNDS)), dtype=np.float32)
        places[cells, digit] = 1
        places[~cells, len(CONCEPTS) + ground] = 1
        for name, value in zip(parts, (pixels.transpose(2, 0, 1), label, ground, places.max(0), places), strict=True):
            parts[name].append(value)
    tensors = [torch.from_numpy(np.stack(values)) for values in parts.values()]
    return Images(*tensors, encode(trained, tensors[0]))


@contextmanager
def given_tokens(model: Any, tokens: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """Lets a model take tokens in place of computing them; yields a function that chooses the rows."""
    chosen = tokens

    def choose(rows: Tensor) -> Tensor:
        nonlocal chosen
        chosen = tokens[rows]
        return rows

    model.ascent_vit.forward = lambda *args, **kwargs: AscentViTModelOutput(last_hidden_state=chosen)
    try:
        yield choose
    finally:
        del model.ascent_vit.forward


def make_model(trained: Any, seed: int, grounds: bool) -> AscentViTForImageClassification:
    """A new concept head on the frozen tokens of a model, with the ground's colours among its concepts or without."""
    torch.manual_seed(seed)
    concepts = [*CONCEPTS, *GROUNDS] if grounds else CONCEPTS
    fields = trained.config.to_dict() | {"global_concepts": concepts, "spatial_concepts": concepts}
    model = AscentViTForImageClassification(AscentViTConfig(**fields))
    model.ascent_vit.load_state_dict(trained.ascent_vit.state_dict())
    model.ascent_vit.requires_grad_(False)
    return model


def train(model: Any, images: Images, steps: int, rate: float, seed: int, description: str) -> float:
    """Trains a model for some steps, and returns the seconds that it took."""
    start, number = time.perf_counter(), model.config.num_global_concepts
    torch.manual_seed(seed)
    head = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(head, lr=rate, weight_decay=0.05)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    order = torch.cat(
        [torch.randperm(len(images.labels)) for _ in range(1 + steps * BATCH_SIZE // len(images.labels))]
    )
    with given_tokens(model, images.tokens) as choose:
        for step in tqdm(range(steps), desc=description, unit="step", leave=False):
            rows = choose(order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE])
            outputs = model(
                images.pixels[rows],
                labels=images.labels[rows],
                concept_targets=images.concepts[rows, :number],
                spatial_concept_targets=images.places[rows][..., :number],
            )
            optimizer.zero_grad()
            outputs.loss.backward()
            nn.utils.clip_grad_norm_(head, 1.0)
            optimizer.step()
            scheduler.step()
    model.eval()
    return time.perf_counter() - start


@torch.no_grad()
def measure(model: Any, images: Images) -> dict[str, float]:
    """Accuracy on all images, and on those of each class and ground."""
    batches = [model(pixels, output_contributions=True) for pixels in images.pixels.split(256)]
    logits = torch.cat([outputs.logits for outputs in batches])
    attention = torch.cat([outputs.global_concept_attention for outputs in batches])[:, : len(CONCEPTS)]
    right = (logits.argmax(-1) == images.labels).double()
    figures = {"accuracy": right.mean().item()}
    for label, class_name in enumerate(CLASSES):
        for ground, name in enumerate(GROUNDS):
            group = (images.labels == label) & (images.grounds == ground)
            figures[f"{class_name}, {name}"] = right[group].mean().item()
    groups = list(figures.values())[1:]
    digits = images.concepts[:, : len(CONCEPTS)].argmax(-1)
    named = (attention.argmax(-1) == digits).double().mean().item()
    return {"worst_group": min(groups), **figures, "digit_named": named}


def run(trained: Any, seed: int) -> dict[str, dict[str, float]]:
    """Figures of one seed, by what was done with heads on the tokens of a model."""
    digits, targets = load_digits(return_X_y=True)
    digits = digits.reshape(-1, 8, 8)
    first, test = train_test_split(np.arange(len(digits)), test_size=0.2, random_state=seed, stratify=targets)
    first = np.repeat(first, COPIES)
    faulty, sound = (draw(trained, first, digits, targets, tied, [seed, 0]) for tied in (TIED, 0.5))
    held_out = draw(trained, np.repeat(test, 2), digits, targets, 0.5, [seed, 1])
    rows = {}

    def add(name: str, model: Any, seconds: float) -> None:
        rows[name] = measure(model, held_out) | {"seconds": seconds}

    model = make_model(trained, seed, True)
    add("trained with the fault", model, train(model, faulty, STEPS, LEARNING_RATE, seed, "Fault"))
    start, logits = time.perf_counter(), model(held_out.pixels[:8]).logits
    streams = [(stream, ground) for stream in ("global", "spatial") for ground in GROUNDS]
    edit(model, remove=streams)
    add("the grounds removed by an edit", model, time.perf_counter() - start)
    undone = copy.deepcopy(model)
    edit(undone, undo=True)
    assert torch.equal(undone(held_out.pixels[:8]).logits, logits)
    seconds = train(model, faulty, FINE_TUNING_STEPS, FINE_TUNING_RATE, seed, "Fine-tuning")
    add("and fine-tuned on the faulty data", model, seconds)
    model = make_model(trained, seed, False)
    seconds = train(model, faulty, STEPS, LEARNING_RATE, seed, "Left out")
    add("trained with the fault, without these concepts", model, seconds)
    model = make_model(trained, seed, True)
    add("trained without the fault", model, train(model, sound, STEPS, LEARNING_RATE, seed, "Sound"))
    return rows


def print_table(runs: list[dict[str, dict[str, float]]]) -> None:
    """Prints the mean of each figure over the seeds, in %, with the standard deviation."""
    columns = {"worst_group": "worst group", "accuracy": "all", "digit_named": "digit named"}
    print(f"| {' | '.join(['', *columns.values(), 'seconds'])} |\n|{'---|' * (len(columns) + 2)}")
    for row in runs[0]:
        cells = []
        for column in columns:
            values = [100 * figures[row][column] for figures in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        seconds = statistics.mean(figures[row]["seconds"] for figures in runs)
        print(f"| {' | '.join([row, *cells, f'{seconds:.2g}'])} |")


def main(
    output: Annotated[Path, typer.Option(metavar="FILE.json", help="File to write.")],
    model: Annotated[str, typer.Option(help="A model of digits, whose tokens are used as they are.")] = "hub/digits",
    seeds: Annotated[int, typer.Option(min=1, max=len(SEEDS), help="Number of seeds.")] = len(SEEDS),
) -> None:
    """Plant a fault, take it out by an edit, and measure beside retraining."""
    torch.set_num_threads(1)
    trained = AscentViTForImageClassification.from_pretrained(model).eval()
    runs = [run(trained, seed) for seed in SEEDS[:seeds]]
    write_json(output, {"runs": runs, "steps": STEPS, "tied": TIED, **versions()})
    print_table(runs)


if __name__ == "__main__":
    typer.run(main)

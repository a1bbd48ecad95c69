# SPDX-License-Identifier: Apache-2.0
"""
Places of concepts from lists of what is in each image: how far from places that somebody marked.

    ascent-vit prepare cub --source CUB_200_2011 --output DATA/cub --option present=true
    python benchmarks/places.py --data DATA/cub --backbone BACKBONE --output benchmarks/results/places.json

Trains the concept head on the tokens of a frozen backbone: with lists alone, with places of a share of the images,
alone and beside lists, and with all places. The patch at which a concept's map is largest is judged by its distance
from the concept's points. Weights, temperatures and settings were chosen on the validation split.
"""

import json
import math
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from ascent_vit import AscentViTForImageClassification
from ascent_vit.data import ConceptCollator, concepts_from_features, load_concept_dataset
from ascent_vit.data.adapters.cub import ATTRIBUTE_PARTS
from ascent_vit.utils.files import write_json
from ascent_vit.utils.versions import versions
from modeling_ascent_vit import AscentViTImageProcessor
from modeling_ascent_vit.modeling_ascent_vit import alignment_loss
from modeling_ascent_vit.presence_ascent_vit import PresenceMemory, local_tokens, presence_loss, unplaced_images


# Shares of the train images whose places are told, and how the lists of all are learned from, if they are.
RUNS: dict[str, tuple[float, str | None]] = {
    "lists": (0.0, "model"),
    "lists, no table of parts": (0.0, "model"),
    **{f"lists, {form}": (0.0, form) for form in ("noisy-or", "log-mean-exp", "attention-weighted", "mean of four")},
    "1 % of places": (0.01, None),
    "1 % of places and lists": (0.01, "model"),
    "10 % of places": (0.1, None),
    "10 % of places and lists": (0.1, "model"),
    "all places": (1.0, None),
}
SEEDS = (0, 1, 2)
STEPS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, WARM_UP = 240, 108, 2e-3, 1e-3, 0.1
NEAR = 15


def parts_of(concepts: list[str]) -> dict[str, list[str]]:
    """The bird's parts that attributes are of, left and right being one."""
    parts: dict[str, list[str]] = {}
    for concept in concepts:
        for part in {
            part.removeprefix("left ").removeprefix("right ") for part in ATTRIBUTE_PARTS[concept.split("::")[0]]
        }:
            parts.setdefault(part, []).append(concept)
    return parts


@torch.no_grad()
def read(split: Any, model: Any, processor: Any) -> dict[str, torch.Tensor]:
    """Tokens of the frozen backbone, targets, and how far each patch's centre is from each concept's nearest point."""
    batches = []
    collate = ConceptCollator(processor)
    height, width = model.config.image_size
    patch = model.config.patch_size[0]
    y, x = torch.meshgrid(
        *(torch.arange(side // patch) * patch + patch / 2 for side in (height, width)), indexing="ij"
    )
    centres = torch.stack([x.flatten(), y.flatten()], dim=-1)
    for start in tqdm(range(0, len(split), 16), unit="batch", desc="Reading tokens"):
        rows = [split[index] for index in range(start, min(start + 16, len(split)))]
        batch = collate(rows)
        outputs = model.ascent_vit.backbone(batch["pixel_values"], output_hidden_states=True)
        tokens = outputs.last_hidden_state
        early, middle = local_tokens(outputs.hidden_states, tokens, len(centres))
        distance = torch.full((len(rows), len(centres), model.config.num_spatial_concepts), float("inf"))
        for image, row in enumerate(rows):
            scale = torch.tensor([width / row["image"].width, height / row["image"].height])
            for point, concept in zip(row["points"]["xy"], row["points"]["category"], strict=True):
                far = (centres - torch.tensor(point) * scale).norm(dim=-1)
                distance[image, :, concept] = torch.minimum(distance[image, :, concept], far)
        names = ("labels", "spatial_concept_targets", "spatial_concept_presence")
        kept = {name: batch[name] for name in names}
        kept |= {"tokens": tokens[:, -len(centres) :], "early": early, "middle": middle, "distance": distance}
        batches.append(kept)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def pooled_loss(attention: torch.Tensor, presence: torch.Tensor, form: str) -> torch.Tensor:
    """Cross-entropy of an image's pooled attention `(B, N, S)` and its list `(B, S)`, beside the model's own loss."""
    sharpness = 10.0
    if form == "noisy-or":
        pooled = 1 - (1 - attention.clamp_max(1 - 1e-4)).log().sum(1).exp()
    elif form == "log-mean-exp":
        pooled = (torch.logsumexp(sharpness * attention, 1) - math.log(attention.shape[1])) / sharpness
    elif form == "attention-weighted":
        pooled = attention.square().sum(1) / attention.sum(1).clamp_min(1e-6)
    else:
        pooled = attention.topk(4, dim=1).values.mean(1)
    known = ~presence.isnan()
    return nn.functional.binary_cross_entropy(pooled.clamp(1e-6, 1 - 1e-6)[known], presence[known])


def fit(model: Any, train: dict[str, torch.Tensor], share: float, lists: str | None, seed: int):
    """Trains the spatial stream of a model on tokens."""
    generator = torch.Generator().manual_seed(seed)
    number = len(train["labels"])
    placed = torch.zeros(number, dtype=torch.bool)
    placed[torch.randperm(number, generator=generator)[: round(share * number)]] = True
    targets = torch.where(placed.view(-1, 1, 1), train["spatial_concept_targets"], float("nan"))
    stream, config = model.spatial_stream, model.config
    parts = torch.tensor(config.part_shares)
    optimizer = torch.optim.AdamW(stream.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(WARM_UP * STEPS), STEPS)
    memory = PresenceMemory()
    order = torch.empty(0, dtype=torch.long)
    for _ in range(STEPS):
        if len(order) < BATCH_SIZE:
            order = torch.randperm(number, generator=generator)
        chosen, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        presence = train["spatial_concept_presence"][chosen]
        is_given = unplaced_images(presence, targets[chosen]) if lists else None
        attention, scores = stream(train["tokens"][chosen], is_given=is_given)
        attention = attention.mean(1)
        loss = nn.functional.cross_entropy(scores, train["labels"][chosen])
        # The mean over images with places, whatever their share.
        weight = BATCH_SIZE / placed[chosen].sum().clamp_min(1)
        loss = loss + weight * alignment_loss(attention, targets[chosen], "kl", none_concept=True)
        if lists == "model":
            early, middle = train["early"][chosen], train["middle"][chosen]
            loss = loss + presence_loss(attention, presence, early, middle, parts, True, memory)
        elif lists:
            loss = loss + pooled_loss(attention, presence, lists)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(stream.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def judge(model: Any, split: dict[str, torch.Tensor]) -> dict[str, float]:
    attention, scores = model.spatial_stream(split["tokens"])
    attention, distance = attention.mean(1), split["distance"]
    shown = distance.amin(1).isfinite()
    largest = distance.gather(1, attention.argmax(1, keepdim=True)).squeeze(1)
    marked = split["spatial_concept_targets"].nan_to_num(0.0)
    inside = ((attention * marked).sum(1) / attention.sum(1))[shown]
    named = marked.gather(2, attention.argmax(2, keepdim=True)).squeeze(2)[marked.amax(2) > 0]
    return {
        "accuracy": (scores.argmax(-1) == split["labels"]).float().mean().item(),
        "pointing_near": (largest[shown] <= NEAR).float().mean().item(),
        "relevance_mass": inside.mean().item(),
        "pixel_tpr": named.mean().item(),
    }


def main(
    data: Annotated[Path, typer.Option(help="Folder that prepare cub wrote, with its option present.")],
    backbone: Annotated[Path, typer.Option(help="Folder of a pretrained vision transformer.")],
    output: Annotated[Path, typer.Option(help="JSON file to write.")],
    only: Annotated[str, typer.Option(help="Names of runs, with commas between; all by default.")] = "",
    split: Annotated[str, typer.Option(help="Split to judge on.")] = "test",
):
    """Trains and judges."""
    dataset = load_concept_dataset(str(data))
    labels, _, concepts = concepts_from_features(dataset["train"].features)
    settings = {
        "num_labels": len(labels),
        "spatial_concepts": concepts,
        "fusion_levels": 0,
        "none_concept": True,
        "alignment_loss": "kl",
    }
    names = [name for name in RUNS if not only or name in only.split(";")]
    tokens: dict[str, dict[str, torch.Tensor]] = {}
    # Runs that are not made again stay as they are.
    found: dict[str, Any] = json.loads(output.read_text())["runs"] if only and output.exists() else {}
    for name in names:
        found[name] = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            table = None if name.endswith("no table of parts") else parts_of(concepts)
            model = AscentViTForImageClassification.from_backbone(str(backbone), concept_parts=table, **settings)
            if not tokens:
                # The statistics that the backbone was trained with.
                processor = AscentViTImageProcessor.from_model_config(
                    model.config, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], unannotated="none"
                )
                tokens = {part: read(dataset[part], model, processor) for part in ("train", split)}
            started = time.perf_counter()
            fit(model, tokens["train"], *RUNS[name], seed)
            figures = judge(model, tokens[split]) | {"seconds": time.perf_counter() - started}
            found[name].append(figures)
            typer.echo(f"{name}, seed {seed}: " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()))
        means = {key: statistics.mean(run[key] for run in found[name]) for key in found[name][0]}
        typer.echo(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in means.items()))
    write_json(output, {"split": split, "near": NEAR, "seeds": list(SEEDS), "runs": found, **versions()})


if __name__ == "__main__":
    typer.run(main)

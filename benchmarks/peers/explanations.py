# SPDX-License-Identifier: Apache-2.0
"""Judges maps of what moved a class score by the evaluators of ascent_vit, and times them beside a prediction."""

import dataclasses
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from explainers import EXPLAINERS, Explain, predicted
from features import compute_features
from pointing import patch_centres
from rows import PeerRun
from sparse import logistic_concepts, train_linear
from tcav import ConceptSensitivity, concept_sets, contributions_to_class, judge_classes, truth_of
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForImageClassification

from ascent_vit.data import ConceptCollator, concepts_from_features
from ascent_vit.evaluation import Faithfulness, PointingGame, RelevanceMass, Robustness
from ascent_vit.evaluation.probe import choose_subset
from ascent_vit.inference import load_model
from ascent_vit.training import Recipe
from ascent_vit.training.build import build_model


logger = logging.getLogger(__name__)

BATCH = 5
CURVE_STEPS = 8
SUBSET_SEED = 0
METHODS = (*EXPLAINERS, "tcav")
# Pairs of a prediction and an explanation of one image that are timed, after the first, which is not.
TURNS = 15


class Explained(torch.nn.Module):
    """
    A classifier with maps by some method, as the evaluators of ascent_vit ask for them: as if all was one concept.

    Maps are made when they are asked for, and those of images that were explained before are not made again.
    """

    def __init__(self, model: Any, explain: Explain, patch: int):
        super().__init__()
        self.model, self.explain = model, explain
        labels = model.config.num_labels
        self.config = SimpleNamespace(
            num_labels=labels, problem_type=None, num_spatial_concepts=1, patch_size=(patch, patch)
        )
        self.known: dict[tuple[bytes, int], Tensor] = {}

    def maps(self, pixels: Tensor, classes: Tensor) -> Tensor:
        """Maps of images `(B, C, H, W)` and their classes `(B,)`, `(B, h, w)`."""
        keys = [(image.numpy().tobytes(), int(chosen)) for image, chosen in zip(pixels, classes, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in self.known]
        if new:
            with torch.enable_grad():
                found = self.explain(pixels[new].clone(), classes[new]).detach()
            self.known.update(zip([keys[i] for i in new], found, strict=True))
        return torch.stack([self.known[key] for key in keys])

    def forward(self, pixel_values: Tensor) -> "ExplainedOutput":
        return ExplainedOutput(self, pixel_values, self.model(pixel_values).logits)

    def contribution_maps(self, pixel_values: Tensor, class_ids: Tensor) -> Tensor:
        return self.maps(pixel_values, class_ids[:, 0])[:, None, None]


@dataclasses.dataclass
class ExplainedOutput:
    """Logits of a batch, and the maps of the predicted classes."""

    model: Explained
    pixel_values: Tensor
    logits: Tensor

    @property
    def patch_grid(self) -> Tensor:
        sides = zip(self.pixel_values.shape[-2:], self.model.config.patch_size, strict=True)
        return torch.tensor([[size // patch for size, patch in sides]])

    @property
    def spatial_concept_attention(self) -> Tensor:
        return self.model.maps(self.pixel_values, self.logits.argmax(-1)).flatten(1)[..., None]


def classifier(recipe: Recipe, splits: Any, seed: int, concepts: bool, strength: float) -> Any:
    """The backbone with a linear head on its CLS token for the classes, or with one for the concepts."""
    if concepts:
        # One view of each image: the others add seconds to each concept.
        rows = slice(0, len(splits["train"].labels) // recipe.feature_views)
        weights, bias = logistic_concepts(
            splits["train"].cls[rows], splits["train"].concepts[rows], seed, strength=strength
        )
    else:
        head, _ = train_linear(splits, seed, "cls", strength)
        weights, bias = head.weights, head.bias
    # Eager attention gives rollout its maps.
    model = AutoModelForImageClassification.from_pretrained(
        recipe.backbone, num_labels=len(bias), ignore_mismatched_sizes=True, attn_implementation="eager"
    )
    with torch.no_grad():
        model.classifier.weight.copy_(weights)
        model.classifier.bias.copy_(bias)
    return model.eval()


def in_the_box(maps: Tensor, rows: Any, size: tuple[int, int]) -> list[tuple[float, float]]:
    """Of each map `(h, w)`, whether its largest patch is in the object's box, and the share of the positive part."""
    found = []
    centres = patch_centres(size, tuple(maps.shape[-2:]))
    for values, row in zip(maps.flatten(1), rows, strict=True):
        left, top, width, height = row["bbox"]
        scale = torch.tensor([size[1] / row["image"].width, size[0] / row["image"].height])
        corner, extent = torch.tensor([left, top]) * scale, torch.tensor([width, height]) * scale
        inside = ((centres >= corner) & (centres <= corner + extent)).all(-1)
        positive = values.clamp_min(0)
        total = positive.sum().clamp_min(1e-12)
        found.append((float(inside[values.argmax()]), float(positive[inside].sum() / total)))
    return found


def judge_maps(explained: Explained, loader: DataLoader, split: Any) -> dict[str, float]:
    """Class accuracy, and maps of the predicted classes against the box of the object."""
    right, places = [], []
    start = 0
    for batch in loader:
        pixels = batch["pixel_values"]
        with torch.no_grad():
            classes = explained.model(pixels).logits.argmax(-1)
        right += (classes == batch["labels"]).tolist()
        rows = [split[i] for i in range(start, start + len(pixels))]
        places += in_the_box(explained.maps(pixels, classes), rows, tuple(pixels.shape[-2:]))
        start += len(pixels)
    pointing, mass = (statistics.mean(values) for values in zip(*places, strict=True))
    return {"accuracy": statistics.mean(right), "pointing_box": pointing, "relevance_mass_box": mass}


def judge_parts(maps_of: Callable[[Tensor, list[tuple[int, int]]], Tensor], loader: DataLoader) -> dict[str, float]:
    """
    Maps of the concepts that are annotated in an image against their points, patch by patch.

    Args:
        maps_of: function that gives maps `(pairs, N)` of a batch of images for pairs of an image and a concept.
        loader: batches of the data.
    """
    pointing, mass = PointingGame(), RelevanceMass()
    for batch in loader:
        targets = batch["spatial_concept_targets"]
        pairs = [(int(i), int(s)) for i, s in (targets > 0).any(1).nonzero()]
        maps = torch.zeros_like(targets)
        for (image, concept), values in zip(pairs, maps_of(batch["pixel_values"], pairs), strict=True):
            maps[image, :, concept] = values.clamp_min(0)
        pointing.update(maps, targets)
        mass.update(maps, targets)
    return {"pointing_game": pointing.compute().item(), "relevance_mass": mass.compute().item()}


def time_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def cost_ratios(
    predict: Callable[[Tensor], Any], explain: Callable[[Tensor], Any], pixels: Tensor, turns: int
) -> dict[str, Any]:
    """Time of an explained prediction as a multiple of a prediction, in turns: median and quartiles."""
    ratios, predictions = [], []
    for turn in range(turns + 1):
        image = pixels[turn % len(pixels)][None]
        with torch.no_grad():
            plain = time_of(lambda image=image: predict(image))
        ratios.append(time_of(lambda image=image: explain(image)) / plain)
        predictions.append(plain)
    low, middle, high = statistics.quantiles(ratios[1:], n=4)
    return {
        "cost": middle,
        "cost_quartiles": [low, high],
        "prediction_milliseconds": 1000 * statistics.median(predictions[1:]),
    }


def explained_prediction(model: Any, explain: Explain, ours: bool) -> Callable[[Tensor], Any]:
    """Prediction and its explanation; of our model, logits and each concept's contributions in one forward pass."""

    def contributions(pixels: Tensor) -> Any:
        with torch.no_grad():
            return model(pixels, output_contributions=True)

    return contributions if ours else lambda pixels: explain(pixels, None)


@dataclasses.dataclass(frozen=True)
class Setup:
    """
    A model, what explains it, and batches of test images.

    Args:
        run: row of the table.
        model: model in evaluation mode.
        explain: what explains it.
        processor: its image processor.
        test: test split.
        names: names of the classes, global concepts and spatial concepts.
        concepts: whether the model's logits are concepts instead of classes.
    """

    run: PeerRun
    model: Any
    explain: Explain
    processor: Any
    test: Any
    names: tuple[list[str], list[str], list[str]]
    concepts: bool

    @property
    def ours(self) -> bool:
        return self.run.method == "ours"

    @property
    def patch(self) -> int:
        size = self.processor.patch_size
        return size if isinstance(size, int) else size[0]

    def part(self, measure: str) -> tuple[Any, DataLoader]:
        """The images of a measure, drawn by a seed, and batches of them."""
        split = self.test.select(choose_subset(len(self.test), self.run.images[measure], SUBSET_SEED))
        collate = ConceptCollator(self.processor, len(self.names[0]))
        columns = split.select_columns(["image", "label", "concepts", "points"])
        return split, DataLoader(columns, BATCH, collate_fn=collate)  # type: ignore[arg-type]


def plain_model(
    run: PeerRun, recipe: Recipe, dataset: Any, work: Path, concepts: bool = False, strength: float = 0.01
) -> tuple[Any, Any]:
    """The classifier that peers explain, and its image processor."""
    processor = build_model(recipe, *concepts_from_features(dataset["train"].features))[1]
    folder = work / f"features-{run.dataset}-{run.recipe}"
    splits = compute_features(dataclasses.replace(recipe, seed=run.seed), dataset, folder)
    return classifier(recipe, splits, run.seed, concepts, strength), processor


def set_up(run: PeerRun, recipe: Recipe, dataset: Any, work: Path) -> Setup:
    """Makes the classifier of a row and what explains it."""
    arguments = dict(run.arguments)
    strength, concepts = arguments.pop("head_strength", 0.01), arguments.pop("concepts", False)
    names = concepts_from_features(dataset["train"].features)
    if run.method == "ours":
        model, processor = load_model(arguments.pop("model"))
    else:
        model, processor = plain_model(run, recipe, dataset, work, concepts, strength)
    size = processor.patch_size
    explain = EXPLAINERS[run.method](model, size if isinstance(size, int) else size[0], **arguments)
    return Setup(run, model, explain, processor, dataset["test"], names, concepts)


def make_tcav(run: PeerRun, recipe: Recipe, dataset: Any, work: Path) -> dict[str, Any]:
    """Judges TCAV, which scores concepts of a class and has no maps."""
    model, processor = plain_model(run, recipe, dataset, work)
    train = dataset["train"]
    truth = truth_of(train, len(train.features["concepts"].feature.names))
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        sets = concept_sets(train, truth, processor, run.images["concepts"], run.seed)
        explain = ConceptSensitivity(model, sets, truth.shape[1], folder)
        learning = time.process_time() - start
        found: dict[str, Any] = judge_classes(explain, dataset, processor, run.images["classes"], run.seed)
        pixels = processor([dataset["test"][0]["image"]], return_tensors="pt")["pixel_values"]
        found |= cost_ratios(model, lambda image: explain(image, int(predicted(model, image))), pixels, TURNS)
    return {"metrics": found, "learning_seconds": learning}


def make(run: PeerRun, recipe: Recipe, dataset: Any, work: Path, first: dict[str, Any] | None) -> dict[str, Any]:
    """Judges one way to explain."""
    if run.method == "tcav":
        return make_tcav(run, recipe, dataset, work)
    setup = set_up(run, recipe, dataset, work)
    explained = Explained(setup.model, setup.explain, setup.patch)
    found = judge_parts(maps_for_parts(setup, explained), setup.part("parts")[1])
    if not setup.concepts:
        found |= judge_maps(explained, setup.part("maps")[1], setup.part("maps")[0])
        found |= Faithfulness(CURVE_STEPS, run.seed, BATCH)(explained, setup.part("faithfulness")[1])
    if "robustness" in run.images and not setup.concepts:
        found |= Robustness()(explained, setup.part("robustness")[1])
    if setup.ours and "classes" in run.images:
        scores = contributions_to_class(setup.model)
        found |= judge_classes(scores, dataset, setup.processor, run.images["classes"], run.seed)
    pixels = next(iter(setup.part("maps")[1]))["pixel_values"]
    both = explained_prediction(setup.model, setup.explain, setup.ours)
    found |= cost_ratios(setup.model, both, pixels, run.images.get("turns", TURNS))
    return {"metrics": found, "parameters": sum(values.numel() for values in setup.model.parameters())}


def maps_for_parts(setup: Setup, explained: Explained) -> Callable[[Tensor, list[tuple[int, int]]], Tensor]:
    """Maps of pairs of an image and a spatial concept: attention of ours, or the concept's score explained."""
    model, (global_names, spatial_names) = setup.model, setup.names[1:]
    places = [global_names.index(name) if name in global_names else -1 for name in spatial_names]

    def maps_of(pixels: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
        images = torch.tensor([image for image, _ in pairs])
        if setup.ours:
            with torch.no_grad():
                attention = model(pixels).spatial_concept_attention
            return torch.stack([attention[image, :, concept] for image, concept in pairs])
        if setup.concepts:
            chosen = torch.tensor([places[concept] for _, concept in pairs])
            parts = zip(pixels[images].split(BATCH), chosen.split(BATCH), strict=True)
            return torch.cat([explained.maps(part, of).flatten(1) for part, of in parts])
        # The predicted class has one map, the same for all parts.
        with torch.no_grad():
            classes = model(pixels).logits.argmax(-1)
        return explained.maps(pixels, classes).flatten(1)[images]

    return maps_of

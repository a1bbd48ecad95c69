# SPDX-License-Identifier: Apache-2.0
"""Intervention curves: does the prediction get better as a person corrects the concepts?"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ascent_vit.explanation.intervene import Groups, groups_of
from modeling_ascent_vit.class_scores_ascent_vit import class_scores, score_function
from modeling_ascent_vit.modeling_ascent_vit import true_attention

from .correction import correct_each
from .evaluate import check_labels, fill_targets
from .metrics import known_rows
from .probe import ImageEvaluator, NotApplicableError, check_counts, descending_ranks, random_ranks


if TYPE_CHECKING:
    from ascent_vit.inference.protocols import ConceptClassifier

    from .probe import Measure

# Of each stream that can be corrected: the model's output, its targets in a batch, its override.
STREAMS = (
    ("global_concept_attention", "concept_targets", "global_concept_override"),
    ("spatial_concept_attention", "spatial_concept_targets", "spatial_concept_override"),
)

# Draws of what a person would say of a concept with a place, which has too many outcomes to go through.
DRAWS = 8


def concept_units(config: Any, groups: Groups) -> Tensor:
    """What is corrected at once: the number of its unit for each global and spatial concept, (G + S,)."""
    names = [*config.global_concepts, *config.spatial_concepts]
    group_of = groups_of(names, groups)
    keys = [("group", group_of[name]) if name in group_of else ("concept", i) for i, name in enumerate(names)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] for key in keys])


def uncertainty(attention: Tensor, truth: Tensor) -> Tensor:
    """
    How unsure the model is of each concept, (B, C): the binary entropy of its attention, which is greatest at 1/2,
    mean over the rows that can be corrected. 0 where there are none.
    """
    entropy = torch.special.entr(attention) + torch.special.entr((1 - attention).clamp_min(0))
    rows = known_rows(truth).unsqueeze(-1)
    return torch.where(rows, entropy, 0.0).sum(1) / rows.sum(1).clamp(min=1)


def image_generators(pixel_values: Tensor, seed: int) -> list[np.random.Generator]:
    """For each image a generator that depends on the seed and the pixels, neither on the batch nor on the process."""
    images = pixel_values.cpu().float().numpy()
    return [np.random.default_rng([seed, 1, zlib.crc32(image.tobytes())]) for image in images]


def draw_corrections(attention: Tensor, truth: Tensor, generators: list[np.random.Generator]) -> Iterator[tuple]:
    """
    What a person may set, by what the model believes: values (B, N, S), NaN in rows that are not corrected, and the
    probability of each, (B, S).

    A row is taken to show as many concepts as its attention is spread over, 1 over the sum of the squared shares, so
    that one that is present has that much attention, and the model's attention is its expectation.

    Args:
        attention: attention, mean over heads, (B, N, S).
        truth: what is true, (B, N, S), of which only the NaN of rows without annotation are looked at.
        generators: for each image the generator of its draws.
    """
    rows = known_rows(truth).unsqueeze(-1)
    shares = attention / attention.sum(-1, keepdim=True).clamp_min(torch.finfo(attention.dtype).tiny)
    present = torch.maximum(shares.square().sum(-1, keepdim=True), attention)
    probability = attention / present
    if attention.shape[1] == 1:
        yield torch.where(rows, present, torch.nan), probability.squeeze(1)
        yield torch.where(rows, torch.zeros_like(present), torch.nan), 1 - probability.squeeze(1)
        return
    draws = np.stack([generator.random((DRAWS, attention.shape[1], 1)) for generator in generators], axis=1)
    for drawn in torch.from_numpy(draws).to(attention):
        values = torch.where(drawn < probability, present, 0.0)
        yield torch.where(rows, values, torch.nan), torch.full_like(attention[:, 0], 1 / DRAWS)


def share_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether each image's class is right, (B,), by labels (B,); by labels (B, K) the share of classes that are."""
    if labels.ndim == 1:
        return logits.argmax(-1) == labels
    return ((logits > 0) == (labels > 0)).double().mean(-1)


def expected_gain(
    model: "ConceptClassifier", outputs: Any, truths: dict[str, Tensor], generators: list[np.random.Generator]
) -> Tensor:
    """
    Expected change of the prediction by the correction of each concept, (B, all concepts of `truths`): of the
    probability of the predicted class, or of all classes in the mean, where an image may have several.

    Args:
        model: model in evaluation mode.
        outputs: its outputs of a batch, with the attention per head.
        truths: what is true, by override, (B, N, S); see [`draw_corrections`].
        generators: for each image the generator of its draws.
    """
    function, logits, gains = score_function(model.config), outputs.logits.float(), []
    before = class_scores(logits, function)
    predicted = logits.argmax(-1)[:, None, None]
    for output, _, override in STREAMS:
        if override not in truths:
            continue
        truth = truths[override]
        attention = getattr(outputs, f"{output}_heads").float()
        attention = attention if attention.ndim == 4 else attention.unsqueeze(2)
        table = model.streams()[output.split("_")[0]].contribution_table().float()
        gain = torch.zeros_like(truth[:, 0])
        for values, probability in draw_corrections(attention.mean(1), truth, generators):
            after = logits.unsqueeze(1) + correct_each(attention, values, table, model.config.none_concept)
            change = (class_scores(after, function) - before.unsqueeze(1)).abs()
            if function == "softmax":
                change = change.gather(-1, predicted.expand(-1, change.shape[1], 1))
            gain += probability * change.mean(-1)
        gains.append(gain)
    return torch.cat(gains, dim=-1)


@dataclass(frozen=True)
class Intervention(ImageEvaluator):
    """
    Accuracy as more and more concepts of an image are corrected to their ground truth at test time (Koh et al.,
    "Concept Bottleneck Models", ICML 2020).

    The units are concepts: a global one in the image, a spatial one in all annotated patches at once. To correct one
    is to set the attention to it to its true value, 1/k where it is one of k present concepts of the image or patch
    and 0 where it is absent; the model's attention to concepts that are not corrected yet is rescaled to what is left
    of 1, as the overrides of the model do it. With all concepts corrected, the attention of annotated rows is the
    ground truth, and that of the others still the model's. Rows with an unknown concept count as not annotated.

    Each image has its own order, of three kinds of which none looks at what the annotations say, only at where there
    are some. By uncertainty (UCP of Shin et al., "A Closer Look at the Intervention Procedure of Concept Bottleneck
    Models", ICML 2023): the binary entropy of the attention, of a spatial concept the mean over the patches to
    correct, the greatest first. By expected gain (their ECTP): how much the correction of a concept by itself is
    expected to change the probability of the predicted class, where the model's attention says what the person will
    find. At random. `intervention_curve[i]` is the accuracy with the share i / `steps` of an image's correctable
    concepts corrected, rounded to whole ones; `intervention_auc` is the area under it, by trapezoids, from 0 to 1.

    With `groups`, concepts that exclude each other, such as the shapes of a bill, are one unit, as a person who knows
    one knows the others: one correction sets them all. A unit's uncertainty and gain are the sums of its concepts'.

    Where an image may have several classes, its accuracy is the share of all classes that are told right as present or
    absent, by a probability above 0.5. A model for regression is not judged.

    Cost: a forward pass per image, and the concept head `3 * steps + 3` times. The expected gain takes none of them,
    as it follows from the exact sum.

    Args:
        steps (`int`, *optional*, defaults to 16): Number of steps of a curve.
        seed (`int`, *optional*, defaults to 0): Random seed of the random orders, and of draws for the expected gain.
        groups (`dict[str, list[str]]` or `"prefix"`, *optional*):
            Concepts that are corrected at once, by the group's name; others are by themselves. `"prefix"` groups those
            whose names begin alike before "::", as in "has_bill_shape::dagger".
        gain (`bool`, *optional*, defaults to `True`):
            Whether the order by expected gain is measured too. It takes a model whose class scores are an exact sum.

    Returns:
        When called, `dict`: `intervention_auc`, `intervention_auc_gain` and `intervention_auc_random`;
        `intervention_curve`, `intervention_curve_gain` and `intervention_curve_random`, lists of `steps` + 1
        accuracies; and `intervention_images`, the number of images, those with a label and an annotated row.

    Raises:
        ValueError: for fewer than one step, or when called, for groups of concepts that the model does not have.
        NotApplicableError: when called, without such images, or for a model for regression.
    """

    steps: int = 16
    seed: int = 0
    groups: Groups = None
    gain: bool = True
    description: ClassVar[str] = "Intervention"
    count_name: ClassVar[str] = "intervention_images"
    needs_maps: ClassVar[bool] = False
    primary_metric: ClassVar[str] = "intervention_auc"

    def __post_init__(self):
        check_counts(steps=self.steps)

    @property
    def orders(self) -> dict[str, str]:
        """Orders of correction, by the endings of the results' names."""
        orders = {"": "by uncertainty", "_random": "at random", "_gain": "by expected gain"}
        return {ending: order for ending, order in orders.items() if self.gain or ending != "_gain"}

    def measurement(self, model: "ConceptClassifier") -> "tuple[Sequence[str], Measure]":
        if score_function(model.config) == "none":
            raise NotApplicableError("Intervention measures accuracy, and the model predicts values")
        if self.groups is not None:
            concept_units(model.config, self.groups)
        points = range(self.steps + 1)
        return [f"{order} {point}" for order in self.orders.values() for point in points], self.correct

    def results(self, names: Sequence[str], means: list[float], counts: list[int]) -> dict[str, Any]:
        if counts[0] == 0:
            raise NotApplicableError("Intervention needs images with labels and annotated concepts of the model")
        points = self.steps + 1
        shares = torch.linspace(0, 1, points, dtype=torch.float64)
        curves = {ending: means[i * points : (i + 1) * points] for i, ending in enumerate(self.orders)}
        areas = {ending: torch.trapezoid(shares.new_tensor(curve), shares).item() for ending, curve in curves.items()}
        return {
            **{f"intervention_auc{ending}": area for ending, area in areas.items()},
            **{f"intervention_curve{ending}": curve for ending, curve in curves.items()},
            self.count_name: counts[0],
        }

    def correct(self, model: "ConceptClassifier", pixels: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Whether each image is classified right at each point of each curve, (B, curves * points)."""
        config = model.config
        pixel_values = pixels.to(next(model.parameters()).dtype)
        out = model(pixel_values, **({"output_concept_heads": True} if self.gain else {}))
        points = self.steps + 1
        truths, scores, correctable = {}, [], []
        for output, name, override in STREAMS:
            attention = getattr(out, output)
            targets = fill_targets(name, batch, attention)
            if targets is None:
                continue
            rows = (len(pixels), -1, attention.shape[-1])
            truth = true_attention(targets.to(pixels.device, torch.float32).reshape(rows), config.none_concept)
            truths[override] = truth
            scores.append(uncertainty(attention.float().reshape(rows), truth))
            correctable.append(known_rows(truth).any(-1, keepdim=True).expand(-1, attention.shape[-1]))
        labels = check_labels(batch.get("labels"), config)
        if labels is None or not truths:
            return torch.full((len(pixels), len(self.orders) * points), torch.nan)
        labels, can_correct, score = labels.to(pixels.device), torch.cat(correctable, -1), torch.cat(scores, -1)
        units = torch.arange(score.shape[1]) if self.groups is None else concept_units(config, self.groups)
        units = units.to(pixels.device)

        def by_unit(values: Tensor) -> Tensor:
            return values.new_zeros(len(values), int(units.max()) + 1).index_add_(1, units, values)

        has_units = by_unit(can_correct.float()) > 0
        numbers, at_random = has_units.sum(-1), random_ranks(pixels, has_units.shape[1], self.seed)
        right, orders = [], [by_unit(score), -at_random.float()]
        if self.gain:
            gain = expected_gain(model, out, truths, image_generators(pixels, self.seed))
            orders.append(by_unit(torch.where(can_correct, gain, 0.0)))
        for order in orders:
            # What cannot be corrected comes last.
            ranks = descending_ranks(torch.where(has_units, order, -torch.inf), at_random)
            for step in range(points):
                corrected = ranks < (numbers * step / self.steps).round().unsqueeze(-1)
                logits = model(pixel_values, **self.overrides(truths, corrected[:, units])).logits
                right.append(share_right(logits, labels))
        values = torch.stack(right, dim=1).float()
        return torch.where((numbers > 0).unsqueeze(-1), values, torch.nan)

    @staticmethod
    def overrides(truths: dict[str, Tensor], corrected: Tensor) -> dict[str, Tensor]:
        """The model's override arguments that correct the concepts marked in (B, all concepts)."""
        parts = corrected.split([truth.shape[-1] for truth in truths.values()], dim=-1)
        overrides = {
            name: torch.where(marked.unsqueeze(1), truth, torch.nan)
            for (name, truth), marked in zip(truths.items(), parts, strict=True)
        }
        if "global_concept_override" in overrides:
            overrides["global_concept_override"] = overrides["global_concept_override"].squeeze(1)
        return overrides


__all__ = ["Intervention"]

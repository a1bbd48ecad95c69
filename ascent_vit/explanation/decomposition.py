# SPDX-License-Identifier: Apache-2.0
"""A class score as the sum of what each concept added to it, and where in the image."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ascent_vit.inference.identity import ModelIdentity
from modeling_ascent_vit.class_scores_ascent_vit import ScoreFunction, chosen_classes, class_scores
from modeling_ascent_vit.names_ascent_vit import find_concept

from .fusion import FusionMaps


if TYPE_CHECKING:
    from ascent_vit.inference import ConceptImageProcessor


@dataclass(frozen=True)
class ConceptContribution:
    """
    Contribution of one concept to the explained class score.

    Args:
        name (`str`): Name of the concept.
        stream (`str`): `"global"`, `"spatial"` or `"unsupervised"`.
        index (`int`): Place of the concept in its stream.
        attention (`float`): Attention to the concept, from 0 to 1; of a spatial one, its share of the patches'.
        contribution (`float`):
            What the concept added to the logit of the explained class, of either sign; in a [`Contrast`], to the
            difference of two logits.
    """

    name: str
    stream: str
    index: int
    attention: float
    contribution: float


@dataclass(frozen=True, eq=False)
class Decomposition:
    """
    A class score as the sum of what each concept contributed: `sum of contributions + class_bias = logit`.

    Data and arithmetic of an [`Explanation`]. It holds the scores of all classes, so that another one needs no further
    run of the model. Notation: A heads, G global, S spatial and U unsupervised concepts, K classes, (h, w) patches.

    Args:
        image (`PIL.Image.Image`): The original image, RGB and upright.
        label_id (`int`): Index of the explained class.
        labels (`list[str]`): Names of all classes, or of the values of a regression.
        logits (`np.ndarray` of shape `(K,)`): What the model gives for all classes, float32.
        class_biases (`np.ndarray` of shape `(K,)`): Part of each logit that no concept contributes, float32.
        concept_names (`dict[str, list[str]]`):
            Names of the concepts of the streams `"global"`, `"spatial"` and `"unsupervised"`; columns elsewhere are in
            this order.
        contributions (`np.ndarray` of shape `(G + S + U, K)`): What each concept added to each logit, float32.
        head_attention (`np.ndarray` of shape `(A, G + S + U)`):
            Attention of each head to each concept, float32; to a spatial one, its share of the patches' attention, as
            it counts in the class scores.
        patch_attention_heads (`np.ndarray` of shape `(A, S, h, w)`):
            Attention of each head at each patch to each spatial concept, float32.
        contribution_table (`np.ndarray` of shape `(A, S, K)`):
            What a head adds to each logit where all its attention is to a spatial concept, float32. The explanations
            of one call share it.
        processor (`AscentViTImageProcessor`):
            The model's image processor, which knows where the patches lie in the original image.
        fusion ([`FusionMaps`], *optional*): Places at which the patches looked in the pyramid, if asked for.
        score_function (`str`, *optional*, defaults to `"softmax"`):
            What makes scores of the logits: `"softmax"`; `"sigmoid"` of a model for several classes of an image;
            `"none"` of a regression, whose logits are the values themselves.
        patch_features (`np.ndarray` of shape `(h, w, D)`, *optional*):
            Tokens of the patches, as the concept head reads them, float32, if asked for.
        identity ([`~ascent_vit.inference.ModelIdentity`], *optional*): What tells the model from others.
    """

    image: Image.Image
    label_id: int
    labels: list[str] = field(repr=False)
    logits: np.ndarray
    class_biases: np.ndarray = field(repr=False)
    concept_names: dict[str, list[str]] = field(repr=False)
    contributions: np.ndarray = field(repr=False)
    head_attention: np.ndarray = field(repr=False)
    patch_attention_heads: np.ndarray = field(repr=False)
    contribution_table: np.ndarray = field(repr=False)
    processor: "ConceptImageProcessor" = field(repr=False)
    fusion: FusionMaps | None = field(default=None, repr=False)
    score_function: ScoreFunction = field(default="softmax", repr=False)
    patch_features: np.ndarray | None = field(default=None, repr=False)
    identity: ModelIdentity | None = field(default=None, repr=False)

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Indices of the classes in question: the explained one; in a [`Contrast`], also the other one."""
        return (self.label_id,)

    @property
    def question(self) -> str:
        """The question that is answered, "Why ...?"."""
        return f"Why {self.label} = {self.score_text(self.label_id)}?" if self.is_regression else f"Why {self.label}?"

    @property
    def unit(self) -> str:
        """Name of what is shown of a concept: "contribution", or "difference of contributions"."""
        return "contribution"

    def select(self, values: np.ndarray) -> np.ndarray:
        """The explained number of values for all classes, `(..., K) -> (...)`."""
        return values[..., self.label_id]

    @property
    def is_regression(self) -> bool:
        """Whether the scores are values, and not probabilities of classes."""
        return self.score_function == "none"

    @cached_property
    def scores(self) -> np.ndarray:
        """Probabilities of all classes, or the values of a regression, `(K,)`, float32."""
        return class_scores(torch.from_numpy(self.logits), self.score_function).numpy()

    def score_text(self, class_id: int) -> str:
        """Score of a class as people read it: "93.1%", or the value."""
        score = float(self.scores[class_id])
        return f"{score:.4g}" if self.is_regression else f"{score:.1%}"

    @property
    def label(self) -> str:
        """Name of the explained class."""
        return self.labels[self.label_id]

    @property
    def score(self) -> float:
        """Probability of the explained class, or the explained value."""
        return float(self.scores[self.label_id])

    @property
    def decimals(self) -> int:
        """Number of decimals of contributions as people read them: 2; of values, three digits of the largest."""
        if not self.is_regression:
            return 2
        largest = max(abs(self.logit), float(np.abs(self.select(self.contributions)).max()))
        return max(2 - math.floor(math.log10(largest)), 0) if largest > 0 else 2

    @property
    def prediction(self) -> str:
        """What the model says of the image, in words: classes with their probabilities, or values."""
        between = " = " if self.is_regression else ", "
        named = [f"{self.labels[i]}{between}{self.score_text(i)}" for i in self.predicted_ids or [self.predicted_id]]
        return "; ".join(named) if self.predicted_ids else f"no class (most probable: {named[0]})"

    @property
    def predicted_id(self) -> int:
        """
        Index of the predicted class, which is explained unless another one was asked for: the most probable one,
        whether or not the model says that the image has it; of a regression, the first value.
        """
        return int(chosen_classes(torch.from_numpy(self.logits), self.score_function))

    @property
    def predicted_ids(self) -> list[int]:
        """
        Indices of what the model says of the image: the predicted class; where an image may have several, those above
        a probability of 0.5, which may be none, the most probable first; all values of a regression.
        """
        if self.score_function == "softmax":
            return [self.predicted_id]
        if self.is_regression:
            return list(range(len(self.labels)))
        ranked = np.argsort(-self.logits, kind="stable").tolist()
        return [index for index in ranked if self.scores[index] > 0.5]

    @property
    def predicted_label(self) -> str:
        """Name of the predicted class."""
        return self.labels[self.predicted_id]

    @property
    def predicted_score(self) -> float:
        """Probability of the predicted class, or the first value."""
        return float(self.scores[self.predicted_id])

    @property
    def logit(self) -> float:
        """The explained number: the logit of the explained class; in a [`Contrast`], the difference of two logits."""
        return float(self.select(self.logits))

    @property
    def class_bias(self) -> float:
        """Part of `logit` that no concept contributes."""
        return float(self.select(self.class_biases))

    @cached_property
    def concept_attention(self) -> np.ndarray:
        """Attention to each concept, `(G + S + U,)`: the mean of `head_attention` over heads."""
        return self.head_attention.mean(0)

    @cached_property
    def concepts(self) -> list[ConceptContribution]:
        """All concepts, the largest contribution first, the most negative last."""
        places = [(name, stream, i) for stream, names in self.concept_names.items() for i, name in enumerate(names)]
        values = zip(places, self.concept_attention.tolist(), self.select(self.contributions).tolist(), strict=True)
        concepts = [ConceptContribution(*place, attention, added) for place, attention, added in values]
        return sorted(concepts, key=lambda concept: -concept.contribution)

    @property
    def additivity_error(self) -> float:
        """|logit - sum of contributions - class bias|, which is 0 up to rounding."""
        explained = sum(concept.contribution for concept in self.concepts) + self.class_bias
        return abs(self.logit - explained)

    @cached_property
    def patch_attention(self) -> np.ndarray:
        """Attention of each patch to each spatial concept, the mean over heads, `(S, h, w)`, float32."""
        return self.patch_attention_heads.mean(0)

    @cached_property
    def attention_share(self) -> float:
        """
        How much attention at a patch counts in the logits: 1 over the sum of what each patch attends to any concept.
        Of a patch this is taken as 1 at most, and the sum as 1 at least.
        """
        return 1 / max(np.minimum(self.patch_attention.sum(0), 1).sum(), 1.0)

    @cached_property
    def patch_contributions(self) -> np.ndarray:
        """
        Contribution of each spatial concept to `logit` at each patch, `(S, h, w)`, float32; the sums over the patches
        are the contributions of these concepts.
        """
        heads = self.patch_attention_heads
        table = self.select(self.contribution_table) * self.attention_share
        return np.einsum("ashw,as->shw", heads, table, dtype=np.float32)

    @property
    def attention_maps(self) -> np.ndarray:
        """
        Attention to each spatial concept in the original image's pixels, `(S, H, W)`, computed at each call; one at a
        time by `attention_map`.
        """
        return self.resize(self.patch_attention)

    @property
    def contribution_maps(self) -> np.ndarray:
        """Contribution of each spatial concept per patch, drawn in the original image's pixels, `(S, H, W)`."""
        return self.resize(self.patch_contributions)

    @property
    def head_maps(self) -> np.ndarray:
        """Attention of each head to each spatial concept in the original image's pixels, `(A, S, H, W)`."""
        return self.resize(self.patch_attention_heads)

    @property
    def fusion_maps(self) -> np.ndarray:
        """Share of the fusion's weight that fell on each patch, per level of the pyramid, `(L, h, w)`."""
        return self._known_fusion().maps

    @property
    def level_shares(self) -> np.ndarray:
        """Share of the fusion's weight that each level of the pyramid got, `(L,)`, summing to 1."""
        return self._known_fusion().level_shares

    def _known_fusion(self) -> FusionMaps:
        if self.fusion is None:
            raise ValueError("This explanation does not hold where the fusion looked: call explain with fusion=True.")
        return self.fusion

    def attention_map(self, name: str) -> np.ndarray:
        """Attention to one spatial concept in the original image's pixels, `(H, W)`; ValueError for another one."""
        return self.resize(self.patch_attention[self.concept(name, "spatial").index])

    def contribution_map(self, name: str) -> np.ndarray:
        """
        Contribution of one spatial concept per patch, drawn in the original image's pixels, `(H, W)`; ValueError for
        another one.
        """
        return self.resize(self.patch_contributions[self.concept(name, "spatial").index])

    def resize(self, maps: np.ndarray, step: int = 1) -> np.ndarray:
        """
        Interpolates patch maps `(..., h, w)` to the original image's pixels, `(..., H, W)`, 0 outside a crop; or to
        every `step`-th row and column of them, from the middle of the first `step` on.
        """
        values, (width, height) = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32)), self.image.size
        if step == 1:
            return np.asarray(self.processor.resize_concept_maps(values, (height, width)), dtype=np.float32)
        axes = zip(self.processor.patch_axes((height, width)), values.shape[-2:], strict=True)
        weights = [axis.interpolation(count)[step // 2 :: step] for axis, count in axes]
        rows, columns = (torch.from_numpy(weight).float() for weight in weights)
        return (rows @ (values @ columns.T)).numpy()

    def concept(self, name: str, stream: str | None = None) -> ConceptContribution:
        """
        Finds the contribution of one concept.

        Args:
            name (`str`): Name of the concept.
            stream (`str`, *optional*): Stream of the concept, needed where several have a concept of that name.

        Raises:
            ValueError: for a concept that the model does not have, or has in several streams.
        """
        place = find_concept(name, self.concept_names, stream)
        return next(concept for concept in self.concepts if (concept.stream, concept.index) == place)

    def top(self, number: int, stream: str | None = None) -> list[ConceptContribution]:
        """The `number` concepts that moved the class score most, of either sign; the largest contribution first."""
        chosen = [concept for concept in self.concepts if stream in (None, concept.stream)]
        chosen = sorted(chosen, key=lambda concept: -abs(concept.contribution))[:number]
        return sorted(chosen, key=lambda concept: -concept.contribution)

    def to_dict(self, maps: bool = False, doubt: Any = None) -> dict[str, Any]:
        """
        The explanation as plain numbers, strings and lists, ready for JSON.

        Args:
            doubt ([`~ascent_vit.safeguard.Doubt`], *optional*): What a guard says of the image, to add as `doubt`.
            maps (`bool`, *optional*, defaults to `False`):
                Whether to add `patch_attention` and `patch_contributions`, each S lists of h lists of w numbers, and
                `fusion_maps`, L such lists, if the fusion is known.
        """
        values = {
            "label": self.label,
            "label_id": self.label_id,
            "score": self.score,
            "predicted_label": self.predicted_label,
            "predicted_score": self.predicted_score,
            "predicted_labels": [self.labels[index] for index in self.predicted_ids],
            "score_function": self.score_function,
            "labels": self.labels,
            "logits": self.logits.tolist(),
            "logit": self.logit,
            "class_bias": self.class_bias,
            "additivity_error": self.additivity_error,
            "image_size": [self.image.height, self.image.width],
            "concepts": [vars(concept).copy() for concept in self.concepts],
        }
        if self.fusion is not None:
            values["level_shares"] = self.level_shares.tolist()
        if doubt is not None:
            values["doubt"] = doubt.to_dict()
        if maps:
            values["patch_attention"] = self.patch_attention.tolist()
            values["patch_contributions"] = self.patch_contributions.tolist()
            if self.fusion is not None:
                values["fusion_maps"] = self.fusion_maps.tolist()
        return values


__all__ = ["ConceptContribution", "Decomposition"]

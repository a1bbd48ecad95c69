# SPDX-License-Identifier: Apache-2.0
"""The result of an explanation: which concept added what to the class score, and where in the image."""

import dataclasses
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ascent_vit.utils.files import write_json, write_text

from .fusion import FusionMaps
from .names import class_index, find_concept


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ConceptContribution:
    """
    What one concept did for the explained class.

    Args:
        name (`str`): Name of the concept.
        stream (`str`): `"global"`, `"spatial"` or `"unsupervised"`.
        index (`int`): Place of the concept in its stream.
        attention (`float`): Attention to the concept, from 0 to 1; of a spatial concept its mean over the patches.
        contribution (`float`):
            What it added to the logit of the explained class, of either sign; in a [`Contrast`], to the difference of
            two logits.
    """

    name: str
    stream: str
    index: int
    attention: float
    contribution: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """
    A prediction as the sum of what each concept contributed: `sum of contributions + class_bias = logit`.

    It knows all classes, so that another one needs no further run of the model: [`~Explanation.for_class`] explains
    it, [`~Explanation.contrast`] says why one and not the other. Notation: A heads, G global, S spatial and U
    unsupervised concepts, K classes, (h, w) patches.

    Args:
        image (`PIL.Image.Image`): The original image, RGB and upright.
        label_id (`int`): Index of the explained class.
        labels (`list[str]`): Names of all classes.
        logits (`np.ndarray` of shape `(K,)`): Scores of all classes before the softmax, float32.
        class_biases (`np.ndarray` of shape `(K,)`): What each class has whatever concepts are seen, float32.
        concept_names (`dict[str, list[str]]`):
            Names of the concepts of the streams `"global"`, `"spatial"` and `"unsupervised"`; columns elsewhere are in
            this order.
        contributions (`np.ndarray` of shape `(G + S + U, K)`): What each concept added to each logit, float32.
        head_attention (`np.ndarray` of shape `(A, G + S + U)`):
            Attention of each head to each concept, of a spatial one its mean over the patches, float32.
        patch_attention_heads (`np.ndarray` of shape `(A, S, h, w)`):
            Attention of each head at each patch to each spatial concept, float32.
        contribution_table (`np.ndarray` of shape `(A, S, K)`):
            What attention 1 of a head to a spatial concept at all patches adds to each logit, float32. The
            explanations of one call share it.
        processor (`AscentViTImageProcessor`): Knows where patches lie in the original image.
        fusion ([`FusionMaps`], *optional*): Where the patches looked in the pyramid, if it was asked for.
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
    processor: Any = field(repr=False)
    fusion: FusionMaps | None = field(default=None, repr=False)

    def select(self, values: np.ndarray) -> np.ndarray:
        """What is explained of values for all classes, `(..., K) -> (...)`."""
        return values[..., self.label_id]

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, `(K,)`, float32."""
        return torch.from_numpy(self.logits).softmax(-1).numpy()

    @property
    def label(self) -> str:
        """Name of the explained class."""
        return self.labels[self.label_id]

    @property
    def score(self) -> float:
        """Softmax probability of the explained class."""
        return float(self.probabilities[self.label_id])

    @property
    def predicted_id(self) -> int:
        """Index of the predicted class, the explained one unless another was asked for."""
        return int(self.logits.argmax())

    @property
    def predicted_label(self) -> str:
        """Name of the predicted class."""
        return self.labels[self.predicted_id]

    @property
    def predicted_score(self) -> float:
        """Softmax probability of the predicted class."""
        return float(self.probabilities[self.predicted_id])

    @property
    def logit(self) -> float:
        """The explained number: the logit of the explained class; in a [`Contrast`], the difference of two logits."""
        return float(self.select(self.logits))

    @property
    def class_bias(self) -> float:
        """What of `logit` is there whatever concepts are seen."""
        return float(self.select(self.class_biases))

    @cached_property
    def concept_attention(self) -> np.ndarray:
        """Attention to each concept, mean over heads, of a spatial one over patches too, `(G + S + U,)`."""
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
        """|logit - sum of contributions - class bias|: 0 but for rounding."""
        explained = sum(concept.contribution for concept in self.concepts) + self.class_bias
        return abs(self.logit - explained)

    @cached_property
    def patch_attention(self) -> np.ndarray:
        """Attention of each patch to each spatial concept, mean over heads, `(S, h, w)`, float32."""
        return self.patch_attention_heads.mean(0)

    @cached_property
    def patch_contributions(self) -> np.ndarray:
        """
        What each spatial concept added to `logit` at each patch, `(S, h, w)`, float32. Sums over the patches to the
        spatial contributions.
        """
        heads = self.patch_attention_heads
        table = self.select(self.contribution_table) / max(heads.shape[2] * heads.shape[3], 1)
        return np.einsum("ashw,as->shw", heads, table, dtype=np.float32)

    @property
    def attention_maps(self) -> np.ndarray:
        """Attention to each spatial concept in the original image's pixels, `(S, H, W)`."""
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

    def resize(self, maps: np.ndarray) -> np.ndarray:
        """Patch maps `(..., h, w)` interpolated to the original image's pixels, `(..., H, W)`, 0 outside a crop."""
        width, height = self.image.size
        resized = self.processor.resize_concept_maps(torch.from_numpy(np.ascontiguousarray(maps)), (height, width))
        return np.asarray(resized, dtype=np.float32)

    def for_class(self, label: int | str) -> "Explanation":
        """
        The explanation of another class; the model does not run again.

        Args:
            label (`int` or `str`): Index or name of the class.

        Raises:
            ValueError: for a class that the model does not have.
        """
        return dataclasses.replace(self, label_id=class_index(label, self.labels))

    def contrast(self, label: int | str, other: int | str | None = None) -> "Contrast":
        """
        Why one class and not another; the model does not run again.

        Args:
            label (`int` or `str`): Index or name of the first class.
            other (`int` or `str`, *optional*):
                Index or name of the second class; by default the one with the highest logit beside the first, that is
                the predicted class, or the runner-up where the first is the predicted one.

        Returns:
            [`Contrast`]

        Raises:
            ValueError: for a class that the model does not have, or the same class twice.
        """
        label_id = class_index(label, self.labels)
        if len(self.labels) < 2:
            raise ValueError("A contrast needs two classes, and this model has one.")
        if other is None:
            ranked = np.argsort(-self.logits, kind="stable")
            other_id = int(ranked[ranked != label_id][0])
        else:
            other_id = class_index(other, self.labels)
        if other_id == label_id:
            raise ValueError(f"A contrast needs two classes; got {self.labels[label_id]!r} twice.")
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Explanation)}
        return Contrast(**values | {"label_id": label_id, "other_id": other_id})

    def concept(self, name: str, stream: str | None = None) -> ConceptContribution:
        """
        What one concept did.

        Args:
            name (`str`): Name of the concept.
            stream (`str`, *optional*): Its stream, needed where several have a concept of that name.

        Raises:
            ValueError: for a concept that the model does not have, or has in several streams.
        """
        place = find_concept(name, self.concept_names, stream)
        return next(concept for concept in self.concepts if (concept.stream, concept.index) == place)

    def top(self, number: int, stream: str | None = None) -> list[ConceptContribution]:
        """The concepts that moved the class score most, of either sign; the largest contribution first."""
        chosen = [concept for concept in self.concepts if stream in (None, concept.stream)]
        chosen = sorted(chosen, key=lambda concept: -abs(concept.contribution))[:number]
        return sorted(chosen, key=lambda concept: -concept.contribution)

    def to_dict(self, maps: bool = False) -> dict[str, Any]:
        """
        The explanation as plain numbers, strings and lists, ready for JSON.

        Args:
            maps (`bool`, *optional*, defaults to `False`):
                Whether to add `patch_attention` and `patch_contributions`, each S lists of h lists of w numbers, and
                `fusion_maps`, where they are known.
        """
        values = {
            "label": self.label,
            "label_id": self.label_id,
            "score": self.score,
            "predicted_label": self.predicted_label,
            "predicted_score": self.predicted_score,
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
        if maps:
            values["patch_attention"] = self.patch_attention.tolist()
            values["patch_contributions"] = self.patch_contributions.tolist()
            if self.fusion is not None:
                values["fusion_maps"] = self.fusion_maps.tolist()
        return values

    def to_html(self, **kwargs) -> str:
        """One self-contained HTML page, see [`~ascent_vit.explanation.render.html.explanation_to_html`]."""
        from .render.html import explanation_to_html

        return explanation_to_html(self, **kwargs)

    def plot(self, top: int = 5, truth: str | None = None) -> "Figure":
        """
        Draws the image, the `top` concepts with what they contributed, and where the top spatial concepts were seen.

        Args:
            top (`int`, *optional*, defaults to 5): Concepts to show, those of the largest contribution of either sign.
            truth (`str`, *optional*): Name of the right class, for the title.

        Returns:
            `matplotlib.figure.Figure`: to be saved with its `savefig`; pyplot and its backend are left alone.
        """
        from .render.plot import plot_explanation

        return plot_explanation(self, top, truth)

    def plot_heads(self, top: int = 3) -> "Figure":
        """Draws each head's attention to spatial concepts, see [`~ascent_vit.explanation.render.plot.plot_heads`]."""
        from .render.plot import plot_heads

        return plot_heads(self, top)

    def plot_levels(self) -> "Figure":
        """Draws where the fusion looked in the pyramid, see [`~ascent_vit.explanation.render.plot.plot_levels`]."""
        from .render.plot import plot_levels

        return plot_levels(self)

    def save(self, path: str | os.PathLike, **kwargs) -> None:
        """
        Writes one file, whole or not at all, making its folder.

        Args:
            path (`str` or `os.PathLike`):
                The suffix says what is written: `.json` the dict, `.png` the picture, `.html` the page.
            kwargs: Arguments of [`~Explanation.to_dict`], [`~Explanation.plot`] or [`~Explanation.to_html`].

        Raises:
            ValueError: for another suffix.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix == ".json":
            write_json(path, self.to_dict(**kwargs))
        elif suffix == ".html":
            write_text(path, self.to_html(**kwargs))
        elif suffix == ".png":
            from .render.plot import plot_grid

            path.parent.mkdir(parents=True, exist_ok=True)
            truth = kwargs.pop("truth", None)
            plot_grid([self], path, None if truth is None else [truth], **kwargs)
        else:
            raise ValueError(f"An explanation is saved as .json, .png or .html; got {path.name}.")


@dataclass(frozen=True, eq=False)
class Contrast(Explanation):
    """
    Why one class and not another: the difference of two logits as the sum of the differences of contributions.

    An [`Explanation`] of which `logit`, `class_bias`, `concepts`, `patch_contributions` and `contribution_maps` are
    differences, those of `label` minus those of `other_label`: positive is what speaks for `label`. `score` is the
    probability of `label`.

    Args:
        other_id (`int`): Index of the class that `label_id` is compared with.
    """

    other_id: int = field(kw_only=True)

    def select(self, values: np.ndarray) -> np.ndarray:
        return values[..., self.label_id] - values[..., self.other_id]

    @property
    def other_label(self) -> str:
        """Name of the class that `label` is compared with."""
        return self.labels[self.other_id]

    @property
    def other_score(self) -> float:
        """Softmax probability of the class that `label` is compared with."""
        return float(self.probabilities[self.other_id])

    def for_class(self, label: int | str) -> Explanation:
        """The explanation of one class alone."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Explanation)}
        return Explanation(**values | {"label_id": class_index(label, self.labels)})

    def to_dict(self, maps: bool = False) -> dict[str, Any]:
        """As that of an explanation, with the class compared with."""
        other = {"other_label": self.other_label, "other_id": self.other_id, "other_score": self.other_score}
        return super().to_dict(maps) | other


__all__ = ["ConceptContribution", "Contrast", "Explanation"]

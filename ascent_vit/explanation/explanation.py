# SPDX-License-Identifier: Apache-2.0
"""The result of an explanation: a decomposition that is compared, drawn and saved."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ascent_vit.utils.files import write_json, write_text
from modeling_ascent_vit.names_ascent_vit import class_index

from .decomposition import Decomposition


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Explanation(Decomposition):
    """
    A prediction explained by concepts: a [`Decomposition`], which has its data and maps, to compare, draw and save.

    It knows all classes: [`~Explanation.for_class`] explains another one, [`~Explanation.contrast`] says why one and
    not the other.
    """

    def for_class(self, label: int | str) -> "Explanation":
        """
        Explains another class; the model does not run again.

        Args:
            label (`int` or `str`): Index or name of the class.

        Raises:
            ValueError: for a class that the model does not have.
        """
        return dataclasses.replace(self, label_id=class_index(label, self.labels))

    def contrast(self, label: int | str, other: int | str | None = None) -> "Contrast":
        """
        Explains why one class and not another; the model does not run again.

        Args:
            label (`int` or `str`): Index or name of the first class.
            other (`int` or `str`, *optional*):
                Index or name of the second class; by default the predicted class, or the runner-up if the first is
                the predicted one.

        Returns:
            [`Contrast`]

        Raises:
            ValueError: for a class that the model does not have, the same class twice, or values of a regression.
        """
        if self.is_regression:
            raise ValueError("A contrast compares two classes, and this model predicts values: explain one of them.")
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
        return Contrast(**fields_of(self) | {"label_id": label_id, "other_id": other_id})

    def similar(self, index: Any, **kwargs) -> list[Any]:
        """
        Finds similar images, or similar patches, in an index of images.

        Args:
            index ([`~ascent_vit.cases.ConceptIndex`]): Index that was built with the same model.
            kwargs: Arguments of [`~ascent_vit.cases.ConceptIndex.similar`].

        Returns:
            `list[Case]`: the most similar first.
        """
        return index.similar(self, **kwargs)

    def to_html(self, **kwargs) -> str:
        """Draws one self-contained page, see [`~ascent_vit.explanation.render.html.explanation_to_html`]."""
        from .render.html import explanation_to_html

        return explanation_to_html(self, **kwargs)

    def plot(self, top: int = 5, truth: str | None = None) -> "Figure":
        """
        Draws the image, what the concepts contributed, and where the top spatial concepts were seen.

        The bars and the class bias, written below them, add up to the logit: concepts below 1 % of the largest
        contribution, and those beyond the `top` ones, are summed in one bar, "others". A global and a spatial concept
        of one name stand together.

        Args:
            top (`int`, *optional*, defaults to 5):
                Largest number of concepts with a bar of their own, those of the largest contribution of either sign.
            truth (`str`, *optional*): Name of the true class, for the title.

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

    def to_fiftyone(
        self, maps: Literal["contribution", "attention"] = "contribution", row: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """
        Turns the explanation into FiftyOne labels, the fields of a sample.

        Args:
            maps (`str`, *optional*, defaults to `"contribution"`):
                Values of the heatmaps: `"contribution"` to the logit, or `"attention"`.
            row (`Mapping`, *optional*):
                Row of a concept dataset with the truth: `label`, `objects` and `points`, each if it is there, by the
                names of the model or their indices, and in pixels of the explained image.

        Returns:
            `dict[str, fiftyone.Label]`: labels by field.

            - `prediction`: `Classification` of the explained class; `confidence` is its score, `logits` are those of
              all classes, and the attributes `logit`, `class_bias` and `question` say what is explained.
            - `concepts`: `Classifications`, one a concept, the largest contribution first, with the attributes
              `contribution`, `attention`, `stream` and `index`.
            - `contribution_NAME` or `attention_NAME`: `Heatmap` of each spatial concept on the patch grid, which
              FiftyOne scales to the image; where the patches do not cover the image, as after a crop, at no more than
              256 x 256 points of it. `range` is the same for all: `[0, 1]` of attention, and of contributions
              `[-m, m]`, m the largest of either sign.
            - `truth`, `truth_objects` and `truth_points`: `Classification`, `Detections` and `Keypoints` of `row`.

        Raises:
            ImportError: where FiftyOne is not installed.
            ValueError: for other `maps`.

        Example:

        ```python
        >>> labels = explain(model, processor, "bird.jpg").to_fiftyone()
        >>> sample = fiftyone.Sample(filepath="bird.jpg", **labels)
        ```
        """
        from .fiftyone_labels import to_fiftyone

        return to_fiftyone(self, maps, row)

    def save(self, path: str | os.PathLike, **kwargs) -> None:
        """
        Writes one file, whole or not at all, making its folder.

        Args:
            path (`str` or `os.PathLike`):
                File to write; its suffix says what: `.json` the dict, `.png` the picture, `.html` the page.
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

    @property
    def class_ids(self) -> tuple[int, ...]:
        return (self.label_id, self.other_id)

    @property
    def question(self) -> str:
        return f"Why {self.label} and not {self.other_label}?"

    @property
    def unit(self) -> str:
        return "difference of contributions"

    def select(self, values: np.ndarray) -> np.ndarray:
        return values[..., self.label_id] - values[..., self.other_id]

    @property
    def other_label(self) -> str:
        """Name of the class that `label` is compared with."""
        return self.labels[self.other_id]

    @property
    def other_score(self) -> float:
        """Probability of the class that `label` is compared with."""
        return float(self.scores[self.other_id])

    def for_class(self, label: int | str) -> Explanation:
        """Explains one class alone."""
        return Explanation(**fields_of(self) | {"label_id": class_index(label, self.labels)})

    def to_dict(self, maps: bool = False, doubt: Any = None) -> dict[str, Any]:
        """As that of an explanation, with the class compared with."""
        other = {"other_label": self.other_label, "other_id": self.other_id, "other_score": self.other_score}
        return super().to_dict(maps, doubt) | other


def fields_of(explanation: Explanation) -> dict[str, Any]:
    """The values that explanations and contrasts share."""
    return {field.name: getattr(explanation, field.name) for field in dataclasses.fields(Explanation)}


__all__ = ["Contrast", "Explanation"]

# SPDX-License-Identifier: Apache-2.0
"""The result of a look at a whole model: figures, tables and pictures, to be read as a page, JSON and parquet."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascent_vit.utils.files import new_folder, write_json, write_text

from .pictures import Pictures


PAGE_NAME, SUMMARY_NAME, ROWS_NAME = "index.html", "summary.json", "images.parquet"


@dataclass(frozen=True, eq=False)
class Summary:
    """
    What a model does with the images of a split, by class, by concept, by error and by slice.

    Notation: C concepts of all streams, in the order global, spatial, unsupervised, K classes, S spatial concepts.

    Args:
        figures (`dict`): Figures of the whole split: `images`, `labelled`, `accuracy` (of several classes of an image
            `label_accuracy`, of values `mae`) with `low` and `high`, its 95 % bootstrap interval; `concept_map`,
            `pointing_game` and `relevance_mass` as [`~ascent_vit.evaluation.evaluate`] has them; `errors`, `pairs`
            that were confused, `correctable` errors, and those `put_right` by the correction of one concept.
        classes (`list[dict]`): Of each class `name`, `bias`, number of `images` with it and `predicted` as it; of
            models for one class of an image `accuracy`, and the `typical` and `atypical` rows.
        concepts (`list[dict]`): Of each concept `name`, `stream`, mean `attention`, `average_precision`, the number of
            errors that its correction would have `put_right`, and `exemplars` with `row`, `attention` and `patch`, the
            strongest first; of a spatial one also `mean_map` and its agreement with annotations.
        effects (`dict`): Three tables of C lists of K numbers: mean contribution over `all` images, over the images of
            the `class`, and the model's `weights`, what a concept adds where all attention is to it.
        confusions (`list[dict]`): The most frequent pairs of true and predicted class, at most 100.
        slices (`list[dict]`): Parts of the images with `images`, `mean`, `low` and `high`.
        similar (`dict`): Similar cases of wrongly classified images, by row.
        left_out (`list[str]`): A sentence for each part that the model or the split does not allow.
        facts (`dict`): Names of classes, kind of problem and names of the streams' concepts.
        rows (`Path`): Parquet file with one row per image, which lives as long as the summary.
        pictures (`Pictures`): Thumbnails by row.
        boxes (`dict`): By row and patch, the place of the patch in shares of the image.
        folder (`TemporaryDirectory`): Folder of `rows`, which is removed with the summary.
    """

    figures: dict[str, Any]
    classes: list[dict[str, Any]]
    concepts: list[dict[str, Any]]
    effects: dict[str, list[list[float | None]]] = field(repr=False)
    confusions: list[dict[str, Any]] = field(repr=False)
    slices: list[dict[str, Any]] = field(repr=False)
    similar: dict[int, list[dict[str, Any]]] = field(repr=False)
    left_out: list[str]
    facts: dict[str, Any] = field(repr=False)
    rows: Path
    pictures: Pictures = field(repr=False)
    boxes: dict[int, dict[int, list[float]]] = field(repr=False)
    folder: Any = field(repr=False, default=None)

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain numbers, strings and lists, ready for JSON; without pictures and images' rows."""
        return {
            **self.facts,
            "figures": self.figures,
            "left_out": self.left_out,
            "classes": self.classes,
            "concepts": self.concepts,
            "confusions": self.confusions,
            "slices": self.slices,
            "similar": {str(row): cases for row, cases in self.similar.items()},
            "effects": self.effects,
        }

    def to_html(self, title: str | None = None) -> str:
        """
        Writes one self-contained page that loads nothing from elsewhere. It holds thumbnails of the images.

        Args:
            title (`str`, *optional*, defaults to `"Summary of a model"`): Title of the page.
        """
        from .render.html import summary_to_html

        return summary_to_html(self, title)

    def save(self, folder: str | os.PathLike, title: str | None = None, **facts: Any) -> None:
        """
        Writes `index.html`, `summary.json` and `images.parquet` into a folder, all or none.

        Args:
            folder (`str` or `os.PathLike`): Folder to write; new or empty.
            title (`str`, *optional*): Title of the page.
            facts: Further entries of the JSON file.

        Raises:
            NotADirectoryError: for a file.
            FileExistsError: for a folder that is not empty.
        """
        with new_folder(folder) as partial:
            write_text(partial / PAGE_NAME, self.to_html(title))
            write_json(partial / SUMMARY_NAME, facts | self.to_dict())
            shutil.copyfile(self.rows, partial / ROWS_NAME)


__all__ = ["PAGE_NAME", "ROWS_NAME", "SUMMARY_NAME", "Summary"]

# SPDX-License-Identifier: Apache-2.0
"""Images that were measured, so that figures can be had of any of them."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ascent_vit.utils.metrics import METRICS

from .errors import NotApplicableError


def column_means(rows: np.ndarray) -> tuple[list[float], list[int]]:
    """Mean of each column over the images in which it is not NaN, NaN without any, and the number of these images."""
    counts = (~np.isnan(rows)).sum(0)
    with np.errstate(invalid="ignore"):
        return (np.nansum(rows, axis=0) / counts).tolist(), counts.tolist()


class Sample(Protocol):
    """Images that were measured, and figures of any of them."""

    @property
    def number(self) -> int:
        """Number of images."""

    def figures(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Figures by name, (draws,) each, of images drawn as often as counts (draws, n) say; NaN where undefined."""


class NamesResults(Protocol):
    """An evaluator, as [`ImageEvaluator`], which names the results of the columns that it measured."""

    def results(self, names: Sequence[str], means: list[float], counts: list[int]) -> dict[str, Any]: ...


class EvaluatorSample:
    """
    The values that an evaluator measured.

    Args:
        evaluator: evaluator that names the results.
        names, rows: names of the columns and values (images, columns), as it measured them.
    """

    def __init__(self, evaluator: NamesResults, names: Sequence[str], rows: np.ndarray):
        self.evaluator, self.names, self.rows = evaluator, names, rows
        self.number = len(rows)

    def values(self) -> dict[str, Any]:
        """The results of all images."""
        return self.evaluator.results(self.names, *column_means(self.rows))

    def figures(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        known = ~np.isnan(self.rows)
        numbers = counts @ known
        with np.errstate(invalid="ignore"):
            means = counts @ np.nan_to_num(self.rows) / numbers
        numbers = numbers.round().astype(int)
        found = []
        for both in zip(means.tolist(), numbers.tolist(), strict=True):
            try:
                found.append(self.evaluator.results(self.names, *both))
            except NotApplicableError:
                found.append({})
        names = [name for name in METRICS if any(name in values for values in found)]
        return {name: np.array([values.get(name, np.nan) for values in found]) for name in names}


__all__ = ["EvaluatorSample", "Sample", "column_means"]

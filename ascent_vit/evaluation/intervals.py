# SPDX-License-Identifier: Apache-2.0
"""Bootstrap intervals of the metrics of an evaluation, over its images."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import DegenerateDataWarning

from ascent_vit.utils.bootstrap import bootstrap_interval


if TYPE_CHECKING:
    from .samples import Sample

DRAWS = 1000
# Chance only adds to these: they are 0 where nothing is wrong, and greater in a draw than in what was drawn from.
# Their interval is that of the differences, turned about the figure (the basic bootstrap), down to 0.
BIASED = ("ece",)


def intervals(
    sample: "Sample", other: "Sample | None" = None, seed: int = 0, draws: int = DRAWS
) -> dict[str, tuple[float, float, float]]:
    """
    Figures of a sample, or of the differences between two models on the same images, with their intervals of 95 %.

    Args:
        sample: images as one model was measured on them; of fewer than two there are no intervals.
        other: the same images as another model was measured on them, whose figures are subtracted.
        seed: random seed of the draws. Both models have the same draws, so that differences are paired.
        draws: number of draws.

    Returns:
        By the name of each metric that both have: the figure, and the lower and upper end of its interval.

    Raises:
        ValueError: for two samples of different numbers of images.
    """
    number = sample.number
    if other is not None and other.number != number:
        raise ValueError(f"Two models are compared on the same images; got {number} and {other.number}.")
    if number < 2:
        return {}

    def figures(counts: np.ndarray) -> dict[str, np.ndarray]:
        values = sample.figures(counts)
        if other is None:
            return values
        others = other.figures(counts)
        return {name: values[name] - others[name] for name in values if name in others}

    whole = figures(np.ones((1, number)))
    names = [name for name, value in whole.items() if np.isfinite(value[0])]
    if not names:
        return {}

    def statistic(drawn: np.ndarray, axis: int) -> np.ndarray:
        drawn = np.atleast_2d(drawn)
        # Of all draws at once: each has its own stretch of numbers.
        places = drawn + number * np.arange(len(drawn))[:, None]
        counts = np.bincount(places.ravel(), minlength=drawn.size).reshape(len(drawn), number)
        found, unknown = figures(counts.astype(float)), np.full(len(drawn), np.nan)
        return np.stack([found.get(name, unknown) for name in names])

    with warnings.catch_warnings():
        # A figure that some draws do not have has no interval.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        lows, highs = bootstrap_interval(np.arange(number), statistic, seed, draws)
    results = {}
    for name, low, high in zip(names, lows, highs, strict=True):
        value = float(whole[name][0])
        if name in BIASED:
            low, high = 2 * value - high, 2 * value - low
            low = low if other is not None else max(0.0, low)
        if np.isfinite(low) and np.isfinite(high):
            results[name] = (value, float(low), float(high))
    return results


__all__ = ["intervals"]

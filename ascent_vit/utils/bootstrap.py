# SPDX-License-Identifier: Apache-2.0
"""Bootstrap intervals: how far a figure moves with the images that happened to be measured."""

from collections.abc import Callable
from typing import Any

import numpy as np


# Numbers that are held at once: draws of a large sample are made in batches.
BATCH_NUMBERS = 2_000_000


def bootstrap_interval(
    values: Any,
    statistic: Callable[..., Any] = np.mean,
    seed: int = 0,
    draws: int = 1000,
    level: float = 0.95,
) -> tuple[Any, Any]:
    """
    Measures the percentile bootstrap interval of a statistic (Efron and Tibshirani, "An Introduction to the
    Bootstrap", 1993, chapter 13), by `scipy.stats.bootstrap`.

    The values are drawn with replacement, as many as there are; what the statistic gives in the middle `level` of the
    draws is the interval. It says how much the figure depends on the sample, not on the training of a model.

    Args:
        values (array of shape `(n,)`): Finite numbers, one per image (or whatever was sampled), two or more. The
            difference of two models on the same images gives a paired interval.
        statistic (`Callable`, *optional*, defaults to `numpy.mean`): Function of an array of drawn values. One with an
            argument `axis` gets many draws at once, (batch, n), which is much faster; it may give several figures,
            (figures, batch). To draw the rows of a table, let the values be `numpy.arange(n)`.
        seed (`int`, *optional*, defaults to 0): Random seed of the draws, the same for the same n.
        draws (`int`, *optional*, defaults to 1000): Number of draws.
        level (`float`, *optional*, defaults to 0.95): Share of the draws inside the interval.

    Returns:
        `tuple[float, float]`: lower and upper end; two arrays for a statistic that gives several figures.

    Raises:
        ValueError: for fewer than two values, or values that are not finite.

    Example:

    ```python
    >>> bootstrap_interval([1] * 80 + [0] * 20)
    (0.72, 0.88)
    ```
    """
    from scipy.stats import bootstrap

    values = np.asarray(values)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(
            f"A bootstrap interval needs two or more finite values in one row; got an array of shape {values.shape}."
        )
    interval = bootstrap(
        (values,),
        statistic,
        n_resamples=draws,
        batch=max(1, BATCH_NUMBERS // len(values)),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    if np.ndim(interval.low) == 0:
        return float(interval.low), float(interval.high)
    return interval.low, interval.high


__all__ = ["bootstrap_interval"]

# SPDX-License-Identifier: Apache-2.0
"""The speed of dtypes on the machine at hand, measured."""

import logging
import time
from functools import cache

import torch


logger = logging.getLogger(__name__)

# Below this a slowdown is noise, and a dtype of half the size still saves memory.
TOLERATED_SLOWDOWN = 2.0


@cache
def slowdown(dtype: torch.dtype) -> float:
    """
    Measures how many times as long a matrix product takes on this CPU in `dtype` as in float32: the best of five
    products of 128 x 128, some milliseconds in all. A CPU without units for bfloat16 takes about 25 times as long, one
    with them a third.
    """

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(128, 128, dtype=dtype)
        times = []
        for _ in range(6):
            start = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - start)
        return min(times[1:])

    return seconds(dtype) / seconds(torch.float32)


def is_slow(dtype: torch.dtype, device: str | torch.device = "cpu") -> bool:
    """Whether a device computes much faster in float32 than in `dtype`: a CPU without units for it."""
    return torch.device(device).type == "cpu" and slowdown(dtype) > TOLERATED_SLOWDOWN


def warn_if_slow(dtype: torch.dtype, instead: str, device: str | torch.device = "cpu") -> None:
    """
    Warns in one sentence where float32 is faster.

    Args:
        dtype: dtype that was asked for.
        instead: faster alternative, as in "training in float32".
        device: device to compute on.
    """
    if is_slow(dtype, device):
        logger.warning("This CPU has no %s units: %s is faster.", str(dtype).removeprefix("torch."), instead)


__all__ = ["is_slow", "slowdown", "warn_if_slow"]

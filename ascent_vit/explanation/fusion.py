# SPDX-License-Identifier: Apache-2.0
"""Maps of the places and scales at which the deformable attention looked in the pyramid."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class FusionMaps:
    """
    Places at which patches looked in the pyramid for one image (the paper's section 4.2, DMSF).

    Notation: N = h * w patches, M heads, L levels, T points.

    Args:
        locations (`np.ndarray` of shape `(N, M, L, T, 2)`):
            x and y of each sample in patches, 0 at the left or top edge of the first patch, float32.
        weights (`np.ndarray` of shape `(N, M, L, T)`):
            Weight of each sample, float32; sums to 1 over levels and points.
        grid (`tuple[int, int]`): Height h and width w of the patch grid.
        strides (`tuple[int, ...]`): Pixels of the model's input per cell of each level.
    """

    locations: np.ndarray = field(repr=False)
    weights: np.ndarray = field(repr=False)
    grid: tuple[int, int]
    strides: tuple[int, ...]

    def density(self, patch: tuple[int, int] | None = None) -> np.ndarray:
        """
        Share of the weight that fell on each patch of the grid, per level.

        Args:
            patch (`tuple[int, int]`, *optional*):
                Row and column of the patch that looked; by default the mean over all patches.

        Returns:
            `np.ndarray` of shape `(L, h, w)`, float32; sums to 1, less the weight that fell outside the grid.

        Raises:
            ValueError: for a patch that is not on the grid.
        """
        height, width = self.grid
        locations, weights = self.locations, self.weights
        if patch is not None:
            row, column = patch
            if not (0 <= row < height and 0 <= column < width):
                raise ValueError(
                    f"patch must be a row from 0 to {height - 1} and a column from 0 to {width - 1}; got {patch}."
                )
            chosen = slice(row * width + column, row * width + column + 1)
            locations, weights = locations[chosen], weights[chosen]
        columns, rows = (np.floor(locations[..., i]).astype(np.int64) for i in range(2))
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        levels = np.arange(weights.shape[2])[:, None]
        cells = np.where(inside, (levels * height + rows) * width + columns, 0)
        shares = np.where(inside, weights, 0) / (weights.shape[0] * weights.shape[1])
        total = np.bincount(cells.ravel(), shares.ravel(), minlength=weights.shape[2] * height * width)
        return total.reshape(-1, height, width).astype(np.float32)

    @cached_property
    def maps(self) -> np.ndarray:
        """Share of the weight of all patches that fell on each patch, per level, `(L, h, w)`; see [`density`]."""
        return self.density()

    @cached_property
    def level_shares(self) -> np.ndarray:
        """Mean weight of each level over patches and heads, `(L,)`, summing to 1."""
        return self.weights.sum(-1).mean((0, 1))


__all__ = ["FusionMaps"]

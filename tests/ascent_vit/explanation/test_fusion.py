# SPDX-License-Identifier: Apache-2.0
"""Where the fusion looked, on hand-made samples."""

import numpy as np
import pytest

from ascent_vit.explanation import FusionMaps


@pytest.fixture
def fusion():
    """Two patches side by side, one head, two levels, two points."""
    locations = np.array(
        [
            [[[[0.5, 0.5], [1.0, 0.99]], [[-0.01, 0.5], [1.99, 0.0]]]],
            [[[[1.5, 0.5], [1.5, 1.0]], [[0.0, 0.0], [2.0, 0.5]]]],
        ],
        dtype=np.float32,
    )
    weights = np.array([[[[0.1, 0.2], [0.3, 0.4]]], [[[0.4, 0.3], [0.2, 0.1]]]], dtype=np.float32)
    return FusionMaps(locations, weights, (1, 2), (8, 16))


def test_weights_fall_on_the_patches_they_lie_in(fusion):
    # Of the first patch, 0.3 lie left of the image; of the second, 0.3 below it and 0.1 right of it.
    np.testing.assert_allclose(fusion.density((0, 0)), [[[0.1, 0.2]], [[0.0, 0.4]]])
    np.testing.assert_allclose(fusion.density((0, 1)), [[[0.0, 0.4]], [[0.2, 0.0]]])
    np.testing.assert_allclose(fusion.maps, [[[0.05, 0.3]], [[0.1, 0.2]]])


def test_levels_share_all_weight(fusion):
    np.testing.assert_allclose(fusion.level_shares, [0.5, 0.5])


@pytest.mark.parametrize("patch", [(1, 0), (0, 2), (-1, 0)])
def test_patches_outside_the_grid(fusion, patch):
    with pytest.raises(ValueError, match="a row from 0 to 0 and a column from 0 to 1"):
        fusion.density(patch)

# SPDX-License-Identifier: Apache-2.0
"""Where the fusion looks in the pyramid."""

import pytest
import torch
from torch import nn

from modeling_ascent_vit.deformable_sampling_ascent_vit import multi_scale_deformable_sampling
from modeling_ascent_vit.modeling_ascent_vit import AscentViTDeformableFusion, AscentViTMultiScaleEncoding


def test_fusion_starts_as_identity_and_looks_in_a_ring(make_config):
    config = make_config()
    fusion, encoding = AscentViTDeformableFusion(config), AscentViTMultiScaleEncoding(config)
    nn.init.zeros_(fusion.sampling_offsets.weight)
    nn.init.zeros_(fusion.sampling_weights.weight)
    nn.init.zeros_(fusion.sampling_weights.bias)
    nn.init.trunc_normal_(encoding.level_embeddings)
    with torch.no_grad():
        fusion.sampling_offsets.bias.copy_(fusion.initial_offsets())
    pyramid, level_shapes = encoding(torch.randn(2, 3, 48, 48))
    patches = torch.randn(2, 36, 32)
    fused, locations, weights = fusion(patches, (6, 6), pyramid, level_shapes)
    assert torch.equal(fused, patches)
    assert torch.allclose(weights, torch.full_like(weights, 1 / 12))
    # The first head looks to the right, at one, two, three and four cells.
    distances = (locations - fusion.patch_centres((6, 6), patches.device))[0, 0, 0, 0]
    assert torch.allclose(distances, torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]), atol=1e-6)


@pytest.mark.parametrize("image_size", [(48, 48), (64, 40), (50, 70)])
def test_patch_centres_lie_at_the_same_place_on_every_level(make_config, image_size):
    fusion = AscentViTDeformableFusion(make_config())
    grid = (image_size[0] // 8, image_size[1] // 8)
    places = fusion.relative_locations(fusion.patch_centres(grid, torch.device("cpu")), image_size)
    rows = (torch.arange(grid[0]) + 0.5) * 8 / image_size[0]
    columns = (torch.arange(grid[1]) + 0.5) * 8 / image_size[1]
    expected = torch.stack([columns.repeat(grid[0]), rows.repeat_interleave(grid[1])], dim=-1)
    for level in range(3):
        torch.testing.assert_close(places[0, :, 0, level, 0], expected)


def test_each_patch_reads_its_own_place(make_config):
    """Without offsets, a pyramid that holds coordinates gives each patch the coordinates of its centre."""
    config = make_config(fusion_heads=1, fusion_points=1)
    fusion = AscentViTDeformableFusion(config)
    level_shapes = [(8, 12), (4, 6), (2, 3)]  # a 64x96 image, 8x12 patches of 8 pixels
    planes = []
    for height, width in level_shapes:
        y, x = torch.meshgrid(
            (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
        )
        planes.append(torch.stack([x, y], dim=-1).view(-1, 2))
    values = torch.cat(planes)[None, :, None]
    centres = fusion.patch_centres((8, 12), torch.device("cpu"))
    for level in range(3):
        weights = torch.zeros(1, 96, 1, 3, 1)
        weights[:, :, :, level] = 1
        samples = multi_scale_deformable_sampling(values, level_shapes, centres, weights).view(8, 12, 2)
        y, x = torch.meshgrid((torch.arange(8) + 0.5) / 8, (torch.arange(12) + 0.5) / 12, indexing="ij")
        # Bilinear interpolation is exact on a plane, away from the zeros beyond the rim.
        inner = (slice(2, 6), slice(2, 10))
        torch.testing.assert_close(samples[inner], torch.stack([x, y], dim=-1)[inner])

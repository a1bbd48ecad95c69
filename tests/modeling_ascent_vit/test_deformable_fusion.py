# SPDX-License-Identifier: Apache-2.0
"""Where the fusion looks in the pyramid."""

from types import MethodType

import pytest
import torch
from torch import nn
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from modeling_ascent_vit.deformable_sampling_ascent_vit import multi_scale_deformable_sampling
from modeling_ascent_vit.modeling_ascent_vit import (
    AscentViTDeformableFusion,
    AscentViTDeformableSampling,
    AscentViTMultiScaleEncoding,
)


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


def random_samples(batch_size=6, dtype=torch.float32):
    """Arguments of the sampling, with places inside and outside of levels that are neither square nor alike."""
    generator = torch.Generator().manual_seed(0)
    level_shapes, shape = [(8, 5), (4, 3), (2, 1)], (batch_size, 7, 4, 3, 2)
    num_cells = sum(height * width for height, width in level_shapes)
    values = torch.randn(batch_size, num_cells, 4, 8, generator=generator).to(dtype)
    locations = torch.rand(*shape, 2, generator=generator) * 12 - 3
    return values, level_shapes, locations, torch.rand(*shape, generator=generator)


def put_kernel(sampling):
    """What `kernels` does with a layer that it has a kernel for; the kernel here is transformers' own, in PyTorch."""
    sampling.forward = MethodType(MultiScaleDeformableAttention.forward, sampling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kernel_gets_what_it_takes(dtype):
    arguments = random_samples(dtype=dtype)
    sampling = AscentViTDeformableSampling()
    expected = multi_scale_deformable_sampling(*arguments)
    # Without a kernel nothing is computed otherwise.
    assert torch.equal(sampling.sample(*arguments), expected)
    seen = []
    sampling.register_forward_pre_hook(lambda module, given: seen.append(given))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(sampling.sample(*arguments), expected, rtol=tolerance, atol=tolerance)
    put_kernel(sampling)
    given = sampling.sample(*arguments)
    assert given.dtype == dtype and len(seen) == 2
    torch.testing.assert_close(given, expected, rtol=tolerance, atol=tolerance)
    for value, shapes, listed, starts, locations, weights, step in seen:
        assert {x.dtype for x in (value, locations, weights)} == {torch.float32}
        assert all(x.is_contiguous() for x in (value, locations, weights))
        assert shapes.tolist() == [list(shape) for shape in listed] and starts.tolist() == [0, 40, 52]
        # As many images at a time as kernels ask for: a divisor of their number.
        assert step == 2 and value.shape[0] % step == 0


def test_a_model_with_a_kernel_says_the_same(make_config):
    torch.manual_seed(0)
    fusion = AscentViTDeformableFusion(make_config(num_spatial_concepts=2))
    for parameter in fusion.parameters():
        nn.init.normal_(parameter, std=0.3)
    level_shapes = [(6, 6), (3, 3), (2, 2)]
    num_cells = sum(height * width for height, width in level_shapes)
    hidden_size = fusion.query_norm.weight.shape[0]
    patches, pyramid = torch.randn(2, 36, hidden_size), torch.randn(2, num_cells, hidden_size)
    plain = fusion(patches, (6, 6), pyramid, level_shapes)[0]
    gradient = torch.autograd.grad(plain.sum(), fusion.value_projection.weight)[0]
    put_kernel(fusion.sampling)
    by_kernel = fusion(patches, (6, 6), pyramid, level_shapes)[0]
    torch.testing.assert_close(by_kernel, plain, rtol=1e-4, atol=1e-5)
    assert not torch.equal(by_kernel, patches) and not fusion.sampling.state_dict()
    again = torch.autograd.grad(by_kernel.sum(), fusion.value_projection.weight)[0]
    torch.testing.assert_close(again, gradient, rtol=1e-4, atol=1e-4)


def test_the_package_kernels_takes_the_layer(make_config):
    kernels = pytest.importorskip("kernels")
    name = "MultiScaleDeformableAttention"

    class Reference:
        layer_name = name

        def load(self):
            return MultiScaleDeformableAttention

    class Sampling(AscentViTDeformableSampling):
        pass

    # What the decorator does where transformers finds a version of the package that it takes.
    kernels.replace_kernel_forward_from_hub(Sampling, name)
    sampling, arguments = nn.Sequential(Sampling()), random_samples()
    with kernels.use_kernel_mapping({name: {"cpu": Reference()}}):
        kernels.kernelize(sampling, mode=kernels.Mode.INFERENCE, device="cpu")
    assert "forward" in vars(sampling[0])
    expected = multi_scale_deformable_sampling(*arguments)
    torch.testing.assert_close(sampling[0].sample(*arguments), expected, rtol=1e-5, atol=1e-5)

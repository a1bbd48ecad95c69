# SPDX-License-Identifier: Apache-2.0
"""Deformable sampling against `grid_sample` in float64, transformers' own implementation, and itself compiled."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from modeling_ascent_vit.modeling_ascent_vit import (
    AscentViTDeformableFusion,
    AscentViTMultiScaleEncoding,
    multi_scale_deformable_sampling,
    sampling_taps,
    sum_of_rows,
)


def reference(values, level_shapes, locations, weights):
    """One `grid_sample` per level, as the definition says."""
    batch_size, _, num_heads, head_size = values.shape
    num_queries, num_points = locations.shape[1], locations.shape[4]
    output, start = 0.0, 0
    for level, (height, width) in enumerate(level_shapes):
        plane = values[:, start : start + height * width].permute(0, 2, 3, 1)
        plane = plane.reshape(batch_size * num_heads, head_size, height, width)
        size = torch.tensor([width, height], dtype=locations.dtype)
        grid = (locations[:, :, :, level] + 0.5) / size * 2 - 1
        grid = grid.transpose(1, 2).reshape(batch_size * num_heads, num_queries, num_points, 2)
        samples = nn.functional.grid_sample(plane, grid, padding_mode="zeros", align_corners=False)
        samples = samples.view(batch_size, num_heads, head_size, num_queries, num_points)
        output = output + torch.einsum("bmdqt,bqmt->bqmd", samples, weights[:, :, :, level])
        start += height * width
    return output.flatten(2)


def random_inputs(level_shapes, batch_size=2, num_queries=7, num_heads=3, num_points=4, head_size=5, spread=2.0):
    num_cells = sum(h * w for h, w in level_shapes)
    values = torch.randn(batch_size, num_cells, num_heads, head_size, dtype=torch.float64)
    sizes = torch.tensor([[w, h] for h, w in level_shapes], dtype=torch.float64).view(1, 1, 1, -1, 1, 2)
    shape = (batch_size, num_queries, num_heads, len(level_shapes), num_points, 2)
    locations = (torch.rand(shape, dtype=torch.float64) * spread - (spread - 1) / 2) * sizes - 0.5
    weights = torch.randn(shape[:-1], dtype=torch.float64)
    return values, locations, weights


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


level_shape = st.tuples(st.integers(1, 6), st.integers(1, 6))


@settings(max_examples=50, deadline=None)
@given(level_shapes=st.lists(level_shape, min_size=1, max_size=3), seed=st.integers(0, 2**31))
def test_forward_and_gradients_equal_grid_sample(level_shapes, seed):
    torch.manual_seed(seed)
    inputs = random_inputs(level_shapes)
    expected_inputs = [x.clone().requires_grad_() for x in inputs]
    expected = reference(expected_inputs[0], level_shapes, *expected_inputs[1:])
    direction = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, expected_inputs, direction)
    actual_inputs = [x.float().requires_grad_() for x in inputs]
    actual = multi_scale_deformable_sampling(actual_inputs[0], level_shapes, *actual_inputs[1:])
    actual_gradients = torch.autograd.grad(actual, actual_inputs, direction.float())
    scale = max(1.0, inputs[0].abs().max().item())
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4 * scale)
    for actual_gradient, expected_gradient in zip(actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(actual_gradient.double(), expected_gradient, rtol=1e-3, atol=1e-3 * scale)


def test_float64_is_exact():
    level_shapes = [(8, 6), (4, 3), (2, 2)]
    inputs = [x.requires_grad_() for x in random_inputs(level_shapes)]
    expected = reference(inputs[0], level_shapes, *inputs[1:])
    actual = multi_scale_deformable_sampling(inputs[0], level_shapes, *inputs[1:])
    assert relative_error(actual, expected) < 1e-13
    for a, e in zip(
        torch.autograd.grad(actual.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
    ):
        assert relative_error(a, e) < 1e-13


def test_equals_transformers():
    level_shapes = [(8, 6), (4, 3)]
    values, locations, weights = random_inputs(level_shapes)
    sizes = torch.tensor([[w, h] for h, w in level_shapes], dtype=torch.float64).view(1, 1, 1, -1, 1, 2)
    shapes = torch.tensor(level_shapes)
    starts = torch.tensor([0, 48])
    expected = MultiScaleDeformableAttention()(
        values, shapes, level_shapes, starts, (locations + 0.5) / sizes, weights, 64
    )
    actual = multi_scale_deformable_sampling(values, level_shapes, locations, weights)
    assert relative_error(actual, expected) < 1e-12


def test_places_far_outside_and_nan_read_no_foreign_memory():
    level_shapes = [(3, 4)]
    values, locations, weights = random_inputs(level_shapes)
    outside = torch.full_like(locations, 1e30)
    assert multi_scale_deformable_sampling(values, level_shapes, outside, weights).abs().max() == 0
    assert multi_scale_deformable_sampling(values, level_shapes, -outside, weights).abs().max() == 0
    multi_scale_deformable_sampling(values, level_shapes, outside * float("nan"), weights)


def test_bfloat16_stays_near_float64():
    """As under autocast: values and weights come in bfloat16, places in float32."""
    level_shapes = [(28, 28), (14, 14), (7, 7)]
    values, locations, weights = random_inputs(level_shapes, head_size=16)
    weights = weights.flatten(3).softmax(-1).view_as(weights)
    expected_inputs = [x.clone().requires_grad_() for x in (values, locations, weights)]
    expected = reference(expected_inputs[0], level_shapes, *expected_inputs[1:])
    inputs = [values.bfloat16(), locations.float(), weights.bfloat16()]
    inputs = [x.requires_grad_() for x in inputs]
    actual = multi_scale_deformable_sampling(inputs[0], level_shapes, *inputs[1:])
    assert actual.dtype == torch.bfloat16
    assert relative_error(actual, expected) < 1e-2
    gradients = torch.autograd.grad(actual.sum(), inputs)
    for a, e in zip(gradients, torch.autograd.grad(expected.sum(), expected_inputs), strict=True):
        assert relative_error(a, e) < 2e-2


class Sampling(nn.Module):
    def __init__(self, level_shapes):
        super().__init__()
        self.level_shapes = level_shapes

    def forward(self, values, locations, weights):
        return multi_scale_deformable_sampling(values, self.level_shapes, locations, weights)


@pytest.mark.slow
def test_compiled_equals_grid_sample():
    level_shapes = [(8, 6), (4, 3)]
    inputs = random_inputs(level_shapes)
    compiled = torch.compile(Sampling(level_shapes), fullgraph=True)
    actual_inputs = [x.float().requires_grad_() for x in inputs]
    expected_inputs = [x.clone().requires_grad_() for x in inputs]
    actual = compiled(*actual_inputs)
    expected = reference(expected_inputs[0], level_shapes, *expected_inputs[1:])
    assert relative_error(actual, expected) < 1e-5
    gradients = torch.autograd.grad(actual.sum(), actual_inputs)
    for a, e in zip(gradients, torch.autograd.grad(expected.sum(), expected_inputs), strict=True):
        assert relative_error(a, e) < 1e-4


def test_exported_form_equals_grid_sample_and_has_no_embedding_bag():
    level_shapes = [(8, 6), (4, 3)]
    values, locations, weights = random_inputs(level_shapes)
    expected = reference(values, level_shapes, locations, weights)
    inputs = (values.float(), locations.float(), weights.float())
    program = torch.export.export(Sampling(level_shapes), inputs)
    assert "embedding_bag" not in str(program.graph)
    assert relative_error(program.module()(*inputs), expected) < 1e-5


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


@pytest.mark.parametrize("level_shapes", [[(5, 7), (3, 4), (2, 2)], [(4, 1), (1, 3), (1, 1)]])
def test_gradient_at_whole_cells_is_one_sided(level_shapes):
    """Sampling starts at whole cells, where interpolation has a kink: the slope must be that of one of its sides."""
    values, locations, weights = random_inputs(level_shapes)
    locations = locations.round()
    gradients = {}
    for name, shift in (("at", 0.0), ("before", -1e-4), ("after", 1e-4)):
        moved = (locations + shift).requires_grad_()
        multi_scale_deformable_sampling(values, level_shapes, moved, weights).square().sum().backward()
        gradients[name] = moved.grad
    # Moving both axes at once, each axis' slope is one of the two sides'.
    at, before, after = gradients["at"], gradients["before"], gradients["after"]
    low, high = torch.minimum(before, after), torch.maximum(before, after)
    margin = 1e-2 * (1 + at.abs())
    assert ((at >= low - margin) & (at <= high + margin)).all()
    assert at.abs().sum() > 0


@pytest.mark.parametrize("level_shapes", [[(5, 7), (3, 4), (2, 2)], [(4, 1), (1, 3), (1, 1)]])
def test_gradient_of_its_own_equals_that_of_autograd(level_shapes):
    """The gradient written by hand for processors against autograd through the same taps."""
    values, locations, weights = random_inputs(level_shapes)
    for place in (locations, locations.round()):
        inputs = [tensor.clone().requires_grad_() for tensor in (values, place, weights)]
        output = multi_scale_deformable_sampling(inputs[0], level_shapes, *inputs[1:])
        direction = torch.randn_like(output)
        own = torch.autograd.grad(output, inputs, direction)
        rows, shares, *_ = sampling_taps(level_shapes, *inputs[1:])
        plain = sum_of_rows(inputs[0].reshape(-1, values.shape[-1]), rows, shares, values.shape[2])
        torch.testing.assert_close(plain, output, rtol=1e-12, atol=1e-12)
        for gradient, expected in zip(own, torch.autograd.grad(plain, inputs, direction), strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


def test_gradient_check():
    level_shapes = [(3, 4), (2, 1)]
    inputs = [x.requires_grad_() for x in random_inputs(level_shapes, 1, 2, 2, 2, 3)]
    assert torch.autograd.gradcheck(
        lambda values, locations, weights: multi_scale_deformable_sampling(values, level_shapes, locations, weights),
        inputs,
    )


def test_gradient_in_bfloat16_stays_near_float64():
    level_shapes = [(6, 6), (3, 3)]
    values, locations, weights = random_inputs(level_shapes)
    gradients = []
    for dtype in (torch.float64, torch.bfloat16):
        inputs = [values.to(dtype), locations if dtype == torch.float64 else locations.float(), weights.to(dtype)]
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        output = multi_scale_deformable_sampling(inputs[0], level_shapes, *inputs[1:])
        gradients.append(torch.autograd.grad(output.sum(), inputs))
        assert [gradient.dtype for gradient in gradients[-1]] == [tensor.dtype for tensor in inputs]
    for exact, rounded in zip(*gradients, strict=True):
        assert relative_error(rounded, exact) < 2e-2

# SPDX-License-Identifier: Apache-2.0
"""Deformable sampling, plain and fast: against `grid_sample` in float64, transformers, each other; compiled."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from modeling_ascent_vit import AscentViTForImageClassification
from modeling_ascent_vit.deformable_sampling_ascent_vit import (
    fast_deformable_sampling,
    multi_scale_deformable_sampling,
    plain_deformable_sampling,
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


FORMS = pytest.mark.parametrize("sample", [multi_scale_deformable_sampling, plain_deformable_sampling])


@FORMS
def test_float64_is_exact(sample):
    level_shapes = [(8, 6), (4, 3), (2, 2)]
    inputs = [x.requires_grad_() for x in random_inputs(level_shapes)]
    expected = reference(inputs[0], level_shapes, *inputs[1:])
    actual = sample(inputs[0], level_shapes, *inputs[1:])
    assert relative_error(actual, expected) < 1e-13
    for a, e in zip(
        torch.autograd.grad(actual.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
    ):
        assert relative_error(a, e) < 1e-13


@FORMS
def test_equals_transformers(sample):
    level_shapes = [(8, 6), (4, 3)]
    values, locations, weights = random_inputs(level_shapes)
    sizes = torch.tensor([[w, h] for h, w in level_shapes], dtype=torch.float64).view(1, 1, 1, -1, 1, 2)
    shapes = torch.tensor(level_shapes)
    starts = torch.tensor([0, 48])
    expected = MultiScaleDeformableAttention()(
        values, shapes, level_shapes, starts, (locations + 0.5) / sizes, weights, 64
    )
    actual = sample(values, level_shapes, locations, weights)
    assert relative_error(actual, expected) < 1e-12


@FORMS
def test_places_far_outside_and_nan_read_no_foreign_memory(sample):
    level_shapes = [(3, 4)]
    values, locations, weights = random_inputs(level_shapes)
    outside = torch.full_like(locations, 1e30)
    assert sample(values, level_shapes, outside, weights).abs().max() == 0
    assert sample(values, level_shapes, -outside, weights).abs().max() == 0
    sample(values, level_shapes, outside * float("nan"), weights)


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


LEVELS = pytest.mark.parametrize("level_shapes", [[(5, 7), (3, 4), (2, 2)], [(4, 1), (1, 3), (1, 1)]])


@LEVELS
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


@LEVELS
@pytest.mark.parametrize("on_cells", [False, True])
def test_fast_form_equals_plain_form(level_shapes, on_cells):
    """Values and gradients, also at whole cells, where interpolation has a kink, and at the zeros around a level."""
    values, locations, weights = random_inputs(level_shapes, num_queries=30)
    inputs = [x.requires_grad_() for x in (values, locations.round() if on_cells else locations, weights)]
    plain = plain_deformable_sampling(inputs[0], level_shapes, *inputs[1:])
    direction = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, inputs, direction)
    fast = fast_deformable_sampling(inputs[0], level_shapes, *inputs[1:])
    assert type(fast.grad_fn).__name__ == "DeformableSamplingBackward"
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    for gradient, other in zip(torch.autograd.grad(fast, inputs, direction), expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(fast_deformable_sampling(inputs[0], level_shapes, *inputs[1:]), plain.detach())


@LEVELS
@pytest.mark.parametrize("on_cells", [False, True])
def test_gradient_of_its_own_equals_that_of_autograd(level_shapes, on_cells):
    """The gradient written by hand for CPUs against autograd through the same taps."""
    values, locations, weights = random_inputs(level_shapes)
    inputs = [x.requires_grad_() for x in (values, locations.round() if on_cells else locations, weights)]
    output = multi_scale_deformable_sampling(inputs[0], level_shapes, *inputs[1:])
    direction = torch.randn_like(output)
    own = torch.autograd.grad(output, inputs, direction)
    rows, shares, *_ = sampling_taps(level_shapes, *inputs[1:])
    taps = sum_of_rows(inputs[0].reshape(-1, values.shape[-1]), rows, shares, values.shape[2])
    torch.testing.assert_close(taps, output, rtol=1e-12, atol=1e-12)
    for gradient, expected in zip(own, torch.autograd.grad(taps, inputs, direction), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


@FORMS
def test_gradient_check(sample):
    level_shapes = [(3, 4), (2, 1)]
    inputs = [x.requires_grad_() for x in random_inputs(level_shapes, 1, 2, 2, 2, 3)]
    assert torch.autograd.gradcheck(lambda values, *rest: sample(values, level_shapes, *rest), inputs)


@FORMS
def test_second_derivatives(sample):
    level_shapes = [(3, 4), (2, 1)]
    inputs = [x.requires_grad_() for x in random_inputs(level_shapes, 1, 2, 2, 2, 3)]
    assert torch.autograd.gradgradcheck(lambda values, *rest: sample(values, level_shapes, *rest), inputs)


@pytest.mark.parametrize("needed", range(3))
def test_second_derivatives_of_one_input_alone(needed):
    """Gradients that nobody needs are none, and inputs that depend on each other get each its own part."""
    level_shapes = [(3, 4), (2, 1)]
    inputs = list(random_inputs(level_shapes, 1, 2, 2, 2, 3))
    inputs[needed].requires_grad_()
    gradients = []
    for sample in (multi_scale_deformable_sampling, plain_deformable_sampling):
        shifted = [inputs[0], inputs[1], inputs[2] + inputs[1].mean(-1)]
        output = sample(shifted[0], level_shapes, *shifted[1:]).square().sum()
        (first,) = torch.autograd.grad(output, inputs[needed], create_graph=True)
        gradients.append((first, *torch.autograd.grad(first.square().sum(), inputs[needed])))
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_transforms_of_functions():
    """`torch.func` differentiates, batches and both, as autograd does image by image."""
    level_shapes = [(5, 7), (1, 3)]
    inputs = random_inputs(level_shapes, batch_size=3)

    def energy(values, locations, weights):
        return multi_scale_deformable_sampling(values, level_shapes, locations, weights).square().sum()

    def energy_of_one(*inputs):
        return energy(*(x.unsqueeze(0) for x in inputs))

    leaves = [x.clone().requires_grad_() for x in inputs]
    expected = torch.autograd.grad(energy(*leaves), leaves)
    everything = (0, 1, 2)
    for actual in (
        torch.func.grad(energy, everything)(*inputs),
        torch.func.jacrev(energy, everything)(*inputs),
        torch.func.vmap(torch.func.grad(energy_of_one, everything))(*inputs),
    ):
        for gradient, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        total = torch.func.vmap(energy_of_one)(*inputs).sum()
    torch.testing.assert_close(total, energy(*inputs))
    tangents = [torch.randn_like(x) for x in inputs]
    along = torch.func.jvp(energy, inputs, tuple(tangents))[1]
    torch.testing.assert_close(along, sum((x * y).sum() for x, y in zip(expected, tangents, strict=True)))


def test_transforms_of_the_whole_model(make_config):
    """Per image, what each pixel does to a class score: by `torch.func` and by autograd."""
    model = AscentViTForImageClassification(make_config(pyramid_norm="group")).double().eval()
    nn.init.normal_(model.ascent_vit.fusion.gamma)
    pixels = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    leaf = pixels.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf).logits[:, 1].sum(), leaf)

    def score(image):
        return model(image.unsqueeze(0)).logits[0, 1]

    torch.testing.assert_close(torch.func.grad(lambda images: model(images).logits[:, 1].sum())(pixels), expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(score))(pixels), expected)
    jacobian = torch.func.jacrev(lambda image: model(image.unsqueeze(0)).logits[0])(pixels[0])
    torch.testing.assert_close(jacobian[1], expected[0])
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(score)(pixels), model(pixels).logits[:, 1])
    # Forward derivatives are known of eager attention alone, as of a plain ViT.
    model.set_attn_implementation("eager")
    step = torch.randn_like(pixels)
    along = torch.func.jvp(lambda images: model(images).logits[:, 1].sum(), (pixels,), (step,))[1]
    torch.testing.assert_close(along, (expected * step).sum())


def test_second_derivatives_of_the_whole_model(make_config):
    """What a step along the pixels does to the gradient: backward twice, and forward over backward by `torch.func`."""
    config = make_config(pyramid_norm="group")
    model = AscentViTForImageClassification._from_config(config, attn_implementation="eager").double().eval()
    nn.init.normal_(model.ascent_vit.fusion.gamma)
    pixels, step = torch.randn(2, 1, 3, 48, 48, dtype=torch.float64)

    def score(pixels):
        return model(pixels).logits[0, 1]

    expected = torch.func.jvp(torch.func.grad(score), (pixels,), (step,))[1]
    (gradient,) = torch.autograd.grad(score(pixels.requires_grad_()), pixels, create_graph=True)
    (actual,) = torch.autograd.grad((gradient * step).sum(), pixels)
    assert expected.any() and relative_error(actual, expected) < 1e-5


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

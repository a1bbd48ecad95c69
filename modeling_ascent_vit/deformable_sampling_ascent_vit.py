# Copyright 2026 The ASCENT-ViT project. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Multi-scale deformable sampling: its definition first, then forms that give the same and are fast."""

import warnings

import torch
from torch import nn

from .fast_inference_ascent_vit import is_transformed


def neighbour_weights(distances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Weights of two neighbouring cells in linear interpolation, 0 from a distance of one cell on.

    At whole cells, where sampling starts, interpolation has a kink, and the slope is that of one side: inside of a level, of
    the side ahead.

    Args:
        distances (`torch.Tensor`): how far the place lies behind the first cell, in cells; any number.

    Returns:
        Weight of the first and of the second cell, of the same shape.
    """
    first = torch.where(distances < 0, 1 + distances, 1 - distances).relu()
    second = torch.where(distances < 1, distances, 2 - distances)
    return first, torch.where(second < 0, 0.0, second)


def plain_deformable_sampling(
    values: torch.Tensor, level_shapes: list[tuple[int, int]], locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """
    Multi-scale deformable sampling as it is defined (Zhu et al., "Deformable DETR", ICLR 2021, equation 3): for each query
    and head, the sum over levels and points of weight times bilinear sample, with zeros outside of the level.

    It consists of arithmetic and lookups alone, and can be differentiated any number of times, also by `torch.func`. Arguments
    and result are those of [`multi_scale_deformable_sampling`].
    """
    batch_size, _, num_heads, head_size = values.shape
    levels = values.transpose(1, 2).split([height * width for height, width in level_shapes], dim=2)
    total = weights.new_zeros(())
    for i, (cells, (height, width)) in enumerate(zip(levels, level_shapes, strict=True)):
        # All of shape (batch_size, heads, num_queries, points).
        x, y, weight = (part[:, :, :, i].transpose(1, 2) for part in (*locations.unbind(-1), weights))
        left, top = x.clamp(0, max(width - 2, 0)).floor(), y.clamp(0, max(height - 2, 0)).floor()
        for row, share_of_row in zip((top, top + 1), neighbour_weights(y - top), strict=True):
            for column, share_of_column in zip((left, left + 1), neighbour_weights(x - left), strict=True):
                inside = (row < height) & (column < width)
                cell = torch.where(inside, row * width + column, 0).long()
                sample = cells.gather(2, cell.flatten(2).unsqueeze(-1).expand(-1, -1, -1, head_size))
                sample = sample.view(*cell.shape, head_size)
                share = weight * share_of_row * share_of_column * inside
                total = total + (share.unsqueeze(-1) * sample).sum(3)
    return total.transpose(1, 2).flatten(2).to(values.dtype)


def fast_neighbour_weights(distances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[`neighbour_weights`], in fewer passes where there is no gradient."""
    if distances.requires_grad:
        return neighbour_weights(distances)
    return (1 - distances.abs()).relu_(), torch.minimum(distances, 2 - distances).relu_()


def sampling_taps(
    level_shapes: list[tuple[int, int]], locations: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """
    The four cells around each sample, as rows of the pyramid flattened to `(batch_size * cells * heads, head_size)`.

    The first cell of each axis is moved inside of the level so that its neighbour lies inside too: what is then further
    away than one cell has weight 0, and no tap needs a mask.

    Args:
        level_shapes, locations, weights: as in [`multi_scale_deformable_sampling`].

    Returns:
        Rows (int32) and their weights, both `(batch_size, num_queries, heads, 4 * levels * points)`, all samples' top left
        cells first, then top right, bottom left and bottom right; the distances behind the first cell
        `(2, batch_size, num_queries, heads, levels * points)` with x before y, and their weights for the first and the
        second cell, of the same shape.
    """
    batch_size, _, num_heads, _, num_points = weights.shape
    device, dtype = locations.device, locations.dtype

    def per_sample(values: list[tuple], dtype: torch.dtype) -> torch.Tensor:
        # Whole rows of samples, since broadcasting over a few levels and points is slow.
        return (
            torch.tensor(values, device=device, dtype=dtype).t().repeat_interleave(num_points, 1).repeat(1, num_heads)
        )

    num_cells = sum(height * width for height, width in level_shapes)
    sizes = per_sample([(max(w - 2, 0), max(h - 2, 0), w) for h, w in level_shapes], dtype)
    last_cells, widths = sizes[:2, None, None], sizes[2]

    locations = locations.flatten(2, 4).movedim(-1, 0).contiguous()
    weights = weights.flatten(2)
    cells = locations.detach().clamp(torch.zeros_like(last_cells), last_cells).floor_()
    distances = locations - cells
    near, far = fast_neighbour_weights(distances)
    if min(map(min, level_shapes)) == 1:
        far = far * has_second_cell(level_shapes, num_heads, num_points, device)

    # How far the taps lie behind the first cell's row of head 0. A level's cells are counted in float32, which is exact up to
    # 2 ** 24, the cells of a picture of 32,768 pixels a side.
    start, steps = 0, []
    for height, width in level_shapes:
        right, below = int(width > 1), width * (height > 1)
        steps.append(tuple(num_heads * (start + step) for step in (0, right, below, below + right)))
        start += height * width
    heads = torch.arange(num_heads, device=device, dtype=torch.int32).repeat_interleave(weights.shape[-1] // num_heads)
    taps = per_sample(steps, torch.int32) + heads
    images = torch.arange(batch_size, device=device, dtype=torch.int32).view(-1, 1, 1) * (num_cells * num_heads)
    rows = torch.addcmul(cells[0], cells[1], widths).nan_to_num_().int()
    rows = torch.add(images, rows, alpha=num_heads)
    by_head = (num_heads, weights.shape[-1] // num_heads)
    rows = torch.cat([(rows + tap).unflatten(-1, by_head) for tap in taps], dim=-1)

    distances, near, far = (x.unflatten(-1, by_head) for x in (distances, near, far))
    weights = weights.unflatten(-1, by_head)
    top, bottom = weights * near[1], weights * far[1]
    shares = torch.cat([top * near[0], top * far[0], bottom * near[0], bottom * far[0]], dim=-1)
    return rows, shares, distances, near, far


def has_second_cell(
    level_shapes: list[tuple[int, int]], num_heads: int, num_points: int, device: torch.device
) -> torch.Tensor:
    """1 per sample and axis, 0 where the level is one cell wide or high: `(2, 1, 1, heads * levels * points)`."""
    sizes = torch.tensor(level_shapes, device=device).flip(1).t()
    return (sizes > 1).float().repeat_interleave(num_points, dim=1).repeat(1, num_heads)[:, None, None]


def sum_of_rows(table: torch.Tensor, rows: torch.Tensor, shares: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Weighted sums of rows of a table `(R, D)` per query and head: `(batch_size, num_queries, heads * D)`."""
    batch_size, num_queries = rows.shape[:2]
    rows, shares = (x.view(batch_size * num_queries * num_heads, -1) for x in (rows, shares.to(table.dtype)))
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
        # embedding_bag becomes a loop in ONNX.
        sums = (shares.unsqueeze(1) @ table[rows.long()]).squeeze(1)
    else:
        sums = nn.functional.embedding_bag(rows, table, per_sample_weights=shares, mode="sum")
    return sums.view(batch_size, num_queries, -1)


class DeformableSampling(torch.autograd.Function):
    """
    The fast form for training on the CPU: the gradient of `embedding_bag` by itself goes through the taps one by one, this
    one is another `embedding_bag`, from queries to cells. The plain form takes over where a second derivative may follow.
    """

    @staticmethod
    def forward(ctx, values, level_shapes, locations, weights):
        rows, shares, distances, near, far = sampling_taps(level_shapes, locations, weights)
        ctx.save_for_backward(values, locations, weights, rows, shares, distances, near, far)
        ctx.level_shapes = level_shapes
        return sum_of_rows(values.reshape(-1, values.shape[-1]), rows, shares, values.shape[2])

    @staticmethod
    def backward(ctx, gradient):
        values, locations, weights, *taps = ctx.saved_tensors
        compute = plain_gradients if torch.is_grad_enabled() else fast_gradients
        gradients = compute(gradient, values, ctx.level_shapes, locations, weights, *taps)
        return gradients[0], None, *gradients[1:]


def plain_gradients(gradient, values, level_shapes, locations, weights, *taps):
    """Gradients of values, locations and weights that can be differentiated again."""
    # Views, so that each gets its own part even where one of them depends on another.
    inputs = [x.view_as(x) for x in (values, locations, weights)]
    output = plain_deformable_sampling(inputs[0], level_shapes, *inputs[1:])
    needed = [x for x in inputs if x.requires_grad]
    gradients = iter(torch.autograd.grad(output, needed, gradient, create_graph=True))
    return [next(gradients) if x.requires_grad else None for x in inputs]


def fast_gradients(gradient, values, level_shapes, locations, weights, rows, shares, distances, near, far):
    """Gradients of values, locations and weights."""
    batch_size, num_cells, num_heads, head_size = values.shape
    table, dtype = values.reshape(-1, head_size), shares.dtype
    gradient = gradient.reshape(-1, head_size).to(dtype).contiguous()
    num_bags, bag_size = gradient.shape[0], rows.numel() // gradient.shape[0]
    rows_of_image = num_cells * num_heads

    # Which taps read a row: sorted image by image, since small integers sort faster.
    taps = rows.reshape(batch_size, -1)
    keys = taps - torch.arange(batch_size, dtype=torch.int32).view(-1, 1) * rows_of_image
    keys = keys.to(torch.int16 if rows_of_image <= torch.iinfo(torch.int16).max else torch.int32)
    order = torch.cat([image.sort().indices.add_(i * taps.shape[1]) for i, image in enumerate(keys)])
    counts = torch.bincount(taps.flatten(), minlength=table.shape[0])
    bags = torch.arange(num_bags, dtype=torch.int32).repeat_interleave(bag_size)
    values_gradient = nn.functional.embedding_bag(
        bags.index_select(0, order),
        gradient,
        (counts.cumsum(0) - counts).int(),
        per_sample_weights=shares.flatten().index_select(0, order),
        mode="sum",
    )

    # A sparse matrix holds no more entries than it has places, so a table shorter than a bag is made longer.
    columns = nn.functional.pad(table.to(dtype), (0, 0, 0, max(0, bag_size - table.shape[0]))).t()
    with warnings.catch_warnings():
        # That sparse tensors are in beta.
        warnings.simplefilter("ignore", UserWarning)
        pattern = torch.sparse_csr_tensor(
            torch.arange(0, taps.numel() + 1, bag_size, dtype=torch.int32),
            taps.flatten(),
            gradient.new_zeros(taps.numel()),
            size=(num_bags, columns.shape[1]),
        )
    products = torch.sparse.sampled_addmm(pattern, gradient, columns, beta=0.0).values()
    products = products.view(*distances.shape[1:-1], 4, -1).movedim(-2, 0).contiguous()
    top_left, top_right, bottom_left, bottom_right = products

    top, bottom = (
        left * near[0] + right * far[0] for left, right in ((top_left, top_right), (bottom_left, bottom_right))
    )
    weights_gradient = (top * near[1] + bottom * far[1]).view(weights.shape)
    near_slope = torch.where(distances < 0, 1.0, -1.0) * (near > 0)
    far_slope = torch.where(distances < 1, 1.0, -1.0) * ((distances >= 0) & (distances <= 2))
    if min(map(min, level_shapes)) == 1:
        second = has_second_cell(level_shapes, num_heads, weights.shape[-1], weights.device)
        far_slope *= second.unflatten(-1, (num_heads, -1))
    x_gradient = near[1] * (top_left * near_slope[0] + top_right * far_slope[0])
    x_gradient += far[1] * (bottom_left * near_slope[0] + bottom_right * far_slope[0])
    y_gradient = top * near_slope[1] + bottom * far_slope[1]
    locations_gradient = torch.stack([x_gradient, y_gradient], dim=-1) * weights.flatten(3).unsqueeze(-1)
    return (
        values_gradient.view(values.shape).to(table.dtype),
        locations_gradient.view(locations.shape),
        weights_gradient,
    )


def fast_deformable_sampling(
    values: torch.Tensor, level_shapes: list[tuple[int, int]], locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """
    [`plain_deformable_sampling`] with four taps of the flattened pyramid for each sample: the sum over taps, points and
    levels is one `embedding_bag`, which never stores the samples.
    """
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (values, locations, weights))
    if needs_gradient and values.device.type == "cpu" and not torch.compiler.is_compiling():
        return DeformableSampling.apply(values, level_shapes, locations, weights)
    rows, shares, *_ = sampling_taps(level_shapes, locations, weights)
    return sum_of_rows(values.reshape(-1, values.shape[-1]), rows, shares, values.shape[2])


def multi_scale_deformable_sampling(
    values: torch.Tensor,
    level_shapes: list[tuple[int, int]],
    locations: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """
    Weighted sum of bilinear samples from a feature pyramid (the core of Zhu et al., "Deformable DETR", ICLR 2021,
    equation 3), equal to `grid_sample(..., padding_mode="zeros", align_corners=False)` per level.

    `torch.func` can transform it, and on the CPU it has second derivatives too: there it takes its plain form.

    Args:
        values (`torch.Tensor` of shape `(batch_size, sum of H_l * W_l, heads, head_size)`): pyramid, level by level.
        level_shapes (`list[tuple[int, int]]`): height and width `(H_l, W_l)` of each level.
        locations (`torch.Tensor` of shape `(batch_size, num_queries, heads, levels, points, 2)`):
            x and y in cells of the level, 0 at the centre of its first cell; outside of the level there are zeros.
        weights (`torch.Tensor` of shape `(batch_size, num_queries, heads, levels, points)`): weight of each sample.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_queries, heads * head_size)` in the dtype of `values`.
    """
    # bfloat16 cannot tell neighbouring cells apart on a fine level, so places are computed in float32 or better.
    locations = locations if locations.dtype == torch.float64 else locations.float()
    weights = weights.to(locations.dtype)
    if is_transformed():
        return plain_deformable_sampling(values, level_shapes, locations, weights)
    return fast_deformable_sampling(values, level_shapes, locations, weights)


__all__ = ["multi_scale_deformable_sampling", "plain_deformable_sampling"]

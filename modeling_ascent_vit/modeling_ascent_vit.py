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
"""PyTorch ASCENT-ViT model: a vision transformer that classifies through attention to named concepts."""

import dataclasses
import inspect
import math
import os
import warnings
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import MODEL_MAPPING, AutoConfig, AutoModel
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, apply_renamings
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .configuration_ascent_vit import LARGEST_NUMBER, PYRAMID_STRIDES, AscentViTConfig


logger = logging.get_logger(__name__)

# What is taken at once at inference on a processor: features of the pyramid's stem, which are as large as a processor's
# cache, and images by the rest of pyramid and fusion, for memory's sake. At 224x224 pixels these are two images in the
# paper's stem in float32, and sixteen.
STEM_BYTES_AT_ONCE, PIXELS_AT_ONCE = 2 * 112 * 112 * 64 * 4, 16 * 224 * 224

# Labels that torch's cross-entropy leaves out.
IGNORED_LABEL = -100

# Backbones whose `post_layernorm` no patch token passes.
NORM_OF_POOLED_TOKEN = ("chinese_clip_vision_model", "clip_vision_model", "mlcd_vision_model")


@dataclass
class AscentViTModelOutput(ModelOutput):
    """
    Output of [`AscentViTModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_prefix_tokens + num_patches, hidden_size)`):
            The backbone's prefix tokens, then the patch tokens after fusion, row by row. With
            `config.shifted_fusion` the CLS token is fused too, and the last patch is not.
        patch_grid (`torch.LongTensor` of shape `(batch_size, 2)`):
            Height and width of the patch grid.
        fusion_locations (`torch.FloatTensor` of shape `(batch_size, num_patches, heads, levels, points, 2)`, *optional*, returned when `output_fusion=True`):
            Where each patch looked in the pyramid: x and y, from 0 at the left or top edge of the image to 1 at the
            right or bottom edge; outside of that it saw zeros.
        fusion_weights (`torch.FloatTensor` of shape `(batch_size, num_patches, heads, levels, points)`, *optional*, returned when `output_fusion=True`):
            How much each of these points counted; they sum to 1 per head over levels and points.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned when `output_hidden_states=True`):
            The backbone's hidden states.
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_attentions=True`):
            The backbone's attention weights.
    """

    last_hidden_state: torch.FloatTensor | None = None
    patch_grid: torch.LongTensor | None = None
    fusion_locations: torch.FloatTensor | None = None
    fusion_weights: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class AscentViTImageClassifierOutput(ModelOutput):
    """
    Output of [`AscentViTForImageClassification`]. A stream without concepts gives `None`.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` or concept targets are given):
            Class loss + `concept_loss_weight` * alignment loss + `entropy_loss_weight` * entropy loss.
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`):
            Class scores before softmax.
        global_concept_attention (`torch.FloatTensor` of shape `(batch_size, num_global_concepts)`):
            Attention of the image to the global concepts, mean over heads.
        spatial_concept_attention (`torch.FloatTensor` of shape `(batch_size, num_patches, num_spatial_concepts)`):
            Attention of each patch to the spatial concepts, mean over heads; patches row by row.
        unsupervised_concept_attention (`torch.FloatTensor` of shape `(batch_size, num_unsupervised_concepts)`):
            Attention of the image to the unsupervised concepts, mean over heads.
        concept_contributions (`torch.FloatTensor` of shape `(batch_size, num_concepts, num_labels)`, *optional*, returned when `output_contributions=True`):
            What each concept added to each logit, columns global, spatial, unsupervised. Their sum over concepts plus
            [`~AscentViTForImageClassification.class_bias`] is the logits.
        patch_grid (`torch.LongTensor` of shape `(batch_size, 2)`):
            Height and width of the patch grid.
        class_loss, alignment_loss, entropy_loss (`torch.FloatTensor` of shape `()`, *optional*):
            The terms of the loss, unweighted and detached, as far as they were computed.
        global_concept_attention_heads (`torch.FloatTensor` of shape `(batch_size, heads, num_global_concepts)`, *optional*, returned when `output_concept_heads=True`):
            Attention to the global concepts per head.
        spatial_concept_attention_heads (`torch.FloatTensor` of shape `(batch_size, heads, num_patches, num_spatial_concepts)`, *optional*, returned when `output_concept_heads=True`):
            Attention to the spatial concepts per head.
        unsupervised_concept_attention_heads (`torch.FloatTensor` of shape `(batch_size, heads, num_unsupervised_concepts)`, *optional*, returned when `output_concept_heads=True`):
            Attention to the unsupervised concepts per head.
        fusion_locations, fusion_weights (`torch.FloatTensor`, *optional*, returned when `output_fusion=True`):
            As in [`AscentViTModelOutput`].
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned when `output_hidden_states=True`):
            The backbone's hidden states.
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_attentions=True`):
            The backbone's attention weights.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    global_concept_attention: torch.FloatTensor | None = None
    spatial_concept_attention: torch.FloatTensor | None = None
    unsupervised_concept_attention: torch.FloatTensor | None = None
    concept_contributions: torch.FloatTensor | None = None
    patch_grid: torch.LongTensor | None = None
    class_loss: torch.FloatTensor | None = None
    alignment_loss: torch.FloatTensor | None = None
    entropy_loss: torch.FloatTensor | None = None
    global_concept_attention_heads: torch.FloatTensor | None = None
    spatial_concept_attention_heads: torch.FloatTensor | None = None
    unsupervised_concept_attention_heads: torch.FloatTensor | None = None
    fusion_locations: torch.FloatTensor | None = None
    fusion_weights: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


def is_dense(values) -> bool:
    """Whether these are a tensor that is neither sparse nor packed."""
    return isinstance(values, torch.Tensor) and values.layout == torch.strided


def alignment_loss(
    attention: torch.Tensor, targets: torch.Tensor, kind: str = "mse", none_concept: bool = False
) -> torch.Tensor:
    """
    Distance between the attention of tokens and where annotators saw the concepts.

    Per image it is the mean over its annotated tokens, then the mean over the batch, where an image without annotated
    tokens counts 0: so it does not depend on how a batch is cut. (The paper's equation 9 averages over the annotated
    tokens of the whole batch.)

    Args:
        attention (`torch.Tensor` of shape `(batch_size, num_tokens, num_concepts)`): attention, mean over heads.
        targets (`torch.Tensor` of shape `(batch_size, num_tokens, num_concepts)`):
            How present each concept is at each token, 0 or more; normalised here to sum to 1. A row with any NaN is
            ignored. A row of zeros means "none of these" with `none_concept`, else it is ignored.
        kind (`"mse"` or `"kl"`): number of concepts times the mean squared error, or the cross-entropy.
        none_concept (`bool`): whether the rest of the attention up to 1 went to "none".

    Returns:
        `torch.Tensor` of shape `()`, float32.
    """
    attention, targets = attention.float(), targets.float()
    annotated = ~targets.isnan().any(-1)
    targets = targets.nan_to_num(0.0)
    total = targets.sum(-1, keepdim=True)
    if not none_concept:
        annotated = annotated & (total.squeeze(-1) > 0)
    targets = targets / total.masked_fill(total == 0, 1.0)
    if kind == "mse":
        distance = attention.shape[-1] * (attention - targets).square().mean(-1)
    else:
        tiny = torch.finfo(attention.dtype).tiny
        distance = -(targets * attention.clamp_min(tiny).log()).sum(-1)
        if none_concept:
            none_attention = (1 - attention.sum(-1)).clamp_min(torch.finfo(attention.dtype).eps)
            distance = distance - (total.squeeze(-1) == 0) * none_attention.log()
    per_image = (distance * annotated).sum(-1) / annotated.sum(-1).clamp_min(1)
    return per_image.mean()


def attention_entropy(attention: torch.Tensor) -> torch.Tensor:
    """`-p ln p` of an attention of any shape, averaged over all its entries, float32 of shape `()`."""
    attention = attention.float()
    # Not torch.special.entr, whose slope is infinite where a softmax has underflowed to 0.
    return -(attention * attention.clamp_min(torch.finfo(attention.dtype).tiny).log()).mean()


def override_attention(attention: torch.Tensor, override: torch.Tensor | None) -> torch.Tensor:
    """
    Sets attention by hand, as a test-time intervention.

    Given values are kept exactly while their sum is at most 1, and the others are rescaled to the remainder. A sum
    above 1 is divided out and the others become 0. A row in which every concept is given is used as it is.

    Args:
        attention (`torch.Tensor` of shape `(batch_size, heads, num_tokens, num_concepts)`, or one column more):
            Softmax over concepts; a last column beyond the override's is "none", which cannot be set.
        override (`torch.Tensor` of shape `(batch_size, num_tokens, num_concepts)`, *optional*):
            Attention to use, NaN leaves a value to the model.

    Returns:
        `torch.Tensor` of the attention's shape.
    """
    if override is None:
        return attention
    override = override.to(attention.dtype).unsqueeze(1)
    given = ~override.isnan()
    values = override.nan_to_num(0.0)
    complete = given.all(-1, keepdim=True)
    values = torch.where(complete, values, values / values.sum(-1, keepdim=True).clamp_min(1.0))
    remainder = (1 - values.sum(-1, keepdim=True)).clamp_min(0.0)
    missing_columns = attention.shape[-1] - override.shape[-1]
    given, values = (nn.functional.pad(x, (0, missing_columns)) for x in (given, values))
    others = attention.masked_fill(given, 0.0)
    others = others * (remainder / others.sum(-1, keepdim=True).clamp_min(torch.finfo(attention.dtype).tiny))
    return torch.where(given.any(-1, keepdim=True), values + others, attention)


def bilinear_weights(distances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Weights of two neighbouring cells in linear interpolation, 0 from a distance of one cell on.

    Args:
        distances (`torch.Tensor`): how far the place lies behind the first cell, in cells; any number.

    Returns:
        Weight of the first and of the second cell, of the same shape.
    """
    if distances.requires_grad:
        # Sampling starts at whole cells, where the absolute value has no slope: the slope ahead is taken.
        first = torch.where(distances < 0, 1 + distances, 1 - distances).relu()
        second = torch.where(distances < 1, distances, 2 - distances)
        return first, torch.where(second < 0, 0.0, second)
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
        Rows (int32) and their weights, both `(batch_size, num_queries, heads * levels * points, 4)`, the distances
        behind the first cell `(2, batch_size, num_queries, heads * levels * points)` with x before y, and their weights
        for the first and the second cell, of the same shape.
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
    near, far = bilinear_weights(distances)
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
    taps = (per_sample(steps, torch.int32) + heads).t().contiguous()
    images = torch.arange(batch_size, device=device, dtype=torch.int32).view(-1, 1, 1) * (num_cells * num_heads)
    rows = torch.addcmul(cells[0], cells[1], widths).nan_to_num_().int()
    rows = torch.add(images, rows, alpha=num_heads).unsqueeze(-1) + taps

    top, bottom = weights * near[1], weights * far[1]
    shares = torch.stack([top * near[0], top * far[0], bottom * near[0], bottom * far[0]], dim=-1)
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
    [`multi_scale_deformable_sampling`] for training on a processor: the gradient of `embedding_bag` by itself goes through
    the taps one by one, this one is another `embedding_bag`, from queries to cells.
    """

    @staticmethod
    def forward(ctx, values, level_shapes, locations, weights):
        rows, shares, distances, near, far = sampling_taps(level_shapes, locations, weights)
        table = values.reshape(-1, values.shape[-1])
        ctx.save_for_backward(table, rows, shares, distances, near, far, weights)
        ctx.values_shape, ctx.level_shapes = values.shape, level_shapes
        return sum_of_rows(table, rows, shares, values.shape[2])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        table, rows, shares, distances, near, far, weights = ctx.saved_tensors
        batch_size, num_cells, num_heads, head_size = ctx.values_shape
        dtype = shares.dtype
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
        top_left, top_right, bottom_left, bottom_right = products.view(shares.shape).unbind(-1)

        top, bottom = (
            left * near[0] + right * far[0] for left, right in ((top_left, top_right), (bottom_left, bottom_right))
        )
        weights_gradient = (top * near[1] + bottom * far[1]).view(weights.shape)
        near_slope = torch.where(distances < 0, 1.0, -1.0) * (near > 0)
        far_slope = torch.where(distances < 1, 1.0, -1.0) * ((distances >= 0) & (distances <= 2))
        if min(min(shape) for shape in ctx.level_shapes) == 1:
            far_slope *= has_second_cell(ctx.level_shapes, num_heads, weights.shape[-1], weights.device)
        x_gradient = near[1] * (top_left * near_slope[0] + top_right * far_slope[0])
        x_gradient += far[1] * (bottom_left * near_slope[0] + bottom_right * far_slope[0])
        y_gradient = top * near_slope[1] + bottom * far_slope[1]
        locations_gradient = torch.stack([x_gradient, y_gradient], dim=-1) * weights.flatten(2).unsqueeze(-1)
        locations_gradient = locations_gradient.view(*weights.shape, 2)
        return values_gradient.view(ctx.values_shape).to(table.dtype), None, locations_gradient, weights_gradient


def multi_scale_deformable_sampling(
    values: torch.Tensor,
    level_shapes: list[tuple[int, int]],
    locations: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """
    Weighted sum of bilinear samples from a feature pyramid (the core of Zhu et al., "Deformable DETR", ICLR 2021,
    equation 3), equal to `grid_sample(..., padding_mode="zeros", align_corners=False)` per level.

    Each sample is four taps of the flattened pyramid, and the sum over taps, points and levels is one `embedding_bag`,
    which never stores the samples.

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
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (values, locations, weights))
    if needs_gradient and values.device.type == "cpu" and not torch.compiler.is_compiling():
        return DeformableSampling.apply(values, level_shapes, locations, weights)
    rows, shares, *_ = sampling_taps(level_shapes, locations, weights)
    return sum_of_rows(values.reshape(-1, values.shape[-1]), rows, shares, values.shape[2])


def split_images(module: nn.Module, images: torch.Tensor, num_pixels: int) -> tuple[torch.Tensor, ...]:
    """A batch in parts of `num_pixels` at inference on a processor, where fewer at a time are faster; else whole."""
    if module.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or images.device.type != "cpu":
        return (images,)
    return images.split(max(1, num_pixels // images[0, 0].numel()))


def computing_dtype(features: torch.Tensor) -> torch.dtype:
    """The dtype that a convolution of these gives, which autocast may choose."""
    kind = features.device.type
    casts = torch.is_autocast_enabled(kind) and features.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if casts else features.dtype


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is no more than its weight and bias: an adapter or a quantised layer in its place has more to it."""
    return type(layer) in (nn.Linear, nn.Conv2d) and type(layer.weight) is nn.Parameter


class AscentViTBatchNorm(nn.BatchNorm2d):
    """Batch normalisation that trains on a single value per channel too, by its running statistics."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.training and features.numel() == features.shape[1]:
            return nn.functional.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(features)


class AscentViTConvLayer(nn.Module):
    """
    Convolution, normalisation, ReLU and, on request, a pooling to half the size.
    `(B, C_in, H, W) -> (B, C_out, ceil(H / stride), ceil(W / stride))`, before the pooling.
    """

    def __init__(
        self,
        config: AscentViTConfig,
        in_channels: int,
        out_channels: int,
        stride: int,
        kernel_size: int = 3,
        pools: bool = False,
    ):
        super().__init__()
        # Not asked of the convolution, which may be an adapter's.
        self.out_channels, self.stride, self.kernel_size = out_channels, stride, kernel_size
        padding = 1 if kernel_size == 3 else 0
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        if config.pyramid_norm == "batch":
            self.normalization = AscentViTBatchNorm(out_channels)
        else:
            self.normalization = nn.GroupNorm(math.gcd(32, out_channels), out_channels)
        # Before ReLU, which gives the same as after it and leaves ReLU a quarter of the values.
        self.pooling = nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if pools else nn.Identity()

    def forward(self, features: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            features (`torch.Tensor` of shape `(B, C_in, H, W)`): features.
            out (`torch.Tensor`, *optional*): where the result is put; without gradients only.
        """
        convolution, norm = self.convolution, self.normalization
        folds = type(norm) is AscentViTBatchNorm and is_plain(convolution)
        folds = folds and not (self.training or torch.is_grad_enabled())
        if folds and not torch.compiler.is_compiling():
            # Where there are more weights than features, a pass over the features is the cheaper one.
            places = features.shape[0] * features[0, 0].numel() // self.stride**2
            folds = convolution.weight[0].numel() <= places
        if folds:
            # Computed anew at each call: cheaper than one pass over the features, and never stale.
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            weight = convolution.weight * scale.view(-1, 1, 1, 1)
            bias = norm.bias - norm.running_mean * scale
            features = nn.functional.conv2d(features, weight, bias, convolution.stride, convolution.padding)
        else:
            features = norm(convolution(features))
        features = self.pooling(features)
        return nn.functional.relu(features, inplace=True) if out is None else torch.clamp_min(features, 0, out=out)


class AscentViTPyramidStem(nn.Sequential):
    """Layers that bring the image to 1/4 of its size, `(B, C, H, W) -> (B, C_0, ceil(H / 4), ceil(W / 4))`."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        height, width = pixel_values.shape[2:]
        first = self[0]
        if first.kernel_size == 4:
            # Whole cells, so that every level is as large as with the paper's stem.
            pixel_values = nn.functional.pad(pixel_values, (0, -width % 4, 0, -height % 4))
        dtype = computing_dtype(pixel_values)
        pixel_values = pixel_values.to(dtype=dtype, memory_format=torch.channels_last)
        values_per_pixel = first.out_channels / first.stride**2
        parts = split_images(self, pixel_values, int(STEM_BYTES_AT_ONCE / (values_per_pixel * dtype.itemsize)))
        if len(parts) == 1:
            return super().forward(pixel_values)
        shape = (pixel_values.shape[0], self[-1].out_channels, -(-height // 4), -(-width // 4))
        features = torch.empty(shape, dtype=dtype, device=pixel_values.device, memory_format=torch.channels_last)
        *layers, last = self
        for part, place in zip(parts, features.split(len(parts[0])), strict=True):
            for layer in layers:
                part = layer(part)
            last(part, out=place)
        return features


class AscentViTMultiScaleEncoding(nn.Module):
    """
    Convolutional pyramid of the image at 1/8, 1/16 and 1/32 (the paper's section 4.1, MSE; layout of Chen et al.,
    "ViT-Adapter", ICLR 2023).

    `(B, C, H, W) -> (B, sum of H_l * W_l, F)`, level by level, and the shape `(H_l, W_l)` of each; F is the fusion's width.
    """

    def __init__(self, config: AscentViTConfig):
        super().__init__()
        channels, width = config.pyramid_channels, config.fusion_width
        if config.pyramid_stem == "patch":
            layers = [AscentViTConvLayer(config, config.num_channels, channels[0], stride=4, kernel_size=4)]
        else:
            layers = [
                AscentViTConvLayer(config, config.num_channels, channels[0], stride=2),
                AscentViTConvLayer(config, channels[0], channels[0], stride=1),
                AscentViTConvLayer(config, channels[0], channels[0], stride=1, pools=True),
            ]
        self.stem = AscentViTPyramidStem(*layers)
        self.stages = nn.ModuleList(
            AscentViTConvLayer(config, channels[i], channels[i + 1], stride=2) for i in range(config.fusion_levels)
        )
        self.projections = nn.ModuleList(
            nn.Conv2d(channels[i + 1], width, kernel_size=1) for i in range(config.fusion_levels)
        )
        self.level_embeddings = nn.Parameter(torch.empty(config.fusion_levels, width))

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        features, levels = self.stem(pixel_values), []
        for stage, projection in zip(self.stages, self.projections, strict=True):
            features = stage(features)
            levels.append(nn.functional.relu(projection(features), inplace=True))
        level_shapes = [(level.shape[2], level.shape[3]) for level in levels]
        levels = [level.flatten(2).transpose(1, 2) for level in levels]
        embeddings = self.level_embeddings.to(levels[0].dtype)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            embedded = [level + embedding for level, embedding in zip(levels, embeddings, strict=True)]
            return torch.cat(embedded, dim=1), level_shapes
        # Each sum at its place, without a copy.
        cells = [level.shape[1] for level in levels]
        pyramid = levels[0].new_empty(levels[0].shape[0], sum(cells), levels[0].shape[2])
        for level, embedding, part in zip(levels, embeddings, pyramid.split(cells, dim=1), strict=True):
            torch.add(level, embedding, out=part)
        return pyramid, level_shapes


class AscentViTDeformableFusion(nn.Module):
    """
    Lets every patch token look at a few points of the pyramid around its own place (the paper's section 4.2, DMSF):
    `patches + psi * gamma * MSDA(LN(patches), LN(pyramid))`, with gamma 0 at the start of training.
    """

    def __init__(self, config: AscentViTConfig):
        super().__init__()
        self.psi = config.psi
        self.num_heads = config.fusion_heads
        self.num_levels = config.fusion_levels
        self.num_points = config.fusion_points
        self.patch_size = config.patch_size
        num_samples, width = self.num_heads * self.num_levels * self.num_points, config.fusion_width
        self.query_norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.pyramid_norm = nn.LayerNorm(width, eps=1e-6)
        self.sampling_offsets = nn.Linear(config.hidden_size, num_samples * 2)
        self.sampling_weights = nn.Linear(config.hidden_size, num_samples)
        self.value_projection = nn.Linear(width, width)
        self.output_projection = nn.Linear(width, config.hidden_size)
        self.gamma = nn.Parameter(torch.zeros(config.hidden_size))

    def initial_offsets(self) -> torch.Tensor:
        """Bias of the offsets: head m looks in direction m of a ring, point t at distance t + 1 cells (`(samples * 2,)`)."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, self.num_points + 1, dtype=torch.float32).view(1, 1, -1, 1)
        ring = directions.view(-1, 1, 1, 2) * distances
        return ring.expand(-1, self.num_levels, -1, -1).flatten()

    def patch_centres(self, patch_grid: tuple[int, int], device: torch.device) -> torch.Tensor:
        """x and y of each patch's centre in the cells of each level, `(1, num_patches, 1, levels, 1, 2)`."""
        strides = torch.tensor(PYRAMID_STRIDES[: self.num_levels], device=device, dtype=torch.float32)
        y, x = (
            (torch.arange(count, device=device, dtype=torch.float32) + 0.5) * size
            for count, size in zip(patch_grid, self.patch_size, strict=True)
        )
        centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        return (centres.view(-1, 1, 2) / strides.view(1, -1, 1) - 0.5)[None, :, None, :, None]

    def forward(
        self,
        patches: torch.Tensor,
        patch_grid: tuple[int, int],
        pyramid: torch.Tensor,
        level_shapes: list[tuple[int, int]],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        batch_size, num_patches, _ = patches.shape
        queries = self.query_norm(patches)
        values = self.value_projection(self.pyramid_norm(pyramid))
        offsets = self.sampling_offsets(queries).float()
        offsets = offsets.view(batch_size, num_patches, self.num_heads, self.num_levels, self.num_points, 2)
        # Every centre for every head and point, since broadcasting over a few of them is slow.
        centres = self.patch_centres(patch_grid, patches.device).expand(-1, -1, *offsets.shape[2:])
        locations = offsets + centres.contiguous()
        weights = self.sampling_weights(queries).view(batch_size, num_patches, self.num_heads, -1)
        # Softmax by hand: that of torch is slow over few values.
        weights = weights.float()
        weights = (weights - weights.detach().amax(-1, keepdim=True)).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        weights = weights.view(batch_size, num_patches, self.num_heads, self.num_levels, self.num_points)
        values = values.view(batch_size, values.shape[1], self.num_heads, -1)
        samples = multi_scale_deformable_sampling(values, level_shapes, locations, weights)
        patches = torch.addcmul(patches, self.psi * self.gamma, self.output_projection(samples))
        return patches, locations, weights

    def relative_locations(self, locations: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        """Locations in cells of the levels as shares of the image's width and height."""
        strides = torch.tensor(PYRAMID_STRIDES[: self.num_levels], device=locations.device, dtype=locations.dtype)
        size = torch.tensor(image_size[::-1], device=locations.device, dtype=locations.dtype)
        return (locations + 0.5) * strides.view(-1, 1, 1) / size


class AscentViTTokenPool(nn.Module):
    """One token as the weighted mean of many, by a learned query. `(B, T, D) -> (B, 1, D)`."""

    def __init__(self, config: AscentViTConfig):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        scores = tokens @ self.query * tokens.shape[-1] ** -0.5
        weights = scores.softmax(-1, dtype=torch.float32).to(tokens.dtype)
        return weights.unsqueeze(1) @ tokens


class AscentViTConceptStream(nn.Module):
    """
    Class scores through attention of tokens to learned concepts (the paper's section 4.3, CRAM; Rigotti et al., "Concept
    Transformer", ICLR 2022). Keys, values and projection depend on parameters only, so every class score is an exact sum
    of what each concept contributed at each token.

    Args:
        config (`AscentViTConfig`): gives hidden size D, heads A and classes K.
        num_concepts (`int`): concepts of this stream.
        none_concept (`bool`): whether there is a learned key of value zero for "none of these".
    """

    def __init__(self, config: AscentViTConfig, num_concepts: int, none_concept: bool):
        super().__init__()
        hidden_size = config.hidden_size
        self.num_heads = config.concept_attention_heads
        self.head_size = hidden_size // self.num_heads
        self.concepts = nn.Parameter(torch.empty(num_concepts, hidden_size))
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)
        self.value = nn.Linear(hidden_size, hidden_size, bias=False)
        self.none_key = nn.Parameter(torch.zeros(hidden_size)) if none_concept else None
        self.projection = nn.Linear(hidden_size, config.num_labels)

    def split_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(..., T, D) -> (..., A, T, D / A)`"""
        return tokens.unflatten(-1, (self.num_heads, self.head_size)).transpose(-3, -2)

    def scores(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scaled dot products of tokens and keys, `(B, T, D) -> (B, A, T, S)`, "none" last where it is on."""
        keys = self.key(self.concepts)
        if self.none_key is not None:
            keys = torch.cat([keys, self.none_key.to(keys.dtype).unsqueeze(0)])
        keys = self.split_heads(keys)
        scaling = self.head_size**-0.5
        if self.can_fold(tokens, keys):
            # (x Wq) (c Wk)^T = x (Wq (c Wk)^T): one product with A * S columns instead of D and then S. It is computed
            # anew at each call, which costs S * D * D once per batch, and so is never stale.
            heads_of_query = self.query.weight.unflatten(0, (self.num_heads, self.head_size))
            folded = (keys * scaling) @ heads_of_query
            scores = nn.functional.linear(tokens, folded.flatten(0, 1))
            return scores.unflatten(-1, folded.shape[:2]).transpose(1, 2)
        return self.split_heads(self.query(tokens)) @ (keys.transpose(-2, -1) * scaling)

    def can_fold(self, tokens: torch.Tensor, keys: torch.Tensor) -> bool:
        """Whether query and keys are folded into one matrix: at inference, on many tokens, where it is cheaper."""
        return (
            not torch.is_grad_enabled()
            and tokens.shape[1] > 1
            and 2 * keys.shape[0] * keys.shape[1] <= tokens.shape[-1]
            and is_plain(self.query)
        )

    def forward(self, tokens: torch.Tensor, override: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            tokens (`torch.Tensor` of shape `(B, T, D)`): queries.
            override (`torch.Tensor` of shape `(B, T, S)`, *optional*): see [`override_attention`].

        Returns:
            Attention `(B, A, T, S)` in float32 and class scores `(B, K)`, averaged over tokens.
        """
        scores = self.scores(tokens)
        attention = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        attention = override_attention(attention, override)[..., : self.concepts.shape[0]]
        values = self.split_heads(self.value(self.concepts))
        # Averaged over tokens first: attending and projecting are linear, and there are fewer heads than tokens.
        attended = attention.mean(2, keepdim=True).to(values.dtype) @ values
        return attention, self.projection(attended.flatten(1))

    def contribution_table(self) -> torch.Tensor:
        """What attention 1 of head a to concept s adds to the score of class k, `(A, S, K)`."""
        values = self.split_heads(self.value(self.concepts))
        if not is_plain(self.projection):
            # Each head's values alone, zeros in place of the others'.
            alone = torch.einsum("asd,ab->asbd", values, torch.eye(self.num_heads).to(values)).flatten(2)
            return self.projection(alone) - self.projection.bias
        projection = self.projection.weight.unflatten(1, (self.num_heads, self.head_size))
        return values @ projection.permute(1, 2, 0).to(values.dtype)


class AscentViTPreTrainedModel(PreTrainedModel):
    """Weight initialisation and the interface for loading and saving pretrained models."""

    config: AscentViTConfig
    base_model_prefix = "ascent_vit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["AscentViTMultiScaleEncoding", "AscentViTDeformableFusion", "AscentViTConceptStream"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args,
        use_safetensors: bool | None = None,
        weights_only: bool = True,
        **kwargs,
    ):
        """
        Loads a model as [`~PreTrainedModel.from_pretrained`] does, from safetensors files alone: pickled weights, which
        can run code, are never read.

        Raises:
            ValueError: for `use_safetensors=False` or `weights_only=False`.
            OSError: where there are no weights as safetensors.
        """
        if use_safetensors is False or not weights_only:
            raise ValueError(
                "ASCENT-ViT reads weights as safetensors alone, as pickled ones can run code: leave use_safetensors "
                "and weights_only out."
            )
        try:
            return super().from_pretrained(
                pretrained_model_name_or_path, *model_args, use_safetensors=True, weights_only=True, **kwargs
            )
        except OSError as error:
            if SAFE_WEIGHTS_NAME not in str(error):
                raise
            raise OSError(
                f"{pretrained_model_name_or_path} has no {SAFE_WEIGHTS_NAME}: ASCENT-ViT reads weights as safetensors "
                "alone, as pickled ones can run code. Save them with save_pretrained of a current version."
            ) from error

    def load_state_dict(self, state_dict: dict[str, torch.Tensor], strict: bool = True, assign: bool = False):
        """
        Loads tensors as [`torch.nn.Module.load_state_dict`] does, also under the names that `save_pretrained` writes.

        `save_pretrained` gives a backbone's tensors the names of older releases where they had others, and `Trainer`
        resumes from such a file with this method: without renaming, the backbone would not be restored.

        Args:
            state_dict (`dict[str, torch.Tensor]`): tensors by name.
            strict (`bool`, *optional*, defaults to `True`): whether to raise for missing or unexpected names.
            assign (`bool`, *optional*, defaults to `False`): whether to take the tensors themselves instead of copies.

        Returns:
            The names that were missing and those that were unexpected.

        Raises:
            RuntimeError: for tensors of another shape, and with `strict` for names that do not match.
        """
        own_names = self.state_dict(keep_vars=True).keys()
        if not state_dict.keys() <= own_names:
            # save_pretrained undoes the conversions that the model was loaded with, or else the registered ones.
            conversions = [getattr(self, "_weight_conversions", None) or [], get_model_conversion_mapping(self)]
            renamings = [[item for item in items if isinstance(item, WeightRenaming)] for items in conversions]

            def own_name(name: str) -> str:
                candidates = [name, *(apply_renamings(name, items) for items in renamings)]
                return next((candidate for candidate in candidates if candidate in own_names), name)

            metadata = getattr(state_dict, "_metadata", None)
            state_dict = OrderedDict((own_name(name), tensor) for name, tensor in state_dict.items())
            if metadata is not None:
                state_dict._metadata = metadata
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    @classmethod
    def is_custom_code(cls) -> bool:
        # In code from outside, transformers leaves modules without parameters of their own to the initialisation of
        # their children, the backbone's modules too, as it may not use `transformers.initialization`. This code does.
        return False

    def post_init(self):
        super().post_init()
        # FSDP refuses the name of a class that no module of this model has.
        self._no_split_modules &= {type(module).__name__ for module in self.modules()}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, AscentViTConvLayer):
            # Not He's, as the authors': behind a normalisation the scale does not matter to the output, but small weights
            # move faster, and the recipes here are short.
            init.normal_(module.convolution.weight, std=self.config.initializer_range)
        elif isinstance(module, AscentViTMultiScaleEncoding):
            init.trunc_normal_(module.level_embeddings, std=self.config.initializer_range)
        elif isinstance(module, AscentViTDeformableFusion):
            init.zeros_(module.gamma)
            init.zeros_(module.sampling_offsets.weight)
            init.copy_(module.sampling_offsets.bias, module.initial_offsets())
            init.zeros_(module.sampling_weights.weight)
            init.xavier_uniform_(module.value_projection.weight)
            init.xavier_uniform_(module.output_projection.weight)
        elif isinstance(module, AscentViTTokenPool):
            init.zeros_(module.query)
        elif isinstance(module, AscentViTConceptStream):
            init.trunc_normal_(module.concepts, std=module.concepts.shape[-1] ** -0.5)
            for projection in (module.query, module.key, module.value):
                init.xavier_uniform_(projection.weight)
            if module.none_key is not None:
                init.zeros_(module.none_key)


def build_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """A randomly initialised backbone without pooling layer, where its class can leave it out."""
    return AutoModel.from_config(config, **_without_pooling_layer(config))


def _without_pooling_layer(config: PreTrainedConfig) -> dict[str, bool]:
    model_class = MODEL_MAPPING[type(config)]
    takes_it = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if takes_it else {}


def drop_unused_parameters(backbone: PreTrainedModel):
    """
    Takes out what only pre-training or pooling needs: without gradient, it would break distributed training.

    Poolers, CLIP's norm of the pooled token and SigLIP's attention head go; mask tokens become buffers that are not saved.
    """
    if _without_pooling_layer(backbone.config):
        backbone.pooler = None
    if getattr(backbone, "use_head", False):
        backbone.use_head = False
        del backbone.head
    if backbone.config.model_type in NORM_OF_POOLED_TOKEN:
        backbone.post_layernorm = nn.Identity()
    if backbone.config.model_type == "timm_wrapper":
        backbone.config.do_pooling = False
        backbone.timm_model.reset_classifier(0, "")
        if hasattr(backbone.timm_model, "fc_norm"):
            backbone.timm_model.fc_norm = nn.Identity()
    for module in backbone.modules():
        mask_token = module._parameters.get("mask_token")
        if mask_token is not None:
            del module.mask_token
            module.register_buffer("mask_token", mask_token.detach(), persistent=False)


class AscentViTModel(AscentViTPreTrainedModel):
    """
    A backbone whose patch tokens are fused with a multi-scale pyramid of the image.

    Args:
        config (`AscentViTConfig`): configuration.
        backbone (`PreTrainedModel`, *optional*):
            Backbone to use as it is, instead of a randomly initialised one of `config.backbone_config`.
    """

    def __init__(self, config: AscentViTConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        config.validate_all()
        self.backbone = build_backbone(config.backbone_config) if backbone is None else backbone
        drop_unused_parameters(self.backbone)
        parameters = inspect.signature(self.backbone.forward).parameters.values()
        needed = {parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty}
        needed -= {"pixel_values", "kwargs"}
        if needed or self.backbone.main_input_name != "pixel_values":
            raise ValueError(
                f"{config.backbone_config.model_type} cannot be the backbone: it needs more than pixel_values. "
                "Use a vision transformer with one token per patch, for example vit, deit, dinov2 or siglip_vision_model."
            )
        self.takes_interpolation = "interpolate_pos_encoding" in {parameter.name for parameter in parameters}
        self.encoding = AscentViTMultiScaleEncoding(config) if config.fusion_levels else None
        self.fusion = AscentViTDeformableFusion(config) if config.fusion_levels else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's; where they are part of a module that must not be split, as FSDP would, that module."""
        embeddings = self.backbone.get_input_embeddings()
        for module in self.backbone.modules():
            # FSDP gives what it has sharded a class of its own.
            names = {base.__name__ for base in type(module).__mro__}
            if not names.isdisjoint(self._no_split_modules) and embeddings in set(module.modules()):
                return module
        return embeddings

    def check_pixel_values(self, pixel_values: torch.Tensor | None, interpolate_pos_encoding: bool | None):
        """Raises one `ValueError` that names what was expected and what came."""
        config = self.config
        expected = f"(batch_size, {config.num_channels}, height, width)"
        if pixel_values is None:
            raise ValueError(f"pixel_values is missing: pass images as a float tensor of shape {expected}.")
        if not is_dense(pixel_values):
            raise ValueError(
                f"pixel_values must be a dense tensor of shape {expected}; got {type(pixel_values).__name__}."
            )
        shape = tuple(pixel_values.shape)
        # Where the batch is a symbol, comparing it would fix it.
        is_empty = not torch.compiler.is_compiling() and pixel_values.numel() == 0
        if pixel_values.ndim != 4 or shape[1] != config.num_channels or is_empty:
            raise ValueError(
                f"pixel_values must have the shape {expected}; got {shape}{', which is empty' if is_empty else ''}."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values must be floating point, scaled and normalised by the image processor; got {pixel_values.dtype}."
            )
        if shape[2] < config.patch_size[0] or shape[3] < config.patch_size[1]:
            raise ValueError(
                f"pixel_values must hold at least one patch of {config.patch_size[0]}x{config.patch_size[1]} pixels; "
                f"got {shape[2]}x{shape[3]}."
            )
        if config.is_hierarchical and (shape[2] % config.patch_size[0] or shape[3] % config.patch_size[1]):
            raise ValueError(
                f"pixel_values must be whole cells of {config.patch_size[0]}x{config.patch_size[1]} pixels, the total "
                f"stride of {config.backbone_config.model_type}; got {shape[2]}x{shape[3]}. Resize them."
            )
        can_interpolate = self.takes_interpolation and config.image_size[0] == config.image_size[1]
        needs_own_size = config.has_fixed_size or (
            self.takes_interpolation and not (interpolate_pos_encoding and can_interpolate)
        )
        if needs_own_size and shape[2:] != config.image_size:
            raise ValueError(
                f"pixel_values must be {config.image_size[0]}x{config.image_size[1]} pixels, the backbone's size; got "
                f"{shape[2]}x{shape[3]}. Resize them{', or pass interpolate_pos_encoding=True' if can_interpolate else ''}."
            )

    def fuse(
        self, patches: torch.Tensor, patch_grid: tuple[int, int], pixel_values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Patches fused with the pyramid of their images, and where and how much the fusion looked."""
        pixel_values = pixel_values.to(self.encoding.level_embeddings.dtype)
        images = split_images(self, pixel_values, PIXELS_AT_ONCE)
        if len(images) == 1:
            return self.fusion(patches, patch_grid, *self.encoding(pixel_values))
        parts = [
            self.fusion(tokens, patch_grid, *self.encoding(pixels))
            for tokens, pixels in zip(patches.split(len(images[0])), images, strict=True)
        ]
        return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_fusion: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> AscentViTModelOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images.
            interpolate_pos_encoding (`bool`, *optional*):
                Whether the backbone interpolates its position embeddings, for images of another size than its own.
            output_fusion (`bool`, *optional*, defaults to `False`):
                Whether to return where the fusion looked, and how much each point counted.
            output_attentions (`bool`, *optional*): whether to return the backbone's attention weights.
            output_hidden_states (`bool`, *optional*): whether to return the backbone's hidden states.

        Returns:
            [`AscentViTModelOutput`]

        Raises:
            ValueError: for pixels of another rank, channel count, dtype or size than expected.
        """
        self.check_pixel_values(pixel_values, interpolate_pos_encoding)
        config = self.config
        if self.takes_interpolation:
            # Backbones interpolate from a square; of any other shape they take their own size, as was checked.
            is_square = config.image_size[0] == config.image_size[1]
            kwargs["interpolate_pos_encoding"] = bool(interpolate_pos_encoding) and is_square
        outputs = self.backbone(
            pixel_values,
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if hidden_states.ndim == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        grid = (pixel_values.shape[2] // config.patch_size[0], pixel_values.shape[3] // config.patch_size[1])
        num_prefix_tokens = hidden_states.shape[1] - grid[0] * grid[1]
        if num_prefix_tokens < 0 or hidden_states.shape[-1] != config.hidden_size:
            raise ValueError(
                f"{config.backbone_config.model_type} gave {hidden_states.shape[1]} tokens of {hidden_states.shape[-1]} "
                f"values for {grid[0]}x{grid[1]} patches: use a backbone that keeps one token of {config.hidden_size} "
                "values per patch."
            )

        locations = weights = None
        if self.fusion is not None:
            shift = int(config.shifted_fusion)
            if shift and num_prefix_tokens != 1:
                raise ValueError(
                    f"shifted_fusion needs a backbone with one prefix token; {config.backbone_config.model_type} has "
                    f"{num_prefix_tokens}. Leave it out: it serves weights of the authors' code alone."
                )
            sizes = (num_prefix_tokens - shift, grid[0] * grid[1], shift)
            before, patches, after = hidden_states.split(sizes, dim=1)
            patches, locations, weights = self.fuse(patches, grid, pixel_values)
            hidden_states = torch.cat([before, patches, after], dim=1)
            locations = self.fusion.relative_locations(locations, pixel_values.shape[2:]) if output_fusion else None
        return AscentViTModelOutput(
            last_hidden_state=hidden_states,
            patch_grid=torch.tensor(grid, device=hidden_states.device).expand(hidden_states.shape[0], 2),
            fusion_locations=locations,
            fusion_weights=weights if output_fusion else None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class AscentViTForImageClassification(AscentViTPreTrainedModel):
    """
    ASCENT-ViT with its concept head: classifies images through attention to global, spatial and unsupervised concepts.

    Args:
        config (`AscentViTConfig`): configuration.
        backbone (`PreTrainedModel`, *optional*):
            Backbone to use as it is, instead of a randomly initialised one of `config.backbone_config`.

    Example:

    ```python
    >>> import torch
    >>> from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification
    >>> config = AscentViTConfig(global_concepts=["striped", "spotted"], spatial_concepts=["beak", "wing", "tail"])
    >>> model = AscentViTForImageClassification(config).eval()
    >>> with torch.no_grad():
    ...     outputs = model(torch.zeros(1, 3, 224, 224), output_contributions=True)
    >>> outputs.spatial_concept_attention.shape, outputs.concept_contributions.shape
    (torch.Size([1, 196, 3]), torch.Size([1, 5, 2]))
    ```"""

    def __init__(self, config: AscentViTConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        self.ascent_vit = AscentViTModel(config, backbone)
        self.drop_unread_fusion()
        has_global_query = config.num_global_concepts or config.num_unsupervised_concepts
        self.token_pool = AscentViTTokenPool(config) if has_global_query and config.global_token == "pool" else None
        self.global_stream = self._build_stream(config.num_global_concepts, config.none_concept)
        self.spatial_stream = self._build_stream(config.num_spatial_concepts, config.none_concept)
        self.unsupervised_stream = self._build_stream(config.num_unsupervised_concepts, False)
        self.post_init()

    def _build_stream(self, num_concepts: int, none_concept: bool) -> AscentViTConceptStream | None:
        return AscentViTConceptStream(self.config, num_concepts, none_concept) if num_concepts else None

    def drop_unread_fusion(self):
        """Without spatial concepts, a CLS query never reads the patches that the pyramid is fused into."""
        config = self.config
        names = {name.rpartition(".")[2] for name, _ in self.ascent_vit.backbone.named_parameters()}
        has_cls = not names.isdisjoint({"cls_token", "class_embedding"})
        reads_cls_alone = not config.num_spatial_concepts and config.global_token == "cls" and has_cls
        if config.fusion_levels and reads_cls_alone and not config.shifted_fusion:
            logger.warning(
                "Nothing reads the fused patches: the model has no spatial concepts and its global concepts look at the "
                'CLS token alone. It is built without pyramid (fusion_levels=0). Set global_token="cls_mean" or "pool", '
                "or name spatial concepts, to use the pyramid."
            )
            config.fusion_levels = 0
            self.ascent_vit.encoding = self.ascent_vit.fusion = None

    @classmethod
    def from_backbone(
        cls, backbone: str | os.PathLike | PreTrainedConfig | PreTrainedModel, **kwargs
    ) -> "AscentViTForImageClassification":
        """
        Puts a new concept head, and the pyramid, on top of a vision transformer.

        Args:
            backbone (`str`, `os.PathLike`, `PreTrainedConfig` or `PreTrainedModel`):
                A Hub id or a folder, whose pretrained weights are loaded; a configuration, for random weights; or a
                model, which is used as it is. Of a model of images and text, the vision part is taken.
            kwargs:
                Fields of [`AscentViTConfig`], `num_labels`, `num_global_concepts` and `num_spatial_concepts`. Others
                (`dtype`, `revision`, `token`, `device_map`, `quantization_config`, ...) go to
                `AutoModel.from_pretrained`.

        Returns:
            [`AscentViTForImageClassification`], in training mode off as after `from_pretrained`.

        Example:

        ```python
        >>> model = AscentViTForImageClassification.from_backbone(
        ...     "facebook/dinov2-base", spatial_concepts=["beak", "wing", "tail"], num_labels=200
        ... )
        ```"""
        fields = {field.name for field in dataclasses.fields(cls.config_class)} - {"dtype"}
        fields |= {"num_labels", "num_global_concepts", "num_spatial_concepts"}
        config_kwargs = {name: kwargs.pop(name) for name in list(kwargs) if name in fields}
        if isinstance(backbone, str | os.PathLike):
            hub_kwargs = {
                name: kwargs[name]
                for name in ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code")
                if name in kwargs
            }
            backbone_config = AutoConfig.from_pretrained(backbone, **hub_kwargs)
            backbone_config = getattr(backbone_config, "vision_config", backbone_config)
            kwargs.update(_without_pooling_layer(backbone_config))
            backbone = AutoModel.from_pretrained(backbone, config=backbone_config, **kwargs)
        elif not isinstance(backbone, PreTrainedConfig | PreTrainedModel):
            raise ValueError(
                f"backbone must be a Hub id, a folder, a configuration or a model; got {type(backbone).__name__}."
            )
        elif kwargs:
            raise ValueError(
                f"from_backbone got arguments it does not know: {', '.join(sorted(kwargs))}. Loading arguments need a "
                "Hub id or a folder as backbone."
            )
        if isinstance(backbone, PreTrainedConfig):
            backbone_config = getattr(backbone, "vision_config", backbone)
            return cls(cls.config_class(backbone_config=backbone_config, **config_kwargs)).eval()
        model = cls(cls.config_class(backbone_config=backbone.config, **config_kwargs), backbone)
        new_parts = {
            name: child
            for name, child in [*model.named_children(), *model.ascent_vit.named_children()]
            if name not in ("ascent_vit", "backbone")
        }
        for child in new_parts.values():
            child.to(device=backbone.device, dtype=backbone.dtype)
        if getattr(backbone, "hf_quantizer", None) is not None:
            model.adopt_quantization(list(new_parts))
        return model.eval()

    def adopt_quantization(self, plain_parts: list[str]):
        """Makes the backbone's quantisation the whole model's, with parts that stay plain, so that it can be saved."""
        backbone = self.ascent_vit.backbone
        quantization_config = backbone.config.quantization_config
        for skipped in ("modules_to_not_convert", "llm_int8_skip_modules"):
            if hasattr(quantization_config, skipped):
                setattr(quantization_config, skipped, [*(getattr(quantization_config, skipped) or []), *plain_parts])
        del backbone.config.quantization_config
        self.config.quantization_config = quantization_config
        self.hf_quantizer = backbone.hf_quantizer

    def streams(self) -> dict[str, AscentViTConceptStream]:
        """The streams that have concepts, in the order of the contributions' columns."""
        streams = {
            "global": self.global_stream,
            "spatial": self.spatial_stream,
            "unsupervised": self.unsupervised_stream,
        }
        return {name: stream for name, stream in streams.items() if stream is not None}

    def class_bias(self) -> torch.Tensor:
        """What the logits hold beside the contributions of concepts, `(num_labels,)`."""
        return torch.stack([stream.projection.bias for stream in self.streams().values()]).sum(0)

    def check_concept_values(
        self,
        name: str,
        values: torch.Tensor | None,
        num_concepts: int,
        shape: tuple[int, ...],
        check_anywhere: bool = False,
    ):
        """
        Raises one `ValueError` that names what was expected and what came. The values themselves are looked at on the
        CPU, elsewhere with `check_anywhere` only, as that waits for the device.
        """
        if values is None:
            return
        if num_concepts == 0:
            raise ValueError(f"{name} was given, but the model has no such concepts: leave it out.")
        if not is_dense(values):
            raise ValueError(f"{name} must be a dense tensor of shape {shape}; got {type(values).__name__}.")
        if tuple(values.shape) != shape:
            raise ValueError(f"{name} must have the shape {shape}; got {tuple(values.shape)}.")
        if not values.is_floating_point():
            raise ValueError(f"{name} must be floating point, with NaN for unknown; got {values.dtype}.")
        if not torch.compiler.is_compiling() and (check_anywhere or values.device.type == "cpu"):
            # In float16 the limit would be infinity.
            wrong = (values < 0) | (values.float() > LARGEST_NUMBER)
            if wrong.any():
                raise ValueError(
                    f"{name} must be at most {LARGEST_NUMBER:g}, 0 or more, or NaN; got {values[wrong][0].item():g}."
                )

    def check_labels(self, labels: torch.Tensor | None, batch_size: int) -> torch.Tensor | None:
        """
        Class indices as int64; other labels as they are. Raises one `ValueError` that names what was expected and what
        came; the values themselves are looked at on the CPU only, as that waits for the device.
        """
        if labels is None:
            return None
        if not is_dense(labels) or labels.ndim == 0 or labels.shape[0] != batch_size:
            got = tuple(labels.shape) if isinstance(labels, torch.Tensor) else type(labels).__name__
            raise ValueError(f"labels must be a tensor with one entry per image, ({batch_size},); got {got}.")
        readable = not torch.compiler.is_compiling() and labels.device.type == "cpu"
        if labels.is_floating_point():
            if readable and not labels.isfinite().all():
                raise ValueError("labels must be finite; got NaN or infinity.")
            return labels
        single = self.config.num_labels > 1 and self.config.problem_type in (None, "single_label_classification")
        if labels.dtype == torch.bool or labels.is_complex() or not single:
            return labels
        labels = labels.long()
        if readable:
            known = labels[labels != IGNORED_LABEL]
            if not known.numel() or known.min() < 0 or known.max() >= self.config.num_labels:
                raise ValueError(
                    f"labels must be classes from 0 to {self.config.num_labels - 1}, or {IGNORED_LABEL} for some that "
                    f"are ignored; got {labels.tolist()}."
                )
        return labels

    def global_query(self, prefix: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """The token that looks at global concepts, `(B, 1, D)`."""
        cls_token = prefix[:, :1]
        if self.token_pool is not None:
            return self.token_pool(torch.cat([cls_token, patches], dim=1))
        if prefix.shape[1] == 0:
            return patches.mean(1, keepdim=True)
        if self.config.global_token == "cls_mean":
            return cls_token + patches.mean(1, keepdim=True)
        return cls_token

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        concept_targets: torch.FloatTensor | None = None,
        spatial_concept_targets: torch.FloatTensor | None = None,
        global_concept_override: torch.FloatTensor | None = None,
        spatial_concept_override: torch.FloatTensor | None = None,
        output_contributions: bool = False,
        output_concept_heads: bool = False,
        output_fusion: bool = False,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> AscentViTImageClassifierOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images. They are not searched for NaN and infinity, which would cost a pass over all pixels
                and break `torch.compile` and export, and come out as NaN logits; the image processor refuses them.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Class indices. Of shape `(batch_size, num_labels)` and float for several labels per image.
            concept_targets (`torch.FloatTensor` of shape `(batch_size, num_global_concepts)`, *optional*):
                How present each global concept is, usually 0 or 1; NaN where it is unknown.
            spatial_concept_targets (`torch.FloatTensor` of shape `(batch_size, num_patches, num_spatial_concepts)`, *optional*):
                How present each spatial concept is in each patch, usually 0 or 1; NaN where it is unknown.
            global_concept_override (`torch.FloatTensor` of shape `(batch_size, num_global_concepts)`, *optional*):
                Attention to use instead of the model's, NaN leaves a value to the model. k concepts that are present
                have 1 / k each, absent ones 0.
            spatial_concept_override (`torch.FloatTensor` of shape `(batch_size, num_patches, num_spatial_concepts)`, *optional*):
                The same per patch.
            output_contributions (`bool`, *optional*, defaults to `False`):
                Whether to return what each concept added to each logit.
            output_concept_heads (`bool`, *optional*, defaults to `False`):
                Whether to return the attention to concepts per head too.
            output_fusion (`bool`, *optional*, defaults to `False`):
                Whether to return where the fusion looked, and how much each point counted.
            interpolate_pos_encoding (`bool`, *optional*):
                Whether the backbone interpolates its position embeddings, for images of another size than its own.
            output_attentions (`bool`, *optional*): whether to return the backbone's attention weights.
            output_hidden_states (`bool`, *optional*): whether to return the backbone's hidden states.

        Returns:
            [`AscentViTImageClassifierOutput`]

        Raises:
            ValueError: for pixels, labels, targets or overrides of another shape or dtype than expected, overrides
                below 0 or beyond 1e6, and, where they are on the CPU, such targets and labels that are no class.
        """
        config = self.config
        outputs = self.ascent_vit(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_fusion=output_fusion,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        hidden_states = outputs.last_hidden_state
        batch_size, patch_size = hidden_states.shape[0], config.patch_size
        num_patches = (pixel_values.shape[2] // patch_size[0]) * (pixel_values.shape[3] // patch_size[1])
        num_global, num_spatial = config.num_global_concepts, config.num_spatial_concepts
        global_shape, spatial_shape = (batch_size, num_global), (batch_size, num_patches, num_spatial)
        self.check_concept_values("concept_targets", concept_targets, num_global, global_shape)
        self.check_concept_values("spatial_concept_targets", spatial_concept_targets, num_spatial, spatial_shape)
        self.check_concept_values("global_concept_override", global_concept_override, num_global, global_shape, True)
        self.check_concept_values(
            "spatial_concept_override", spatial_concept_override, num_spatial, spatial_shape, True
        )
        labels = self.check_labels(labels, batch_size)

        prefix, patches = hidden_states[:, :-num_patches], hidden_states[:, -num_patches:]
        queries = {"spatial": (patches, spatial_concept_override)}
        if self.global_stream is not None or self.unsupervised_stream is not None:
            query = self.global_query(prefix, patches)
            override = None if global_concept_override is None else global_concept_override.unsqueeze(1)
            queries |= {"global": (query, override), "unsupervised": (query, None)}

        logits, attentions, contributions = 0.0, {}, []
        for name, stream in self.streams().items():
            attention, class_scores = stream(*queries[name])
            logits = logits + class_scores
            attentions[name] = attention
            if output_contributions:
                table = stream.contribution_table().to(attention.dtype)
                contributions.append(torch.einsum("bas,ask->bsk", attention.mean(2), table))
        means = {name: attention.mean(1) for name, attention in attentions.items()}
        means |= {name: means[name].squeeze(1) for name in ("global", "unsupervised") if name in means}

        loss, terms = self.losses(logits, labels, means, concept_targets, spatial_concept_targets)
        heads = attentions if output_concept_heads else {}
        heads |= {name: heads[name].squeeze(2) for name in ("global", "unsupervised") if name in heads}
        return AscentViTImageClassifierOutput(
            loss=loss,
            logits=logits,
            global_concept_attention=means.get("global"),
            spatial_concept_attention=means.get("spatial"),
            unsupervised_concept_attention=means.get("unsupervised"),
            concept_contributions=torch.cat(contributions, dim=1) if contributions else None,
            patch_grid=outputs.patch_grid,
            **{name: term.detach() for name, term in terms.items()},
            global_concept_attention_heads=heads.get("global"),
            spatial_concept_attention_heads=heads.get("spatial"),
            unsupervised_concept_attention_heads=heads.get("unsupervised"),
            fusion_locations=outputs.fusion_locations,
            fusion_weights=outputs.fusion_weights,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def losses(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor | None,
        attention: dict[str, torch.Tensor],
        concept_targets: torch.Tensor | None,
        spatial_concept_targets: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """The weighted sum of the loss terms (the paper's equation 11) and each term; nothing without any target."""
        config = self.config
        terms = {}
        if labels is not None:
            terms["class_loss"] = self.loss_function(labels, logits, config)
        alignments = []
        for stream, targets in (("global", concept_targets), ("spatial", spatial_concept_targets)):
            if targets is not None:
                tokens = attention[stream].unsqueeze(1) if stream == "global" else attention[stream]
                targets = targets.to(tokens.device).view_as(tokens)
                alignments.append(alignment_loss(tokens, targets, config.alignment_loss, config.none_concept))
        if alignments:
            terms["alignment_loss"] = sum(alignments)
        if not terms:
            return None, {}
        entropies = [attention_entropy(attention[stream]) for stream in ("global", "spatial") if stream in attention]
        if entropies:
            terms["entropy_loss"] = sum(entropies)
        weights = {"alignment_loss": config.concept_loss_weight, "entropy_loss": config.entropy_loss_weight}
        return sum(weights.get(name, 1.0) * term for name, term in terms.items()), terms

    def contribution_maps(
        self, pixel_values: torch.FloatTensor, class_ids: torch.LongTensor | list[int] | list[list[int]], **kwargs
    ) -> torch.FloatTensor:
        """
        What each spatial concept added to the logits of chosen classes, at each place. Its sum over places is the
        spatial columns of `concept_contributions`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised images.
            class_ids (`torch.LongTensor` or `list`, of shape `(C,)` or `(batch_size, C)`):
                Classes, the same for all images or for each its own.
            kwargs: further arguments of [`~AscentViTForImageClassification.forward`], for example overrides.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, C, num_spatial_concepts, grid_height, grid_width)`

        Raises:
            ValueError: for a model without spatial concepts, or classes that it does not have.
        """
        if self.spatial_stream is None:
            raise ValueError("contribution_maps needs spatial concepts, and this model has none.")
        try:
            class_ids = torch.as_tensor(class_ids, device=self.spatial_stream.projection.weight.device)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise ValueError(f"class_ids must be a tensor or a list of class indices; got {class_ids!r}.") from error
        batch_size, num_labels = pixel_values.shape[0], self.config.num_labels
        if class_ids.ndim not in (1, 2) or (class_ids.ndim == 2 and class_ids.shape[0] != batch_size):
            raise ValueError(f"class_ids must have the shape (C,) or ({batch_size}, C); got {tuple(class_ids.shape)}.")
        if (
            class_ids.numel() == 0
            or class_ids.is_floating_point()
            or class_ids.dtype == torch.bool
            or class_ids.min() < 0
            or class_ids.max() >= num_labels
        ):
            raise ValueError(f"class_ids must be integers from 0 to {num_labels - 1}; got {class_ids.tolist()}.")
        outputs = self(pixel_values, output_concept_heads=True, return_dict=True, **kwargs)
        attention = outputs.spatial_concept_attention_heads
        table = self.spatial_stream.contribution_table().to(attention.dtype)
        table = table[..., class_ids.expand(batch_size, -1)]
        maps = torch.einsum("bans,asbc->bcsn", attention, table) / attention.shape[2]
        return maps.unflatten(-1, outputs.patch_grid[0].tolist())


__all__ = ["AscentViTForImageClassification", "AscentViTModel", "AscentViTPreTrainedModel"]

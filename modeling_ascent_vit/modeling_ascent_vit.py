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
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, apply_renamings
from transformers.integrations import use_kernel_forward_from_hub
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .backbone_images_ascent_vit import on_images
from .backbones_ascent_vit import (
    build_backbone,
    drop_unused_parameters,
    eager_attention,
    has_cls_token,
    pretrained_backbone,
)
from .checks_ascent_vit import (
    IGNORED_LABEL,
    check_backbone,
    check_concepts,
    check_presence,
    check_tokens,
    checked_labels,
    checked_pixel_values,
    class_indices,
)
from .configuration_ascent_vit import PYRAMID_STRIDES, AscentViTConfig
from .deformable_sampling_ascent_vit import multi_scale_deformable_sampling
from .edits_ascent_vit import Terms, read_edits, write_edits
from .fast_inference_ascent_vit import (
    add_in_place,
    as_convolved,
    fast_conv_layer,
    folded_scores,
    folds_query,
    fuse_in_parts,
    is_inference,
    is_plain,
    is_watched,
    softmax_over_few,
    stem_in_parts,
    takes_parts,
)
from .presence_ascent_vit import PresenceMemory, local_tokens, presence_loss, unplaced_images


if TYPE_CHECKING:
    # `save_pretrained` copies relatively imported files: the pipeline that config.json names must be there too.
    from .concept_pipeline_ascent_vit import ConceptImageClassificationPipeline as ConceptImageClassificationPipeline

logger = logging.get_logger(__name__)


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

    last_hidden_state: torch.Tensor | None = None
    patch_grid: torch.Tensor | None = None
    fusion_locations: torch.Tensor | None = None
    fusion_weights: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class AscentViTImageClassifierOutput(ModelOutput):
    """
    Output of [`AscentViTForImageClassification`]. A stream without concepts gives `None`.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` or concept targets are given):
            Class loss + `concept_loss_weight` * (alignment loss + presence loss) + `entropy_loss_weight` * entropy loss.
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
        class_loss, alignment_loss, presence_loss, entropy_loss (`torch.FloatTensor` of shape `()`, *optional*):
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

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    global_concept_attention: torch.Tensor | None = None
    spatial_concept_attention: torch.Tensor | None = None
    unsupervised_concept_attention: torch.Tensor | None = None
    concept_contributions: torch.Tensor | None = None
    patch_grid: torch.Tensor | None = None
    class_loss: torch.Tensor | None = None
    alignment_loss: torch.Tensor | None = None
    presence_loss: torch.Tensor | None = None
    entropy_loss: torch.Tensor | None = None
    global_concept_attention_heads: torch.Tensor | None = None
    spatial_concept_attention_heads: torch.Tensor | None = None
    unsupervised_concept_attention_heads: torch.Tensor | None = None
    fusion_locations: torch.Tensor | None = None
    fusion_weights: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def mean_over_annotated(distance: torch.Tensor, annotated: torch.Tensor) -> torch.Tensor:
    """
    Mean of a distance `(B, T)` over the tokens of each image that are annotated, then over the batch, where an image
    without any counts 0: so it does not depend on how a batch is cut.
    """
    return ((distance * annotated).sum(-1) / annotated.sum(-1).clamp_min(1)).mean()


def alignment_loss(
    attention: torch.Tensor, targets: torch.Tensor, kind: str = "mse", none_concept: bool = False
) -> torch.Tensor:
    """
    Distance between the attention of tokens and where annotators saw the concepts.

    Per image it is the mean over its annotated tokens, then the mean over the batch. (The paper's equation 9 averages
    over the annotated tokens of the whole batch.)

    With a gate g the cross-entropy with attention `g * share` falls apart: `-sum t log(g * share)` where concepts are and
    `-log(1 - g)` where none is are the cross-entropy of the shares, which concept, plus that of g, whether any. Each is
    averaged over the tokens that it is asked of, the first over those that show a concept, as the many that show none
    would drown it.

    Args:
        attention (`torch.Tensor` of shape `(batch_size, num_tokens, num_concepts)`): attention, mean over heads.
        targets (`torch.Tensor` of shape `(batch_size, num_tokens, num_concepts)`):
            How present each concept is at each token, 0 or more; normalised here to sum to 1. A row with any NaN is
            ignored. A row of zeros means "none of these" with `none_concept`, else it is ignored.
        kind (`"mse"` or `"kl"`): number of concepts times the mean squared error, or the cross-entropy.
        none_concept (`bool`): whether there is a gate, so that the attention of a token sums to g instead of 1.

    Returns:
        `torch.Tensor` of shape `()`, float32.
    """
    attention, targets = attention.float(), targets.float()
    annotated = ~targets.isnan().any(-1)
    targets = targets.nan_to_num(0.0)
    total = targets.sum(-1, keepdim=True)
    targets = targets / total.masked_fill(total == 0, 1.0)
    named = annotated & (total.squeeze(-1) > 0)
    if kind == "mse":
        distance = attention.shape[-1] * (attention - targets).square().mean(-1)
        return mean_over_annotated(distance, annotated if none_concept else named)
    precision = torch.finfo(attention.dtype)
    log_attention = attention.clamp_min(precision.tiny).log()
    if not none_concept:
        return mean_over_annotated(-(targets * log_attention).sum(-1), named)
    gate = attention.sum(-1)
    log_gate, log_none = gate.clamp_min(precision.tiny).log(), (1 - gate).clamp_min(precision.eps).log()
    which = mean_over_annotated(-(targets * (log_attention - log_gate.unsqueeze(-1))).sum(-1), named)
    whether = mean_over_annotated(-torch.where(named, log_gate, log_none), annotated)
    return which + whether


def attention_entropy(attention: torch.Tensor) -> torch.Tensor:
    """`-p ln p` of an attention of any shape, averaged over all its entries, float32 of shape `()`."""
    attention = attention.float()
    # Not torch.special.entr, whose slope is infinite where a softmax has underflowed to 0.
    return -(attention * attention.clamp_min(torch.finfo(attention.dtype).tiny).log()).mean()


def override_attention(
    attention: torch.Tensor, override: torch.Tensor | None, none: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Sets attention by hand, as a test-time intervention.

    Given values are kept exactly while their sum is at most 1, and the others, with "none", are rescaled to the
    remainder. A sum above 1 is divided out and the others become 0. A row in which every concept is given is used as it
    is. So a concept said to be present opens the gate at its token, and one said to be absent leaves it to the other
    concepts and "none", in the proportions they had.

    Args:
        attention (`torch.Tensor` of shape `(batch_size, heads, num_tokens, num_concepts)`): attention to concepts.
        override (`torch.Tensor` of shape `(batch_size, num_tokens, num_concepts)`, *optional*):
            Attention to use, NaN leaves a value to the model.
        none (`torch.Tensor` of shape `(batch_size, 1, num_tokens, 1)`, *optional*):
            What attention lacks of 1, where there is a gate.

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
    others = attention.masked_fill(given, 0.0)
    rest = others.sum(-1, keepdim=True) if none is None else others.sum(-1, keepdim=True) + none
    others = others * (remainder / rest.clamp_min(torch.finfo(attention.dtype).tiny))
    return torch.where(given.any(-1, keepdim=True), values + others, attention)


def true_attention(targets: torch.Tensor, none_concept: bool) -> torch.Tensor:
    """
    The attention that a person who knows the targets sets.

    Args:
        targets (`torch.Tensor` of shape `(batch_size, num_tokens, num_concepts)`): targets, NaN for unknown.
        none_concept (`bool`): whether a row of zeros means "none of these".

    Returns:
        `torch.Tensor` of the targets' shape: 1 / k for each of k present concepts and 0 for absent ones, in general the
        targets normalised to sum to 1; NaN in rows that are not annotated, which have any NaN, or only zeros without
        `none_concept`.
    """
    mass = targets.nansum(-1, keepdim=True)
    annotated = ~targets.isnan().any(-1, keepdim=True)
    if not none_concept:
        annotated = annotated & (mass > 0)
    return torch.where(annotated, targets / torch.where(mass > 0, mass, 1.0), torch.nan)


def random_corrections(targets: torch.Tensor, rate: float, none_concept: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Overrides by which a person would correct some concepts of some images, after RandInt of Espinosa Zarlenga et al.,
    "Concept Embedding Models" (NeurIPS 2022): of an image that is drawn with probability `rate`, a share of the concepts
    that is drawn from 0 to 1, each at all its tokens. Here the share differs by image, as concepts share a sum of 1.

    Args:
        targets (`torch.Tensor` of shape `(batch_size, num_tokens, num_concepts)`): targets, see [`true_attention`].
        rate (`float`): probability that an image is corrected.
        none_concept (`bool`): whether a row of zeros means "none of these".

    Returns:
        Which concepts of an image are corrected, bool `(batch_size, 1, num_concepts)`, and by what, of the targets'
        shape, see [`true_attention`].
    """
    batch_size, _, num_concepts = targets.shape
    drawn = torch.rand(batch_size, 1, 1, device=targets.device) < rate
    share = torch.rand(batch_size, 1, 1, device=targets.device)
    chosen = drawn & (torch.rand(batch_size, 1, num_concepts, device=targets.device) < share)
    return chosen, true_attention(targets, none_concept)


def attention_share(attention: torch.Tensor) -> torch.Tensor:
    """
    How much attention counts in the class scores: 1 over the sum of what each token attends to any concept, so that tokens
    that show none have no voice, and a small thing has as much of one as a large thing. The sum is taken as 1 at least,
    what one token can attend: what is hardly seen says hardly anything. Without a gate this is 1 over the number of tokens.

    Args:
        attention (`torch.Tensor` of shape `(batch_size, heads, num_tokens, num_concepts)`): attention to concepts.

    Returns:
        `torch.Tensor` of shape `(batch_size, 1, 1)`.
    """
    return share_of_voices(attention.sum(-1))


def share_of_voices(sums: torch.Tensor) -> torch.Tensor:
    """[`attention_share`] by what each head's attention sums to at each token, `(B, A, T) -> (B, 1, 1)`."""
    # More than 1 is set by hand, and then meant to count more.
    voices = sums.mean(1).clamp_max(1.0)
    return 1 / voices.sum(-1).clamp_min(1.0).view(-1, 1, 1)


def pooled_attention(
    attention: torch.Tensor,
    correction: tuple[torch.Tensor, torch.Tensor] | None = None,
    none: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Attention summed over tokens, by how much it counts there, see [`attention_share`]: what class scores are made of.

    Args:
        attention (`torch.Tensor` of shape `(batch_size, heads, num_tokens, num_concepts)`): attention to concepts.
        correction (`tuple`, *optional*):
            Concepts that are corrected at all annotated tokens of an image, and their attention, see
            [`random_corrections`]. They act as an override does, but the attention of all heads is not made anew: where
            it is large, that took a third of a training step.
        none (`torch.Tensor` of shape `(batch_size, 1, num_tokens, 1)`, *optional*): see [`override_attention`].

    Returns:
        `torch.Tensor` of shape `(batch_size, heads, num_concepts)`.
    """
    if correction is None:
        return attention.sum(2) * attention_share(attention)
    chosen, truth = correction[0], correction[1].to(attention.dtype)
    given = (~truth[..., :1].isnan() & chosen.any(-1, keepdim=True)).unsqueeze(1)
    values = (truth.nan_to_num(0.0) * chosen).unsqueeze(1)
    remainder = (1 - values.sum(-1, keepdim=True)).clamp_min(0.0).masked_fill(chosen.all(-1).view(-1, 1, 1, 1), 0.0)
    kept = 1 - chosen.to(attention.dtype)
    # Autocast would round factors that may be larger than float16 knows.
    with torch.autocast(attention.device.type, enabled=False):
        # What each token attends to concepts that are not corrected, and to all.
        left, whole = (attention @ torch.stack([kept, torch.ones_like(kept)], dim=-1)).split(1, dim=-1)
        rest = left if none is None else left + none
        factor = remainder / rest.clamp_min(torch.finfo(attention.dtype).tiny)
        weights = torch.cat([torch.where(given, factor, 0.0), (~given).to(factor.dtype).expand_as(factor)], dim=-1)
        others, free = (weights.transpose(-2, -1) @ attention).unbind(2)
    values = values * given
    pooled = values.sum(2) + others * kept + free
    return pooled * share_of_voices(
        torch.where(given, values.sum(-1, keepdim=True) + factor * left, whole).squeeze(-1)
    )


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
    Convolution, normalisation, ReLU and, on request, a pooling to half the size,
    `(B, C_in, H, W) -> (B, C_out, ceil(H / stride), ceil(W / stride))` before the pooling.
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
        # Kept here, as a quantised layer or an adapter in the convolution's place need not say them.
        self.out_channels, self.stride, self.kernel_size = out_channels, stride, kernel_size
        padding = 1 if kernel_size == 3 else 0
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.normalization: nn.Module
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
            out (`torch.Tensor`, *optional*): where the result is put, at inference alone.
        """
        if out is not None or is_inference(self):
            may_fold = is_plain(self.normalization, AscentViTBatchNorm)
            return fast_conv_layer(self.convolution, self.normalization, self.pooling, features, may_fold, out)
        # Not in place, which would change what hooks have put in place of the normalisation's output.
        return nn.functional.relu(self.pooling(self.normalization(self.convolution(features))))


class AscentViTPyramidStem(nn.Sequential):
    """Layers that bring the image to 1/4 of its size, `(B, C, H, W) -> (B, C_0, ceil(H / 4), ceil(W / 4))`."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        height, width = pixel_values.shape[2:]
        if self[0].kernel_size == 4:
            # Whole cells, so that every level is as large as with the paper's stem.
            pixel_values = nn.functional.pad(pixel_values, (0, -width % 4, 0, -height % 4))
        pixel_values = as_convolved(pixel_values)
        return stem_in_parts(self, pixel_values) if takes_parts(self, pixel_values) else super().forward(pixel_values)


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
            levels.append(nn.functional.relu(projection(features), inplace=is_inference(self)))
        level_shapes = [(level.shape[2], level.shape[3]) for level in levels]
        levels = [level.flatten(2).transpose(1, 2) for level in levels]
        embeddings = self.level_embeddings.to(levels[0].dtype)
        if is_inference(self) and not torch.compiler.is_compiling():
            return add_in_place(levels, embeddings), level_shapes
        embedded = [level + embedding for level, embedding in zip(levels, embeddings, strict=True)]
        return torch.cat(embedded, dim=1), level_shapes


@use_kernel_forward_from_hub("MultiScaleDeformableAttention")
class AscentViTDeformableSampling(nn.Module):
    """
    [`multi_scale_deformable_sampling`] with the arguments of transformers' layer of this name, so that the package `kernels`
    can put its compiled forward in place of this one (`use_kernels=True` of `from_pretrained`, on a GPU).
    """

    def forward(
        self,
        value: torch.Tensor,
        value_spatial_shapes: torch.Tensor,
        value_spatial_shapes_list: list[tuple[int, int]],
        level_start_index: torch.Tensor,
        sampling_locations: torch.Tensor,
        attention_weights: torch.Tensor,
        im2col_step: int,
    ) -> torch.Tensor:
        """
        Args:
            value (`torch.Tensor` of shape `(B, sum of H_l * W_l, heads, head_size)`): pyramid, level by level.
            value_spatial_shapes (`torch.LongTensor` of shape `(levels, 2)`): height and width of each level.
            value_spatial_shapes_list (`list[tuple[int, int]]`): the same as numbers.
            level_start_index (`torch.LongTensor` of shape `(levels,)`): index of each level's first cell.
            sampling_locations (`torch.Tensor` of shape `(B, num_queries, heads, levels, points, 2)`):
                x and y as shares of the level's width and height.
            attention_weights (`torch.Tensor` of shape `(B, num_queries, heads, levels, points)`): weight of each sample.
            im2col_step (`int`): number of images that a kernel takes at a time; it divides B.

        Returns:
            `torch.Tensor` of shape `(B, num_queries, heads * head_size)`
        """
        sizes = value_spatial_shapes.flip(1).to(sampling_locations)
        cells = sampling_locations * sizes.view(-1, 1, 2) - 0.5
        return multi_scale_deformable_sampling(value, value_spatial_shapes_list, cells, attention_weights)

    def sample(
        self,
        values: torch.Tensor,
        level_shapes: list[tuple[int, int]],
        locations: torch.Tensor,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """As [`multi_scale_deformable_sampling`], which is called itself unless something is in this layer's place."""
        if not is_watched(self):
            return multi_scale_deformable_sampling(values, level_shapes, locations, weights)
        shapes = torch.tensor(level_shapes, device=values.device)
        num_cells = shapes.prod(1)
        # One dtype, as kernels take it, in which places are exact enough.
        samples = self(
            values.float(),
            shapes,
            level_shapes,
            num_cells.cumsum(0) - num_cells,
            ((locations + 0.5) / shapes.flip(1).view(-1, 1, 2)).float(),
            weights.float(),
            math.gcd(values.shape[0], 64),
        )
        return samples.to(values.dtype)


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
        self.sampling = AscentViTDeformableSampling()
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
        samples_shape = (batch_size, num_patches, self.num_heads, self.num_levels, self.num_points)
        queries = self.query_norm(patches)
        values = self.value_projection(self.pyramid_norm(pyramid))
        values = values.view(batch_size, values.shape[1], self.num_heads, -1)
        offsets = self.sampling_offsets(queries).float().view(*samples_shape, 2)
        # Every centre for every head and point, since broadcasting over a few of them is slow.
        centres = self.patch_centres(patch_grid, patches.device).expand(-1, -1, *samples_shape[2:], 2)
        locations = offsets + centres.contiguous()
        weights = self.sampling_weights(queries).view(batch_size, num_patches, self.num_heads, -1)
        weights = softmax_over_few(weights.float()).view(samples_shape)
        samples = self.sampling.sample(values, level_shapes, locations, weights)
        patches = torch.addcmul(patches, self.psi * self.gamma, self.output_projection(samples))
        return patches, locations, weights

    def relative_locations(self, locations: torch.Tensor, image_size: Sequence[int]) -> torch.Tensor:
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


# Where a gate starts, before training: a patch rather without concepts, as most are, an image rather with some. Starting
# halfway, the gates' own gradients are the largest for a while, and the concepts' names are learned later.
SPATIAL_GATE_BIAS, GLOBAL_GATE_BIAS = -2.0, 2.0


class AscentViTConceptStream(nn.Module):
    """
    Class scores through attention of tokens to learned concepts (the paper's section 4.3, CRAM; Rigotti et al., "Concept
    Transformer", ICLR 2022). Keys, values and projection depend on parameters only, so every class score is an exact sum
    of what each concept contributed at each token.

    Args:
        config (`AscentViTConfig`): gives hidden size D, heads A and classes K.
        num_concepts (`int`): concepts of this stream.
        none_concept (`bool`):
            Whether a gate says first how much there is any of these concepts at a token, `g = sigmoid(w . token + b)`, of
            which attention is then the concepts' shares: rows sum to g. It is one for all heads: where something is
            does not depend on which of it a head looks for, and so the mean over heads is g times the mean of the shares.
        gate_bias (`float`, *optional*, defaults to -2.0): the gate's bias b before training.

    Terms of the sum can be removed or scaled for good, see [`multiply_terms`]: their factors are a buffer `concept_factors`
    `(S, K)`, which a stream without edits does not have.
    """

    def __init__(
        self,
        config: AscentViTConfig,
        num_concepts: int,
        none_concept: bool,
        gate_bias: float = SPATIAL_GATE_BIAS,
    ):
        super().__init__()
        self.gate_bias = gate_bias
        hidden_size = config.hidden_size
        self.num_heads = config.concept_attention_heads
        self.head_size = hidden_size // self.num_heads
        self.num_labels = config.num_labels
        self.concepts = nn.Parameter(torch.empty(num_concepts, hidden_size))
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)
        self.value = nn.Linear(hidden_size, hidden_size, bias=False)
        self.gate = nn.Linear(hidden_size, 1) if none_concept else None
        self.projection = nn.Linear(hidden_size, config.num_labels)
        self.concept_factors: torch.Tensor | None
        self.multiply_terms({})

    def multiply_terms(self, factors: dict[tuple[int, int], float]):
        """Multiplies the terms of a concept and a class, by their indices, by these factors, and others by 1."""
        self.factors = factors
        # A None that stands there as a plain attribute would keep the buffer out.
        vars(self).pop("concept_factors", None)
        self.concept_factors = nn.Buffer(self.factor_table()) if factors else None

    def factor_table(self) -> torch.Tensor:
        """The factors as a table `(S, K)`, float32."""
        table = torch.ones(self.concepts.shape[0], self.num_labels)
        for place, factor in self.factors.items():
            table[place] = factor
        return table

    def split_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(..., T, D) -> (..., A, T, D / A)`"""
        return tokens.unflatten(-1, (self.num_heads, self.head_size)).transpose(-3, -2)

    def scores(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scaled dot products of tokens and keys, `(B, T, D) -> (B, A, T, S)`."""
        keys, scaling = self.split_heads(self.key(self.concepts)), self.head_size**-0.5
        if folds_query(self.query, tokens, keys):
            return folded_scores(self.query, tokens, keys * scaling)
        return self.split_heads(self.query(tokens)) @ (keys.transpose(-2, -1) * scaling)

    def forward(
        self,
        tokens: torch.Tensor,
        override: torch.Tensor | None = None,
        is_given: torch.Tensor | None = None,
        correction: tuple[torch.Tensor, torch.Tensor] | None = None,
        output_table: bool = False,
    ) -> tuple[torch.Tensor, ...]:
        """
        Args:
            tokens (`torch.Tensor` of shape `(B, T, D)`): queries.
            override (`torch.Tensor` of shape `(B, T, S)`, *optional*): see [`override_attention`].
            is_given (`torch.Tensor` of shape `(B,)`, *optional*):
                The images whose class scores have no gradient by way of attention, bool.
            correction (`tuple`, *optional*):
                Corrected concepts `(B, 1, S)` and their attention `(B, T, S)`, see [`pooled_attention`], of the attention
                that class scores are made of and not of that which is returned.
            output_table (`bool`, *optional*, defaults to `False`): whether to return the contribution table.

        Returns:
            Attention `(B, A, T, S)` in float32, class scores `(B, K)`, the mean over tokens by their attention: see
            [`attention_share`]; on request, the contribution table `(A, S, K)` too.
        """
        scores = self.scores(tokens)
        attention = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        none = None
        if self.gate is not None:
            gate = self.gate(tokens).to(attention.dtype).sigmoid().unsqueeze(1)
            attention, none = gate * attention, 1 - gate
        attention = override_attention(attention, override, none)
        values = self.split_heads(self.value(self.concepts))
        # Summed over tokens first: attending and projecting are linear, and there are fewer heads than tokens.
        pooled = pooled_attention(attention, correction, none)
        if is_given is not None:
            pooled = torch.where(is_given.view(-1, 1, 1), pooled.detach(), pooled)
        pooled = pooled.to(values.dtype)
        class_scores = self.projection((pooled.unsqueeze(2) @ values).flatten(1))
        if self.concept_factors is None and not output_table:
            return attention, class_scores
        table = self.project_heads(values)
        factors = self.concept_factors
        if factors is not None:
            table = table * factors.to(table.dtype)
            class_scores = torch.where(factors.ne(1).any(0), self.summed_scores(pooled, table), class_scores)
        return (attention, class_scores, table) if output_table else (attention, class_scores)

    def summed_scores(self, pooled: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """
        Class scores `(B, K)` as the sum of their terms by a table `(A, S, K)`, of which a term that is 0 leaves nothing, not
        even a rounding error.
        """
        bias = self.projection(table.new_zeros(1, self.num_heads * self.head_size))
        return torch.einsum("bas,ask->bk", pooled.to(table.dtype), table) + bias

    def project_heads(self, values: torch.Tensor) -> torch.Tensor:
        """Each head's values by themselves as class scores, without bias, `(A, S, D / A) -> (A, S, K)`."""
        if is_plain(self.projection, nn.Linear):
            projection = self.projection.weight.unflatten(1, (self.num_heads, self.head_size))
            return values @ projection.permute(1, 2, 0).to(values.dtype)
        # Zeros in place of the other heads' values; by themselves, they give the bias.
        alone = torch.einsum("asd,ab->asbd", values, torch.eye(self.num_heads).to(values)).flatten(2).flatten(0, 1)
        scores = self.projection(torch.cat([alone, torch.zeros_like(alone[:1])]))
        return (scores[:-1] - scores[-1]).unflatten(0, values.shape[:2])

    def blank_token(self) -> torch.Tensor:
        """A token of zeros `(1, 1, D)`, to ask for what depends on parameters only."""
        # Weights that are kept elsewhere until the stream is called have no device; what calls it moves the token too.
        device = "cpu" if self.concepts.is_meta else self.concepts.device
        return torch.zeros(1, 1, self.concepts.shape[-1], device=device, dtype=self.concepts.dtype)

    def contribution_table(self) -> torch.Tensor:
        """
        What head a adds to the score of class k where all its attention is to concept s, `(A, S, K)`.

        Of a quantised layer that rounds its inputs too, sums of contributions are the logits up to that rounding.
        """
        return self(self.blank_token(), output_table=True)[2]

    def class_bias(self) -> torch.Tensor:
        """The class scores without attention to any concept, `(K,)`."""
        token = self.blank_token()
        return self(token, token.new_zeros(1, 1, self.concepts.shape[0]))[1][0]


class AscentViTPreTrainedModel(PreTrainedModel):
    """Weight initialisation and the interface for loading and saving pretrained models."""

    config: AscentViTConfig
    base_model_prefix = "ascent_vit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
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

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
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
                state_dict._metadata = metadata  # type: ignore[attr-defined]
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
            if module.concept_factors is not None:
                init.copy_(module.concept_factors, module.factor_table())
            init.trunc_normal_(module.concepts, std=module.concepts.shape[-1] ** -0.5)
            for projection in (module.query, module.key, module.value):
                init.xavier_uniform_(projection.weight)
            if module.gate is not None:
                init.zeros_(module.gate.weight)
                init.constant_(module.gate.bias, module.gate_bias)


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
        check_backbone(config, self.backbone)
        self.takes_interpolation = "interpolate_pos_encoding" in inspect.signature(self.backbone.forward).parameters
        self.encoding = AscentViTMultiScaleEncoding(config) if config.fusion_levels else None
        self.fusion = AscentViTDeformableFusion(config) if config.fusion_levels else None
        # Where hooks see the tokens that the concept head reads, as one tensor.
        self.tokens = nn.Identity()
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

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
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
            output_attentions (`bool`, *optional*):
                Whether to return the backbone's attention weights. It then computes them by its eager attention.
            output_hidden_states (`bool`, *optional*): whether to return the backbone's hidden states.

        Returns:
            [`AscentViTModelOutput`]

        Raises:
            ValueError: for pixels of another rank, channel count, dtype or size than expected.
        """
        config = self.config
        pixel_values = checked_pixel_values(config, pixel_values, self.takes_interpolation, interpolate_pos_encoding)
        if self.takes_interpolation:
            # Backbones interpolate from a square; of any other shape they take their own size, as was checked.
            is_square = config.image_size[0] == config.image_size[1]
            kwargs["interpolate_pos_encoding"] = bool(interpolate_pos_encoding) and is_square
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        with eager_attention(self.backbone) if output_attentions else nullcontext():
            outputs = self.backbone(
                pixel_values,
                output_attentions=output_attentions,
                output_hidden_states=(
                    config.output_hidden_states if output_hidden_states is None else output_hidden_states
                ),
                return_dict=True,
                **kwargs,
            )
        hidden_states = outputs.last_hidden_state
        if hidden_states.ndim == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        grid = (pixel_values.shape[2] // config.patch_size[0], pixel_values.shape[3] // config.patch_size[1])
        check_tokens(config, hidden_states, grid)

        locations = weights = None
        if self.fusion is not None and self.encoding is not None:
            num_patches, shift = grid[0] * grid[1], int(config.shifted_fusion)
            num_prefix_tokens = hidden_states.shape[1] - num_patches
            before, patches, after = hidden_states.split((num_prefix_tokens - shift, num_patches, shift), dim=1)
            pixel_values = pixel_values.to(self.encoding.level_embeddings.dtype)
            if takes_parts(self, pixel_values):
                fused = fuse_in_parts(self.encoding, self.fusion, patches, grid, pixel_values)
            else:
                fused = self.fusion(patches, grid, *self.encoding(pixel_values))
            patches, locations, weights = fused
            hidden_states = torch.cat([before, patches, after], dim=1)
            locations = self.fusion.relative_locations(locations, pixel_values.shape[2:]) if output_fusion else None
        return AscentViTModelOutput(
            last_hidden_state=self.tokens(hidden_states),
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
        self.token_dropout = nn.Dropout(config.token_dropout)
        has_global_query = config.num_global_concepts or config.num_unsupervised_concepts
        self.token_pool = AscentViTTokenPool(config) if has_global_query and config.global_token == "pool" else None
        self.global_stream = self._build_stream(config.num_global_concepts, config.none_concept, GLOBAL_GATE_BIAS)
        self.spatial_stream = self._build_stream(config.num_spatial_concepts, config.none_concept, SPATIAL_GATE_BIAS)
        self.unsupervised_stream = self._build_stream(config.num_unsupervised_concepts, False, 0.0)
        self.presence_memory = PresenceMemory()
        self.multiply_terms(read_edits(config))
        self.post_init()

    def _build_stream(self, num_concepts: int, none_concept: bool, gate_bias: float) -> AscentViTConceptStream | None:
        return AscentViTConceptStream(self.config, num_concepts, none_concept, gate_bias) if num_concepts else None

    def drop_unread_fusion(self):
        """Without spatial concepts, a CLS query never reads the patches that the pyramid is fused into."""
        config = self.config
        has_cls = has_cls_token(self.ascent_vit.backbone)
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
        cls,
        backbone: str | os.PathLike | PreTrainedConfig | PreTrainedModel,
        image_size: int | tuple[int, int] | None = None,
        num_channels: int | None = None,
        dtype: str | torch.dtype | None = None,
        **kwargs,
    ) -> "AscentViTForImageClassification":
        """
        Puts a new concept head, and the pyramid, on top of a vision transformer. Its image processor is
        `AscentViTImageProcessor.from_backbone(backbone, model.config)`.

        Args:
            backbone (`str`, `os.PathLike`, `PreTrainedConfig` or `PreTrainedModel`):
                A Hub id or a folder, whose pretrained weights are loaded; a configuration, for random weights; or a
                model, which is used as it is. Of a model of images and text, the vision part is taken.
            image_size (`int` or a pair of `int`, *optional*, defaults to the backbone's):
                Height and width of the images. Position embeddings are interpolated to them once, so that the saved
                model takes that size without being asked to interpolate.
            num_channels (`int`, *optional*, defaults to the backbone's):
                Channels of the images. Each gets the mean of the pretrained ones, scaled to an equal sum.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `torch.float32`):
                Dtype of the weights, whatever they were saved in; `"auto"` for that. A model keeps its own by default.
            kwargs:
                Fields of [`AscentViTConfig`], `num_labels`, `num_global_concepts` and `num_spatial_concepts`. Others
                (`revision`, `token`, `device_map`, `quantization_config`, ...) go to `AutoModel.from_pretrained`.

        Returns:
            [`AscentViTForImageClassification`], in training mode off as after `from_pretrained`.

        Example:

        ```python
        >>> model = AscentViTForImageClassification.from_backbone(
        ...     "facebook/dinov2-base", spatial_concepts=["beak", "wing", "tail"], num_labels=200
        ... )
        ```"""
        config_class: Any = cls.config_class
        fields = {field.name for field in dataclasses.fields(config_class)} - {"dtype"}
        fields |= {"num_labels", "num_global_concepts", "num_spatial_concepts"}
        config_kwargs = {name: kwargs.pop(name) for name in list(kwargs) if name in fields}
        if dtype is not None and isinstance(backbone, str | os.PathLike):
            kwargs["dtype"] = dtype
        pretrained: Any = on_images(pretrained_backbone(backbone, **kwargs), image_size, num_channels)
        wanted: Any = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if isinstance(pretrained, PreTrainedConfig):
            bare: Any = cls(config_class(backbone_config=pretrained, **config_kwargs))
            return bare.eval() if wanted is None else bare.to(wanted).eval()
        if wanted is not None and isinstance(backbone, PreTrainedModel):
            pretrained = pretrained.to(wanted)
        model = cls(config_class(backbone_config=pretrained.config, **config_kwargs), pretrained)
        for name in model.new_parts():
            model.get_submodule(name).to(device=pretrained.device, dtype=pretrained.dtype)
        if getattr(pretrained, "hf_quantizer", None) is not None:
            model.adopt_quantization(model.new_parts())
        return model.eval()

    def new_parts(self) -> list[str]:
        """
        Names of the modules beside the backbone, which start from random weights: what trains in full where the backbone
        is frozen, has a learning rate of its own, or is adapted, as `LoraConfig(modules_to_save=model.new_parts())`.
        """
        parents: dict[str, nn.Module] = {"": self, "ascent_vit.": self.ascent_vit}
        children = {
            prefix + name: child for prefix, parent in parents.items() for name, child in parent.named_children()
        }
        names = [name for name, child in children.items() if next(child.parameters(), None) is not None]
        return [name for name in names if name not in ("ascent_vit", "ascent_vit.backbone")]

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

    def multiply_terms(self, terms: Terms):
        """Multiplies terms by stream, concept and class by these factors, and others by 1."""
        for name, stream in self.streams().items():
            stream.multiply_terms({(concept, k): factor for (of, concept, k), factor in terms.items() if of == name})

    def edited_terms(self) -> Terms:
        """Factors of the terms that are edited, by stream, concept and class."""
        return {
            (name, *place): factor
            for name, stream in self.streams().items()
            for place, factor in stream.factors.items()
        }

    def edit_concepts(self, edits: list[dict[str, Any]] | None):
        """
        Removes or scales what concepts contribute to classes, for good: in the logits, the contributions and their maps. No
        parameter is changed, so that all is as it was when the edits are taken back.

        Args:
            edits (`list[dict]`, *optional*):
                The edits, in place of all earlier ones; None for none. Each has `class`, a name, or None for all classes,
                `concept`, `stream` ("global", "spatial" or "unsupervised") and `factor`, 0 to remove the term.

        Raises:
            ValueError: see [`~edits_ascent_vit.read_edits`]; the model is then as it was.
        """
        before = self.config.concept_edits
        self.config.concept_edits = edits
        try:
            terms = read_edits(self.config)
        except ValueError:
            self.config.concept_edits = before
            raise
        self.multiply_terms(terms)
        self.config.concept_edits = write_edits(self.config, terms)
        for stream in self.streams().values():
            if stream.concept_factors is not None:
                stream.concept_factors = nn.Buffer(stream.concept_factors.to(stream.blank_token()))

    def check_factors(self):
        """
        Makes the factors in the weights those of `config.concept_edits`, from which rounding to 16 bits may have moved them.

        Raises:
            ValueError: where they differ by more.
        """
        for name, stream in self.streams().items():
            found = stream.concept_factors
            if found is None or found.is_meta:
                continue
            named = stream.factor_table().to(found)
            if not torch.allclose(found.float(), named.float(), rtol=2**-8, atol=0):
                raise ValueError(
                    f"The factors in {name}_stream.concept_factors of the weights are not those that concept_edits of the "
                    "configuration names, so it is unclear what was removed: take weights and configuration of one model."
                )
            found.copy_(named)

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):  # type: ignore[override]
        """
        Loads a model, see [`AscentViTPreTrainedModel.from_pretrained`].

        Raises:
            ValueError: also where edits in the weights are not those of the configuration.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        unnamed = [name for name in info["unexpected_keys"] if name.endswith(".concept_factors")]
        if unnamed:
            raise ValueError(
                f"The weights hold edits, {unnamed[0]}, that concept_edits of the configuration does not name: take weights "
                "and configuration of one model."
            )
        model.check_factors()
        return (model, info) if output_loading_info else model

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False):
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self.check_factors()
        return result

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):  # type: ignore[override]
        """Saves the model as every model is, with its edits by the names that classes have now."""
        self.config.concept_edits = write_edits(self.config, self.edited_terms())
        super().save_pretrained(save_directory, **kwargs)

    def class_bias(self) -> torch.Tensor:
        """What the logits hold beside the contributions of concepts, `(num_labels,)`."""
        return torch.stack([stream.class_bias() for stream in self.streams().values()]).sum(0)

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
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        concept_targets: torch.Tensor | None = None,
        spatial_concept_targets: torch.Tensor | None = None,
        spatial_concept_presence: torch.Tensor | None = None,
        global_concept_override: torch.Tensor | None = None,
        spatial_concept_override: torch.Tensor | None = None,
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
                Class indices. Of shape `(batch_size, num_labels)` and float for several classes of an image, 1 for each that
                it has, and for values to predict (`config.problem_type` says which).
            concept_targets (`torch.FloatTensor` of shape `(batch_size, num_global_concepts)`, *optional*):
                How present each global concept is, usually 0 or 1; NaN where it is unknown.
            spatial_concept_targets (`torch.FloatTensor` of shape `(batch_size, num_patches, num_spatial_concepts)`, *optional*):
                How present each spatial concept is in each patch, usually 0 or 1; NaN where it is unknown.
            spatial_concept_presence (`torch.FloatTensor` of shape `(batch_size, num_spatial_concepts)`, *optional*):
                1 for spatial concepts that are somewhere in the image, 0 for those that are not, NaN where it is unknown.
                In training mode their places are learned from it, see [`presence_loss`]: the more images and different
                lists there are in a batch, the better, and images of earlier batches are remembered. Class scores do
                not move the maps of images that have no other targets of spatial concepts. In evaluation mode it has no
                effect.
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
            output_attentions (`bool`, *optional*):
                Whether to return the backbone's attention weights. It then computes them by its eager attention.
            output_hidden_states (`bool`, *optional*): whether to return the backbone's hidden states.

        Returns:
            [`AscentViTImageClassifierOutput`]

        Raises:
            ValueError: for pixels, labels, targets or overrides of another shape or dtype than expected, overrides
                below 0 or beyond 1e6, and, where they are on the CPU, such targets and labels that are no class.
        """
        config = self.config
        presence = spatial_concept_presence if self.training else None
        outputs = self.ascent_vit(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_fusion=output_fusion,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states if presence is None else True,
            return_dict=True,
        )
        hidden_states = outputs.last_hidden_state
        images: Any = pixel_values  # not None, which AscentViTModel has refused
        batch_size, patch_size = hidden_states.shape[0], config.patch_size
        num_patches = (images.shape[2] // patch_size[0]) * (images.shape[3] // patch_size[1])
        targets, overrides = (
            (concept_targets, spatial_concept_targets),
            (global_concept_override, spatial_concept_override),
        )
        check_concepts(config, batch_size, num_patches, *targets, *overrides)
        check_presence(config, batch_size, spatial_concept_presence)
        labels = checked_labels(config, labels, batch_size)

        tokens = self.token_dropout(hidden_states)
        prefix, patches = tokens[:, :-num_patches], tokens[:, -num_patches:]
        is_given = None if presence is None else unplaced_images(presence, spatial_concept_targets)
        # What is explained is not corrected: contributions are of the attention that is returned.
        corrections = self.corrections(*((None, None) if output_contributions else targets))
        queries: dict[str, tuple] = {"spatial": (patches, spatial_concept_override, is_given, corrections["spatial"])}
        if self.global_stream is not None or self.unsupervised_stream is not None:
            query = self.global_query(prefix, patches)
            override = None if global_concept_override is None else global_concept_override.unsqueeze(1)
            queries |= {"global": (query, override, None, corrections["global"]), "unsupervised": (query,)}

        logits: Any = 0.0
        attentions, contributions = {}, []
        for name, stream in self.streams().items():
            attention, class_scores, *tables = stream(*queries[name], output_table=output_contributions)
            logits = logits + class_scores
            attentions[name] = attention
            for table in tables:
                pooled = pooled_attention(attention)
                contributions.append(torch.einsum("bas,ask->bsk", pooled, table.to(attention.dtype)))
        means = {name: attention.mean(1) for name, attention in attentions.items()}
        means |= {name: means[name].squeeze(1) for name in ("global", "unsupervised") if name in means}

        loss, terms = self.losses(logits, labels, means, *targets)
        if presence is not None:
            local = local_tokens(outputs.hidden_states, hidden_states, num_patches)
            parts = torch.tensor(config.part_shares, device=logits.device)
            terms["presence_loss"] = presence_loss(
                means["spatial"], presence, *local, parts, config.none_concept, self.presence_memory
            )
            loss = (0.0 if loss is None else loss) + config.concept_loss_weight * terms["presence_loss"]
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
            hidden_states=outputs.hidden_states if output_hidden_states or presence is None else None,
            attentions=outputs.attentions,
        )

    def corrections(
        self, concept_targets: torch.Tensor | None, spatial_concept_targets: torch.Tensor | None
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor] | None]:
        """What class scores are corrected by in training, see `correction_rate`; None for a stream without targets."""
        rate, none_concept = float(self.config.correction_rate), self.config.none_concept
        whole = None if concept_targets is None else concept_targets.unsqueeze(1)
        targets = {"global": whole, "spatial": spatial_concept_targets}
        if not (self.training and rate):
            return dict.fromkeys(targets)
        return {
            name: None if values is None else random_corrections(values.float(), rate, none_concept)
            for name, values in targets.items()
        }

    def class_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """
        The loss of the classes by the config's problem type; of single labels, cross-entropy with its `label_smoothing` and
        `class_weights`, as a mean over images, so that a batch equals its parts.
        """
        config = self.config
        if not config.label_smoothing and config.class_weights is None:
            if labels.is_floating_point():
                logits = logits.to(torch.promote_types(logits.dtype, labels.dtype))
            return self.loss_function(labels, logits, config)
        problem = config.problem_type or "single_label_classification"
        if problem != "single_label_classification" or labels.is_floating_point() or config.num_labels < 2:
            raise ValueError(
                "label_smoothing and class_weights need one class an image: leave them out of the config."
            )
        weight = None if config.class_weights is None else torch.tensor(config.class_weights).to(logits)
        config.problem_type, labels = "single_label_classification", labels.to(logits.device)
        known, smoothing = labels != IGNORED_LABEL, float(config.label_smoothing)
        loss = nn.functional.cross_entropy(logits, labels, weight, reduction="none", label_smoothing=smoothing)
        return loss.sum() / known.sum()

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
        terms: dict[str, Any] = {}
        if labels is not None:
            terms["class_loss"] = self.class_loss(logits, labels)
        alignments = []
        for stream, targets in (("global", concept_targets), ("spatial", spatial_concept_targets)):
            if targets is not None:
                tokens = attention[stream].unsqueeze(1) if stream == "global" else attention[stream]
                targets = targets.to(tokens.device).view_as(tokens)
                alignments.append(alignment_loss(tokens, targets, config.alignment_loss, config.none_concept))
        if alignments:
            terms["alignment_loss"] = sum(alignments)
            if labels is None and self.training and not torch.compiler.is_compiling():
                logger.warning_once(
                    "Training with targets of concepts and no labels. Trainer takes the labels away, and drops the loss of "
                    "concepts, with label_smoothing_factor or compute_loss_func: set label_smoothing or class_weights of "
                    "the model's config instead, or add outputs.loss in compute_loss_func."
                )
        if not terms:
            return None, {}
        entropies = [attention_entropy(attention[stream]) for stream in ("global", "spatial") if stream in attention]
        if entropies:
            terms["entropy_loss"] = sum(entropies)
        weights = {"alignment_loss": config.concept_loss_weight, "entropy_loss": config.entropy_loss_weight}
        return sum(weights.get(name, 1.0) * term for name, term in terms.items()), terms

    def contribution_maps(
        self, pixel_values: torch.Tensor, class_ids: torch.Tensor | list[int] | list[list[int]], **kwargs
    ) -> torch.Tensor:
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
        batch_size = pixel_values.shape[0]
        indices = class_indices(self.config, class_ids, batch_size, pixel_values.device)
        outputs = self(pixel_values, output_concept_heads=True, return_dict=True, **kwargs)
        attention = outputs.spatial_concept_attention_heads
        table = self.spatial_stream.contribution_table().to(attention.dtype)
        table = table[..., indices.to(table.device).expand(batch_size, -1)]
        maps = torch.einsum("bans,asbc->bcsn", attention * attention_share(attention).unsqueeze(1), table)
        return maps.unflatten(-1, outputs.patch_grid[0].tolist())


__all__ = ["AscentViTForImageClassification", "AscentViTModel", "AscentViTPreTrainedModel"]

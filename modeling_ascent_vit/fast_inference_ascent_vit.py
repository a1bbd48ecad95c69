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
"""
What makes inference faster and changes nothing but rounding: batches in parts, products folded, results written in place.

A forward of the model comes here by one `if`, and holds the formula itself beside it. Where anybody may see or change what
a layer does, it is called as the formula says: [`is_plain`] tells.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as every_module


# What is taken at once at inference on a CPU: features of the pyramid's stem, which are as large as a CPU's cache, and
# images by the rest of pyramid and fusion, for memory's sake. At 224x224 pixels these are two images in the paper's stem
# in float32, and sixteen.
STEM_BYTES_AT_ONCE, PIXELS_AT_ONCE = 2 * 112 * 112 * 64 * 4, 16 * 224 * 224


def is_transformed() -> bool:
    """Whether `torch.func` transforms what is computed, which knows no memory formats and no tensors to write into."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def is_inference(module: nn.Module) -> bool:
    """Whether a module neither trains nor computes gradients."""
    return not (module.training or torch.is_grad_enabled() or is_transformed())


def takes_parts(module: nn.Module, images: torch.Tensor) -> bool:
    """Whether a batch goes in parts: at inference on a CPU, where fewer images at a time are faster."""
    return is_inference(module) and images.device.type == "cpu" and not torch.compiler.is_compiling()


def split_images(images: torch.Tensor, num_pixels: int) -> tuple[torch.Tensor, ...]:
    """A batch in parts of `num_pixels`, one image or more each."""
    return images.split(max(1, num_pixels // images[0, 0].numel()))


def as_convolved(images: torch.Tensor) -> torch.Tensor:
    """Images in the dtype that a convolution gives, which autocast may choose, and in the layout it is fast in."""
    kind = images.device.type
    casts = torch.is_autocast_enabled(kind) and images.dtype != torch.float64
    dtype = torch.get_autocast_dtype(kind) if casts else images.dtype
    if not is_transformed():
        # Before the cast: both at once is more than twice as slow.
        images = images.to(memory_format=torch.channels_last)
    return images.to(dtype)


def is_watched(module: nn.Module) -> bool:
    """
    Whether more happens at a call of a module than its class's forward: hooks, its own or those of all modules, as of
    profilers, calibration and pruning, or another forward in place of it, as where its weights are offloaded.
    """
    return bool(
        every_module._global_forward_pre_hooks
        or every_module._global_forward_hooks
        or module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or "forward" in vars(module)
    )


def is_plain(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """
    Whether a layer may be replaced by its parameters: it is of one of these very classes, so that no adapter, parametrisation
    or quantised layer has its place, nobody watches its calls, and its parameters are plain ones that hold numbers.
    """
    return (
        type(layer) in kinds
        and not is_watched(layer)
        and all(type(p) is nn.Parameter and not p.is_meta for p in layer._parameters.values() if p is not None)
    )


def folds_norm(convolution: Any, norm: nn.Module, features: torch.Tensor) -> bool:
    """Whether a normalisation by known statistics goes into the convolution before it, where that is cheaper."""
    if norm.training or not is_plain(convolution, nn.Conv2d):
        return False
    if torch.compiler.is_compiling():
        return True
    # Where there are more weights than features, a pass over the features is the cheaper one.
    places = features.shape[0] * features[0, 0].numel() // convolution.stride[0] ** 2
    return convolution.weight[0].numel() <= places


def folded_norm(convolution: Any, norm: Any, features: torch.Tensor) -> torch.Tensor:
    """Convolution and batch normalisation as one convolution, `(B, C_in, H, W) -> (B, C_out, H_out, W_out)`."""
    # Computed anew at each call: cheaper than one pass over the features, and never stale.
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight = convolution.weight * scale.view(-1, 1, 1, 1)
    bias = norm.bias - norm.running_mean * scale
    return nn.functional.conv2d(features, weight, bias, convolution.stride, convolution.padding)


def fast_conv_layer(
    convolution: nn.Module,
    norm: nn.Module,
    pooling: nn.Module,
    features: torch.Tensor,
    may_fold: bool,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    `relu(pooling(norm(convolution(features))))`, with the normalisation folded into the convolution where it can be.

    Args:
        convolution, norm, pooling (`nn.Module`): parts of a layer of the pyramid.
        features (`torch.Tensor` of shape `(B, C_in, H, W)`): features.
        may_fold (`bool`): whether the normalisation is a plain batch normalisation, see [`is_plain`].
        out (`torch.Tensor`, *optional*): where the result is put.
    """
    folds = may_fold and folds_norm(convolution, norm, features)
    features = pooling(folded_norm(convolution, norm, features) if folds else norm(convolution(features)))
    return nn.functional.relu(features, inplace=True) if out is None else torch.clamp_min(features, 0, out=out)


def stem_in_parts(stem: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """The stem (`AscentViTPyramidStem`) on a few images at a time, whose features stay in the cache."""
    values_per_pixel = stem[0].out_channels / stem[0].stride ** 2
    parts = split_images(pixel_values, int(STEM_BYTES_AT_ONCE / (values_per_pixel * pixel_values.dtype.itemsize)))
    if len(parts) == 1 or any(map(is_watched, stem.modules())):
        return nn.Sequential.forward(stem, pixel_values)
    *layers, last = stem
    batch_size, _, height, width = pixel_values.shape
    shape = (batch_size, last.out_channels, -(-height // 4), -(-width // 4))
    features = torch.empty(
        shape, dtype=pixel_values.dtype, device=pixel_values.device, memory_format=torch.channels_last
    )
    for part, place in zip(parts, features.split(len(parts[0])), strict=True):
        for layer in layers:
            part = layer(part)
        last(part, out=place)
    return features


def add_in_place(levels: list[torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
    """Levels `(B, cells, F)` plus their embeddings `(L, F)`, one after the other: each sum at its place, without a copy."""
    cells = [level.shape[1] for level in levels]
    pyramid = levels[0].new_empty(levels[0].shape[0], sum(cells), levels[0].shape[2])
    for level, embedding, part in zip(levels, embeddings, pyramid.split(cells, dim=1), strict=True):
        torch.add(level, embedding, out=part)
    return pyramid


def fuse_in_parts(
    encoding: nn.Module,
    fusion: nn.Module,
    patches: torch.Tensor,
    patch_grid: tuple[int, int],
    pixel_values: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """`fusion(patches, patch_grid, *encoding(pixel_values))` on a few images at a time."""
    images = split_images(pixel_values, PIXELS_AT_ONCE)
    if len(images) == 1 or any(is_watched(module) for part in (encoding, fusion) for module in part.modules()):
        return fusion(patches, patch_grid, *encoding(pixel_values))
    parts = [
        fusion(tokens, patch_grid, *encoding(pixels))
        for tokens, pixels in zip(patches.split(len(images[0])), images, strict=True)
    ]
    return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))


def softmax_over_few(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over the last axis, by hand: that of torch is slow over few values."""
    exponentials = (scores - scores.detach().amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


def folds_query(query: nn.Module, tokens: torch.Tensor, keys: torch.Tensor) -> bool:
    """Whether query and keys `(A, S, D / A)` are folded into one matrix: on many tokens, where it is cheaper."""
    return (
        not torch.is_grad_enabled()
        and tokens.shape[1] > 1
        and 2 * keys.shape[0] * keys.shape[1] <= tokens.shape[-1]
        and is_plain(query, nn.Linear)
    )


def folded_scores(query: Any, tokens: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """
    `query(tokens)` times keys per head, as `(x Wq) (c Wk)^T = x (Wq (c Wk)^T)`: one product with A * S columns instead of D
    and then S. It is computed anew at each call, which costs S * D * D once per batch, and so is never stale.

    Args:
        query (`nn.Linear`): projection of the queries, without bias, plain as [`is_plain`] has it.
        tokens (`torch.Tensor` of shape `(B, T, D)`): tokens.
        keys (`torch.Tensor` of shape `(A, S, D / A)`): keys, scaled.

    Returns:
        `torch.Tensor` of shape `(B, A, T, S)`.
    """
    folded = keys @ query.weight.unflatten(0, (keys.shape[0], keys.shape[2]))
    scores = nn.functional.linear(tokens, folded.flatten(0, 1))
    return scores.unflatten(-1, folded.shape[:2]).transpose(1, 2)


__all__ = [
    "add_in_place",
    "as_convolved",
    "fast_conv_layer",
    "folded_scores",
    "folds_query",
    "fuse_in_parts",
    "is_inference",
    "is_plain",
    "is_transformed",
    "softmax_over_few",
    "stem_in_parts",
    "takes_parts",
]

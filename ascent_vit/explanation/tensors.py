# SPDX-License-Identifier: Apache-2.0
"""A model as libraries take it that know tensors alone: logits from pixels, and tokens as maps of channels."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn


if TYPE_CHECKING:
    from ascent_vit.inference import ConceptClassifier


class LogitsModel(nn.Module):
    """
    A model that returns its logits as a plain tensor, for libraries that take no `ModelOutput`: pytorch-grad-cam,
    captum's TCAV, Quantus. A library that takes a function needs no more than
    `lambda pixel_values: model(pixel_values).logits`.

    Args:
        model (`torch.nn.Module`): An image classifier of transformers, also one loaded as remote code.
        kwargs: Further arguments of each of its forward passes, for example `interpolate_pos_encoding=True`.
    """

    def __init__(self, model: nn.Module, **kwargs: Any):
        super().__init__()
        self.model, self.arguments = model, kwargs
        self.train(model.training)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits `(B, K)` of pixels `(B, C, H, W)`."""
        return self.model(pixel_values, return_dict=True, **self.arguments).logits


def reshape_transform(
    model: "ConceptClassifier", image_size: tuple[int, int] | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    Makes the `reshape_transform` of pytorch-grad-cam for a model: the function that lays tokens out on the patch grid,
    `(B, P + N, D) -> (B, D, h, w)`, whatever the number of prefix tokens P and the shape of the grid.

    Args:
        model (`torch.nn.Module`): An `AscentViTForImageClassification`, also one loaded as remote code.
        image_size (`tuple[int, int]`, *optional*, defaults to the model's own):
            Height and width of the model's input in pixels, where it interpolates its position embeddings.

    Returns:
        `Callable[[torch.Tensor], torch.Tensor]`: the function. It leaves maps of channels `(B, D, h, w)`, such as the
        pyramid's, as they are, and raises ValueError for another shape and for fewer tokens than there are patches.

    Example:

    ```python
    >>> layers = [model.ascent_vit.tokens]  # patches after fusion; or a layer of model.ascent_vit.backbone
    >>> cam = GradCAM(LogitsModel(model), layers, reshape_transform=reshape_transform(model))
    >>> cam(pixel_values, targets=None).shape
    (1, 224, 224)
    ```
    """
    size, patch_size = image_size or model.config.image_size, model.config.patch_size
    grid = (size[0] // patch_size[0], size[1] // patch_size[1])
    has_stages = getattr(model.config, "is_hierarchical", False)

    def to_grid(tokens: torch.Tensor) -> torch.Tensor:
        if tokens.ndim == 4:
            return tokens
        num_tokens = tokens.shape[1] if tokens.ndim == 3 else 0
        # An earlier stage of a hierarchical backbone has a finer grid, and no backbone with stages has prefix tokens.
        scale = math.isqrt(num_tokens // (grid[0] * grid[1])) if has_stages else 1
        height, width = grid[0] * scale, grid[1] * scale
        num_patches = height * width
        if num_tokens < num_patches or num_patches == 0 or (has_stages and num_tokens > num_patches):
            raise ValueError(
                f"reshape_transform takes tokens (B, T, D) of {grid[0]} x {grid[1]} patches, for images of {size[0]} "
                f"x {size[1]} pixels; got {tuple(tokens.shape)}. Name the images' size by image_size, or choose a "
                "layer that gives a token for each patch."
            )
        return tokens[:, -num_patches:].transpose(1, 2).unflatten(-1, (height, width))

    return to_grid


__all__ = ["LogitsModel", "reshape_transform"]

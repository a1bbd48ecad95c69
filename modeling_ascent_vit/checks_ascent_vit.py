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
"""What the model's forwards refuse, each with a sentence that names what was expected and what came."""

import inspect
from typing import Any

import torch

from .configuration_ascent_vit import LARGEST_NUMBER, AscentViTConfig


# Labels that torch's cross-entropy leaves out.
IGNORED_LABEL = -100


def is_dense(values: Any) -> bool:
    """Whether these are a tensor that is neither sparse nor packed."""
    return isinstance(values, torch.Tensor) and values.layout == torch.strided


def check_backbone(config: AscentViTConfig, backbone: Any):
    """Raises one `ValueError` where a backbone needs more than pixels."""
    parameters = inspect.signature(backbone.forward).parameters.values()
    needed = {parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty}
    needed -= {"pixel_values", "kwargs"}
    if needed or backbone.main_input_name != "pixel_values":
        raise ValueError(
            f"{config.backbone_config.model_type} cannot be the backbone: it needs more than pixel_values. "
            "Use a vision transformer with one token per patch, for example vit, deit, dinov2 or siglip_vision_model."
        )


def checked_pixel_values(
    config: AscentViTConfig,
    pixel_values: torch.Tensor | None,
    takes_interpolation: bool,
    interpolate_pos_encoding: bool | None,
) -> torch.Tensor:
    """
    The pixels as they are, where the model can take them.

    Args:
        config (`AscentViTConfig`): configuration of the model.
        pixel_values (`torch.Tensor`, *optional*): pixels as given.
        takes_interpolation (`bool`): whether the backbone has an argument `interpolate_pos_encoding`.
        interpolate_pos_encoding (`bool`, *optional*): the argument as given.

    Raises:
        ValueError: for pixels of another kind, rank, number of channels, dtype or size than expected.
    """
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
    can_interpolate = takes_interpolation and config.image_size[0] == config.image_size[1]
    needs_own_size = config.has_fixed_size or (
        takes_interpolation and not (interpolate_pos_encoding and can_interpolate)
    )
    if needs_own_size and shape[2:] != config.image_size:
        advice = (
            ", or pass interpolate_pos_encoding=True, or build the model for them: from_backbone(..., image_size=...)"
        )
        raise ValueError(
            f"pixel_values must be {config.image_size[0]}x{config.image_size[1]} pixels, the backbone's size; got "
            f"{shape[2]}x{shape[3]}. Resize them{advice if can_interpolate else ''}."
        )
    return pixel_values


def check_tokens(config: AscentViTConfig, tokens: torch.Tensor, patch_grid: tuple[int, int]):
    """Raises one `ValueError` where a backbone gave tokens `(B, T, D)` that are not one per patch and its prefix."""
    num_prefix_tokens = tokens.shape[1] - patch_grid[0] * patch_grid[1]
    name = config.backbone_config.model_type
    if num_prefix_tokens < 0 or tokens.shape[-1] != config.hidden_size:
        raise ValueError(
            f"{name} gave {tokens.shape[1]} tokens of {tokens.shape[-1]} "
            f"values for {patch_grid[0]}x{patch_grid[1]} patches: use a backbone that keeps one token of "
            f"{config.hidden_size} values per patch."
        )
    if config.fusion_levels and config.shifted_fusion and num_prefix_tokens != 1:
        raise ValueError(
            f"shifted_fusion needs a backbone with one prefix token; {name} has {num_prefix_tokens}. Leave it out: it "
            "serves weights of the authors' code alone."
        )


def check_concept_values(
    name: str,
    values: torch.Tensor | None,
    num_concepts: int,
    shape: tuple[int, ...],
    check_anywhere: bool = False,
):
    """
    Raises one `ValueError` for targets or overrides of another kind than expected.

    Args:
        name (`str`): the argument's name.
        values (`torch.Tensor`, *optional*): the argument as given.
        num_concepts (`int`): number of the model's concepts of that kind.
        shape (`tuple[int, ...]`): shape that it must have.
        check_anywhere (`bool`, *optional*, defaults to `False`):
            Whether the values themselves are looked at on every device, and not on the CPU alone: it waits for the device.
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


def check_concepts(
    config: AscentViTConfig,
    batch_size: int,
    num_patches: int,
    concept_targets: torch.Tensor | None,
    spatial_concept_targets: torch.Tensor | None,
    global_concept_override: torch.Tensor | None,
    spatial_concept_override: torch.Tensor | None,
):
    """Raises one `ValueError` for targets or overrides that do not fit the model, the images and their patches."""
    num_global, num_spatial = config.num_global_concepts, config.num_spatial_concepts
    global_shape, spatial_shape = (batch_size, num_global), (batch_size, num_patches, num_spatial)
    check_concept_values("concept_targets", concept_targets, num_global, global_shape)
    check_concept_values("spatial_concept_targets", spatial_concept_targets, num_spatial, spatial_shape)
    check_concept_values("global_concept_override", global_concept_override, num_global, global_shape, True)
    check_concept_values("spatial_concept_override", spatial_concept_override, num_spatial, spatial_shape, True)


def check_presence(config: AscentViTConfig, batch_size: int, presence: torch.Tensor | None):
    """Raises one `ValueError` for lists of spatial concepts that do not fit the model and the images, or are not 0, 1, NaN."""
    num_concepts = config.num_spatial_concepts
    check_concept_values("spatial_concept_presence", presence, num_concepts, (batch_size, num_concepts))
    if presence is not None and not torch.compiler.is_compiling() and presence.device.type == "cpu":
        wrong = (presence != 0) & (presence != 1) & ~presence.isnan()
        if wrong.any():
            raise ValueError(f"spatial_concept_presence must be 0, 1 or NaN; got {presence[wrong][0].item():g}.")


def checked_labels(config: AscentViTConfig, labels: torch.Tensor | None, batch_size: int) -> torch.Tensor | None:
    """
    Class indices as int64, several classes of an image and values as floating point numbers.

    Raises:
        ValueError: for labels that are not one entry per image, or not one per image and logit where an image has several
            classes or values, and, where they are on the CPU, for labels that are not finite, no class of the model, or
            outside of 0 to 1: looking at values waits for any other device.
    """
    if labels is None:
        return None
    if not is_dense(labels) or labels.ndim == 0 or labels.shape[0] != batch_size:
        got = tuple(labels.shape) if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise ValueError(f"labels must be a tensor with one entry per image, ({batch_size},); got {got}.")
    num_labels = config.num_labels
    is_readable = not torch.compiler.is_compiling() and labels.device.type == "cpu"
    if labels.is_floating_point() and is_readable and not labels.isfinite().all():
        raise ValueError("labels must be finite; got NaN or infinity.")
    problem: str | None = config.problem_type
    if problem is None:
        # As transformers' loss takes them.
        several = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
        problem = "regression" if num_labels == 1 else several
    if problem == "single_label_classification":
        return (
            labels if labels.dtype == torch.bool or labels.is_complex() else _classes(labels, num_labels, is_readable)
        )
    shape = (batch_size, num_labels)
    if tuple(labels.shape) != shape and not (num_labels == 1 and labels.ndim == 1):
        raise ValueError(
            f"labels of a model for {problem} must have the shape {shape}, one number per logit; got "
            f"{tuple(labels.shape)}."
        )
    labels = labels.float() if not labels.is_floating_point() else labels
    if problem == "multi_label_classification" and is_readable and ((labels < 0) | (labels > 1)).any():
        raise ValueError(
            f"labels must be from 0 to 1, 1 for classes of the image; got {labels.min()} to {labels.max()}."
        )
    return labels.view(shape)


def _classes(labels: torch.Tensor, num_labels: int, is_readable: bool) -> torch.Tensor:
    """Class indices as int64; `ValueError` for those that can be read and are no classes."""
    if labels.is_floating_point() or num_labels < 2:
        return labels
    labels = labels.long()
    if is_readable:
        known = labels[labels != IGNORED_LABEL]
        if not known.numel() or known.min() < 0 or known.max() >= num_labels:
            raise ValueError(
                f"labels must be classes from 0 to {num_labels - 1}, or {IGNORED_LABEL} for some that "
                f"are ignored; got {labels.tolist()}."
            )
    return labels


def class_indices(
    config: AscentViTConfig,
    class_ids: torch.Tensor | list[int] | list[list[int]],
    batch_size: int,
    device: torch.device,
) -> torch.Tensor:
    """
    Classes `(C,)` or `(batch_size, C)` as a tensor of whole numbers on a device.

    Raises:
        ValueError: for anything else, and for classes that the model does not have.
    """
    try:
        indices = torch.as_tensor(class_ids, device=device)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"class_ids must be a tensor or a list of class indices; got {class_ids!r}.") from error
    num_labels = config.num_labels
    if indices.ndim not in (1, 2) or (indices.ndim == 2 and indices.shape[0] != batch_size):
        raise ValueError(f"class_ids must have the shape (C,) or ({batch_size}, C); got {tuple(indices.shape)}.")
    if (
        indices.numel() == 0
        or indices.is_floating_point()
        or indices.dtype == torch.bool
        or indices.min() < 0
        or indices.max() >= num_labels
    ):
        raise ValueError(f"class_ids must be integers from 0 to {num_labels - 1}; got {indices.tolist()}.")
    return indices


__all__ = [
    "IGNORED_LABEL",
    "check_backbone",
    "check_concepts",
    "check_presence",
    "check_tokens",
    "checked_labels",
    "checked_pixel_values",
    "class_indices",
]

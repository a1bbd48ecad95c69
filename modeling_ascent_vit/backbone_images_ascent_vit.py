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
"""The images of a pretrained backbone: how they were normalised, and the backbone at another size or of other channels."""

import copy
import inspect
import os
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_utils import PILImageResampling
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.image_processing_auto import get_image_processor_config

from .backbones_ascent_vit import backbone_facts, build_backbone
from .concept_targets_ascent_vit import pair


STATISTICS = ("image_mean", "image_std", "resample", "do_rescale", "rescale_factor", "do_normalize")


def own_size(settings: dict[str, Any]) -> tuple[int, int] | None:
    """Height and width of what an image processor with these settings gives to its model; None where they depend."""
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    if isinstance(size, int) or (isinstance(size, list | tuple) and len(size) == 2):
        return pair(size)
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return size["height"], size["width"]
    return None


def timm_settings(pretrained_cfg: dict[str, Any]) -> dict[str, Any]:
    """timm's configuration of pretrained weights as settings of an image processor."""
    names = {"mean": "image_mean", "std": "image_std"}
    settings: dict[str, Any] = {names[key]: list(value) for key, value in pretrained_cfg.items() if key in names}
    resample = getattr(PILImageResampling, str(pretrained_cfg.get("interpolation")).upper(), None)
    if resample is not None:
        settings["resample"] = int(resample)
    if pretrained_cfg.get("input_size"):
        settings["size"] = list(pretrained_cfg["input_size"][1:])
    return settings


def backbone_settings(backbone: Any, config: Any, **hub_kwargs) -> dict[str, Any]:
    """
    Settings of the image processor that a pretrained backbone was trained with.

    They are those of its own `preprocessor_config.json`, else of timm's configuration, else of its family. The size is
    the backbone's own, without crop, where the model has its backbone's size and takes others without being asked.

    Args:
        backbone (`str`, `os.PathLike`, `PreTrainedConfig` or `PreTrainedModel`): what the model was built on.
        config (`AscentViTConfig`): configuration of the model.
        hub_kwargs: arguments of `from_pretrained` for a Hub id or a folder, such as `revision`.

    Returns:
        `dict`: any of `image_mean`, `image_std` (one value a channel of the model), `resample`, `do_rescale`,
        `rescale_factor`, `do_normalize` and `size`; empty where nothing is known.
    """
    is_name = isinstance(backbone, str | os.PathLike)
    own: Any = AutoConfig.from_pretrained(backbone, **hub_kwargs) if is_name else getattr(backbone, "config", backbone)
    source, own = backbone if is_name else own.name_or_path, getattr(own, "vision_config", own)
    try:
        hub_kwargs.pop("trust_remote_code", None)
        known = get_image_processor_config(source, **hub_kwargs) if source else {}
    except OSError:
        known = {}
    facts = backbone_facts(own.model_type)
    # The older form of a file that names a class alone tells nothing.
    if "image_mean" not in known and known.get("do_normalize", True):
        known = timm_settings(getattr(own, "pretrained_cfg", None) or {}) or {**facts.normalisation, **facts.resample}
    settings = {name: known[name] for name in STATISTICS if known.get(name) is not None}
    for name in ("image_mean", "image_std"):
        values = settings.get(name)
        if isinstance(values, list | tuple) and len(values) != config.num_channels:
            settings[name] = [sum(values) / len(values)] * config.num_channels
    size, patch = own_size(known), config.patch_size
    is_own = pair(getattr(own, "image_size", None) or config.image_size) == config.image_size
    if size is not None and is_own and takes_any_size(config) and not (size[0] % patch[0] or size[1] % patch[1]):
        settings["size"] = {"height": size[0], "width": size[1]}
    return settings


def takes_any_size(config: Any) -> bool:
    """Whether the backbone of a model takes images of other sizes than its own without being asked to interpolate."""
    model_class: Any = MODEL_MAPPING[type(config.backbone_config)]
    parameters = inspect.signature(model_class.forward).parameters
    return not config.has_fixed_size and "interpolate_pos_encoding" not in parameters


def adapted_config(config: Any, image_size: int | tuple[int, int] | None, num_channels: int | None) -> Any:
    """A copy of a backbone's configuration with another size or number of channels."""
    config = copy.deepcopy(config)
    size = list(image_size) if isinstance(image_size, tuple) else image_size
    changes: dict[str, Any] = {"image_size": size, "num_channels": num_channels}
    if backbone_facts(config.model_type).describe is None:
        for name, value in changes.items():
            if value is not None:
                setattr(config, name, value)
        return config
    # timm's, whose sizes are arguments of its own, and are read from the model again.
    names = {"image_size": "img_size", "num_channels": "in_chans"}
    given = {names[name]: value for name, value in changes.items() if value is not None}
    config.model_args = (config.model_args or {}) | given
    for name in ("hidden_size", "num_channels", "image_size", "patch_size"):
        vars(config).pop(name, None)
    return config


def adapted_weight(
    weight: torch.Tensor, shape: torch.Size, old_grid: tuple[int, int], grid: tuple[int, int], antialias: bool = False
) -> torch.Tensor | None:
    """
    A pretrained weight in another shape; None where it is neither of channels nor of positions.

    A projection of patches `(D, C, height, width)` gets the mean over its channels, scaled to an equal sum. Position
    embeddings `(..., P + N, D)` are interpolated bicubically over the grid, as transformers does on the way.
    """
    if weight.ndim == 4 and weight.shape[0] == shape[0] and weight.shape[2:] == shape[2:]:
        return weight.mean(1, keepdim=True).expand(shape) * (weight.shape[1] / shape[1])
    rows, num_prefix = (
        old_grid[0] * old_grid[1],
        weight.shape[-2] - old_grid[0] * old_grid[1] if weight.ndim > 1 else -1,
    )
    if num_prefix < 0 or (*weight.shape[:-2], num_prefix + grid[0] * grid[1], weight.shape[-1]) != tuple(shape):
        return None
    prefix, places = weight.split((num_prefix, rows), dim=-2)
    planes = places.reshape(-1, *old_grid, weight.shape[-1]).permute(0, 3, 1, 2)
    planes = nn.functional.interpolate(planes.float(), grid, mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat(
        [prefix, planes.flatten(2).transpose(1, 2).reshape(*places.shape[:-2], -1, shape[-1]).to(weight)], -2
    )


def patch_grid(config: Any) -> tuple[int, int]:
    """Rows and columns of the patches of a backbone's own images, `(0, 0)` where its configuration does not tell."""
    describe = backbone_facts(config.model_type).describe
    if describe is not None and not hasattr(config, "hidden_size"):
        config = copy.deepcopy(config)
        describe(config)
    height, width = pair(getattr(config, "image_size", 0))
    patch_height, patch_width = pair(getattr(config, "patch_size", 1))
    return height // patch_height, width // patch_width


def adapted_backbone(
    backbone: PreTrainedModel, image_size: int | tuple[int, int] | None, num_channels: int | None
) -> PreTrainedModel:
    """
    A backbone of a pretrained one's weights, built for images of another size or number of channels.

    Raises:
        ValueError: for a backbone that is quantised, or has weights that cannot be brought there.
    """
    config = adapted_config(backbone.config, image_size, num_channels)
    wanted = " and ".join(
        f"{name}={value}" for name, value in (("image_size", image_size), ("num_channels", num_channels)) if value
    )
    name = f"{config.model_type} cannot be the backbone with {wanted}"
    if getattr(backbone, "hf_quantizer", None) is not None:
        raise ValueError(f"{name}, as it is quantised: leave quantization_config out, or take its own size.")
    adapted, state = build_backbone(config), backbone.state_dict()
    antialias = backbone_facts(config.model_type).antialiases
    old_grid, grid = patch_grid(backbone.config), patch_grid(config)
    for key, empty in adapted.state_dict().items():
        if key not in state:
            continue
        weight = state[key]
        if weight.shape != empty.shape:
            weight = adapted_weight(weight, empty.shape, old_grid, grid, antialias)
        if weight is None:
            raise ValueError(
                f"{name}: its weight {key} depends on them. Leave them out, and resize the images instead."
            )
        empty.copy_(weight)
    placed: Any = adapted
    return placed.to(backbone.device, backbone.dtype).train(backbone.training)


def on_images(
    backbone: PreTrainedConfig | PreTrainedModel, image_size: int | tuple[int, int] | None, num_channels: int | None
) -> PreTrainedConfig | PreTrainedModel:
    """The configuration or model as it is, or adapted where another size or number of channels than its own is given."""
    config: Any = getattr(backbone, "config", backbone)
    if image_size is not None and backbone_facts(config.model_type).is_square and len(set(pair(image_size))) > 1:
        raise ValueError(f"{config.model_type} takes a square image_size; got {image_size}. Give one number.")
    if image_size is not None and pair(image_size) == pair(getattr(config, "image_size", None) or -1):
        image_size = None
    if num_channels == getattr(config, "num_channels", 3):
        num_channels = None
    if image_size is None and num_channels is None:
        return backbone
    if isinstance(backbone, PreTrainedModel):
        return adapted_backbone(backbone, image_size, num_channels)
    return adapted_config(backbone, image_size, num_channels)


__all__ = ["backbone_settings", "on_images"]

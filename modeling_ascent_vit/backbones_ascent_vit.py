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
"""What is known of backbones by their `model_type`, in one table, and backbones without what nothing reads."""

import inspect
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    PILImageResampling,
)
from transformers.modeling_utils import PreTrainedModel

from .concept_targets_ascent_vit import pair


IMAGENET = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
HALVES = {"image_mean": IMAGENET_STANDARD_MEAN, "image_std": IMAGENET_STANDARD_STD}
CLIP = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
BICUBIC = {"resample": int(PILImageResampling.BICUBIC)}

# Arguments of `from_pretrained` that say where a model is, not what it is.
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code")


def window_stride(config: Any) -> tuple[int, int]:
    """Swin halves height and width between two stages."""
    (height, width), step = pair(config.patch_size), 2 ** (len(config.depths) - 1)
    return height * step, width * step


def hiera_stride(config: Any) -> tuple[int, int]:
    """Hiera pools by `query_stride`, as many times as it is told."""
    steps = [stride**config.num_query_pool for stride in config.query_stride]
    return config.patch_stride[0] * steps[0], config.patch_stride[1] * steps[1]


def pvt_stride(config: Any) -> tuple[int, int]:
    """PVT embeds patches anew at every stage."""
    step = math.prod(config.strides)
    return step, step


def check_hiera(config: Any):
    """Raises one `ValueError` where tokens would not come row by row."""
    if config.num_query_pool != len(config.depths) - 1:
        raise ValueError("hiera gives its tokens row by row with num_query_pool = len(depths) - 1 alone: set it so.")


def describe_timm_model(config: Any):
    """Writes the sizes of a timm model into its configuration, which names an architecture alone."""
    with torch.device("meta"):
        model = AutoModel.from_config(config)
        embedding: Any = getattr(model.timm_model, "patch_embed", None)
        image_size = getattr(embedding, "img_size", None)
        if image_size is not None:
            num_channels = embedding.proj.in_channels
            tokens = model(torch.empty(1, num_channels, *image_size), do_pooling=False).last_hidden_state
    if image_size is None or tokens.ndim != 3 or tokens.shape[1] < embedding.num_patches:
        raise ValueError(
            f"timm's {config.architecture} cannot be the backbone: it does not give one token per patch. "
            "Use a plain vision transformer of timm, for example vit_small_patch16_224."
        )
    config.hidden_size, config.num_channels = tokens.shape[-1], num_channels
    config.image_size, config.patch_size = tuple(image_size), tuple(embedding.patch_size)


def drop_norm_of_pooled_token(backbone: Any):
    """CLIP's `post_layernorm` sees the CLS token alone, behind the tokens that the model gives."""
    backbone.post_layernorm = nn.Identity()


def drop_timm_pooling(backbone: Any):
    """timm's models pool and classify, and some normalise in between."""
    backbone.config.do_pooling = False
    backbone.timm_model.reset_classifier(0, "")
    if hasattr(backbone.timm_model, "fc_norm"):
        backbone.timm_model.fc_norm = nn.Identity()


@dataclass(frozen=True)
class BackboneFacts:
    """
    What holds for every backbone of one `model_type`.

    Args:
        unsuitable (`str`): why it cannot be the backbone; empty where it can.
        is_square (`bool`):
            whether its position embeddings are a square, so that other image shapes come by interpolation alone.
        has_fixed_size (`bool`): whether it cannot interpolate its position embeddings.
        antialiases (`bool`): whether it smooths position embeddings that it interpolates to a coarser grid.
        total_stride (`Callable`, *optional*):
            height and width in pixels of a cell of the last stage by its configuration, if it is hierarchical.
        hidden_size (`Callable`): size of its tokens by its configuration.
        check (`Callable`, *optional*): raises one `ValueError` for a configuration with which it cannot be the backbone.
        defaults (`dict`): fields without which its configuration cannot be read.
        describe (`Callable`, *optional*): writes the sizes into a configuration that does not say them.
        drop_pooling (`Callable`, *optional*): takes out of a model what only pooling needs, beside a pooler.
        normalisation (`dict`): `image_mean` and `image_std` that the family usually has; empty where not known.
        resample (`dict`): `resample` that the family usually has; empty for bilinear, or where not known.
    """

    unsuitable: str = ""
    is_square: bool = False
    has_fixed_size: bool = False
    antialiases: bool = False
    total_stride: Callable[[Any], tuple[int, int]] | None = None
    hidden_size: Callable[[Any], int] = lambda config: config.hidden_size
    check: Callable[[Any], None] | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    describe: Callable[[Any], None] | None = None
    drop_pooling: Callable[[Any], None] | None = None
    normalisation: dict[str, list[float]] = field(default_factory=dict)
    resample: dict[str, int] = field(default_factory=dict)


# Any other is taken for a plain vision transformer.
BACKBONES = {
    "aimv2_vision_model": BackboneFacts(is_square=True, has_fixed_size=True, normalisation=CLIP, resample=BICUBIC),
    "beit": BackboneFacts(normalisation=HALVES),
    "chinese_clip_vision_model": BackboneFacts(
        drop_pooling=drop_norm_of_pooled_token, normalisation=CLIP, resample=BICUBIC
    ),
    "clip_vision_model": BackboneFacts(
        is_square=True, drop_pooling=drop_norm_of_pooled_token, normalisation=CLIP, resample=BICUBIC
    ),
    "data2vec-vision": BackboneFacts(normalisation=HALVES),
    "deit": BackboneFacts(normalisation=IMAGENET, resample=BICUBIC),
    "dinov2": BackboneFacts(is_square=True, normalisation=IMAGENET, resample=BICUBIC),
    "dinov2_with_registers": BackboneFacts(is_square=True, antialiases=True, normalisation=IMAGENET, resample=BICUBIC),
    "dinov3_vit": BackboneFacts(normalisation=IMAGENET),
    "donut-swin": BackboneFacts(total_stride=window_stride),
    "hiera": BackboneFacts(total_stride=hiera_stride, check=check_hiera, normalisation=IMAGENET, resample=BICUBIC),
    "mlcd_vision_model": BackboneFacts(
        is_square=True, drop_pooling=drop_norm_of_pooled_token, normalisation=CLIP, resample=BICUBIC
    ),
    "pixio": BackboneFacts(is_square=True),
    "pixtral": BackboneFacts(unsuitable="it packs the patches of all images into one sequence"),
    "pvt_v2": BackboneFacts(
        total_stride=pvt_stride, hidden_size=lambda config: config.hidden_sizes[-1], normalisation=IMAGENET
    ),
    "siglip_vision_model": BackboneFacts(is_square=True, normalisation=HALVES, resample=BICUBIC),
    "siglip2_vision_model": BackboneFacts(unsuitable="it needs a pixel mask beside the pixels"),
    "swin": BackboneFacts(total_stride=window_stride, normalisation=IMAGENET, resample=BICUBIC),
    "swin2sr": BackboneFacts(unsuitable="it makes images larger, at their own resolution"),
    "swinv2": BackboneFacts(total_stride=window_stride, normalisation=IMAGENET, resample=BICUBIC),
    "timesformer": BackboneFacts(unsuitable="it takes videos"),
    "timm_wrapper": BackboneFacts(
        has_fixed_size=True,
        defaults={"num_classes": 0},
        describe=describe_timm_model,
        drop_pooling=drop_timm_pooling,
    ),
    "videomae": BackboneFacts(unsuitable="it takes videos"),
    # timm's own weights of ViT; its DeiT and DINO weights have ImageNet's statistics.
    "vit": BackboneFacts(normalisation=HALVES),
    "vit_mae": BackboneFacts(unsuitable="it drops patches at random"),
    "vit_msn": BackboneFacts(normalisation=IMAGENET),
    "yolos": BackboneFacts(unsuitable="its last tokens are detections, not patches"),
}


def backbone_facts(model_type: str) -> BackboneFacts:
    """What is known of the backbones of this `model_type`."""
    return BACKBONES.get(model_type, BackboneFacts())


def without_pooling_layer(config: PreTrainedConfig) -> dict[str, bool]:
    """Arguments with which the backbone's class builds no pooling layer, where it can leave it out."""
    model_class: Any = MODEL_MAPPING[type(config)]
    takes_it = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if takes_it else {}


def build_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """A randomly initialised backbone without pooling layer, where its class can leave it out."""
    return AutoModel.from_config(config, **without_pooling_layer(config))


def pretrained_backbone(
    backbone: str | os.PathLike | PreTrainedConfig | PreTrainedModel, **kwargs
) -> PreTrainedConfig | PreTrainedModel:
    """
    The pretrained model of a Hub id or a folder, in float32 unless `dtype` says otherwise; a configuration or a model as
    it is. Of images and text, the vision part.

    Args:
        backbone (`str`, `os.PathLike`, `PreTrainedConfig` or `PreTrainedModel`): what was given as backbone.
        kwargs: arguments of `AutoModel.from_pretrained`, for a Hub id or a folder.

    Raises:
        ValueError: for anything else, and for arguments beside a configuration or a model.
    """
    if isinstance(backbone, str | os.PathLike):
        hub_kwargs = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        config = AutoConfig.from_pretrained(backbone, **hub_kwargs)
        config = getattr(config, "vision_config", config)
        if "quantization_config" not in kwargs and getattr(config, "quantization_config", None) is None:
            # What was saved in bfloat16 would train in it, and at small learning rates most weights would never move.
            kwargs = {"dtype": torch.float32} | kwargs
        return AutoModel.from_pretrained(backbone, config=config, **kwargs | without_pooling_layer(config))
    if not isinstance(backbone, PreTrainedConfig | PreTrainedModel):
        raise ValueError(
            f"backbone must be a Hub id, a folder, a configuration or a model; got {type(backbone).__name__}."
        )
    if kwargs:
        raise ValueError(
            f"from_backbone got arguments it does not know: {', '.join(sorted(kwargs))}. Loading arguments need a "
            "Hub id or a folder as backbone."
        )
    return getattr(backbone, "vision_config", backbone) if isinstance(backbone, PreTrainedConfig) else backbone


def drop_unused_parameters(backbone: Any):
    """
    Takes out what only pre-training or pooling needs: without gradient, it would break distributed training.

    Poolers, CLIP's norm of the pooled token and SigLIP's attention head go; mask tokens become buffers that are not saved.
    """
    if without_pooling_layer(backbone.config):
        backbone.pooler = None
    if getattr(backbone, "use_head", False):
        backbone.use_head = False
        del backbone.head
    drop_pooling = backbone_facts(backbone.config.model_type).drop_pooling
    if drop_pooling is not None:
        drop_pooling(backbone)
    for module in backbone.modules():
        mask_token = module._parameters.get("mask_token")
        if mask_token is not None:
            del module.mask_token
            module.register_buffer("mask_token", mask_token.detach(), persistent=False)


_eager = threading.Lock()


@contextmanager
def eager_attention(backbone: PreTrainedModel) -> Iterator[None]:
    """
    Lets a backbone compute its attention eagerly, as other implementations keep no weights; it gets its own back.

    transformers leaves the weights out in silence. One thread at a time, so that none puts back what another has set.
    """
    with nullcontext() if torch.compiler.is_compiling() else _eager:
        implementation = backbone.config._attn_implementation
        if implementation in (None, "eager"):
            yield
            return
        backbone.set_attn_implementation("eager")
        try:
            yield
        finally:
            backbone.set_attn_implementation(implementation)


def has_cls_token(backbone: PreTrainedModel) -> bool:
    """Whether the backbone learns a CLS token."""
    names = {name.rpartition(".")[2] for name, _ in backbone.named_parameters()}
    return not names.isdisjoint({"cls_token", "class_embedding"})


__all__ = [
    "BACKBONES",
    "HUB_ARGUMENTS",
    "BackboneFacts",
    "backbone_facts",
    "build_backbone",
    "drop_unused_parameters",
    "eager_attention",
    "has_cls_token",
    "pretrained_backbone",
]

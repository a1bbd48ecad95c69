# SPDX-License-Identifier: Apache-2.0
"""Converts timm's vision transformers to a backbone, or to a model with a new concept head on it."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from modeling_ascent_vit.backbones_ascent_vit import build_backbone

from .backbones import BackboneSizes, backbone_config, backbone_rules, complete_backbone
from .rules import apply_rules, check_rules, strip_prefix


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from modeling_ascent_vit import AscentViTForImageClassification

LAYOUT = "timm"

# Heads for the classes of pre-training, and the mask token of pre-training.
UNUSED = re.compile(r"(head|head_dist)\..+|mask_token")

CONCEPT_FIELDS = (
    *("global_concepts", "spatial_concepts"),
    *("num_global_concepts", "num_spatial_concepts", "num_unsupervised_concepts"),
)
MODEL_FIELDS = (
    *CONCEPT_FIELDS,
    *("concept_attention_heads", "fusion_heads", "fusion_points", "fusion_levels", "psi"),
)


def backbone_from_timm(
    checkpoint: Mapping[str, torch.Tensor], settings: Mapping[str, Any], assumed: dict[str, Any]
) -> tuple["PreTrainedModel", dict[str, list[float]], list[str]]:
    """
    Makes the transformers model that computes what timm computes from a checkpoint.

    Args:
        checkpoint: timm's state dict of a ViT, DeiT, DINO or DINOv2, with or without a prefix such as `model.`.
        settings: settings as `read_settings` returns them.
        assumed: dict to add defaults to, by name, for what neither shapes nor settings tell.

    Returns:
        The model in evaluation mode, the usual normalisation of images, and the dropped names.

    Raises:
        ValueError: for missing or unknown names, wrong shapes, or settings that contradict the checkpoint.
    """
    state = strip_prefix(checkpoint, "cls_token", LAYOUT)
    sizes = BackboneSizes.of(state)
    rules = backbone_rules(sizes)
    dropped = [name for name in state if UNUSED.fullmatch(name)]
    check_rules(rules, state, dropped, LAYOUT)
    fields, embedded_prefix = backbone_config(sizes, settings.get("backbone", {}), assumed)
    converted = apply_rules(rules, state)
    complete_backbone(converted, sizes, embedded_prefix)
    backbone = build_backbone(AutoConfig.for_model(**fields))
    backbone.load_state_dict(converted)
    return backbone.eval(), sizes.normalisation, dropped


def model_on_backbone(
    backbone: "PreTrainedModel", settings: Mapping[str, Any], seed: int
) -> "AscentViTForImageClassification | None":
    """
    Puts an untrained concept head on a backbone; returns `None` for settings without concepts.

    Args:
        backbone: model to put it on, which is used as it is.
        settings: settings as `read_settings` returns them.
        seed: random seed of the head's weights.

    Raises:
        ValueError: for settings that do not go together.
    """
    from modeling_ascent_vit import AscentViTForImageClassification

    fields = {name: settings[name] for name in MODEL_FIELDS if name in settings}
    labels, classes = settings.get("labels"), settings.get("num_classes")
    if not any(settings.get(name) for name in CONCEPT_FIELDS):
        if fields or labels is not None or classes is not None:
            raise ValueError(
                "--config has fields of a concept head but no concepts: name global_concepts or spatial_concepts, or "
                f"leave out {', '.join([*fields, *(n for n in ('labels', 'num_classes') if n in settings)])}."
            )
        return None
    if labels is not None:
        if classes not in (None, len(labels)):
            raise ValueError(f"labels in --config names {len(labels)} classes, num_classes is {classes}.")
        fields["id2label"] = dict(enumerate(labels))
    elif classes is not None:
        fields["num_labels"] = classes
    else:
        raise ValueError("--config names concepts but no classes: give labels, or num_classes.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AscentViTForImageClassification.from_backbone(backbone, **fields)


__all__ = ["backbone_from_timm", "model_on_backbone"]

# SPDX-License-Identifier: Apache-2.0
"""
Converts checkpoints of the authors' layout.

Three things differ from this project's model and are folded so that it computes the same. With `psi` the weight of the
pyramid and `a` the deformable attention, their residual counts twice, `(1 + psi) x + psi gamma a`: gamma is divided by
`1 + psi`, and the query projection of every stream is multiplied by it. They take the CLS token for the first patch
in the fusion, which `shifted_fusion` in the configuration repeats. Their unsupervised stream shares the projections of
the global one, which are copied.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from modeling_ascent_vit import AscentViTConfig
from modeling_ascent_vit.configuration_ascent_vit import PYRAMID_STRIDES

from .backbones import BackboneSizes, backbone_config, backbone_rules, complete_backbone
from .rules import Rule, apply_rules, check_agreement, check_rules, setting, size, strip_prefix


if TYPE_CHECKING:
    from modeling_ascent_vit import AscentViTForImageClassification

LAYOUT = "authors'"
BACKBONE = "feature_extractor."

# Tensors that no output of the authors' code depends on: a mapping of token counts, a fourth level's projection, the
# backbone's head.
UNUSED = re.compile(r"(map_spatial_vit|spm\.fc1|feature_extractor\.head)\..+")

# Each stream of this model: its number in the settings, and the authors' names of its concepts and projections.
STREAMS = (
    ("global", "num_global_concepts", "classifier.concepts", "classifier.concept_tranformer"),
    ("unsupervised", "num_unsupervised_concepts", "classifier.unsup_concepts", "classifier.concept_tranformer"),
    ("spatial", "num_spatial_concepts", "classifier.spatial_concepts", "classifier.spatial_concept_tranformer"),
)

DEFAULT_PSI, DEFAULT_CONCEPT_HEADS, DEFAULT_FUSION_HEADS = 1.0, 2, 8


def _has_stream(
    state: Mapping[str, torch.Tensor], settings: Mapping[str, Any], stream: str, number: str, concepts: str, head: str
) -> bool:
    """Whether a checkpoint has a stream, or should have it by its other tensors or the settings."""
    if concepts in state:
        return state[concepts].numel() > 0
    has_head = stream != "unsupervised" and any(name.startswith(f"{head}.") for name in state)
    return has_head or settings.get(number, 0) > 0


def _encoding_rules(state: Mapping[str, torch.Tensor], hidden: int, channels: int) -> list[Rule]:
    """Rules for the pyramid."""
    rules = []
    target = "ascent_vit.encoding"
    widths = AscentViTConfig.pyramid_channels
    inputs_of_stem = (channels, widths[0], widths[0])
    convolutions = [("spm.stem", 3 * i, f"{target}.stem.{i}", inputs_of_stem[i], widths[0]) for i in range(3)]
    for i in range(len(PYRAMID_STRIDES)):
        convolutions.append((f"spm.conv{i + 2}", 0, f"{target}.stages.{i}", widths[i], widths[i + 1]))
    for old, index, new, inputs, outputs in convolutions:
        rules.append(Rule(f"{old}.{index}.weight", (outputs, inputs, 3, 3), (f"{new}.convolution.weight",)))
        for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            shape = () if kind == "num_batches_tracked" else (outputs,)
            rules.append(Rule(f"{old}.{index + 1}.{kind}", shape, (f"{new}.normalization.{kind}",)))
    for i in range(len(PYRAMID_STRIDES)):
        new = f"{target}.projections.{i}"
        rules.append(Rule(f"spm.fc{i + 2}.weight", (hidden, widths[i + 1], 1, 1), (f"{new}.weight",)))
        rules.append(Rule(f"spm.fc{i + 2}.bias", (hidden,), (f"{new}.bias",)))
    rules.append(Rule("level_embed", (len(PYRAMID_STRIDES), hidden), (f"{target}.level_embeddings",)))
    return rules


def _fusion_rules(state: Mapping[str, torch.Tensor], hidden: int, psi: float) -> list[Rule]:
    """Rules for the deformable attention."""
    samples = size(state, "injector.attn.attention_weights.weight", 0)
    target = "ascent_vit.fusion"
    rules = [Rule("injector.gamma", (hidden,), (f"{target}.gamma",), 1 / (1 + psi))]
    layers = {
        "injector.query_norm": ("query_norm", (hidden,)),
        "injector.feat_norm": ("pyramid_norm", (hidden,)),
        "injector.attn.sampling_offsets": ("sampling_offsets", (2 * samples, hidden)),
        "injector.attn.attention_weights": ("sampling_weights", (samples, hidden)),
        "injector.attn.value_proj": ("value_projection", (hidden, hidden)),
        "injector.attn.output_proj": ("output_projection", (hidden, hidden)),
    }
    for old, (new, shape) in layers.items():
        rules.append(Rule(f"{old}.weight", shape, (f"{target}.{new}.weight",)))
        rules.append(Rule(f"{old}.bias", shape[:1], (f"{target}.{new}.bias",)))
    return rules


def _stream_rules(
    state: Mapping[str, torch.Tensor], hidden: int, classes: int, psi: float, stream: str, concepts: str, head: str
) -> list[Rule]:
    """Rules for one stream of the concept head."""
    target = f"{stream}_stream"
    return [
        Rule(concepts, (1, size(state, concepts, 1), hidden), (f"{target}.concepts",)),
        Rule(f"{head}.q.weight", (hidden, hidden), (f"{target}.query.weight",), 1 + psi),
        Rule(f"{head}.kv.weight", (2 * hidden, hidden), (f"{target}.key.weight", f"{target}.value.weight")),
        Rule(f"{head}.proj.weight", (classes, hidden), (f"{target}.projection.weight",)),
        Rule(f"{head}.proj.bias", (classes,), (f"{target}.projection.bias",)),
    ]


def _fusion_fields(samples: int, settings: Mapping[str, Any], assumed: dict[str, Any]) -> dict[str, Any]:
    """Heads and points of the fusion, by the settings, as the shapes tell only their product."""
    heads = setting(settings, "fusion_heads", DEFAULT_FUSION_HEADS, assumed)
    levels = len(PYRAMID_STRIDES)
    points = samples // max(heads * levels, 1)
    if heads < 1 or points * heads * levels != samples or settings.get("fusion_points", points) != points:
        raise ValueError(
            f"The checkpoint's fusion has {samples} samples per patch, which are fusion_heads * {levels} levels * "
            f"fusion_points; got fusion_heads={heads} and fusion_points={settings.get('fusion_points', 'none')}. Give "
            "both in --config."
        )
    return {"fusion_heads": heads, "fusion_points": points, "fusion_levels": levels}


def model_from_authors(
    checkpoint: Mapping[str, torch.Tensor], settings: Mapping[str, Any], assumed: dict[str, Any]
) -> tuple["AscentViTForImageClassification", dict[str, list[float]], list[str]]:
    """
    Makes the model that computes what the authors' code computes from a checkpoint.

    Args:
        checkpoint: state dict of the authors' code, with or without a prefix such as `model.`.
        settings: settings as `read_settings` returns them.
        assumed: dict to add defaults to, by name, for what neither shapes nor settings tell.

    Returns:
        The model in evaluation mode, the usual normalisation of images, and the dropped names.

    Raises:
        ValueError: for missing or unknown names, wrong shapes, or settings that contradict the checkpoint.
    """
    from modeling_ascent_vit import AscentViTForImageClassification

    psi = float(setting(settings, "psi", DEFAULT_PSI, assumed))
    if psi == -1:
        raise ValueError("psi = -1 in --config cannot be converted: it multiplies the authors' tokens by 1 + psi = 0.")
    state = strip_prefix(checkpoint, f"{BACKBONE}cls_token", LAYOUT)
    sizes = BackboneSizes.of(state, BACKBONE)
    hidden = sizes.hidden_size
    streams = [stream for stream in STREAMS if _has_stream(state, settings, *stream)]
    classes = max((size(state, f"{head}.proj.weight", 0) for *_, head in streams), default=0)
    rules = backbone_rules(sizes, "ascent_vit.backbone.")
    rules += _encoding_rules(state, hidden, sizes.num_channels) + _fusion_rules(state, hidden, psi)
    for stream, _, concepts, head in streams:
        rules += _stream_rules(state, hidden, classes, psi, stream, concepts, head)

    used = {rule.source for rule in rules}
    idle = tuple(f"{head}." for *_, head in STREAMS if not any(name.startswith(f"{head}.") for name in used))
    empty = {concepts for _, _, concepts, _ in STREAMS} - used
    dropped = [n for n in state if n not in used and (UNUSED.fullmatch(n) or n in empty or n.startswith(idle))]
    check_rules(rules, state, dropped, LAYOUT)
    if sizes.model_type not in ("vit", "dinov2"):
        raise ValueError(
            f"The checkpoint's backbone is {sizes.model_type}: in the authors' layout it has a CLS token and no other "
            "token before the patches."
        )

    numbers: dict[str, Any] = {number: 0 for _, number, _, _ in STREAMS}
    numbers |= {number: size(state, concepts, 1) for _, number, concepts, _ in streams}
    check_agreement(settings, {"num_classes": classes, "fusion_levels": len(PYRAMID_STRIDES), **numbers})
    backbone, embedded_prefix = backbone_config(sizes, settings.get("backbone", {}), assumed)
    fields = _fusion_fields(size(state, "injector.attn.attention_weights.weight", 0), settings, assumed)
    labels = settings.get("labels")
    class_names: dict[str, Any] = {"num_labels": classes} if labels is None else {"id2label": dict(enumerate(labels))}
    if labels is not None and len(labels) != classes:
        raise ValueError(f"labels in --config names {len(labels)} classes, the checkpoint has {classes}.")
    config = AscentViTConfig(
        backbone_config=backbone,
        global_concepts=settings.get("global_concepts"),
        spatial_concepts=settings.get("spatial_concepts"),
        **numbers,
        **fields,
        **class_names,
        concept_attention_heads=setting(settings, "concept_attention_heads", DEFAULT_CONCEPT_HEADS, assumed),
        psi=psi,
        shifted_fusion=True,
    )
    converted = apply_rules(rules, state)
    complete_backbone(converted, sizes, embedded_prefix, "ascent_vit.backbone.")
    for stream, *_ in streams:
        converted[f"{stream}_stream.concepts"] = converted[f"{stream}_stream.concepts"][0]
    model = AscentViTForImageClassification(config)
    model.load_state_dict(converted)
    return model.eval(), sizes.normalisation, dropped


__all__ = ["model_from_authors"]

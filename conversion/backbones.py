# SPDX-License-Identifier: Apache-2.0
"""timm's layout of vision transformers, as weights of transformers' ViT, DeiT, DINOv2 and DINOv2 with registers."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from modeling_ascent_vit.backbones_ascent_vit import backbone_facts

from .rules import Rule, check_agreement, setting, size


# Every size of ViT, DeiT and DINOv2 that is published has heads of this many values.
USUAL_HEAD_SIZE = 64

# Largest MLP, in hidden sizes, that is looked for; every published size has 4.
MOST_MLP_RATIO = 16

# timm's LayerNorm; transformers' ViT has another default.
LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True)
class BackboneSizes:
    """
    What the shapes of a vision transformer in timm's layout tell.

    Args:
        source: prefix of its names in the checkpoint.
        model_type: transformers' name of the architecture.
        hidden_size, depth, mlp_size, num_channels, num_registers: sizes.
        patch_size: height and width in pixels.
        num_positions: tokens with a position embedding.
        qkv_bias: whether queries, keys and values have biases.
        swiglu: whether the MLP is gated, `silu(x W1) * x W2`.
    """

    source: str
    model_type: str
    hidden_size: int
    depth: int
    mlp_size: int
    num_channels: int
    patch_size: tuple[int, int]
    num_registers: int
    num_positions: int
    qkv_bias: bool
    swiglu: bool

    @classmethod
    def of(cls, state: Mapping[str, torch.Tensor], source: str = "") -> "BackboneSizes":
        """Sizes by a state dict's tensors, 0 where one is missing."""
        blocks = {m[1] for name in state if (m := re.match(rf"{re.escape(source)}blocks\.(\d+)\.", name))}

        def has(ending: str) -> bool:
            return any(name.startswith(f"{source}blocks.") and name.endswith(ending) for name in state)

        first = f"{source}blocks.0.mlp"
        mlp_size = size(state, f"{first}.fc2.weight", 1)
        registers = size(state, f"{source}reg_token", 1)
        if f"{source}dist_token" in state:
            model_type = "deit"
        elif registers:
            model_type = "dinov2_with_registers"
        else:
            model_type = "dinov2" if has(".ls1.gamma") else "vit"
        patches = f"{source}patch_embed.proj.weight"
        return cls(
            source=source,
            model_type=model_type,
            hidden_size=size(state, f"{source}cls_token", 2),
            depth=len(blocks),
            mlp_size=mlp_size,
            num_channels=size(state, patches, 1),
            patch_size=(size(state, patches, 2), size(state, patches, 3)),
            num_registers=registers,
            num_positions=size(state, f"{source}pos_embed", 1),
            qkv_bias=has(".attn.qkv.bias"),
            swiglu=mlp_size > 0 and size(state, f"{first}.fc1.weight", 0) == 2 * mlp_size,
        )

    @property
    def is_dinov2(self) -> bool:
        return self.model_type.startswith("dinov2")

    @property
    def normalisation(self) -> dict[str, list[float]]:
        """The family's usual `image_mean` and `image_std`."""
        return backbone_facts(self.model_type).normalisation


def backbone_rules(sizes: BackboneSizes, target: str = "") -> list[Rule]:
    """
    Rules for every tensor of a vision transformer in timm's layout.

    Args:
        sizes: sizes read from the checkpoint.
        target: prefix of the names in the model, as in `ascent_vit.backbone.`.
    """
    hidden, mlp, source = sizes.hidden_size, sizes.mlp_size, sizes.source
    rules: list[Rule] = []

    def add(name: str, shape: tuple[int, ...], *targets: str) -> None:
        rules.append(Rule(source + name, shape, tuple(target + t for t in targets)))

    def add_linear(name: str, outputs: int, inputs: int, *targets: str, bias: bool = True) -> None:
        add(f"{name}.weight", (outputs, inputs), *(f"{t}.weight" for t in targets))
        if bias:
            add(f"{name}.bias", (outputs,), *(f"{t}.bias" for t in targets))

    def add_norm(name: str, new: str) -> None:
        for kind in ("weight", "bias"):
            add(f"{name}.{kind}", (hidden,), f"{new}.{kind}")

    add("cls_token", (1, 1, hidden), "embeddings.cls_token")
    if sizes.model_type == "deit":
        add("dist_token", (1, 1, hidden), "embeddings.distillation_token")
    if sizes.num_registers:
        add("reg_token", (1, sizes.num_registers, hidden), "embeddings.register_tokens")
    add("pos_embed", (1, sizes.num_positions, hidden), "embeddings.position_embeddings")
    patches = "embeddings.patch_embeddings.projection"
    add("patch_embed.proj.weight", (hidden, sizes.num_channels, *sizes.patch_size), f"{patches}.weight")
    add("patch_embed.proj.bias", (hidden,), f"{patches}.bias")
    for i in range(sizes.depth):
        old, new = f"blocks.{i}", f"encoder.layer.{i}" if sizes.is_dinov2 else f"layers.{i}"
        norms = ("norm1", "norm2") if sizes.is_dinov2 else ("layernorm_before", "layernorm_after")
        add_norm(f"{old}.norm1", f"{new}.{norms[0]}")
        projections = [f"{new}.attention.{part}_proj" for part in "qkv"]
        add_linear(f"{old}.attn.qkv", 3 * hidden, hidden, *projections, bias=sizes.qkv_bias)
        add_linear(f"{old}.attn.proj", hidden, hidden, f"{new}.attention.o_proj")
        add_norm(f"{old}.norm2", f"{new}.{norms[1]}")
        if sizes.swiglu and sizes.is_dinov2:
            add_linear(f"{old}.mlp.fc1", 2 * mlp, hidden, f"{new}.mlp.gate_proj", f"{new}.mlp.up_proj")
            add_linear(f"{old}.mlp.fc2", hidden, mlp, f"{new}.mlp.down_proj")
        else:
            add_linear(f"{old}.mlp.fc1", mlp, hidden, f"{new}.mlp.fc1")
            add_linear(f"{old}.mlp.fc2", hidden, mlp, f"{new}.mlp.fc2")
        if sizes.is_dinov2:
            for k in (1, 2):
                add(f"{old}.ls{k}.gamma", (hidden,), f"{new}.layer_scale{k}.lambda1")
    add_norm("norm", "layernorm")
    return rules


def _image_size(sizes: BackboneSizes, settings: Mapping[str, Any]) -> tuple[tuple[int, int], int]:
    """Height and width in pixels, and how many prefix tokens have a position embedding."""
    # timm gives none to any prefix token of a model with `no_embed_class`, as DINOv2 with registers is.
    embedded = (2,) if sizes.model_type == "deit" else (0, 1)
    given = settings.get("image_size")
    if given is None:
        # Without registers it is rare, and 24 patches and CLS are not to be taken for 5 x 5 patches.
        for prefix in embedded if sizes.num_registers else embedded[-1:]:
            side = math.isqrt(max(sizes.num_positions - prefix, 0))
            if side and side**2 == sizes.num_positions - prefix:
                return (side * sizes.patch_size[0], side * sizes.patch_size[1]), prefix
        raise ValueError(
            f"The checkpoint's {sizes.num_positions} position embeddings are no square of patches: give "
            "backbone.image_size as [height, width] in --config."
        )
    height, width = (given, given) if isinstance(given, int) else given if len(given) == 2 else (0, 0)
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        raise ValueError(f"backbone.image_size in --config must be pixels or [height, width] in pixels; got {given}.")
    patches = (height // sizes.patch_size[0]) * (width // sizes.patch_size[1])
    prefix = sizes.num_positions - patches
    if prefix not in embedded:
        raise ValueError(
            f"--config and the checkpoint disagree: backbone.image_size {given} makes {patches} patches of "
            f"{sizes.patch_size[0]}x{sizes.patch_size[1]} pixels, the checkpoint has {sizes.num_positions} "
            "position embeddings."
        )
    return (height, width), prefix


def _mlp_ratio(sizes: BackboneSizes) -> int:
    """What DINOv2's configuration has in place of the MLP's size."""
    for ratio in range(1, MOST_MLP_RATIO + 1):
        mlp_size = ratio * sizes.hidden_size
        if sizes.swiglu:
            # A gated MLP has two thirds of the values, in eights (Dinov2SwiGLUFFN of transformers).
            mlp_size = (int(mlp_size * 2 / 3) + 7) // 8 * 8
        if mlp_size == sizes.mlp_size:
            return ratio
    raise ValueError(
        f"The checkpoint's MLP has {sizes.mlp_size} values for a hidden size of {sizes.hidden_size}, which no "
        f"{sizes.model_type} of transformers has: it cannot be converted."
    )


def backbone_config(
    sizes: BackboneSizes, settings: Mapping[str, Any], assumed: dict[str, Any]
) -> tuple[dict[str, Any], int]:
    """
    The backbone's configuration, with its `model_type`, and how many prefix tokens have a position embedding.

    Args:
        sizes: sizes read from the checkpoint, whose shapes are known to fit.
        settings: the part `backbone` of the settings.
        assumed: gets what neither shapes nor settings tell.

    Raises:
        ValueError: for settings that the shapes contradict, or sizes that need a setting.
    """
    patch_height, patch_width = sizes.patch_size
    patch_size: Any = patch_height if patch_height == patch_width else [patch_height, patch_width]
    ratio = settings.get("mlp_ratio", 0)
    inner = sizes.mlp_size * (1 + sizes.swiglu)
    found = {
        "patch_size": [patch_height, patch_width] if isinstance(settings.get("patch_size"), list) else patch_size,
        "embed_dim": sizes.hidden_size,
        "depth": sizes.depth,
        "mlp_ratio": ratio if int(sizes.hidden_size * ratio) == inner else inner / sizes.hidden_size,
    }
    check_agreement(
        {f"backbone.{name}": value for name, value in settings.items()},
        {f"backbone.{name}": value for name, value in found.items()},
    )
    if "num_heads" not in settings and sizes.hidden_size % USUAL_HEAD_SIZE:
        raise ValueError(
            "The number of attention heads does not show in the checkpoint: give backbone.num_heads in --config."
        )
    heads = setting(settings, "num_heads", sizes.hidden_size // USUAL_HEAD_SIZE, assumed, "backbone.")
    if heads < 1 or sizes.hidden_size % heads:
        raise ValueError(f"backbone.num_heads={heads} must divide the checkpoint's hidden size {sizes.hidden_size}.")
    eps = setting(settings, "layer_norm_eps", LAYER_NORM_EPS, assumed, "backbone.")
    (height, width), prefix = _image_size(sizes, settings)
    config: dict[str, Any] = {
        "model_type": sizes.model_type,
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": heads,
        "layer_norm_eps": float(eps),
        "image_size": height if height == width else [height, width],
        "patch_size": patch_size,
        "num_channels": sizes.num_channels,
        "qkv_bias": sizes.qkv_bias,
    }
    if not sizes.is_dinov2:
        return config | {"intermediate_size": sizes.mlp_size}, prefix
    config |= {"mlp_ratio": _mlp_ratio(sizes), "use_swiglu_ffn": sizes.swiglu}
    if sizes.model_type == "dinov2":
        config["use_mask_token"] = False
    else:
        config["num_register_tokens"] = sizes.num_registers
    return config, prefix


def complete_backbone(
    converted: dict[str, torch.Tensor], sizes: BackboneSizes, embedded_prefix: int, target: str = ""
) -> None:
    """Adds what the model has and the checkpoint has not, so that it computes the same: zeros, in place."""
    name = f"{target}embeddings.position_embeddings"
    if embedded_prefix == 0:
        converted[name] = torch.cat([torch.zeros(1, 1, sizes.hidden_size), converted[name]], dim=1)
    if sizes.model_type == "dinov2_with_registers":
        converted[f"{target}embeddings.mask_token"] = torch.zeros(1, sizes.hidden_size)


__all__ = ["BackboneSizes", "backbone_config", "backbone_rules", "complete_backbone"]

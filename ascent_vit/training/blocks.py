# SPDX-License-Identifier: Apache-2.0
"""The blocks of a plain vision transformer: which modules they are, and which weights come before them."""

from typing import Any

import torch

from ascent_vit.inference.mode import evaluation_mode
from modeling_ascent_vit.backbones_ascent_vit import backbone_facts


def find_blocks(backbone: Any) -> list[torch.nn.Module]:
    """
    Finds the blocks of a backbone, in their order: the longest list of modules of one class, by parameters.

    Raises:
        ValueError: for a backbone of stages, or without such a list.
    """
    model_type = backbone.config.model_type
    lists = [
        module
        for module in backbone.modules()
        if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential) and len({type(item) for item in module}) == 1
    ]
    if not lists or backbone_facts(model_type).total_stride is not None:
        raise ValueError(
            f"frozen_layers and layer_decay count the layers of a plain vision transformer, and {model_type} is none: "
            "leave them out."
        )
    return list(max(lists, key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters())))


def first_blocks(backbone: Any, number: int) -> list[torch.nn.Module]:
    """Gives the first blocks of a backbone; ValueError where it has fewer."""
    blocks = find_blocks(backbone)
    if number > len(blocks):
        raise ValueError(f"frozen_layers must be at most {len(blocks)}, the layers of the backbone; got {number}.")
    return blocks[:number]


def parameters_before(model: Any, number: int) -> list[torch.nn.Parameter]:
    """
    Lists the backbone's parameters on which the output of its first blocks depends: theirs, those of the embeddings,
    and what all blocks share, for example a relative position bias.

    Args:
        model: concept classifier.
        number: number of the blocks, at least 1.

    Returns:
        Those of the parameters that have gradients; found by the gradient of one blank image.
    """
    backbone = model.ascent_vit.backbone
    outputs: list[Any] = []
    block = first_blocks(backbone, number)[-1]
    handle = block.register_forward_hook(lambda module, args, output: outputs.append(output))
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    image = torch.zeros(1, model.config.num_channels, *model.config.image_size)
    try:
        with evaluation_mode(backbone), torch.enable_grad():
            backbone(image.to(backbone.device, backbone.dtype), return_dict=True)
    finally:
        handle.remove()
    tokens = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
    if not tokens.requires_grad:
        return []
    gradients = torch.autograd.grad(tokens.sum(), parameters, allow_unused=True)
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def freeze(model: Any, frozen_layers: int | None) -> None:
    """Freezes a model's backbone up to and with as many blocks, the embeddings too; the whole of it for None."""
    if frozen_layers is None:
        model.ascent_vit.backbone.requires_grad_(False)
        return
    for parameter in parameters_before(model, frozen_layers):
        parameter.requires_grad_(False)


def evaluate_frozen(backbone: Any, frozen_layers: int | None) -> None:
    """Puts what is frozen of a backbone in training into evaluation mode, without dropout as its tokens are cached."""
    backbone.eval()
    if frozen_layers is not None:
        for block in find_blocks(backbone)[frozen_layers:]:
            block.train()


def layer_rates(model: Any, learning_rate: float, layer_decay: float) -> dict[int, float]:
    """
    Gives each parameter of the backbone a learning rate, by the number of blocks above it (as BEiT and timm do).

    Args:
        model: concept classifier.
        learning_rate: learning rate of the last block and what comes behind it.
        layer_decay: factor from each block to the one below it, and from the first to what comes before it.

    Returns:
        Learning rates by the parameter's `id`.
    """
    backbone = model.ascent_vit.backbone
    blocks = find_blocks(backbone)
    above = {id(parameter): 0 for parameter in backbone.parameters()}
    above |= {id(parameter): len(blocks) for parameter in parameters_before(model, 1)}
    for number, block in enumerate(reversed(blocks)):
        above |= {id(parameter): number for parameter in block.parameters()}
    return {key: learning_rate * layer_decay**number for key, number in above.items()}


__all__ = ["evaluate_frozen", "find_blocks", "first_blocks", "freeze", "layer_rates", "parameters_before"]

# SPDX-License-Identifier: Apache-2.0
"""Maps of what moved a class score, by libraries that explain a classifier as it is, and by ours."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ascent_vit.explanation import LogitsModel
from ascent_vit.training.blocks import find_blocks


# What explains a batch of images (B, C, H, W) and one class of each (B,), None for the predicted ones: signed maps of
# patches (B, h, w).
Explain = Callable[[Tensor, Tensor | None], Tensor]


def predicted(model: Any, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(pixels).logits.argmax(-1)


def over_patches(values: Tensor, patch: int) -> Tensor:
    """Sums of values of pixels `(B, H, W)` over patches, `(B, h, w)`."""
    return values.unfold(1, patch, patch).unfold(2, patch, patch).sum((-2, -1))


def segments(side: int, size: int) -> Tensor:
    """Numbers of squares of `size` pixels for each pixel of a square image, `(1, 1, side, side)`."""
    index = torch.arange(side) // size
    return (index[:, None] * (side // size) + index)[None, None]


def integrated_gradients(model: Any, patch: int, **options: Any) -> Explain:
    """captum's Integrated Gradients against an image of the mean colour."""
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(LogitsModel(model))

    def explain(pixels: Tensor, classes: Tensor | None) -> Tensor:
        target = predicted(model, pixels) if classes is None else classes
        return over_patches(method.attribute(pixels, target=target, **options).sum(1), patch).detach()

    return explain


def occlusion(model: Any, patch: int, **options: Any) -> Explain:
    """captum's occlusion of one patch after the other by the mean colour."""
    from captum.attr import Occlusion

    method = Occlusion(LogitsModel(model))

    def explain(pixels: Tensor, classes: Tensor | None) -> Tensor:
        target = predicted(model, pixels) if classes is None else classes
        window = (pixels.shape[1], patch, patch)
        values = method.attribute(pixels, window, strides=window, target=target, **options)
        return over_patches(values.sum(1), patch)

    return explain


def kernel_shap(model: Any, patch: int, segment: int = 1, **options: Any) -> Explain:
    """captum's KernelSHAP over squares of `segment` patches, against the mean colour."""
    from captum.attr import KernelShap

    method = KernelShap(LogitsModel(model))

    def explain(pixels: Tensor, classes: Tensor | None) -> Tensor:
        targets = predicted(model, pixels) if classes is None else classes
        mask = segments(pixels.shape[-1], segment * patch)
        found = []
        # A regression of its own for each image.
        for image, target in zip(pixels.split(1), targets, strict=True):
            values = method.attribute(image, target=target[None], feature_mask=mask, **options)
            # Each pixel has the value of its whole square.
            found.append(over_patches(values[:, 0], patch) / (segment * patch) ** 2)
        return torch.cat(found)

    return explain


def class_activation(model: Any, patch: int, method: str = "GradCAM") -> Explain:
    """A method of pytorch-grad-cam, at the last block's first norm, as it advises for vision transformers."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def to_grid(tokens: Tensor) -> Tensor:
        patches = tokens[:, 1:]
        side = round(patches.shape[1] ** 0.5)
        return patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)

    layer = find_blocks(model.base_model)[-1].layernorm_before
    cam = getattr(pytorch_grad_cam, method)(LogitsModel(model), [layer], reshape_transform=to_grid)

    def explain(pixels: Tensor, classes: Tensor | None) -> Tensor:
        targets = None if classes is None else [ClassifierOutputTarget(int(target)) for target in classes]
        return over_patches(torch.from_numpy(cam(pixels, targets)), patch)

    return explain


def attention_rollout(model: Any, patch: int) -> Explain:
    """Attention rollout (Abnar and Zuidema, ACL 2020) from CLS: heads averaged, half of each layer the identity."""

    def explain(pixels: Tensor, classes: Tensor | None) -> Tensor:
        with torch.no_grad():
            attentions = model(pixels, output_attentions=True).attentions
        rolled = torch.eye(attentions[0].shape[-1])
        for attention in attentions:
            rolled = (0.5 * attention.mean(1) + 0.5 * torch.eye(attention.shape[-1])) @ rolled
        side = round((rolled.shape[-1] - 1) ** 0.5)
        return rolled[:, 0, 1:].unflatten(-1, (side, side))

    return explain


def at_random(model: Any, patch: int, seed: int = 0) -> Explain:
    """Maps that are drawn, for comparison."""
    generator = torch.Generator().manual_seed(seed)

    def explain(pixels: Tensor, classes: Tensor | None) -> Tensor:
        return torch.rand(len(pixels), pixels.shape[-2] // patch, pixels.shape[-1] // patch, generator=generator)

    return explain


def contributions(model: Any, patch: int) -> Explain:
    """What all spatial concepts of our model contribute to the class at each patch."""

    def explain(pixels: Tensor, classes: Tensor | None) -> Tensor:
        target = predicted(model, pixels) if classes is None else classes
        with torch.no_grad():
            return model.contribution_maps(pixels, target[:, None])[:, 0].sum(1)

    return explain


EXPLAINERS: dict[str, Callable[..., Explain]] = {
    "integrated-gradients": integrated_gradients,
    "occlusion": occlusion,
    "kernel-shap": kernel_shap,
    "class-activation": class_activation,
    "rollout": attention_rollout,
    "random": at_random,
    "ours": contributions,
}

# SPDX-License-Identifier: Apache-2.0
"""Insertion and deletion: do the patches that contribute most to a prediction also move it most?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from modeling_ascent_vit.class_scores_ascent_vit import chosen_classes, class_scores, score_function

from .probe import ImageEvaluator, check_counts, descending_ranks, images_at_once, random_ranks


if TYPE_CHECKING:
    from ascent_vit.inference.protocols import ConceptClassifier

    from .probe import Measure


def spread_patches(mask: Tensor, patch_size: Sequence[int], image_size: Sequence[int]) -> Tensor:
    """Spreads values of patches (B, h, w) over their pixels, (B, 1, H, W); those beyond the grid as its last row."""
    height, width = patch_size
    pixels = mask.repeat_interleave(height, -2).repeat_interleave(width, -1).unsqueeze(1).float()
    rest = (0, image_size[1] - pixels.shape[-1], 0, image_size[0] - pixels.shape[-2])
    return torch.nn.functional.pad(pixels, rest, mode="replicate").bool()


def numbers_of_patches(patches: int, steps: int) -> Tensor:
    """Numbers of patches to show, from none to all in `steps` equal steps, fewer where there are fewer patches."""
    return torch.linspace(0, patches, steps + 1, dtype=torch.float64).round().long().unique()


def scores_of(model: "ConceptClassifier", logits: Tensor, classes: Tensor) -> Tensor:
    """Scores of one class of each image, (B, 1), by logits (B, K) and classes (B,)."""
    return class_scores(logits.float(), score_function(model.config)).gather(-1, classes[:, None])


def masked_scores(
    model: "ConceptClassifier", pixel_values: Tensor, classes: Tensor, shown: Tensor, batch_size: int
) -> Tensor:
    """
    Scores of one class of each image as only some patches are shown, and the others have the image's mean colour.

    Args:
        model: model in evaluation mode.
        pixel_values: images, (B, C, H, W).
        classes: one class of each image, (B,).
        shown: which patches to show, (B, points, h, w) bool.
        batch_size: number of images per forward pass; of small images, more.

    Returns:
        (B, points)
    """
    baseline = pixel_values.mean((-2, -1), keepdim=True)
    image_size = pixel_values.shape[-2:]
    batch_size = images_at_once(batch_size, image_size)
    images = torch.arange(len(shown), device=shown.device).repeat_interleave(shown.shape[1])
    scores = []
    for chosen, masks in zip(images.split(batch_size), shown.flatten(0, 1).split(batch_size), strict=True):
        pixels = spread_patches(masks, model.config.patch_size, image_size)
        logits = model(torch.where(pixels, pixel_values[chosen], baseline[chosen])).logits
        scores.append(scores_of(model, logits, classes[chosen]))
    return torch.cat(scores).view(shown.shape[:2])


@dataclass(frozen=True)
class Faithfulness(ImageEvaluator):
    """
    Insertion and deletion (Petsiuk, Das and Saenko, "RISE", BMVC 2018) over patches.

    Patches are ranked by what all spatial concepts together contribute there to the predicted class. Insertion starts
    from an image of one colour, the mean of the image's pixels, and shows the patches in this order; deletion starts
    from the image and hides them. The probability of the predicted class, that of the whole image, against the share
    of patches, has the area `insertion_auc` or `deletion_auc`, by trapezoids, from 0 to 1; the same in random order.
    Where an image may have several classes it is the most probable one; of a regression it is the first value, and the
    areas are then of the values' scale.
    A faithful ranking has a greater `insertion_auc` and a smaller `deletion_auc` than random order. Patches that
    contribute the same are in random order too, so that constant contributions score as random order does.

    Cost: `4 * (steps - 1) + 2` forward passes per image.

    Args:
        steps (`int`, *optional*, defaults to 16): Number of steps of a curve.
        seed (`int`, *optional*, defaults to 0): Random seed of the random orders.
        batch_size (`int`, *optional*, defaults to 64): Number of images per forward pass; of small images, more.

    Returns:
        When called, `dict[str, float]`: `insertion_auc`, `insertion_auc_random`, `deletion_auc`, `deletion_auc_random`
        and `insertion_deletion_images`, the number of images. Only `pixel_values` are used.

    Raises:
        ValueError: for numbers below 1.
        NotApplicableError: when called, for a model without spatial concepts.

    Example:

    ```python
    >>> Faithfulness(steps=16, seed=0)(model, dataloader)
    {'insertion_auc': 0.91, ..., 'insertion_deletion_images': 1000}
    ```
    """

    steps: int = 16
    seed: int = 0
    batch_size: int = 64
    description: ClassVar[str] = "Insertion and deletion"
    count_name: ClassVar[str] = "insertion_deletion_images"
    primary_metric: ClassVar[str] = "insertion_auc"

    def __post_init__(self):
        check_counts(steps=self.steps, batch_size=self.batch_size)

    def measurement(self, model: "ConceptClassifier") -> "tuple[Sequence[str], Measure]":
        return ("insertion_auc", "insertion_auc_random", "deletion_auc", "deletion_auc_random"), self.areas

    def areas(self, model: "ConceptClassifier", pixels: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The four areas of each image, (B, 4)."""
        pixel_values = pixels.to(next(model.parameters()).dtype)
        logits = model(pixel_values).logits
        classes = chosen_classes(logits, score_function(model.config))
        maps = model.contribution_maps(pixel_values, classes[:, None])[:, 0].sum(1)
        grid = maps.shape[-2:]
        at_random = random_ranks(pixels, grid.numel(), self.seed)
        by_contribution = descending_ranks(maps.flatten(1), at_random)
        numbers = numbers_of_patches(grid.numel(), self.steps).to(pixels.device)
        whole = scores_of(model, logits, classes)
        nothing = torch.zeros(len(pixels), 1, *grid, dtype=torch.bool, device=pixels.device)
        none = masked_scores(model, pixel_values, classes, nothing, self.batch_size)
        curves = []
        for delete in (False, True):
            for ranks in (by_contribution, at_random):
                changed = ranks.unflatten(-1, grid).unsqueeze(1) < numbers[1:-1].view(1, -1, 1, 1)
                between = masked_scores(model, pixel_values, classes, changed != delete, self.batch_size)
                first, last = (whole, none) if delete else (none, whole)
                curves.append(torch.cat([first, between, last], dim=1))
        shown = numbers.cpu().double() / grid.numel()
        return torch.trapezoid(torch.stack(curves, dim=1).cpu().double(), shown)


__all__ = ["Faithfulness"]

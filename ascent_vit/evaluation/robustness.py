# SPDX-License-Identifier: Apache-2.0
"""Robustness of concept maps: does the map move with the image?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .probe import ImageEvaluator


if TYPE_CHECKING:
    from ascent_vit.inference.protocols import ConceptClassifier

    from .probe import Measure

ROTATION_DEGREES = 15.0
SCALE = 1.25
# Of the image's height and width, in whole patches and at least one.
TRANSLATION = 1 / 8

# A patch is compared if so much of it was inside the image all the way, there and back.
INSIDE = 0.99


@dataclass(frozen=True)
class Motion:
    """
    A change of the image plane about its centre that can be undone: one of mirroring, rotating, scaling, shifting.

    Args:
        mirror: whether to swap left and right.
        angle: angle of the rotation in degrees, clockwise.
        scale: factor of the size; above 1 enlarges.
        shift: numbers of patches to shift to the right and down.
    """

    mirror: bool = False
    angle: float = 0.0
    scale: float = 1.0
    shift: tuple[int, int] = (0, 0)

    @property
    def inverse(self) -> "Motion":
        return Motion(self.mirror, -self.angle, 1 / self.scale, (-self.shift[0], -self.shift[1]))

    def apply(self, planes: Tensor, patch_size: tuple[int, int] = (1, 1)) -> Tensor:
        """Moves planes (..., H, W) of which a patch spans `patch_size`, bilinearly; 0 where there was nothing."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        if self.mirror:
            return functional.horizontal_flip(planes)
        pixels = [self.shift[0] * patch_size[1], self.shift[1] * patch_size[0]]
        return functional.affine(
            planes, self.angle, pixels, self.scale, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR
        )


def motions(grid: tuple[int, int]) -> dict[str, list[Motion]]:
    """The motions behind each metric, for a grid of (h, w) patches."""
    down, right = (max(1, round(side * TRANSLATION)) for side in grid)
    return {
        "robustness_flip": [Motion(mirror=True)],
        "robustness_rotation": [Motion(angle=ROTATION_DEGREES), Motion(angle=-ROTATION_DEGREES)],
        "robustness_scale": [Motion(scale=SCALE), Motion(scale=1 / SCALE)],
        "robustness_translation": [Motion(shift=(right, down)), Motion(shift=(-right, -down))],
    }


def agreement(maps: Tensor, others: Tensor, inside: Tensor) -> Tensor:
    """Cosine similarity of maps (B, S, h, w) over all concepts and the patches `inside` (h, w); NaN without any."""
    if not inside.any():
        return maps.new_full((len(maps),), torch.nan)
    return torch.nn.functional.cosine_similarity(maps[..., inside].flatten(1), others[..., inside].flatten(1))


@dataclass(frozen=True)
class Robustness(ImageEvaluator):
    """
    Agreement of the attention maps of an image with those of the moved image, moved back: the explanation
    equivariance of Crabbé and van der Schaar ("Evaluating the Robustness of Interpretability Methods through
    Explanation Invariance and Equivariance", NeurIPS 2023), whose measure is the cosine similarity.

    One cosine per image over all spatial concepts and all patches that stay inside the image, there and back; the
    mean over the two motions of a kind (a mirror image has one), then over the images. From 0 to 1, where 1 means that
    the maps move with the image. The image is moved after its processing, as the model gets it, bilinearly, and what
    becomes free takes the mean colour of the image. Mirroring and shifts by whole patches move maps exactly; rotation
    and scaling interpolate them, which costs even a perfect model some agreement. Maps that are the same everywhere
    agree too: read it beside `pixel_tpr`.

    - `robustness_flip`: left and right swapped.
    - `robustness_rotation`: 15 degrees either way. Left out for patches that are not square.
    - `robustness_scale`: enlarged and reduced by 1.25.
    - `robustness_translation`: shifted along both axes by an eighth of the side, in whole patches, either way.

    Cost: 8 forward passes per image.

    Returns:
        When called, `dict[str, float]`: the four metrics, without one whose motion leaves no patch to compare, and
        `robustness_images`, the number of images. Only `pixel_values` are used.

    Raises:
        NotApplicableError: when called, for a model without spatial concepts.
    """

    description: ClassVar[str] = "Robustness"
    count_name: ClassVar[str] = "robustness_images"
    primary_metric: ClassVar[str] = "robustness_translation"

    def measurement(self, model: "ConceptClassifier") -> "tuple[Sequence[str], Measure]":
        return tuple(motions((1, 1))), self.agreements

    def results(self, names: Sequence[str], means: list[float], counts: list[int]) -> dict[str, Any]:
        values = {name: mean for name, mean, count in zip(names, means, counts, strict=True) if count}
        return values | {self.count_name: max(counts)}

    @staticmethod
    def agreements(model: "ConceptClassifier", pixels: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The four agreements of each image, (B, 4)."""
        height, width = patch_size = model.config.patch_size
        dtype = next(model.parameters()).dtype
        out = model(pixels.to(dtype))
        grid = tuple(out.patch_grid[0].tolist())

        def maps_of(attention: Tensor) -> Tensor:
            return attention.transpose(1, 2).unflatten(-1, grid).float()

        maps = maps_of(out.spatial_concept_attention)
        mean_colour = pixels.mean((-2, -1), keepdim=True)
        columns = []
        for name, kinds in motions(grid).items():
            values = []
            for motion in kinds:
                moved = motion.apply(pixels - mean_colour, patch_size) + mean_colour
                moved_maps = maps_of(model(moved.to(dtype)).spatial_concept_attention)
                back = motion.inverse.apply(moved_maps)
                ones = motion.inverse.apply(motion.apply(torch.ones(1, *grid, device=pixels.device)))
                values.append(agreement(maps, back, ones[0] > INSIDE))
            column = torch.stack(values).mean(0)
            if name == "robustness_rotation" and height != width:
                column = torch.full_like(column, torch.nan)
            columns.append(column)
        return torch.stack(columns, dim=1)


__all__ = ["Motion", "Robustness"]

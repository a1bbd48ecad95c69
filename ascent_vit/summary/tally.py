# SPDX-License-Identifier: Apache-2.0
"""Sums over images, of one process or of several, and the images in which each concept is strongest."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ascent_vit.evaluation.metrics import known_rows, share_of_strongest


EXEMPLARS = 9


@dataclass(frozen=True)
class Batch:
    """
    What is known of a batch of images. B images, C concepts of all streams, S spatial ones, K classes, N patches.

    Args:
        rows (`Tensor` of shape `(B,)`): Numbers of the images in the split.
        contributions (`Tensor` of shape `(B, C, K)`): Contributions.
        members (`Tensor` of shape `(B, K)`): Whether an image counts as one of a class, bool.
        attention (`Tensor` of shape `(B, C)`): Attention to each concept; of a spatial one, its share of the patches'.
        strongest (`Tensor` of shape `(B, C)`): The strongest attention to each concept at any place.
        patches (`Tensor` of shape `(B, C)`): The patch where that is, -1 for concepts of the whole image.
        maps (`Tensor` of shape `(B, N, S)`): Attention to spatial concepts, mean over heads.
        targets (`Tensor` of shape `(B, N, S)`): Targets of spatial concepts, NaN where nothing is annotated.
        grid (`tuple[int, int]`): Height and width of the patch grid.
    """

    rows: Tensor
    contributions: Tensor
    members: Tensor
    attention: Tensor
    strongest: Tensor
    patches: Tensor
    maps: Tensor
    targets: Tensor
    grid: tuple[int, int]


@dataclass
class Tally:
    """
    Sums over images in float64 by name, and of each concept the images of its strongest attention, strongest first.

    Those of two processes are joined by [`Tally.merge`]; between images that tie, the first comes first.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    patches: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    grids: set[tuple[int, int]] = field(default_factory=set)

    def update(self, batch: Batch) -> None:
        """Adds a batch."""
        members = batch.members.double()
        found = {
            "images": torch.tensor(float(len(batch.rows)), dtype=torch.float64),
            "effect": batch.contributions.sum(0, dtype=torch.float64),
            "own": torch.einsum("bck,bk->ck", batch.contributions.double(), members),
            "own_images": members.sum(0),
            "attention": batch.attention.sum(0, dtype=torch.float64),
            "strongest": batch.strongest.sum(0, dtype=torch.float64),
        }
        self.grids.add(batch.grid)
        if len(self.grids) == 1:
            found["maps"] = batch.maps.sum(0, dtype=torch.float64).T
        self._add(found | agreement(batch.maps.double(), batch.targets.double()))
        rows = batch.rows.expand(batch.strongest.shape[1], -1)
        self._keep_strongest(batch.strongest.T, rows, batch.patches.T)

    def merge(self, other: "Tally") -> None:
        """Adds what another process has found, in later images."""
        self.grids |= other.grids
        self._add(other.sums)
        self._keep_strongest(other.values, other.rows, other.patches)

    def _add(self, found: dict[str, Tensor]) -> None:
        for name, value in found.items():
            if name != "maps" or len(self.grids) == 1:
                self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _keep_strongest(self, values: Tensor, rows: Tensor, patches: Tensor) -> None:
        if self.values.numel():
            values = torch.cat([self.values, values.to(self.values)], dim=1)
            rows, patches = torch.cat([self.rows, rows], dim=1), torch.cat([self.patches, patches], dim=1)
        order = values.argsort(dim=1, descending=True, stable=True)[:, :EXEMPLARS]
        self.values, self.rows, self.patches = (array.gather(1, order) for array in (values, rows, patches))

    @property
    def mean_maps(self) -> Tensor | None:
        """Mean attention to each spatial concept at each patch, `(S, h, w)`; None where the grids differ."""
        if len(self.grids) != 1:
            return None
        (grid,) = self.grids
        return (self.sums["maps"] / self.sums["images"]).unflatten(-1, grid)


def agreement(maps: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """
    Sums, of each spatial concept `(S,)`, from which its agreement with the annotation follows: see `figures_of`.

    Args:
        maps (`Tensor` of shape `(B, N, S)`): Attention.
        targets (`Tensor` of shape `(B, N, S)`): Targets, NaN where nothing is annotated.
    """
    annotated = targets > 0
    judged = annotated.any(1)
    mass = maps.sum(1)
    inside = torch.where(mass > 0, (maps * annotated).sum(1) / mass, 0.0)
    pointing = share_of_strongest(maps.transpose(1, 2), annotated.transpose(1, 2))
    anything = annotated.any(-1)
    patches = annotated & known_rows(targets).unsqueeze(-1)
    named = share_of_strongest(maps, annotated).unsqueeze(-1) if maps.shape[-1] else maps
    # What lies on anything annotated at all, and what would lie there if each map were even.
    seen = mass * anything.any(1, keepdim=True)
    on_anything = (maps * anything.unsqueeze(-1)).sum(1)
    return {
        "judged": judged.sum(0).double(),
        "pointing": (pointing * judged).sum(0),
        "relevance": (inside * judged).sum(0),
        "patches": patches.sum((0, 1)).double(),
        "named": (named * patches).sum((0, 1)),
        "mass": seen.sum(0),
        "mass_on_annotated": on_anything.sum(0),
        "mass_if_even": (seen * anything.double().mean(1, keepdim=True)).sum(0),
    }


__all__ = ["EXEMPLARS", "Batch", "Tally"]

# SPDX-License-Identifier: Apache-2.0
"""How far from the points that somebody set the maps of photographs point, in pixels."""

from typing import Any

import torch

from ascent_vit.data import ConceptCollator


# The pointing game's usual tolerance (Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016), in
# pixels of an image of this height.
TOLERANCE, HEIGHT = 15, 224


def patch_centres(size: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """x and y of the middle of each patch, `(N, 2)`."""
    y, x = ((torch.arange(count) + 0.5) * (side / count) for side, count in zip(size, grid, strict=True))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)


def judge_image(
    maps: torch.Tensor, row: dict[str, Any], centres: torch.Tensor, scale: torch.Tensor, tolerance: float = TOLERANCE
) -> torch.Tensor:
    """
    Of each concept that has points, whether the middle of the map's largest patch is within the tolerance of one, and
    the share of the map in the box of the object, `(concepts, 2)`.

    Args:
        maps: attention to each concept, `(N, S)`.
        row: row of the dataset, with points and `bbox`.
        centres: middles of the patches in the pixels that the model sees, `(N, 2)`.
        scale: what a pixel of the image is in these, across and down.
        tolerance: distance in these.
    """
    left, top, width, height = row["bbox"]
    corner, size = torch.tensor([left, top]) * scale, torch.tensor([width, height]) * scale
    inside = ((centres >= corner) & (centres <= corner + size)).all(-1)
    category = torch.tensor(row["points"]["category"], dtype=torch.long)
    points = torch.tensor(row["points"]["xy"]).view(-1, 2) * scale
    found = []
    for concept in category.unique():
        values = maps[:, concept]
        distance = (points[category == concept] - centres[values.argmax()]).norm(dim=-1)
        found.append([(distance.min() <= tolerance).float(), values[inside].sum() / values.sum()])
    return torch.tensor(found).view(-1, 2)


@torch.no_grad()
def measure_places(model: Any, processor: Any, split: Any, batch_size: int) -> dict[str, float]:
    """`pointing_game_15px` and `relevance_mass_box`, means over pairs of image and annotated concept."""
    collate, found = ConceptCollator(processor), []
    for start in range(0, len(split), batch_size):
        rows = [split[index] for index in range(start, min(start + batch_size, len(split)))]
        pixels = collate([{"image": row["image"], "label": row["label"]} for row in rows])["pixel_values"]
        outputs = model(pixels)
        height, width = pixels.shape[2:]
        centres = patch_centres((height, width), tuple(outputs.patch_grid[0].tolist()))
        for maps, row in zip(outputs.spatial_concept_attention, rows, strict=True):
            scale = torch.tensor([width / row["image"].width, height / row["image"].height])
            found.append(judge_image(maps, row, centres, scale, TOLERANCE * height / HEIGHT))
    near, boxed = torch.cat(found).mean(0).tolist()
    return {"pointing_game_15px": near, "relevance_mass_box": boxed}

# SPDX-License-Identifier: Apache-2.0
"""Thumbnails of a page: bounded in number and in bytes, whatever the split."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from modeling_ascent_vit.image_reading_ascent_vit import picture_of, read_input


SIDE, LEAST_SIDE = 96, 32  # pixels of the longer side
QUALITY = 75
MOST_PICTURES = 3000
MOST_BYTES = 9_000_000  # of all thumbnails, as base64


def thumbnail(image: Image.Image, side: int = SIDE) -> bytes:
    """An image as JPEG with at most `side` pixels on the longer side, and without any metadata."""
    scale = min(1.0, side / max(image.size))
    width, height = (max(1, round(length * scale)) for length in image.size)
    buffer = io.BytesIO()
    image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).save(buffer, format="jpeg", quality=QUALITY)
    return buffer.getvalue()


def jpeg_uri(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


@dataclass
class Pictures:
    """
    Thumbnails by a key: the number of an image in the split, or a text for those from elsewhere.

    Once they take more than `MOST_BYTES` together they are all made smaller; images beyond `MOST_PICTURES` have none.
    """

    images: dict[int | str, bytes] = field(default_factory=dict)
    side: int = SIDE
    size: int = 0

    def add(self, key: int | str, image: Image.Image) -> None:
        """Adds the thumbnail of an image, unless there are too many."""
        if key in self.images or len(self.images) >= MOST_PICTURES:
            return
        self.images[key] = thumbnail(image, self.side)
        self.size += len(self.images[key])
        while self.size * 4 / 3 > MOST_BYTES and self.side > LEAST_SIDE:
            self.side = self.side * 4 // 5
            self.images = {
                known: thumbnail(Image.open(io.BytesIO(data)), self.side) for known, data in self.images.items()
            }
            self.size = sum(map(len, self.images.values()))


def read_pictures(
    dataset: Any,
    processor: Any,
    rows: Iterable[int],
    pictures: Pictures,
    patches: dict[int, set[int]],
    grid: tuple[int, int] | None,
    progress: Callable[[Sequence[int]], Iterable[int]],
) -> dict[int, dict[int, list[float]]]:
    """
    Reads the images of rows again for their thumbnails.

    Args:
        dataset: split with the column `image`.
        processor: the model's image processor.
        rows: numbers of the images, the most important first.
        pictures: where to put the thumbnails.
        patches: patches to outline, by image.
        grid: height and width of the patch grid; None where it differs between images, which are not outlined.
        progress: function that shows the progress over a list of rows.

    Returns:
        By image and patch left, top, width and height of the patch, in shares of the image.
    """
    boxes: dict[int, dict[int, list[float]]] = {}
    for row in progress(list(dict.fromkeys(rows))[:MOST_PICTURES]):
        picture = picture_of(read_input(dataset[row]["image"], processor))
        pictures.add(row, picture)
        if grid is not None and patches.get(row):
            boxes[row] = {
                patch: patch_box(patch, grid, processor, (picture.height, picture.width)) for patch in patches[row]
            }
    return boxes


def patch_box(patch: int, grid: tuple[int, int], processor: Any, size: tuple[int, int]) -> list[float]:
    """Left, top, width and height of a patch in shares of an image of `size`, height and width, cut at its edges."""
    edges = []
    for axis, index in zip(processor.patch_axes(size), divmod(patch, grid[1]), strict=True):
        start, end = (
            min(max((axis.crop_start + (index + step) * axis.patch) / axis.resized, 0.0), 1.0) for step in (0, 1)
        )
        edges.append((start, end - start))
    (top, height), (left, width) = edges
    return [left, top, width, height]


__all__ = ["Pictures", "jpeg_uri", "read_pictures", "thumbnail"]

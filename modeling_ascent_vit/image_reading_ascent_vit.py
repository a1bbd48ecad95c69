# Copyright 2026 The ASCENT-ViT project. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Reads images of every kind as upright RGB."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from .image_inputs_ascent_vit import (
    checked_array,
    eight_bit,
    eight_bit_array,
    load_source,
    rgb_array,
    shown_source,
    upright,
    with_channels,
)


ImageInput = Image.Image | str | os.PathLike | np.ndarray | torch.Tensor


def is_single(images: Any) -> bool:
    """Whether this is one image, not an iterable of them."""
    if isinstance(images, np.ndarray | torch.Tensor):
        return images.ndim < 4
    return isinstance(images, str | bytes | Mapping) or not isinstance(images, Iterable)


def read_image(image: ImageInput, window: Sequence[float] | None = None) -> Image.Image:
    """
    Reads an image as PIL in RGB, transparency over white, turned upright by its EXIF orientation; of an animation, the
    first frame.

    Args:
        image (`PIL.Image.Image`, path, URL, `np.ndarray` or `torch.Tensor`):
            Image to read; arrays as [`array_to_image`] takes them.
        window (`Sequence[float]`, *optional*):
            Low and high value of images of more than 8 bits, as of the image processor.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for anything that cannot be read as an image.
    """
    if isinstance(image, np.ndarray | torch.Tensor):
        opened = array_to_image(eight_bit_array(image, window))
    elif isinstance(image, str | os.PathLike):
        opened = open_image(os.fspath(image))
    elif isinstance(image, Image.Image):
        opened = image
    else:
        raise ValueError(f"An image must be a PIL image, a path, a URL or an array; got {type(image).__name__}.")
    turned = eight_bit(upright(opened), window)
    if turned is opened or turned.mode != "RGB" or "transparency" in turned.info:
        return Image.fromarray(rgb_array(turned, window))
    # A copy already: another one of a large photograph would cost its memory.
    turned.info = {}
    return turned


def read_input(image: ImageInput, processor: Any) -> Image.Image | np.ndarray:
    """
    Reads an image for an image processor: as [`read_image`] where it takes colours or grey, else as an array of its
    channels, `(C, H, W)` uint8.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for anything that cannot be read as an image of so many channels.
    """
    # Older remote code takes three and has no name for it.
    num_channels, window = getattr(processor, "num_channels", 3), getattr(processor, "window", None)
    if num_channels in (1, 3):
        return read_image(image, window)
    if not isinstance(image, np.ndarray | torch.Tensor):
        image = read_image(image, window)
    array = with_channels(eight_bit_array(image, window), num_channels)
    return as_bytes(array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array)


def picture_of(image: Image.Image | np.ndarray) -> Image.Image:
    """What is shown of an image: itself, or the first three of its channels, of two the first alone."""
    if isinstance(image, Image.Image):
        return image
    shown = image[:3] if len(image) >= 3 else image[:1].repeat(3, axis=0)
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(shown, 0, -1)))


def as_bytes(array: np.ndarray) -> np.ndarray:
    """Pixels as uint8; ValueError for other than integers from 0 to 255 or floats from 0 to 1."""
    floating = array.dtype.kind == "f"
    if not (array.min() >= 0 and array.max() <= (1 if floating else 255)):
        raise ValueError(
            "An image array must hold integers from 0 to 255 or floats from 0 to 1; "
            f"got {array.dtype} from {array.min()} to {array.max()}."
        )
    return (np.round(array * 255) if floating else array).astype(np.uint8)


def open_image(source: str) -> Image.Image:
    """Reads the image of a path or URL in full."""
    is_url = source.startswith(("http://", "https://"))
    if not is_url and not os.path.isfile(source):
        state = "is a folder" if source and os.path.isdir(source) else "does not exist"
        raise FileNotFoundError(f"Image {shown_source(source)} {state}: give the path of an image file.")
    return load_source(source)


def array_to_image(array: np.ndarray | torch.Tensor) -> Image.Image:
    """Makes a PIL image of an array (H, W), (H, W, C) or (C, H, W), integers from 0 to 255 or floats from 0 to 1."""
    array = checked_array(array)
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu().numpy()
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"An image array must have the shape (H, W), (H, W, C) or (C, H, W) with C 1, 3 or 4; got {array.shape}."
        )
    array = as_bytes(array)
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


__all__ = ["ImageInput", "array_to_image", "is_single", "open_image", "picture_of", "read_image", "read_input"]

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
"""Images of every kind, opened and checked: files, addresses, PIL images, arrays and tensors."""

import base64
import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from huggingface_hub.utils import httpx
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_transforms import convert_to_rgb
from transformers.utils import logging


logger = logging.get_logger(__name__)

# Characters of a source that errors show: base64 text is long.
MAX_SHOWN = 200


@contextmanager
def opened_image(file: Any, name: str, advice: str = "give a complete image file.") -> Iterator[Image.Image]:
    """
    An image file, opened and not decoded yet. Within the context, what Pillow raises becomes one `ValueError`.

    Args:
        file (`str`, `os.PathLike` or a file object): What Pillow opens.
        name (`str`): Name of the image in errors.
        advice (`str`): What to do about a damaged file.

    Raises:
        ValueError: for what is no image or is damaged, and for an image of more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`, of which Pillow itself refuses the double alone.
    """
    try:
        # Given a path, Pillow maps some TIFF files into memory, and scrambles those that their EXIF data turns.
        is_path = isinstance(file, str | os.PathLike)
        with Path(file).open("rb") if is_path else nullcontext(file) as stream, Image.open(stream) as image:
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{name} has more than {Image.MAX_IMAGE_PIXELS} pixels, as a decompression bomb would: make it smaller, or "
            "raise PIL.Image.MAX_IMAGE_PIXELS for files that you trust."
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} cannot be read (no format that Pillow knows): {advice}") from error
    except Exception as error:  # Pillow's readers raise many kinds of errors on damaged files.
        raise ValueError(f"{name} cannot be read ({error}): {advice}") from error


def open_image(file: str | os.PathLike | IO[bytes], name: str) -> Image.Image:
    """
    An image file, read whole, as it is stored: of an animation the first frame, and not turned by its EXIF orientation.

    Args:
        file (`str`, `os.PathLike` or a file object): What Pillow opens.
        name (`str`): Name of the image in errors.

    Raises:
        ValueError: as [`opened_image`].
    """
    with opened_image(file, name) as image:
        image.load()
    return image


def shown_source(source: str) -> str:
    """A path, an address or a base64 text as errors show it: on one line, and not too long."""
    source = source if len(source) <= MAX_SHOWN else f"{source[:MAX_SHOWN]}..."
    return source if source.strip() and source.isprintable() else repr(source)


def load_source(source: str | os.PathLike) -> Image.Image:
    """
    The image of a path, as it is stored, or of an http(s) address or base64 text, upright.

    Raises:
        ValueError: for what is none of these, and as [`open_image`].
    """
    source = os.fspath(source)
    shown = shown_source(source)
    if os.path.isfile(source):
        return open_image(source, f"The image {shown}")
    if source.startswith(("http://", "https://")):
        name = f"The image {shown}"
        try:
            content = httpx.get(source, follow_redirects=True).raise_for_status().content
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ValueError(f"{name} cannot be loaded ({error}): check the address.") from error
    else:
        name = f"The image {shown}, which is no file and so taken for base64 text,"
        encoded = source.partition(",")[2] if source.startswith("data:image/") else source
        try:
            content = base64.b64decode("".join(encoded.split()), validate=True)
        except ValueError as error:
            raise ValueError(f"{name} cannot be decoded: give the path of an image file, or an address.") from error
    return upright(open_image(io.BytesIO(content), name))


def upright(image: Image.Image) -> Image.Image:
    """The image turned by its EXIF orientation; as it is where its EXIF data cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Damaged EXIF data raises what Pillow's TIFF reader happens to meet.
        return image


def is_deep(image: Image.Image) -> bool:
    """Whether a PIL image has more than 8 bits: mode I;16, I or F."""
    return image.mode.startswith("I") or image.mode == "F"


def check_window(window: Any) -> None:
    """Checks the low and high value of deep images; ValueError for others."""
    if window is None:
        return
    numbers = isinstance(window, list | tuple) and len(window) == 2
    numbers = numbers and all(isinstance(n, int | float) and not isinstance(n, bool) for n in window)
    if not (numbers and np.isfinite(window).all() and window[0] < window[1]):
        raise ValueError(f"window must be a low and a high value, as in [0, 4095]; got {window!r}.")


def from_deep(pixels: np.ndarray, mode: str, window: Sequence[float] | None) -> np.ndarray:
    """
    Greys 0 to 255 of an image of more than 8 bits.

    `window`, a low and a high value, becomes black and white. Without it the range is the smallest of 0 to 1 (floats
    alone), 0 to 255, 0 to 4095 and 0 to 65535 that holds the image's values.

    Raises:
        ValueError: for values that are not finite and, without a window, below 0 or above 65535.
    """
    low, high = pixels.min(), pixels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(
            f'An image of mode "{mode}" must have finite values; got {low} to {high}: replace the others.'
        )
    if window is None:
        ranges = (1, 255, 4095, 65535) if mode == "F" else (255, 4095, 65535)
        top = next((top for top in ranges if high <= top), None)
        if low < 0 or top is None:
            raise ValueError(
                f'An image of mode "{mode}" must have values from 0 to 65535; got {low} to {high}. Give the range to '
                "show to the image processor as window=[low, high]."
            )
        if top == 65535 and mode != "F":
            return (pixels >> 8).astype(np.uint8)
        window = (0, top)
    share = (pixels.astype(np.float64) - window[0]) / (window[1] - window[0])
    return np.round(np.clip(share, 0, 1) * 255).astype(np.uint8)


def eight_bit(image: Image.Image, window: Sequence[float] | None = None) -> Image.Image:
    """
    A PIL image, read whole, in a mode that converts to RGB without being clipped at 255.

    Args:
        image (`PIL.Image.Image`): Image of any mode.
        window (`Sequence[float]`, *optional*): Low and high value of images of more than 8 bits, see [`from_deep`].

    Raises:
        ValueError: for an image that is empty or cannot be read, of mode "La", which does not convert to RGB, or as
            [`from_deep`].
    """
    if not image.width or not image.height:
        raise ValueError(f"An image must have pixels; got {image.width}x{image.height}.")
    try:
        image.load()
    except Exception as error:  # Pillow's readers raise many kinds of errors on damaged files.
        raise ValueError(f"An image cannot be read ({error}): give a complete one.") from error
    if is_deep(image):
        return Image.fromarray(from_deep(np.asarray(image), image.mode, window))
    if image.mode == "La":
        raise ValueError('An image of mode "La" does not convert to RGB: convert it to "LA" first.')
    return image


def _holds_numbers(array: np.ndarray | torch.Tensor) -> bool:
    """Whether an array or tensor holds real numbers, and some."""
    if isinstance(array, torch.Tensor):
        real = not array.is_complex() and array.dtype != torch.bool
        return real and array.layout == torch.strided and not array.is_meta and 0 not in array.shape
    return array.dtype.kind in "fiu" and 0 not in array.shape


def eight_bit_array(array: Any, window: Sequence[float] | None = None) -> Any:
    """
    An array or tensor of more than 8 bits as values from 0 to 255 (uint8), by [`from_deep`]; others as they are.

    Of more than 8 bits are 16-bit integers above 255, and where `window` is given all numbers but uint8.

    Raises:
        ValueError: as [`from_deep`].
    """
    if not isinstance(array, np.ndarray | torch.Tensor) or not _holds_numbers(array):
        return array
    if array.dtype in (np.uint8, torch.uint8) or (window is None and array.dtype.itemsize != 2):
        return array
    pixels = array
    if isinstance(pixels, torch.Tensor):
        pixels = pixels.detach().cpu()
        pixels = np.asarray(pixels.float() if pixels.is_floating_point() else pixels)
    if window is None and not (pixels.dtype.kind in "iu" and pixels.max() > 255):
        return array
    shown = from_deep(pixels.astype(pixels.dtype.newbyteorder("=")), str(pixels.dtype.newbyteorder("=")), window)
    return torch.from_numpy(shown).to(array.device) if isinstance(array, torch.Tensor) else shown


def checked_array(
    array: np.ndarray | torch.Tensor, do_rescale: bool | None = False, rescale_factor: float | None = None
) -> np.ndarray | torch.Tensor:
    """
    An array or tensor of pixels as both backends take it: native, with integers from 0 to 255 as uint8.

    Raises:
        ValueError: for an empty array, values that are no real numbers, NaN or infinite values, and values outside of
            0 to 255 that are to be rescaled from there.
    """
    kind = "tensor" if isinstance(array, torch.Tensor) else "array"
    if not _holds_numbers(array):
        raise ValueError(
            f"An image {kind} must hold pixels as integers or floats; got the shape {tuple(array.shape)} of {array.dtype}."
        )
    if isinstance(array, np.ndarray):
        # torch takes neither negative strides nor foreign byte orders nor more than 64 bits.
        native = array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.float64
        array = np.ascontiguousarray(array, dtype=native)
    elif array.is_floating_point() and array.dtype not in (torch.float16, torch.float32, torch.float64):
        # numpy has no such floats.
        array = array.float()
    if array.dtype in (np.uint8, torch.uint8):
        return array
    tensor = torch.as_tensor(array).detach()
    floating = tensor.is_floating_point()
    low, high = (value.item() for value in torch.aminmax(tensor.double()))
    largest = 1 / rescale_factor if do_rescale and rescale_factor else math.inf
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"An image {kind} must hold finite values; got {low:g} to {high:g}: replace NaN and infinity."
        )
    if do_rescale and not (low >= 0 and high <= largest * (1 + 1e-6)):
        raise ValueError(
            f"An image {kind} must hold values from 0 to {largest:g}, which are rescaled to [0, 1]; got {low:g} to "
            f"{high:g}. Convert it, or pass do_rescale=False with values from 0 to 1."
        )
    if floating:
        if do_rescale and 0 < high <= 1 < largest:
            logger.warning_once(
                f"The values of an image {kind} are at most 1, and are rescaled from 0 to {largest:g}: pass "
                "do_rescale=False if they are scaled already."
            )
        return array
    if low >= 0 and high <= 255:
        return array.to(torch.uint8) if isinstance(array, torch.Tensor) else array.astype(np.uint8)
    return array


def flat_images(images: Any) -> list[Image.Image | np.ndarray | torch.Tensor]:
    """
    The single images of an image, a batch as an array of 4 dimensions, or lists of these.

    Raises:
        ValueError: for something else.
    """
    if isinstance(images, list | tuple):
        return [flat for image in images for flat in flat_images(image)]
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, np.ndarray | torch.Tensor):
        if images.ndim in (2, 3):
            return [images]
        if images.ndim == 4:
            return list(images)
        got = f"the shape {tuple(images.shape)}"
    else:
        got = type(images).__name__
    raise ValueError(
        "Images must be PIL images, paths, arrays or tensors of shape (height, width), (height, width, channels), "
        f"(channels, height, width) or a batch of such, or lists of these; got {got}."
    )


def rgb_array(image: Image.Image, window: Sequence[float] | None = None) -> np.ndarray:
    """
    Pixels of a PIL image of any mode as the image processor sees them: RGB, transparency over white, and images of
    more than 8 bits in its `window`.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`, uint8.

    Raises:
        ValueError: as [`eight_bit`].
    """
    return np.asarray(convert_to_rgb(eight_bit(image, window), return_numpy=True))


def with_channels(
    image: Any, num_channels: int, data_format: str | None = None, window: Sequence[float] | None = None
) -> np.ndarray | torch.Tensor:
    """
    An image as an array of so many channels, which come first.

    Args:
        image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`): Image. A PIL image becomes grey for one channel.
        num_channels (`int`): Number of channels.
        data_format (`str`, *optional*): `"channels_first"` or `"channels_last"`; by default it is seen by the shape.
        window (`Sequence[float]`, *optional*): see [`eight_bit`].

    Raises:
        ValueError: for an image of another number of channels.
    """
    if isinstance(image, Image.Image):
        if num_channels != 1:
            raise ValueError(
                f"The model takes {num_channels} channels, and a picture of mode {image.mode!r} is of colours: give an array "
                f"of the shape ({num_channels}, height, width) or (height, width, {num_channels})."
            )
        image = np.array(Image.fromarray(rgb_array(image, window)).convert("L"))
    elif num_channels == 1 and image.ndim == 3 and image.dtype in (np.uint8, torch.uint8) and image.shape[0] == 3:
        # As a picture's: augmented ones are such arrays.
        image = np.array(Image.fromarray(np.moveaxis(np.asarray(image), 0, -1)).convert("L"))
    image = image[None] if image.ndim == 2 else image
    is_first = image.shape[0] == num_channels if data_format is None else data_format == "channels_first"
    if not is_first and image.ndim == 3:
        image = image.transpose(2, 0, 1) if isinstance(image, np.ndarray) else image.permute(2, 0, 1)
    if image.ndim != 3 or image.shape[0] != num_channels:
        raise ValueError(f"An image array must have {num_channels} channels, first or last; got {tuple(image.shape)}.")
    return image


__all__ = [
    "check_window",
    "checked_array",
    "eight_bit",
    "eight_bit_array",
    "from_deep",
    "flat_images",
    "is_deep",
    "load_source",
    "open_image",
    "opened_image",
    "rgb_array",
    "shown_source",
    "upright",
    "with_channels",
]

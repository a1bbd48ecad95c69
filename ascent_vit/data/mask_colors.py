# SPDX-License-Identifier: Apache-2.0
"""Masks in which each colour is a concept, as VOC, Cityscapes and CVAT write them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


# The colour around things in VOC's masks, where nobody is sure.
VOID = (224, 224, 192)


def read_labelmap(path: Path) -> dict[str, tuple[int, ...]]:
    """
    Reads the colours of a labelmap.txt, as CVAT writes it: name:red,green,blue:parts:actions, a line each.

    Raises:
        FileNotFoundError: for a file that is missing.
        ValueError: for a line of another form.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: mask_colors is a labelmap.txt, or colours by name.")
    colors: dict[str, tuple[int, ...]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        numbers = rest.partition(":")[0].split(",")
        if len(numbers) != 3 or not all(part.strip().isdigit() for part in numbers):
            raise ValueError(f"{path}, line {number}: expected name:red,green,blue; got {line!r}.")
        colors[name.strip()] = tuple(map(int, numbers))
    return colors


def read_colors(value: Any) -> dict[int, str]:
    """
    Names by colour, packed as [`packed`] does, of `mask_colors`: a labelmap.txt, or red, green and blue by name.

    Raises:
        FileNotFoundError, ValueError: as [`read_labelmap`]; for what is neither, and for names of the same colour.
    """
    colors = read_labelmap(Path(value).expanduser()) if isinstance(value, str) else value
    valid = isinstance(colors, Mapping) and len(colors) > 0
    for name, color in colors.items() if valid else ():
        numbers = isinstance(color, list | tuple) and len(color) == 3 and all(type(n) is int for n in color)
        named = isinstance(name, str) and bool(name.strip())
        valid = valid and named and numbers and min(color) >= 0 and max(color) <= 255
    if not valid:
        raise ValueError(f"mask_colors must be a labelmap.txt, or as {{cat: [255, 0, 0]}}; got {value!r}.")
    names: dict[int, str] = {}
    for name, (red, green, blue) in colors.items():
        other = names.setdefault(red << 16 | green << 8 | blue, name)
        if other != name:
            raise ValueError(f"mask_colors gives {other!r} and {name!r} the same colour.")
    return names


def packed(mask: Image.Image) -> np.ndarray:
    """Colours of a mask `(height, width)` int64, as red, green and blue in one number; 0 where it is transparent."""
    pixels = np.asarray(mask.convert("RGBA")).astype(np.int64)
    colors = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    return np.where(pixels[..., 3] == 0, 0, colors)


def unpacked(color: int) -> tuple[int, int, int]:
    """Red, green and blue of a number."""
    return color >> 16, color >> 8 & 255, color & 255


__all__ = ["VOID", "packed", "read_colors", "unpacked"]

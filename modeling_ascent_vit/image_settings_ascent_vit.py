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
"""What the image processor refuses among its settings, each with a sentence that names what was expected and what came."""

import math
from typing import Any

from PIL import Image
from transformers.image_utils import SizeDict

from .concept_targets_ascent_vit import LARGEST_COUNT


# Limits of what pixels are multiplied with or divided by.
TINY, LARGE = 1e-9, 1e9


def is_whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def as_float(number: Any) -> Any:
    """A whole number as a float, anything else as it is."""
    return float(number) if is_whole(number) and abs(number) <= LARGE else number


SIZE_KEYS = {
    "size": (
        {"height", "width"},
        {"shortest_edge"},
        {"shortest_edge", "longest_edge"},
        {"max_height", "max_width"},
    ),
    "crop_size": ({"height", "width"},),
    "pad_size": ({"height", "width"},),
}


def check_size(name: str, size: SizeDict):
    """Raises one `ValueError` for a size of other keys, of sides below 1, or larger than an image file may be."""
    sides = {key: side for key, side in dict(size).items() if side is not None}
    if set(sides) not in SIZE_KEYS[name]:
        known = ", or ".join(" and ".join(sorted(keys)) for keys in SIZE_KEYS[name])
        raise ValueError(f"{name} must have {known}; got {sides}.")
    if not all(is_whole(side) and side > 0 for side in sides.values()):
        raise ValueError(f"{name} must be whole numbers of pixels, 1 or more; got {sides}.")
    if Image.MAX_IMAGE_PIXELS and math.prod(sides.values()) > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{name} must be at most {Image.MAX_IMAGE_PIXELS} pixels in all; got {sides}.")


def check_numbers(name: str, values: float | tuple[float, ...], above_zero: bool = False):
    """Raises one `ValueError` for values with which pixels would be NaN, infinite or beyond float32."""
    for value in values if isinstance(values, tuple) else (values,):
        in_range = TINY <= value <= LARGE if above_zero else -LARGE <= value <= LARGE
        if isinstance(value, bool) or not in_range:
            limits = f"from {TINY:g} to {LARGE:g}" if above_zero else f"from {-LARGE:g} to {LARGE:g}"
            raise ValueError(f"{name} must be a number {limits}, or one for each channel; got {values}.")


def check_targets(kwargs: dict[str, Any]):
    """Raises one `ValueError` for settings with which no channels, patches or targets can be made."""
    patch_size = kwargs["patch_size"]
    if isinstance(patch_size, list):
        patch_size = kwargs["patch_size"] = tuple(patch_size)
    sides = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)
    if len(sides) != 2 or not all(is_whole(side) and side > 0 for side in sides):
        raise ValueError(f"patch_size must be a positive int or a pair of them, height first; got {patch_size!r}.")
    for name in ("num_global_concepts", "num_spatial_concepts"):
        if not is_whole(kwargs[name]) or not 0 <= kwargs[name] <= LARGEST_COUNT:
            raise ValueError(
                f"{name} must be a number of concepts, at most {LARGEST_COUNT} and 0 or more; got {kwargs[name]!r}."
            )
    num_channels = kwargs["num_channels"]
    if not is_whole(num_channels) or not 1 <= num_channels <= LARGEST_COUNT:
        raise ValueError(f"num_channels must be a number of channels, 1 or more; got {num_channels!r}.")
    coverage = kwargs["annotation_coverage"]
    if not isinstance(coverage, int | float) or isinstance(coverage, bool) or not 0 < coverage <= 1:
        raise ValueError(f"annotation_coverage must be above 0 and at most 1; got {coverage!r}.")
    if kwargs["unannotated"] not in ("ignore", "none"):
        raise ValueError(f'unannotated must be "ignore" or "none"; got {kwargs["unannotated"]!r}.')


__all__ = ["SIZE_KEYS", "as_float", "check_numbers", "check_size", "check_targets"]

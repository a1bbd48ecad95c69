# SPDX-License-Identifier: Apache-2.0
"""
Protocols of a concept classifier and its image processor: what the toolkit needs of them.

A model loaded as remote code comes with classes of its own, made from the copy of the model's files in its repository.
Functions therefore take whatever has these methods, and never ask for a class.
"""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, Self


if TYPE_CHECKING:
    import torch
    from transformers import BatchFeature

    from modeling_ascent_vit.concept_targets_ascent_vit import PatchAxis
    from modeling_ascent_vit.modeling_ascent_vit import AscentViTConceptStream


class ConceptClassifier(Protocol):
    """A torch module that classifies images by concepts, as `AscentViTForImageClassification`."""

    training: bool

    @property
    def config(self) -> Any:
        """
        Names of classes and concepts, and sizes: an `AscentViTConfig`. Typed loosely, as transformers types names and
        number of the classes as optional.
        """

    @property
    def ascent_vit(self) -> "torch.nn.Module":
        """Backbone, pyramid and fusion, an `AscentViTModel`."""

    @property
    def device(self) -> "torch.device": ...

    @property
    def dtype(self) -> "torch.dtype": ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of a batch of images `(B, C, H, W)`, an `AscentViTImageClassifierOutput`."""

    def streams(self) -> dict[str, "AscentViTConceptStream"]:
        """The streams that have concepts, in the order of the contributions' columns."""

    def class_bias(self) -> "torch.Tensor":
        """Part of each logit that no concept contributes, `(K,)`."""

    def edit_concepts(self, edits: list[dict[str, Any]] | None) -> None:
        """Removes or scales terms of the exact sum, in place of all earlier edits; None for none."""

    def edited_terms(self) -> dict[tuple[str, int, int], float]:
        """Factors of the terms that are edited, by stream, concept and class."""

    def contribution_maps(self, pixel_values: Any, class_ids: Any, **kwargs: Any) -> "torch.Tensor":
        """Contribution of each spatial concept at each place to chosen classes, `(B, C, S, h, w)`."""

    def parameters(self) -> "Iterator[torch.nn.Parameter]": ...

    def modules(self) -> "Iterator[torch.nn.Module]": ...

    def state_dict(self) -> "dict[str, torch.Tensor]": ...

    def train(self, mode: bool = True) -> Self: ...

    def eval(self) -> Self: ...

    def to(self, *args: Any, **kwargs: Any) -> Self: ...

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> Any: ...


class ConceptImageProcessor(Protocol):
    """
    Makes a model's inputs from images and annotations, and draws its maps in their pixels, as
    `AscentViTImageProcessor` and `AscentViTImageProcessorPil`. Sizes are the size dicts of transformers.
    """

    size: Any
    crop_size: Any
    resample: Any
    image_mean: Any
    image_std: Any
    rescale_factor: Any
    do_resize: Any
    do_center_crop: Any
    do_pad: Any
    do_rescale: Any
    do_normalize: Any
    do_convert_rgb: Any
    patch_size: Any
    num_global_concepts: Any
    num_spatial_concepts: Any

    def __call__(self, *args: Any, **kwargs: Any) -> "BatchFeature":
        """
        `pixel_values` `(B, C, H, W)` of images and, from annotations, the second argument, targets of the concepts.
        """

    def resize_concept_maps(self, maps: "torch.Tensor", target_size: tuple[int, int] | None = None) -> "torch.Tensor":
        """Maps of patches `(..., h, w)` in an image's pixels, `(..., height, width)`."""

    def patch_axes(self, image_size: tuple[int, int]) -> "tuple[PatchAxis, PatchAxis]":
        """Geometry of the patches along the height and the width of an image, in pixels."""

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> Any: ...


__all__ = ["ConceptClassifier", "ConceptImageProcessor"]

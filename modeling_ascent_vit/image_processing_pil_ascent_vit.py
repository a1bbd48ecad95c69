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
"""Image processor of ASCENT-ViT: what both backends share, and the PIL backend."""

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    get_image_size_for_max_height_width,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, logging

from .backbone_images_ascent_vit import backbone_settings
from .backbones_ascent_vit import HUB_ARGUMENTS
from .concept_targets_ascent_vit import (
    ANNOTATION_KEYS,
    PatchAxis,
    check_annotations,
    global_concept_targets,
    pair,
    spatial_concept_presence,
    spatial_concept_targets,
)
from .image_inputs_ascent_vit import (
    check_window,
    checked_array,
    eight_bit,
    eight_bit_array,
    flat_images,
    load_source,
    with_channels,
)
from .image_settings_ascent_vit import SIZE_KEYS, as_float, check_numbers, check_size, check_targets


if TYPE_CHECKING:
    # `save_pretrained` copies relatively imported files: this one must be there beside the PIL backend.
    from .image_processing_ascent_vit import AscentViTImageProcessor  # noqa: F401


logger = logging.get_logger(__name__)


class AscentViTImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    patch_size (`int` or a pair of `int`, *optional*, defaults to 16):
        Height and width of the model's patches in pixels.
    num_global_concepts (`int`, *optional*, defaults to 0):
        Number G of global concepts; 0 makes no targets for them.
    num_spatial_concepts (`int`, *optional*, defaults to 0):
        Number S of spatial concepts; 0 makes no targets for them.
    annotation_coverage (`float`, *optional*, defaults to 0.5):
        Share of a patch's area that a box or a mask must cover to mark the patch, above 0 and at most 1.
    num_channels (`int`, *optional*, defaults to 3):
        Channels of the pixels. With 1, images of any mode become grey; with another number than 1 and 3, images are
        arrays with as many channels.
    unannotated (`"ignore"` or `"none"`, *optional*, defaults to `"ignore"`):
        Whether patches without annotation, in an image with spatial annotations, are not annotated (NaN) or show none
        of the concepts (0).
    window (a pair of `float`, *optional*):
        Low and high value of images of more than 8 bits, which become black and white; what is beyond is clipped.
        Without it the range is the smallest of 0 to 1 (floats alone), 0 to 255, 0 to 4095 and 0 to 65535 that holds the
        image's values. Of more than 8 bits are PIL images of the modes I;16, I and F, arrays of 16-bit integers, and
        with a window all arrays but uint8. Another `rescale_factor` than 1/255 leaves arrays as they are.
    """

    patch_size: int | list[int] | tuple[int, ...]
    num_global_concepts: int
    num_spatial_concepts: int
    annotation_coverage: float | int
    num_channels: int
    unannotated: str
    window: list[float | int] | tuple[float | int, ...] | None


def height_width(size: Any) -> tuple[int, int]:
    return size.height, size.width


def resized_size(original: tuple[int, int], size: SizeDict) -> tuple[int, int]:
    """Height and width to which both backends resize an image, with the functions they use."""
    if size.shortest_edge and size.longest_edge:
        return get_size_with_aspect_ratio(original, size.shortest_edge, size.longest_edge)
    if size.shortest_edge:
        shape_only = np.broadcast_to(np.uint8(0), (1, *original))
        return get_resize_output_image_size(
            shape_only, size.shortest_edge, default_to_square=False, input_data_format=ChannelDimension.FIRST
        )
    if size.max_height and size.max_width:
        return get_image_size_for_max_height_width(original, size.max_height, size.max_width)
    return height_width(size)


def check_resized_size(original: tuple[int, int], size: SizeDict):
    """Raises one `ValueError` where an image so long and narrow becomes larger than an image file may be."""
    height, width = resized_size(original, size)
    if height < 1 or width < 1 or (Image.MAX_IMAGE_PIXELS and height * width > Image.MAX_IMAGE_PIXELS):
        raise ValueError(
            f"An image of {original[0]}x{original[1]} pixels would be resized to {height}x{width} by size="
            f"{dict(size)}: crop it to a shape that is less long and narrow, or give a height and a width."
        )


def crop_start(length: int, crop: int) -> int:
    """First pixel of a center crop; negative where the image is smaller than the crop and gets a margin."""
    return (length - crop) // 2 if crop <= length else -((crop - length) // 2)


def has_unreadable_source(images: Any) -> bool:
    """Whether there is a string among the images that is not the path of a file."""
    if isinstance(images, list | tuple):
        return any(has_unreadable_source(image) for image in images)
    return isinstance(images, str | os.PathLike) and not os.path.isfile(images)


class AscentViTImageProcessorBase(BaseImageProcessor):
    """
    What both backends of the ASCENT-ViT image processor share: defaults, concept targets, maps.

    Images are resized to `size` without crop, rescaled to [0, 1] and normalised to [-1, 1]. Images of any mode become
    RGB, transparency over white; of an animation, the first frame is taken. The EXIF orientation of a file or a PIL
    image is not applied, as annotations are in stored pixels: turn the image (`PIL.ImageOps.exif_transpose`) where they
    are not. (`datasets.Image` and pipelines do so when they load, and Pillow itself with TIFF files.)

    What is no image is refused with one `ValueError`: files that are damaged or hold more pixels than
    `PIL.Image.MAX_IMAGE_PIXELS`, arrays of another shape or type, NaN, infinity, and values outside of what is rescaled.

    See [`AscentViTImageProcessorKwargs`] for the parameters beyond those of every image processor.
    """

    valid_kwargs = AscentViTImageProcessorKwargs
    annotation_keys = ANNOTATION_KEYS

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size: Any = {"height": 224, "width": 224}
    crop_size: Any = None
    pad_size: Any = None
    do_resize = True
    do_center_crop = False
    do_pad: bool | None = None
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    patch_size: int | tuple[int, int] = 16
    num_global_concepts = 0
    num_spatial_concepts = 0
    annotation_coverage = 0.5
    num_channels = 3
    unannotated = "ignore"
    window: Any = None

    @classmethod
    def from_model_config(cls, config, **kwargs):
        """
        An image processor that fits a model.

        Args:
            config (`AscentViTConfig`): Gives the image size, the patch size and the numbers of concepts.
            kwargs: Any parameter of the image processor; goes before what the configuration says. With
                `do_center_crop=True` the crop has the model's image size unless `crop_size` is given.

        Example:

        ```python
        >>> config = AscentViTConfig(global_concepts=["day", "night"], spatial_concepts=["beak", "wing", "tail"])
        >>> processor = AscentViTImageProcessor.from_model_config(config)
        >>> annotation = {"concepts": [0], "points": {"xy": [[120.0, 40.0]], "category": [1]}}
        >>> inputs = processor(image, annotation, return_tensors="pt")
        >>> inputs["concept_targets"].shape, inputs["spatial_concept_targets"].shape
        (torch.Size([1, 2]), torch.Size([1, 196, 3]))
        ```"""
        height, width = config.image_size
        if "image_mean" not in kwargs and kwargs.get("do_normalize", True):
            # To be seen where weights were trained with others.
            say = logger.warning_once if config.backbone_config.name_or_path else logger.info
            say(
                "Nothing says how the backbone's images are normalised: mean 0.5 and std 0.5 are taken, and bilinear "
                "resizing. For a pretrained one use AscentViTImageProcessor.from_backbone(backbone, model.config)."
            )
        if config.num_channels != 3:
            kwargs = {name: [0.5] * config.num_channels for name in ("image_mean", "image_std")} | kwargs
            kwargs.setdefault("num_channels", config.num_channels)
        if kwargs.get("do_center_crop"):
            kwargs.setdefault("crop_size", {"height": height, "width": width})
        kwargs.setdefault("size", {"height": height, "width": width})
        kwargs.setdefault("patch_size", tuple(config.patch_size))
        kwargs.setdefault("num_global_concepts", config.num_global_concepts)
        kwargs.setdefault("num_spatial_concepts", config.num_spatial_concepts)
        return cls(**kwargs)

    @classmethod
    def from_backbone(cls, backbone, config, **kwargs):
        """
        An image processor that fits a model on a pretrained backbone: with the backbone's own mean, standard deviation,
        resampling and rescaling, from its `preprocessor_config.json`, else timm's configuration, else its family's.

        Args:
            backbone (`str`, `os.PathLike`, `PreTrainedConfig` or `PreTrainedModel`): What the model was built on.
            config (`AscentViTConfig`): Configuration of the model.
            kwargs: As for [`~AscentViTImageProcessor.from_model_config`], and `revision`, `token`, `cache_dir` and
                `local_files_only` of a backbone on the Hub.
        """
        hub_kwargs = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        return cls.from_model_config(config, **backbone_settings(backbone, config, **hub_kwargs) | kwargs)

    def _set_attributes(self, **kwargs):
        # A file may have 1 for 1.0, which the check of types refuses.
        for name in ("rescale_factor", "image_mean", "image_std"):
            value = kwargs.get(name)
            if isinstance(value, list | tuple):
                kwargs[name] = [as_float(item) for item in value]
            elif value is not None:
                kwargs[name] = as_float(value)
        # transformers checks types at each call, but not here, where they come from a file.
        given = {name: kwargs[name] for name in ImagesKwargs.__annotations__ if kwargs.get(name) is not None}
        validate_typed_dict(ImagesKwargs, given)
        super()._set_attributes(**kwargs)

    def _standardize_kwargs(self, **kwargs) -> dict[str, Any]:  # type: ignore[override]
        for name in SIZE_KEYS:
            if isinstance(kwargs.get(name), list | tuple) and len(kwargs[name]) != 2:
                raise ValueError(f"{name} must be one number or a height and a width; got {kwargs[name]}.")
        kwargs = super()._standardize_kwargs(**kwargs)
        for name in SIZE_KEYS:
            if kwargs[name] is not None:
                check_size(name, kwargs[name])
        for name in ("rescale_factor", "image_mean", "image_std"):
            if kwargs[name] is not None:
                check_numbers(name, kwargs[name], above_zero=name != "image_mean")
        if kwargs["device"] is not None:
            try:
                torch.device(kwargs["device"])
            except (RuntimeError, TypeError) as error:
                raise ValueError(f"device must be one of torch; got {kwargs['device']!r}.") from error
        resample = kwargs["resample"]
        known = [int(item) for item in PILImageResampling]
        if resample is not None and type(resample).__name__ != "InterpolationMode" and resample not in known:
            raise ValueError(f"resample must be a PIL.Image.Resampling, {known}; got {resample!r}.")
        check_targets(kwargs)
        check_window(kwargs.get("window"))
        return kwargs

    def to_dict(self) -> dict[str, Any]:
        """Serialisable parameters. Where the code is saved too, `auto_map` names both backends."""
        processor = super().to_dict()
        if processor.pop("auto_map", None) and self._auto_class is not None:
            processor["auto_map"] = {
                self._auto_class: {
                    "torchvision": "image_processing_ascent_vit.AscentViTImageProcessor",
                    "pil": "image_processing_pil_ascent_vit.AscentViTImageProcessorPil",
                }
            }
        return processor

    def fetch_images(self, images):
        """Opens paths of files as they are stored, and addresses and base64 text upright, with Pillow."""
        if isinstance(images, list | tuple):
            return [self.fetch_images(image) for image in images]
        return load_source(images) if isinstance(images, str | os.PathLike) else images

    def _prepare_images_structure(self, images, expected_ndims: int = 3):
        flat = flat_images(self.fetch_images(images))
        if not flat:
            raise ValueError("There is no image: give one or more.")
        return flat

    def process_image(self, image: Any, *args, input_data_format=None, **kwargs):
        num_channels = kwargs.get("num_channels", 3)
        # Of another factor the caller knows the values' range.
        of_bytes = kwargs.get("do_rescale") and math.isclose(kwargs.get("rescale_factor") or 0, 1 / 255)
        if of_bytes and not isinstance(image, Image.Image):
            image = eight_bit_array(image, kwargs.get("window"))
        if num_channels != 3:
            image, kwargs["do_convert_rgb"] = (
                with_channels(image, num_channels, input_data_format, kwargs.get("window")),
                False,
            )
            input_data_format = ChannelDimension.FIRST
        if isinstance(image, Image.Image):
            image = eight_bit(image, kwargs.get("window"))
        else:
            image = checked_array(image, kwargs.get("do_rescale"), kwargs.get("rescale_factor"))
            if self.backend == "pil" and isinstance(image, torch.Tensor):  # type: ignore[attr-defined]
                image = image.detach().cpu().numpy()
            if image.ndim == 2:
                image, input_data_format = image[None], ChannelDimension.FIRST
            elif input_data_format is None and not {image.shape[0], image.shape[2]} & {1, 3, 4}:
                raise ValueError(
                    f"An image array must have 1, 3 or 4 channels, first or last; got the shape {tuple(image.shape)}. "
                    "Pass input_data_format for another number of channels."
                )
        return super().process_image(image, *args, input_data_format=input_data_format, **kwargs)

    def preprocess(
        self,
        images: ImageInput,
        annotations: dict[str, Any] | list[dict[str, Any] | None] | None = None,
        **kwargs: Unpack[AscentViTImageProcessorKwargs],
    ) -> BatchFeature:
        """
        Pixels for the model and, from annotations, targets for its concepts.

        Args:
            images (`ImageInput`):
                PIL images, numpy arrays or tensors (channels first or last, values from 0 to 255 unless
                `do_rescale=False`), paths, or a list of them.
            annotations (`dict` or `list[dict | None]`, *optional*):
                One dict (or None) for each image; every key may be left out or None (not annotated). Coordinates are
                pixels of the image as given, before resize and crop.

                - `concepts`: ids of the global concepts that are present; [] = none of them.
                - `unknown_concepts`: ids of global concepts of which it is not known.
                - `objects`: `{"bbox": [[x, y, width, height], ...], "category": [id, ...]}`, or a list of dicts with
                  these keys; other keys in it are ignored. Boxes are clipped to the image.
                - `points`: `{"xy": [[x, y], ...], "category": [id, ...]}`, or a list of dicts.
                - `mask`: PIL image or integer array of the image's height and width: 0 = not annotated,
                  i = spatial concept i - 1, 255 = ignore.
                - `present`: ids of all spatial concepts that are somewhere in the image; [] = none of them.
                - `unknown_present`: ids of spatial concepts of which it is not known.
            kwargs: Any parameter of the image processor, for this call.

        Returns:
            `BatchFeature` with

            - `pixel_values`: `(B, C, H, W)`, C being `num_channels`.
            - `concept_targets`, with annotations and `num_global_concepts` G > 0: `(B, G)` float32, 1 present,
              0 absent, NaN not annotated.
            - `spatial_concept_targets`, with annotations and `num_spatial_concepts` S > 0: `(B, N, S)` float32 over
              the `N = (H // patch height) * (W // patch width)` patches, row-major, 1 marked, 0 not, rows of NaN not
              annotated. What lies outside the crop is dropped.
            - `spatial_concept_presence`, where an annotation has `present`: `(B, S)` float32, 1 somewhere in the image,
              0 nowhere, NaN not known. A crop may have cut away what `present` lists: smaller than the image, it makes
              unknown which of them it holds, but for those marked inside it.

        Raises:
            ValueError: for an image that cannot be read, another number of annotations than of images, an unknown key, a concept id out of range, a
                mask of another size, coordinates that are not finite, a point or a box outside the image, a mark of
                a concept that `present` leaves out, or annotations of a kind that has no concepts.
        """
        if annotations is not None and has_unreadable_source(images):
            raise ValueError(
                "Images with annotations must be given as images, arrays or paths of files: an address is loaded "
                "upright, and annotations are in stored pixels."
            )
        return super().preprocess(images, annotations, **kwargs)

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self,
        images: ImageInput,
        annotations: Any,
        return_tensors: str | TensorType | None = None,
        num_global_concepts: int = 0,
        num_spatial_concepts: int = 0,
        annotation_coverage: float = 0.5,
        unannotated: str = "ignore",
        **kwargs,
    ) -> BatchFeature:
        prepared = self._prepare_image_like_inputs(images, **kwargs)
        for image in prepared:
            if kwargs["do_resize"]:
                check_resized_size(tuple(image.shape[-2:]), kwargs["size"])
            for name in ("image_mean", "image_std") if kwargs["do_normalize"] else ():
                if isinstance(kwargs[name], tuple) and len(kwargs[name]) != image.shape[0]:
                    raise ValueError(
                        f"{name} must have a value for each of {image.shape[0]} channels; got {kwargs[name]}."
                    )
        if annotations is not None:
            annotations = check_annotations(annotations, len(prepared), num_global_concepts, num_spatial_concepts)
        pixel_values = self._preprocess(prepared, return_tensors=None, **kwargs)["pixel_values"]
        data = {"pixel_values": pixel_values}

        def as_pixels(target: np.ndarray, pixels):
            return torch.from_numpy(target).to(pixels.device) if isinstance(pixels, torch.Tensor) else target

        if annotations is not None and num_global_concepts:
            data["concept_targets"] = [
                as_pixels(global_concept_targets(annotation, num_global_concepts, f"annotations[{i}]"), pixels)
                for i, (annotation, pixels) in enumerate(zip(annotations, pixel_values, strict=True))
            ]
        if annotations is not None and num_spatial_concepts:
            data["spatial_concept_targets"], presence = [], []
            for i, (image, annotation, pixels) in enumerate(zip(prepared, annotations, pixel_values, strict=True)):
                axes = self._patch_axes(tuple(image.shape[-2:]), tuple(pixels.shape[-2:]), **kwargs)
                target = spatial_concept_targets(
                    annotation, axes, num_spatial_concepts, annotation_coverage, unannotated, f"annotations[{i}]"
                )
                data["spatial_concept_targets"].append(as_pixels(target, pixels))
                presence.append(
                    as_pixels(spatial_concept_presence(annotation, target, axes, f"annotations[{i}]"), pixels)
                )
            if any(annotation is not None and annotation.get("present") is not None for annotation in annotations):
                data["spatial_concept_presence"] = presence
        return BatchFeature(data=data, tensor_type=return_tensors)

    @staticmethod
    def _patch_axes(
        original: tuple[int, int],
        processed: tuple[int, int] | None,
        do_resize: bool,
        size: SizeDict,
        do_center_crop: bool,
        crop_size: SizeDict | None,
        patch_size: int | tuple[int, int],
        **kwargs,
    ) -> tuple[PatchAxis, PatchAxis]:
        """Vertical and horizontal geometry by given settings; without `processed`, that of an image without padding."""
        resized = resized_size(original, size) if do_resize else original
        cropped = height_width(crop_size) if do_center_crop else resized
        final = processed or cropped
        y_axis, x_axis = (
            PatchAxis(
                original=original[i],
                resized=resized[i],
                crop_start=crop_start(resized[i], cropped[i]),
                cropped=cropped[i],
                processed=final[i],
                patch=pair(patch_size)[i],
            )
            for i in range(2)
        )
        return y_axis, x_axis

    def patch_axes(self, image_size: tuple[int, int]) -> tuple[PatchAxis, PatchAxis]:
        """
        Geometry of the patches in an image that this processor resizes and crops by its own settings, without padding.

        Args:
            image_size (`tuple[int, int]`): Height and width of the original image in pixels.

        Returns:
            `tuple[PatchAxis, PatchAxis]`: The vertical and the horizontal axis, all lengths in pixels: `original` of
            the image's side, `resized` after the resize, `crop_start` and `cropped` of the crop in the resized image,
            `processed` of what the model gets, `patch` of a patch.

        Raises:
            ValueError: for an image in which not even one patch fits.
        """
        return self._patch_axes(
            (int(image_size[0]), int(image_size[1])),
            None,
            self.do_resize,
            self.size,
            self.do_center_crop,
            self.crop_size,
            self.patch_size,
        )

    def _processed_axes(self, grid: tuple[int, int]) -> tuple[PatchAxis, PatchAxis]:
        """Geometry of the processed image itself; its size is that of the patches where it depends on the image."""
        known = self.size if self.do_resize else None
        if self.do_center_crop:
            known = self.crop_size
        if self.do_pad:
            known = self.pad_size
        patch = pair(self.patch_size)
        if known is None or not (known.height and known.width):
            processed = (grid[0] * patch[0], grid[1] * patch[1])
        else:
            processed = height_width(known)
        return PatchAxis.identity(processed[0], patch[0]), PatchAxis.identity(processed[1], patch[1])

    def resize_concept_maps(self, maps: torch.Tensor, target_size: tuple[int, int] | None = None) -> torch.Tensor:
        """
        Draws values of patches, such as attention or contributions, in an image's pixels.

        Every pixel gets the values of the patches interpolated bilinearly at its centre between the centres of the
        patches (`align_corners=False`), back through resize and crop; beyond the outermost centres the value is
        repeated, also in a rim smaller than a patch. Pixels outside the crop get 0.

        Args:
            maps (`torch.Tensor` of shape `(..., h, w)`):
                Values on the patch grid of images processed with this processor's own parameters.
            target_size (`tuple[int, int]`, *optional*):
                Height and width of the original image. Without it, maps are drawn in the processed image.

        Returns:
            `torch.Tensor` of shape `(..., height, width)`, float32, on the device of `maps`.

        Raises:
            ValueError: where the patch grid is not the one that this processor makes of an image of that size.
        """
        grid = (maps.shape[-2], maps.shape[-1])
        if target_size is None:
            y_axis, x_axis = self._processed_axes(grid)
        else:
            y_axis, x_axis = self.patch_axes(target_size)
        expected = (y_axis.num_patches, x_axis.num_patches)
        padded = target_size is not None and self.do_pad and grid[0] >= expected[0] and grid[1] >= expected[1]
        if grid != expected and not padded:
            image = "an image" if target_size is None else f"an image of {y_axis.original}x{x_axis.original} pixels"
            raise ValueError(
                f"Maps must be on the patch grid that this image processor makes of {image}, "
                f"{expected[0]}x{expected[1]}; got {grid[0]}x{grid[1]}. Use the image processor that made the inputs, "
                "with the same size and patch_size."
            )
        maps = maps.to(torch.float32)
        rows, columns = (
            torch.from_numpy(axis.interpolation(count)).to(maps)
            for axis, count in zip((y_axis, x_axis), grid, strict=True)
        )
        return rows @ (maps @ columns.T)

    def post_process_concepts(
        self, outputs, target_sizes: list[tuple[int, int]] | torch.Tensor | None = None
    ) -> list[dict[str, torch.Tensor | None]]:
        """
        Concept attention of a model's outputs, the spatial one as maps in each image's pixels.

        Args:
            outputs (`AscentViTImageClassifierOutput`):
                Outputs of the model, with `patch_grid`.
            target_sizes (`list[tuple[int, int]]` or `torch.Tensor` of shape `(B, 2)`, *optional*):
                Height and width of each original image. Without it, maps have the processed size.

        Returns:
            `list[dict]`, one for each image:

            - `spatial_concept_maps`: `(S, height, width)` float32, or None for a model without spatial concepts; see
              [`~AscentViTImageProcessor.resize_concept_maps`].
            - `global_concept_attention`: `(G,)`, or None for a model without global concepts.

        Raises:
            ValueError: for another number of target sizes than of images, or a patch grid that is not this
                processor's.
        """
        batch_size = len(outputs.patch_grid)
        if target_sizes is not None and len(target_sizes) != batch_size:
            raise ValueError(
                f"target_sizes must have a height and a width for each image: expected {batch_size}, "
                f"got {len(target_sizes)}."
            )
        if isinstance(target_sizes, torch.Tensor):
            target_sizes = target_sizes.tolist()
        spatial, attention = outputs.spatial_concept_attention, outputs.global_concept_attention
        results = []
        for i, grid in enumerate(outputs.patch_grid.tolist()):
            maps = None
            if spatial is not None:
                target_size = None if target_sizes is None else target_sizes[i]
                maps = self.resize_concept_maps(spatial[i].T.unflatten(-1, grid), target_size)
            results.append(
                {
                    "spatial_concept_maps": maps,
                    "global_concept_attention": None if attention is None else attention[i],
                }
            )
        return results


class AscentViTImageProcessorPil(AscentViTImageProcessorBase, PilBackend):
    __doc__ = f"""ASCENT-ViT image processor on PIL and numpy, without torchvision.
    {AscentViTImageProcessorBase.__doc__}"""

    def resize(self, image: np.ndarray, *args, **kwargs) -> np.ndarray:  # type: ignore[override]
        """Resizes `(C, height, width)`; Pillow knows no images of five channels, so that each is one of its own."""
        if image.shape[0] in (1, 3, 4):
            return super().resize(image, *args, **kwargs)
        return np.concatenate(
            [super(AscentViTImageProcessorPil, self).resize(p[None], *args, **kwargs) for p in image]
        )

    def center_crop(self, image: np.ndarray, size: Any, **kwargs) -> np.ndarray:  # type: ignore[override]
        """Crops `(C, height, width)` as the torchvision backend does, which splits an odd margin the other way."""
        margins = [(0, 0)]
        for length, crop in zip(image.shape[-2:], height_width(size), strict=True):
            before = max(-crop_start(length, crop), 0)
            margins.append((before, max(crop - length, 0) - before))
        return super().center_crop(np.pad(image, margins), size, **kwargs)


__all__ = ["AscentViTImageProcessorKwargs", "AscentViTImageProcessorBase", "AscentViTImageProcessorPil"]

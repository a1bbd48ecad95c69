# SPDX-License-Identifier: Apache-2.0
"""`explain`: one run of the model per batch gives explanations of every class."""

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from PIL import Image

from ascent_vit.inference.identity import ModelIdentity
from ascent_vit.inference.mode import evaluation_mode, input_kind, size_options
from modeling_ascent_vit.class_scores_ascent_vit import chosen_classes, score_function
from modeling_ascent_vit.concept_pipeline_ascent_vit import check_model_and_processor
from modeling_ascent_vit.configuration_ascent_vit import PYRAMID_STRIDES
from modeling_ascent_vit.image_reading_ascent_vit import ImageInput, is_single, picture_of, read_input
from modeling_ascent_vit.names_ascent_vit import STREAMS, class_index, class_names, concept_names

from .explanation import Explanation
from .fusion import FusionMaps


if TYPE_CHECKING:
    from ascent_vit.inference import ConceptClassifier, ConceptImageProcessor

ClassIds = int | str | Iterable[int | str] | None


def to_array(values: torch.Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()


@contextmanager
def kept_tokens(model: "ConceptClassifier", wanted: bool) -> Iterator[list[torch.Tensor]]:
    """Gives a list that gets the tokens `(B, P + N, D)` that the concept head reads, at each call, if wanted."""
    tokens: list[torch.Tensor] = []
    layer: Any = model.ascent_vit.tokens
    hook = layer.register_forward_hook(lambda _, __, output: tokens.append(output)) if wanted else None
    try:
        yield tokens
    finally:
        if hook is not None:
            hook.remove()


class Explainer:
    """
    Turns outputs of a model into explanations.

    Tables that depend on the parameters only are read once, so the parameters must not change while it is in use.

    Args:
        model (`torch.nn.Module`): An `AscentViTForImageClassification`, also one loaded as remote code.
        processor (`AscentViTImageProcessor`): The model's image processor.
        fusion (`bool`, *optional*, defaults to `False`): Whether to keep where the patches looked in the pyramid.
        features (`bool`, *optional*, defaults to `False`): Whether to keep the patches' tokens.

    Raises:
        ValueError: for another kind of model, or `fusion` of a model without pyramid.
    """

    def __init__(
        self,
        model: "ConceptClassifier",
        processor: "ConceptImageProcessor",
        fusion: bool = False,
        features: bool = False,
    ):
        check_model_and_processor(model, processor)
        config = model.config
        if fusion and not config.fusion_levels:
            raise ValueError("This model has no pyramid (fusion_levels is 0), so there is no fusion to show.")
        self.model, self.processor, self.fusion, self.features = model, processor, fusion, features
        self.identity = ModelIdentity(model)
        # An image processor of older remote code has none.
        self.labels, self.concept_names = class_names(config), concept_names(config)
        self.score_function = score_function(config)
        with torch.no_grad():
            self.class_biases = to_array(model.class_bias())
            if config.num_spatial_concepts:
                self.table = to_array(model.streams()["spatial"].contribution_table())
            else:
                self.table = np.zeros((config.concept_attention_heads, 0, config.num_labels), dtype=np.float32)

    def arguments(self) -> dict[str, bool]:
        """Arguments of the model's forward for the outputs that [`~Explainer.read`] takes."""
        return {"output_contributions": True, "output_concept_heads": True, "output_fusion": self.fusion}

    def run(self, images: list[Any], classes: list[int | None], **overrides) -> list[Explanation]:
        """
        Runs the model on images as one batch and explains them.

        Args:
            images (`list`): Upright RGB images, or arrays, as [`read_input`] gives them.
            classes (`list[int | None]`): Index of the class to explain for each image, None for the predicted one.
            overrides: `global_concept_override` and `spatial_concept_override` of the model's forward.
        """
        device, dtype = input_kind(self.model)
        pixel_values = self.processor(images, return_tensors="pt")["pixel_values"].to(device, dtype)
        options: dict[str, Any] = {name: override.to(device) for name, override in overrides.items()}
        options |= size_options(self.model.config, pixel_values)
        with evaluation_mode(self.model), kept_tokens(self.model, self.features) as tokens:
            outputs = self.model(pixel_values, return_dict=True, **self.arguments(), **options)
        pictures = [picture_of(image) for image in images]
        explanations = self.read(outputs, pictures, classes, (pixel_values.shape[2], pixel_values.shape[3]))
        if not self.features:
            return explanations
        height, width = outputs["patch_grid"][0].tolist()
        patches = to_array(tokens[0][:, -height * width :].unflatten(1, (height, width)))
        return [
            dataclasses.replace(explanation, patch_features=patch_features)
            for explanation, patch_features in zip(explanations, patches, strict=True)
        ]

    def read(
        self,
        outputs: Mapping[str, Any],
        images: list[Image.Image],
        classes: list[int | None],
        processed: tuple[int, int] | None = None,
    ) -> list[Explanation]:
        """
        Makes explanations from the outputs of one batch.

        Args:
            outputs (`AscentViTImageClassifierOutput`): Outputs of the model called with [`~Explainer.arguments`].
            images (`list[PIL.Image.Image]`): The original images, upright and RGB.
            classes (`list[int | None]`): Index of the class to explain for each image, None for the predicted one.
            processed (`tuple[int, int]`, *optional*): Height and width of the model's input in pixels, for the fusion.
        """
        logits, contributions = to_array(outputs["logits"]), to_array(outputs["concept_contributions"])
        if not np.isfinite(logits).all():
            raise ValueError("The model gives scores that are not finite: its weights or the pixels are damaged.")
        grid = tuple(outputs["patch_grid"][0].tolist())
        attentions = []
        patch_attention = np.zeros((len(images), self.table.shape[0], 0, *grid), dtype=np.float32)
        for stream in STREAMS:
            attention = outputs.get(f"{stream}_concept_attention_heads")
            if attention is None:
                continue
            if stream == "spatial":
                patch_attention = to_array(attention.transpose(2, 3).unflatten(-1, grid))
                # Counted by what a patch attends to any concept, as the model's class scores are.
                voices = attention.sum(3).mean(1).clamp_max(1.0).sum(1).clamp_min(1.0)
                attention = attention.sum(2) / voices.view(-1, 1, 1)
            attentions.append(to_array(attention))
        head_attention = np.concatenate(attentions, axis=2)
        fusions: Iterable[FusionMaps | None] = repeat(None, len(images))
        if self.fusion and processed is not None:
            fusions = self.read_fusion(outputs, grid, processed)
        predicted = chosen_classes(torch.from_numpy(logits), self.score_function).tolist()
        chosen = [p if c is None else c for c, p in zip(classes, predicted, strict=True)]
        return [
            Explanation(
                image=image,
                label_id=chosen[i],
                labels=self.labels,
                logits=logits[i],
                class_biases=self.class_biases,
                concept_names=self.concept_names,
                contributions=contributions[i],
                head_attention=head_attention[i],
                patch_attention_heads=patch_attention[i],
                contribution_table=self.table,
                processor=self.processor,
                fusion=fusion,
                score_function=self.score_function,
                identity=self.identity,
            )
            for i, (image, fusion) in enumerate(zip(images, fusions, strict=True))
        ]

    def read_fusion(
        self, outputs: Mapping[str, Any], grid: tuple[int, int], processed: tuple[int, int]
    ) -> list[FusionMaps]:
        config = self.model.config
        in_patches = np.array([processed[i] / config.patch_size[i] for i in (1, 0)], dtype=np.float32)
        locations = to_array(outputs["fusion_locations"]) * in_patches
        weights = to_array(outputs["fusion_weights"])
        strides = tuple(PYRAMID_STRIDES[: config.fusion_levels])
        return [FusionMaps(*values, grid, strides) for values in zip(locations, weights, strict=True)]


def pair_with_classes(
    images: Iterable[ImageInput], class_ids: ClassIds, labels: list[str]
) -> Iterator[tuple[ImageInput, int | None]]:
    """Pairs each image with the index of its class, None for the predicted one."""
    if class_ids is None:
        return zip(images, repeat(None))
    if isinstance(class_ids, str) or not isinstance(class_ids, Iterable):
        return zip(images, repeat(class_index(class_ids, labels)))
    if isinstance(images, Iterator):
        return _pair_as_they_come(images, iter(class_ids), labels)
    images, classes = list(images), [class_index(class_id, labels) for class_id in class_ids]
    if len(classes) != len(images):
        raise ValueError(
            f"class_ids must be one class, or one for each of the {len(images)} images; got {len(classes)}."
        )
    return zip(images, classes, strict=True)


def _pair_as_they_come(
    images: Iterator[ImageInput], class_ids: Iterator[int | str], labels: list[str]
) -> Iterator[tuple[ImageInput, int]]:
    for number, image in enumerate(images, start=1):
        for class_id in islice(class_ids, 1):
            yield image, class_index(class_id, labels)
            break
        else:
            raise ValueError(f"class_ids must be one class, or one for each image; it ended before image {number}.")


def run_pairs(explainer: Explainer, pairs: Iterable[tuple[ImageInput, int | None]]) -> deque[Explanation]:
    """Explains images, each with the index of its class, as one batch."""
    images, classes = [], []
    for image, class_id in pairs:
        images.append(read_input(image, explainer.processor))
        classes.append(class_id)
    return deque(explainer.run(images, classes) if images else ())


def in_batches(
    explainer: Explainer, pairs: Iterator[tuple[ImageInput, int | None]], batch_size: int
) -> Iterator[Explanation]:
    """Explains images in their order, holding no more than one batch of them."""
    while explanations := run_pairs(explainer, islice(pairs, batch_size)):
        while explanations:
            yield explanations.popleft()


@overload
def explain(  # type: ignore[overload-overlap]
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    images: ImageInput,
    class_ids: ClassIds = None,
    batch_size: int = 8,
    fusion: bool = False,
    features: bool = False,
) -> Explanation: ...


@overload
def explain(  # type: ignore[overload-overlap]
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    images: Iterator[ImageInput],
    class_ids: ClassIds = None,
    batch_size: int = 8,
    fusion: bool = False,
    features: bool = False,
) -> Iterator[Explanation]: ...


@overload
def explain(
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    images: Iterable[ImageInput],
    class_ids: ClassIds = None,
    batch_size: int = 8,
    fusion: bool = False,
    features: bool = False,
) -> list[Explanation]: ...


def explain(
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    images: ImageInput | Iterable[ImageInput],
    class_ids: ClassIds = None,
    batch_size: int = 8,
    fusion: bool = False,
    features: bool = False,
) -> Explanation | Iterator[Explanation] | list[Explanation]:
    r"""
    Explains what a concept classifier sees in images.

    The model runs once per batch and gives explanations of all classes, see [`~Explanation.for_class`] and
    [`~Explanation.contrast`]. Maps stay on the patch grid until they are asked for in pixels.

    Args:
        model (`torch.nn.Module`):
            An `AscentViTForImageClassification`, also one loaded as remote code. It runs on its device and in its
            dtype, in evaluation mode, and gets its own mode back.
        processor (`AscentViTImageProcessor`): The model's image processor.
        images (`PIL.Image.Image`, path, URL, `np.ndarray` or `torch.Tensor`, or an iterable of them):
            Images to explain. Arrays are (H, W), (H, W, C) or (C, H, W), with C 1, 3 or 4: integers from 0 to 255 or
            floats from 0 to 1. A model of another number of channels than 1 and 3 takes arrays with as many.
        class_ids (`int` or `str`, or an iterable with one per image, *optional*, defaults to the predicted classes):
            Class to explain, by index or by name; of a model for regression, the value. By default the most probable
            class, or the first value.
        batch_size (`int`, *optional*, defaults to 8): Number of images to run at a time.
        fusion (`bool`, *optional*, defaults to `False`):
            Whether to keep where each patch looked in the pyramid, for `fusion_maps` and `level_shares`.
        features (`bool`, *optional*, defaults to `False`):
            Whether to keep the patches' tokens as `patch_features`, by which [`~Explanation.similar`] finds patches.

    Returns:
        [`Explanation`] of one image; a list of them for a list or another iterable; for an iterator, such as a
        generator, an iterator of them, which reads a batch of images when its first explanation is asked for and holds
        no more than that: memory stays flat, whatever the number of images. The model must not change meanwhile.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for an image that cannot be read, a class that the model does not have, or another kind of model.

    Example:

    ```python
    >>> explanation = explain(model, processor, "bird.jpg")
    >>> explanation.label, explanation.concepts[0].name
    ('Painted Bunting', 'has_belly_color::red')
    >>> explanation.contrast("Painted Bunting", "Indigo Bunting").concepts[0].name
    'has_belly_color::red'
    >>> explanation.save("explanation.png")
    ```
    """
    explainer = Explainer(model, processor, fusion, features)
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more; got {batch_size}.")
    single = is_single(images)
    inputs: Any = [images] if single else images
    explanations = in_batches(explainer, pair_with_classes(inputs, class_ids, explainer.labels), batch_size)
    if single:
        return next(explanations)
    return explanations if isinstance(images, Iterator) else list(explanations)


__all__ = ["Explainer", "explain"]

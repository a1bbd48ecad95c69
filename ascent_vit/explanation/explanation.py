# SPDX-License-Identifier: Apache-2.0
"""Explanations of predictions: which concept added what to the class score, and where in the image."""

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
import torch
from PIL import Image, ImageOps

from modeling_ascent_vit.image_processing_pil_ascent_vit import eight_bit


if TYPE_CHECKING:
    from matplotlib.figure import Figure


ImageInput = Image.Image | str | os.PathLike | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class ConceptContribution:
    """
    What one concept did for the explained class.

    Args:
        name (`str`): Name of the concept.
        stream (`str`): `"global"`, `"spatial"` or `"unsupervised"`.
        index (`int`): Place of the concept in its stream.
        attention (`float`): Attention to the concept, from 0 to 1; of a spatial concept its mean over the patches.
        contribution (`float`): What it added to the logit of the explained class, of either sign.
    """

    name: str
    stream: str
    index: int
    attention: float
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """
    A prediction as the sum of what each concept contributed: `sum of contributions + class_bias = logit`.

    Args:
        image (`PIL.Image.Image`): The original image, RGB and upright.
        label (`str`): Name of the explained class.
        label_id (`int`): Index of the explained class.
        score (`float`): Softmax probability of the explained class.
        predicted_label (`str`): Name of the predicted class, the explained one unless another was asked for.
        predicted_score (`float`): Softmax probability of the predicted class.
        logits (`np.ndarray` of shape `(K,)`): Scores of all classes before the softmax, float32.
        class_bias (`float`): What the explained class has whatever concepts are seen.
        concepts (`list[ConceptContribution]`): All concepts, the largest contribution first, the most negative last.
        patch_attention (`np.ndarray` of shape `(S, h, w)`):
            Attention of each patch to each spatial concept, in the model's order of concepts, float32.
        patch_contributions (`np.ndarray` of shape `(S, h, w)`):
            What each spatial concept added to the explained class at each patch, float32. Sums over the patches to the
            spatial contributions.
        processor (`AscentViTImageProcessor`): Knows where patches lie in the original image.
    """

    image: Image.Image
    label: str
    label_id: int
    score: float
    predicted_label: str
    predicted_score: float
    logits: np.ndarray
    class_bias: float
    concepts: list[ConceptContribution]
    patch_attention: np.ndarray = field(repr=False)
    patch_contributions: np.ndarray = field(repr=False)
    processor: Any = field(repr=False, compare=False)

    @property
    def additivity_error(self) -> float:
        """|logit - sum of contributions - class bias|: 0 but for rounding."""
        explained = sum(concept.contribution for concept in self.concepts) + self.class_bias
        return abs(float(self.logits[self.label_id]) - explained)

    @property
    def attention_maps(self) -> np.ndarray:
        """Attention to each spatial concept in the original image's pixels, `(S, H, W)`."""
        return self.resize(self.patch_attention)

    @property
    def contribution_maps(self) -> np.ndarray:
        """Contribution of each spatial concept per patch, drawn in the original image's pixels, `(S, H, W)`."""
        return self.resize(self.patch_contributions)

    def resize(self, maps: np.ndarray) -> np.ndarray:
        """Patch maps `(..., h, w)` interpolated to the original image's pixels, `(..., H, W)`, 0 outside a crop."""
        width, height = self.image.size
        resized = self.processor.resize_concept_maps(torch.from_numpy(np.ascontiguousarray(maps)), (height, width))
        return np.asarray(resized, dtype=np.float32)

    def top(self, number: int, stream: str | None = None) -> list[ConceptContribution]:
        """The concepts that moved the class score most, of either sign; the largest contribution first."""
        chosen = [concept for concept in self.concepts if stream in (None, concept.stream)]
        chosen = sorted(chosen, key=lambda concept: -abs(concept.contribution))[:number]
        return sorted(chosen, key=lambda concept: -concept.contribution)

    def to_dict(self, maps: bool = False) -> dict[str, Any]:
        """
        The explanation as plain numbers, strings and lists, ready for JSON.

        Args:
            maps (`bool`, *optional*, defaults to `False`):
                Whether to add `patch_attention` and `patch_contributions`, each S lists of h lists of w numbers.
        """
        values = {
            "label": self.label,
            "label_id": self.label_id,
            "score": self.score,
            "predicted_label": self.predicted_label,
            "predicted_score": self.predicted_score,
            "logits": self.logits.tolist(),
            "class_bias": self.class_bias,
            "additivity_error": self.additivity_error,
            "image_size": [self.image.height, self.image.width],
            "concepts": [vars(concept).copy() for concept in self.concepts],
        }
        if maps:
            values["patch_attention"] = self.patch_attention.tolist()
            values["patch_contributions"] = self.patch_contributions.tolist()
        return values

    def plot(self, top: int = 5, truth: str | None = None) -> "Figure":
        """
        Draws the image, the `top` concepts with what they contributed, and where the top spatial concepts were seen.

        Args:
            top (`int`, *optional*, defaults to 5): Concepts to show, those of the largest contribution of either sign.
            truth (`str`, *optional*): Name of the right class, for the title.

        Returns:
            `matplotlib.figure.Figure`: to be saved with its `savefig`; pyplot and its backend are left alone.
        """
        from .plot import plot_explanation

        return plot_explanation(self, top, truth)


@overload
def explain(  # type: ignore[overload-overlap]
    model: Any,
    processor: Any,
    images: ImageInput,
    class_ids: int | str | Sequence[int | str] | None = None,
    batch_size: int = 8,
) -> Explanation: ...


@overload
def explain(
    model: Any,
    processor: Any,
    images: Iterable[ImageInput],
    class_ids: int | str | Sequence[int | str] | None = None,
    batch_size: int = 8,
) -> list[Explanation]: ...


def explain(
    model: Any,
    processor: Any,
    images: ImageInput | Iterable[ImageInput],
    class_ids: int | str | Sequence[int | str] | None = None,
    batch_size: int = 8,
) -> Explanation | list[Explanation]:
    r"""
    Explains what a concept classifier sees in images.

    Args:
        model (`torch.nn.Module`):
            An `AscentViTForImageClassification`, also one loaded as remote code. It runs where and in the dtype that
            it is, in evaluation mode, and gets its own mode back.
        processor (`AscentViTImageProcessor`): The model's image processor.
        images (`PIL.Image.Image`, path, URL, `np.ndarray` or `torch.Tensor`, or an iterable of them):
            Arrays are (H, W), (H, W, C) or (C, H, W), with C 1, 3 or 4: integers from 0 to 255 or floats from 0 to 1.
        class_ids (`int` or `str`, or a sequence with one per image, *optional*, defaults to the predicted classes):
            Class to explain, by index or by name.
        batch_size (`int`, *optional*, defaults to 8): Images to run at a time.

    Returns:
        [`Explanation`], or a list of them if `images` is an iterable.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for an image that cannot be read, a class that the model does not have, or another kind of model.

    Example:

    ```python
    >>> explanation = explain(model, processor, "bird.jpg")
    >>> explanation.label, explanation.concepts[0].name
    ('Painted Bunting', 'has_belly_color::red')
    >>> explanation.plot().savefig("explanation.png")
    ```
    """
    needed = {"contribution_maps": (model, "model"), "resize_concept_maps": (processor, "processor")}
    for attribute, (thing, name) in needed.items():
        if not hasattr(thing, attribute):
            raise ValueError(
                f"{name} must be an ASCENT-ViT {name}, which has {attribute}; got {type(thing).__name__}. "
                "Load it with AutoModelForImageClassification and AutoImageProcessor after importing ascent_vit."
            )
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more; got {batch_size}.")
    single = is_single(images)
    inputs: Any = [images] if single else images
    pictures = [read_image(image) for image in inputs]
    chosen = choose_classes(class_ids, len(pictures), model.config)
    training = model.training
    model.eval()
    try:
        explanations = []
        with torch.no_grad():
            for start in range(0, len(pictures), batch_size):
                batch = slice(start, start + batch_size)
                explanations += explain_batch(model, processor, pictures[batch], chosen[batch])
    finally:
        model.train(training)
    return explanations[0] if single else explanations


def is_single(images: Any) -> bool:
    """Whether this is one image, not an iterable of them."""
    if isinstance(images, np.ndarray | torch.Tensor):
        return images.ndim < 4
    return isinstance(images, str) or not isinstance(images, Iterable)


def read_image(image: ImageInput) -> Image.Image:
    """
    An image as PIL in RGB, turned upright by its EXIF orientation.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for what cannot be read as an image.
    """
    if isinstance(image, np.ndarray | torch.Tensor):
        opened = array_to_image(image)
    elif isinstance(image, str | os.PathLike):
        opened = open_image(os.fspath(image))
    elif isinstance(image, Image.Image):
        opened = image
    else:
        raise ValueError(f"An image must be a PIL image, a path, a URL or an array; got {type(image).__name__}.")
    return cast(Image.Image, eight_bit(ImageOps.exif_transpose(opened))).convert("RGB")


def open_image(source: str) -> Image.Image:
    """The image of a path or URL, fully read."""
    from transformers.image_utils import load_image

    is_url = source.startswith(("http://", "https://"))
    if not is_url and not Path(source).is_file():
        state = "is a folder" if Path(source).is_dir() else "does not exist"
        raise FileNotFoundError(f"Image {source} {state}: give the path of an image file.")
    try:
        if is_url:
            return load_image(source)
        with Image.open(source) as image:
            image.load()
        return image
    except Exception as error:  # Pillow's readers raise many kinds of errors on damaged files.
        raise ValueError(f"Image {source} cannot be read ({error}): give a complete image file.") from error


def array_to_image(array: np.ndarray | torch.Tensor) -> Image.Image:
    """An array of (H, W), (H, W, C) or (C, H, W), integers from 0 to 255 or floats from 0 to 1, as a PIL image."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = array.float().numpy() if array.is_floating_point() else array.numpy()
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[-1] not in (1, 3, 4) or array.size == 0:
        raise ValueError(
            f"An image array must have the shape (H, W), (H, W, C) or (C, H, W) with C 1, 3 or 4; got {array.shape}."
        )
    floating = array.dtype.kind == "f"
    limit = 1 if floating else 255
    if array.dtype.kind not in "fiu" or not (array.min() >= 0 and array.max() <= limit):
        raise ValueError(
            "An image array must hold integers from 0 to 255 or floats from 0 to 1; "
            f"got {array.dtype} from {array.min()} to {array.max()}."
        )
    array = (np.round(array * 255) if floating else array).astype(np.uint8)
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def choose_classes(class_ids: int | str | Sequence[int | str] | None, number: int, config: Any) -> list[int | None]:
    """One class index per image; None for the predicted class."""
    if class_ids is None:
        return [None] * number
    if isinstance(class_ids, int | str):
        return [class_index(class_ids, config)] * number
    classes: list[int | None] = [class_index(class_id, config) for class_id in class_ids]
    if len(classes) != number:
        raise ValueError(f"class_ids must be one class, or one for each of the {number} images; got {len(classes)}.")
    return classes


def class_index(class_id: int | str, config: Any) -> int:
    """Index of a class given by name or index."""
    names = [config.id2label[i] for i in range(config.num_labels)]
    if isinstance(class_id, str):
        if class_id in names:
            return names.index(class_id)
        by_lower_case = {name.lower(): name for name in names}
        close = difflib.get_close_matches(class_id.lower(), by_lower_case, n=3, cutoff=0.4)
        near = ", ".join(repr(by_lower_case[name]) for name in close)
        hint = f"did you mean {near}?" if close else f"the first are {', '.join(names[:5])}."
        raise ValueError(f"The model has no class {class_id!r} among its {len(names)}: {hint}")
    index = int(class_id)
    if not 0 <= index < len(names):
        nearest = min(max(index, 0), len(names) - 1)
        raise ValueError(
            f"The model has no class {index}: its classes are 0 to {len(names) - 1}; the nearest, {nearest}, is "
            f"{names[nearest]!r}."
        )
    return index


def explain_batch(
    model: Any, processor: Any, images: list[Image.Image], chosen: list[int | None]
) -> list[Explanation]:
    """Explanations of RGB images that fit into one batch; None explains the predicted class."""
    config = model.config
    parameter = next(model.parameters())
    pixel_values = processor(images, return_tensors="pt")["pixel_values"].to(parameter.device, parameter.dtype)
    out = model(pixel_values, output_contributions=True)
    logits = out.logits.float().cpu()
    probabilities, predicted = logits.softmax(-1), logits.argmax(-1).tolist()
    classes = [p if c is None else c for c, p in zip(chosen, predicted, strict=True)]
    class_bias = model.class_bias().float().cpu()
    contributions = out.concept_contributions.float().cpu()
    streams = {
        "global": out.global_concept_attention,
        "spatial": out.spatial_concept_attention,
        "unsupervised": out.unsupervised_concept_attention,
    }
    streams = {name: attention.float().cpu() for name, attention in streams.items() if attention is not None}
    means = {name: attention.mean(1) if name == "spatial" else attention for name, attention in streams.items()}
    # Streams and names are in the order of the contributions' columns.
    attention = torch.cat(list(means.values()), dim=1)
    places = [(name, index) for name, mean in means.items() for index in range(mean.shape[1])]
    grid = out.patch_grid[0].tolist()
    patch_attention = torch.zeros(len(images), 0, *grid)
    patch_contributions = torch.zeros(len(images), 0, *grid)
    if "spatial" in streams:
        patch_attention = streams["spatial"].transpose(1, 2).unflatten(-1, grid)
        maps = model.contribution_maps(pixel_values, torch.tensor(classes, device=parameter.device)[:, None])
        patch_contributions = maps[:, 0].float().cpu()

    explanations = []
    for i, (image, label_id) in enumerate(zip(images, classes, strict=True)):
        concepts = [
            ConceptContribution(name, stream, index, attention[i, c].item(), contributions[i, c, label_id].item())
            for c, (name, (stream, index)) in enumerate(zip(config.concepts, places, strict=True))
        ]
        explanations.append(
            Explanation(
                image=image,
                label=config.id2label[label_id],
                label_id=label_id,
                score=probabilities[i, label_id].item(),
                predicted_label=config.id2label[predicted[i]],
                predicted_score=probabilities[i, predicted[i]].item(),
                logits=logits[i].numpy(),
                class_bias=class_bias[label_id].item(),
                concepts=sorted(concepts, key=lambda concept: -concept.contribution),
                patch_attention=patch_attention[i].numpy(),
                patch_contributions=patch_contributions[i].numpy(),
                processor=processor,
            )
        )
    return explanations


__all__ = ["ConceptContribution", "Explanation", "explain"]

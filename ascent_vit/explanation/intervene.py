# SPDX-License-Identifier: Apache-2.0
"""`intervene`: what the model would say, had it seen a concept that it missed, or not seen one."""

import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from PIL import Image

from modeling_ascent_vit.image_reading_ascent_vit import ImageInput, is_single, read_input
from modeling_ascent_vit.names_ascent_vit import find_concept
from modeling_ascent_vit.suggestions_ascent_vit import suggest

from .explain import ClassIds, Explainer, pair_with_classes
from .explanation import Explanation


if TYPE_CHECKING:
    from ascent_vit.inference import ConceptClassifier, ConceptImageProcessor

Concept = str | tuple[str, str]
Correction = str | float | Mapping[str, Any]

# Names of concepts that exclude each other, by the group's name, or "prefix" for those that begin alike.
Groups = Mapping[str, Sequence[str]] | str | None

REGION_KEYS = ("bbox", "xy", "mask")
# What joins the concepts of a group in their names, as in "has_bill_shape::dagger".
SEPARATOR = "::"


@dataclass(frozen=True, eq=False)
class CorrectedExplanation:
    """
    The explanations of an image without and with some concepts set by hand.

    Args:
        before ([`Explanation`]): Explanation of what the model says by itself.
        after ([`Explanation`]): Explanation of what it says with the corrections.
        corrections (`dict`): The corrections, as they were given.
    """

    before: Explanation
    after: Explanation
    corrections: Mapping[Concept, Correction] = field(repr=False)

    @property
    def change(self) -> np.ndarray:
        """Change of each logit by the corrections, `(K,)`, float32."""
        return self.after.logits - self.before.logits

    @property
    def changes_prediction(self) -> bool:
        """Whether other classes are predicted after the corrections; never of a regression, which predicts values."""
        return set(self.before.predicted_ids) != set(self.after.predicted_ids)

    def to_dict(self, maps: bool = False) -> dict[str, Any]:
        """Both explanations as plain numbers, strings and lists, and `change`, the change of the logits."""
        before, after = (explanation.to_dict(maps) for explanation in (self.before, self.after))
        return {"before": before, "after": after, "change": self.change.tolist()}


def groups_of(names: Sequence[str], groups: Groups) -> dict[str, str]:
    """
    The group of each concept that is in one.

    Args:
        names: names of the concepts.
        groups: names of concepts that exclude each other, by the group's name; `"prefix"` for those whose names begin
            alike before "::".

    Raises:
        ValueError: for groups of another form, a concept that is not among `names`, or one in two groups.
    """
    if groups is None:
        return {}
    if groups == "prefix":
        return {name: name.split(SEPARATOR)[0] for name in names if SEPARATOR in name}
    if not isinstance(groups, Mapping):
        raise ValueError(f'groups must be a dict of lists of concepts, or "prefix"; got {groups!r}.')
    found: dict[str, str] = {}
    for group, members in groups.items():
        for name in [members] if isinstance(members, str) else members:
            if name not in names:
                raise ValueError(f"The model has no concept {name!r} of the group {group!r}: {suggest(name, names)}")
            if found.setdefault(name, group) != group:
                raise ValueError(f"The concept {name!r} is in the groups {found[name]!r} and {group!r}.")
    return found


def set_groups(
    placed: dict[str, dict[int, Correction]], concept_names: dict[str, list[str]], groups: Groups
) -> dict[str, dict[int, Correction]]:
    """Adds to corrections that the others of a group are absent, where one of them is somewhere in the image."""
    group_of = groups_of([name for names in concept_names.values() for name in names], groups)
    for stream, corrections in placed.items():
        names = concept_names[stream]
        seen = [index for index, correction in corrections.items() if correction not in ("absent", 0)]
        known = {group_of[names[index]] for index in seen if names[index] in group_of}
        for index, name in enumerate(names):
            if group_of.get(name) in known:
                corrections.setdefault(index, "absent")
    return placed


def concept_places(
    corrections: Mapping[Concept, Correction], concept_names: dict[str, list[str]]
) -> dict[str, dict[int, Correction]]:
    """Sorts corrections by stream, and in it by the index of the concept."""
    placed: dict[str, dict[int, Correction]] = {"global": {}, "spatial": {}}
    for key, correction in corrections.items():
        stream, name = key if isinstance(key, tuple) else (None, key)
        found, index = find_concept(name, concept_names, stream)
        if found not in placed:
            raise ValueError(f"{name!r} is an unsupervised concept: only global and spatial concepts can be set.")
        if index in placed[found]:
            raise ValueError(f"The {found} concept {name!r} is given twice.")
        placed[found][index] = read_correction(correction, name, found)
    return placed


def read_correction(correction: Correction, name: str, stream: str) -> Correction:
    """Returns the correction, or raises one `ValueError` if concepts of the stream cannot have it."""
    if isinstance(correction, str):
        fits = correction in ("present", "absent")
    elif isinstance(correction, Mapping):
        fits = stream == "spatial" and bool(correction) and all(key in REGION_KEYS for key in correction)
    else:
        fits = isinstance(correction, numbers.Real) and not isinstance(correction, bool) and correction >= 0
    if fits:
        return correction
    region = " or a region, {'bbox': ...}, {'xy': ...} or {'mask': ...}" if stream == "spatial" else ""
    raise ValueError(
        f"The {stream} concept {name!r} is set to 'present', 'absent', an attention of 0 or more{region}; "
        f"got {correction!r}."
    )


def share_among_present(present: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Gives each of the k concepts that are present, `(..., C)` bool, 1 / k of the attention; others keep `values`."""
    counts = present.sum(-1, keepdims=True, dtype=np.float32)
    return np.where(present, 1 / np.maximum(counts, 1), values)


def global_override(corrections: dict[int, Correction], num_concepts: int) -> np.ndarray:
    """Attention to use for the global concepts of one image, `(G,)` float32, NaN = left to the model."""
    present = np.zeros(num_concepts, dtype=bool)
    values = np.full(num_concepts, np.nan, dtype=np.float32)
    for index, correction in corrections.items():
        if correction == "present":
            present[index] = True
        else:
            values[index] = 0.0 if correction == "absent" else correction  # type: ignore[assignment]
    return share_among_present(present, values)


def region_patches(region: Mapping[str, Any], image: Image.Image, processor: "ConceptImageProcessor") -> np.ndarray:
    """Patches that a region in the image's pixels marks by the processor's geometry, `(N,)` bool."""
    annotation: dict[str, Any] = {}
    for key, target in (("bbox", "objects"), ("xy", "points")):
        if region.get(key) is not None:
            places = list(region[key])
            places = [places] if all(isinstance(value, numbers.Real) for value in places) else places
            annotation[target] = {key: places, "category": [0] * len(places)}
    if region.get("mask") is not None:
        annotation["mask"] = (np.asarray(region["mask"]) != 0).astype(np.uint8)
    # Told of one concept, the processor makes one column of targets: that of the region's concept, as category 0.
    inputs = processor(image, annotation, num_spatial_concepts=1, return_tensors="np")
    return np.asarray(inputs["spatial_concept_targets"])[0, :, 0] == 1


def spatial_override(
    corrections: dict[int, Correction],
    num_concepts: int,
    num_patches: int,
    image: Image.Image,
    processor: "ConceptImageProcessor",
) -> np.ndarray:
    """Attention to use for the spatial concepts at each patch of one image, `(N, S)` float32, NaN = left as it is."""
    present = np.zeros((num_patches, num_concepts), dtype=bool)
    values = np.full((num_patches, num_concepts), np.nan, dtype=np.float32)
    for index, correction in corrections.items():
        if isinstance(correction, Mapping):
            present[:, index] = region_patches(correction, image, processor)
        elif correction == "present":
            present[:, index] = True
        else:
            values[:, index] = 0.0 if correction == "absent" else correction  # type: ignore[assignment]
    return share_among_present(present, values)


def make_overrides(
    corrections: list[dict[str, dict[int, Correction]]],
    explanations: list[Explanation],
    processor: "ConceptImageProcessor",
) -> dict[str, torch.Tensor]:
    """The overrides of a batch for the model's forward; a stream in which nothing is set has none."""
    overrides: dict[str, list[np.ndarray]] = {}
    for placed, explanation in zip(corrections, explanations, strict=True):
        numbers_of = {stream: len(names) for stream, names in explanation.concept_names.items()}
        height, width = explanation.patch_attention_heads.shape[2:]
        if numbers_of["global"]:
            override = global_override(placed["global"], numbers_of["global"])
            overrides.setdefault("global_concept_override", []).append(override)
        if numbers_of["spatial"]:
            override = spatial_override(
                placed["spatial"], numbers_of["spatial"], height * width, explanation.image, processor
            )
            overrides.setdefault("spatial_concept_override", []).append(override)
    stacked = {name: torch.from_numpy(np.stack(values)) for name, values in overrides.items()}
    return {name: values for name, values in stacked.items() if not values.isnan().all()}


@overload
def intervene(  # type: ignore[overload-overlap]
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    images: ImageInput,
    corrections: Mapping[Concept, Correction],
    class_ids: ClassIds = None,
    batch_size: int = 8,
    groups: Groups = None,
) -> CorrectedExplanation: ...


@overload
def intervene(
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    images: Iterable[ImageInput],
    corrections: Mapping[Concept, Correction] | Iterable[Mapping[Concept, Correction]],
    class_ids: ClassIds = None,
    batch_size: int = 8,
    groups: Groups = None,
) -> list[CorrectedExplanation]: ...


def intervene(
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    images: ImageInput | Iterable[ImageInput],
    corrections: Mapping[Concept, Correction] | Iterable[Mapping[Concept, Correction]],
    class_ids: ClassIds = None,
    batch_size: int = 8,
    groups: Groups = None,
) -> CorrectedExplanation | list[CorrectedExplanation]:
    r"""
    Sets concepts by hand, and explains images without and with these corrections.

    The attention of every head is overridden. Where k concepts of an image (global) or of a patch (spatial) are
    present, each gets 1 / k, so that nothing is left for the concepts that are not named. An absent one gets 0, and
    the others share what is left as the model would share it. A sum above 1 is divided out.

    Args:
        model (`torch.nn.Module`): An `AscentViTForImageClassification`, also one loaded as remote code.
        processor (`AscentViTImageProcessor`): The model's image processor.
        images (`PIL.Image.Image`, path, URL, `np.ndarray` or `torch.Tensor`, or an iterable of them):
            Images to explain, as in [`explain`].
        corrections (`dict`, or an iterable with one per image):
            For the name of a concept, or `(stream, name)` where two streams have the name, one of

            - `"present"`: of a spatial concept, at every patch.
            - `"absent"`: of a spatial concept, at every patch.
            - an attention of 0 or more: of a spatial concept, at every patch.
            - a region in the original image's pixels, for spatial concepts: present there, and left to the model
              elsewhere. `{"bbox": [x, y, width, height]}`, `{"xy": [x, y]}`, each also a list of several, or
              `{"mask": mask}`, an image or array (H, W) that is not 0 there. The image processor says which patches
              that is, as for the targets of training.
        class_ids (`int` or `str`, or an iterable with one per image, *optional*):
            Class to explain in both explanations, by index or by name; by default the one that is predicted in each.
        batch_size (`int`, *optional*, defaults to 8): Number of images to run at a time.
        groups (`dict[str, list[str]]` or `"prefix"`, *optional*):
            Concepts that exclude each other, by the group's name, or `"prefix"` for those whose names begin alike
            before "::", as in "has_bill_shape::dagger". Where one of a group is set to be in the image or in a region
            of it, the others of its stream that are not given are absent everywhere.

    Returns:
        [`CorrectedExplanation`], or a list of them if `images` is an iterable.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a concept or a class that the model does not have, a correction that is none of these, a region
            outside the image, or what [`explain`] refuses.

    Example:

    ```python
    >>> result = intervene(model, processor, "bird.jpg", {"beak": {"bbox": [40, 20, 30, 12]}, "striped": "absent"})
    >>> result.before.predicted_label, result.after.predicted_label
    ('House Wren', 'Winter Wren')
    ```
    """
    explainer = Explainer(model, processor)
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more; got {batch_size}.")
    single = is_single(images)
    inputs: list[Any] = [images] if single else list(images)  # type: ignore[arg-type,list-item]
    given = [corrections] * len(inputs) if isinstance(corrections, Mapping) else list(corrections)
    if len(given) != len(inputs):
        raise ValueError(
            f"corrections must be one dict, or one for each of the {len(inputs)} images; got {len(given)}."
        )
    placed = [
        set_groups(concept_places(one, explainer.concept_names), explainer.concept_names, groups)  # type: ignore[arg-type]
        for one in given
    ]
    pairs = list(pair_with_classes(inputs, class_ids, explainer.labels))
    results: list[CorrectedExplanation] = []
    for start in range(0, len(pairs), batch_size):
        batch = slice(start, start + batch_size)
        pictures = [read_input(image, processor) for image, _ in pairs[batch]]
        classes = [class_id for _, class_id in pairs[batch]]
        before = explainer.run(pictures, classes)
        after = explainer.run(pictures, classes, **make_overrides(placed[batch], before, processor))
        results += map(CorrectedExplanation, before, after, given[batch])  # type: ignore[arg-type]
    return results[0] if single else results


__all__ = ["CorrectedExplanation", "intervene"]

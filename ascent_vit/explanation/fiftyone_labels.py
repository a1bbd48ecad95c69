# SPDX-License-Identifier: Apache-2.0
"""An explanation as labels of FiftyOne: a classification, its concepts, a heatmap of each, and the truth."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np


if TYPE_CHECKING:
    from .decomposition import Decomposition

# Most rows and columns of a heatmap that has to be drawn in the image, as its patches do not cover it.
HEATMAP_SIZE = 256


def field_names(prefix: str, concepts: Sequence[str]) -> list[str]:
    """Names of sample fields, which FiftyOne takes without dots: "contribution_bill_red" for "bill: red"."""
    slugs = [re.sub(r"\W+", "_", name).strip("_").lower() for name in concepts]
    return [
        f"{prefix}_{slug}" if slug and slugs.count(slug) == 1 else f"{prefix}_{slug}_{index}".replace("__", "_")
        for index, slug in enumerate(slugs)
    ]


def on_image(explanation: "Decomposition", maps: np.ndarray) -> np.ndarray:
    """Maps `(S, h, w)` over the whole image: of the patches where these cover it, else at points of the image."""
    width, height = explanation.image.size
    axes = explanation.processor.patch_axes((height, width))
    grid = maps.shape[1:]
    if all(
        axis.crop_start == 0 and axis.resized == axis.cropped == count * axis.patch
        for axis, count in zip(axes, grid, strict=True)
    ):
        return maps
    samples = []
    for axis, count in zip(axes, grid, strict=True):
        number = min(axis.original, HEATMAP_SIZE)
        pixels = ((np.arange(number) + 0.5) * axis.original / number).astype(int)
        samples.append(axis.interpolation(count)[pixels])
    return (samples[0] @ maps @ samples[1].T).astype(np.float32)


def truth_labels(fo: Any, explanation: "Decomposition", row: Mapping[str, Any]) -> dict[str, Any]:
    """Labels of a row of a concept dataset: its classes or value, boxes and points, in shares of the image's sides."""
    concepts, size = explanation.concept_names["spatial"], np.array(explanation.image.size, dtype=np.float64)

    def name(value: int | str, names: Sequence[str]) -> str:
        return value if isinstance(value, str) else names[value]

    labels: dict[str, Any] = {}
    truth = row.get("label")
    if explanation.is_regression and truth is not None:
        labels["truth"] = fo.Regression(value=float(np.ravel(truth)[0]))
    elif isinstance(truth, list):
        classes = [fo.Classification(label=name(item, explanation.labels)) for item in truth]
        labels["truth"] = fo.Classifications(classifications=classes)
    elif truth is not None:
        labels["truth"] = fo.Classification(label=name(truth, explanation.labels))
    objects, points = row.get("objects"), row.get("points")
    if objects is not None:
        boxes = []
        for (x, y, w, h), category in zip(objects["bbox"], objects["category"], strict=True):
            start, stop = (np.clip(corner / size, 0, 1) for corner in (np.array([x, y]), np.array([x + w, y + h])))
            box = [*start.tolist(), *(stop - start).tolist()]
            boxes.append(fo.Detection(label=name(category, concepts), bounding_box=box))
        labels["truth_objects"] = fo.Detections(detections=boxes)
    if points is not None:
        places = zip(points["xy"], points["category"], strict=True)
        keypoints = [
            fo.Keypoint(label=name(category, concepts), points=[tuple((np.array(xy) / size).tolist())])
            for xy, category in places
        ]
        labels["truth_points"] = fo.Keypoints(keypoints=keypoints)
    return labels


def to_fiftyone(
    explanation: "Decomposition",
    maps: Literal["contribution", "attention"] = "contribution",
    row: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Turns an explanation into FiftyOne labels by field, see [`~ascent_vit.explanation.Explanation.to_fiftyone`]."""
    if maps not in ("contribution", "attention"):
        raise ValueError(f"maps must be contribution or attention; got {maps!r}.")
    try:
        import fiftyone as fo
    except ModuleNotFoundError as error:
        raise ImportError("to_fiftyone needs FiftyOne, which is not installed: pip install fiftyone.") from error
    facts = {
        "logits": explanation.logits,
        "logit": explanation.logit,
        "class_bias": explanation.class_bias,
        "question": explanation.question,
    }
    labels: dict[str, Any] = {
        "prediction": fo.Regression(value=explanation.score, **facts)
        if explanation.is_regression
        else fo.Classification(label=explanation.label, confidence=explanation.score, **facts)
    }
    concepts = [
        fo.Classification(
            label=concept.name,
            contribution=concept.contribution,
            attention=concept.attention,
            stream=concept.stream,
            index=concept.index,
        )
        for concept in explanation.concepts
    ]
    labels["concepts"] = fo.Classifications(classifications=concepts)
    values = explanation.patch_contributions if maps == "contribution" else explanation.patch_attention
    most = float(np.abs(values).max(initial=0))
    value_range = [-most, most] if maps == "contribution" else [0.0, 1.0]
    names = field_names(maps, explanation.concept_names["spatial"])
    for name, values_of_one in zip(names, on_image(explanation, values), strict=True):
        labels[name] = fo.Heatmap(map=values_of_one, range=value_range)
    return labels | ({} if row is None else truth_labels(fo, explanation, row))


__all__ = ["to_fiftyone"]

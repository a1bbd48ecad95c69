# SPDX-License-Identifier: Apache-2.0
"""A pipeline task of transformers, `pipeline("concept-image-classification")`."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForImageClassification
from transformers.pipelines import PIPELINE_REGISTRY, Pipeline

from ascent_vit.inference.mode import size_options

from .decomposition import ConceptContribution
from .explain import Explainer
from .explanation import Explanation
from .inputs import picture_of, read_input
from .names import class_index, class_names


if TYPE_CHECKING:
    from ascent_vit.inference import ConceptClassifier, ConceptImageProcessor

TASK = "concept-image-classification"


class ConceptImageClassificationPipeline(Pipeline):
    """
    Classifies images, and says for each class which concepts added what to its logit, and where.

    Images are PIL images, paths, URLs or arrays, as in [`~ascent_vit.explain`]: one, a list, a generator or a dataset
    (`transformers.pipelines.pt_utils.KeyDataset(dataset, "image")`). One image gives a list of dicts, one per class,
    the most probable first; several give such a list each.

    Every dict has `label`, `score` (as transformers' own pipeline has it: a probability, or the
    value of a regression), `logit`, `class_bias` and `concepts`, a list of dicts with `name`,
    `stream`, `attention` and `contribution`, the largest contribution first. Contributions of all concepts and the
    bias sum to the logit. With maps, spatial concepts have `attention_map` and `contribution_map` too, arrays (H, W)
    in the original image's pixels, float32.

    Args:
        top_k (`int`, *optional*, defaults to 5): Number of classes to return; None for all.
        top_concepts (`int`, *optional*, defaults to 5):
            Number of concepts to return per class, those of the largest contribution of either sign; None for all.
        class_id (`int` or `str`, *optional*): Index or name of the one class to return, instead of the most probable.
        maps (`bool`, *optional*, defaults to `False`): Whether to return the maps of the spatial concepts among these.

    Example:

    ```python
    >>> import ascent_vit
    >>> from transformers import pipeline
    >>> classifier = pipeline("concept-image-classification", model="USER/NAME")
    >>> best = classifier("bird.jpg", top_k=1)[0]
    >>> best["label"], best["concepts"][0]["name"]
    ('Painted Bunting', 'has_belly_color::red')
    ```
    """

    # transformers types these as None.
    _load_processor: Any = False
    _load_image_processor: Any = True
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False
    image_processor: "ConceptImageProcessor"  # type: ignore[assignment]
    model: "ConceptClassifier"  # type: ignore[assignment]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Another kind of model is refused here, and not at the first image.
        Explainer(self.model, self.image_processor)

    def _sanitize_parameters(self, **kwargs) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = ("top_k", "top_concepts", "class_id", "maps")
        unknown = [name for name in kwargs if name not in known]
        if unknown:
            raise ValueError(f"{TASK} takes {', '.join(known)}; got {', '.join(unknown)}.")
        for name in ("top_k", "top_concepts"):
            if kwargs.get(name) is not None and kwargs[name] < 1:
                raise ValueError(f"{name} must be 1 or more, or None for all; got {kwargs[name]}.")
        if kwargs.get("class_id") is not None:
            kwargs["class_id"] = class_index(kwargs["class_id"], class_names(self.model.config))
        return {}, {}, kwargs

    def __call__(self, inputs: Any, **kwargs):  # type: ignore[override]
        # transformers would raise an IndexError: it looks at the first input of a list.
        return [] if isinstance(inputs, list | tuple) and not inputs else super().__call__(inputs, **kwargs)

    def preprocess(self, image: Any) -> dict[str, Any]:  # type: ignore[override]
        read = read_input(image, self.image_processor)
        pixel_values = self.image_processor(read, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixel_values.to(self.dtype), "images": [picture_of(read)]}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        # Made for each batch, as it holds tables of parameters, which may have changed since the last one.
        self.explainer = Explainer(self.model, self.image_processor)
        options = self.explainer.arguments() | size_options(self.model.config, inputs["pixel_values"])
        outputs = self.model(inputs["pixel_values"], return_dict=True, **options)
        tensors = {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
        return {**tensors, "images": inputs["images"]}

    def postprocess(  # type: ignore[override]
        self,
        outputs: dict[str, Any],
        top_k: int | None = 5,
        top_concepts: int | None = 5,
        class_id: int | None = None,
        maps: bool = False,
    ) -> list[dict[str, Any]]:
        (explanation,) = self.explainer.read(outputs, outputs["images"], [class_id])
        if class_id is not None:
            return [describe(explanation, top_concepts, maps)]
        classes = np.argsort(-explanation.logits, kind="stable")[:top_k].tolist()
        return [describe(explanation.for_class(label_id), top_concepts, maps) for label_id in classes]


def describe(explanation: Explanation, top_concepts: int | None, maps: bool) -> dict[str, Any]:
    """One class of one image as the pipeline returns it."""
    number = len(explanation.concepts) if top_concepts is None else top_concepts
    concepts = explanation.top(number)
    described = [describe_concept(concept) for concept in concepts]
    if maps:
        places = [i for i, concept in enumerate(concepts) if concept.stream == "spatial"]
        indices = [concepts[i].index for i in places]
        for name in ("attention", "contribution"):
            patch_maps = explanation.patch_attention if name == "attention" else explanation.patch_contributions
            for i, drawn in zip(places, explanation.resize(patch_maps[indices]), strict=True):
                described[i][f"{name}_map"] = drawn
    return {
        "label": explanation.label,
        "score": explanation.score,
        "logit": explanation.logit,
        "class_bias": explanation.class_bias,
        "concepts": described,
    }


def describe_concept(concept: ConceptContribution) -> dict[str, Any]:
    return {name: getattr(concept, name) for name in ("name", "stream", "attention", "contribution")}


def register() -> None:
    """Registers the task with `transformers.pipeline`, once."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK, ConceptImageClassificationPipeline, pt_model=AutoModelForImageClassification, type="image"
        )


__all__ = ["TASK", "ConceptImageClassificationPipeline", "register"]

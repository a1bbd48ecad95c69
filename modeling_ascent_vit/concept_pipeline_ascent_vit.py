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
"""A pipeline task of transformers, `pipeline("concept-image-classification")`, also where only a model's folder is."""

from typing import Any

import torch
from transformers import Pipeline

from .class_scores_ascent_vit import class_scores, score_function
from .image_reading_ascent_vit import read_input
from .names_ascent_vit import STREAMS, class_index, class_names, concept_names


TASK = "concept-image-classification"


def check_model_and_processor(model: object, processor: object) -> None:
    """Raises one `ValueError` for a model or an image processor that is not a concept classifier's."""
    needed = {"contribution_maps": (model, "model"), "resize_concept_maps": (processor, "processor")}
    for attribute, (thing, name) in needed.items():
        if not hasattr(thing, attribute):
            raise ValueError(
                f"{name} must be an ASCENT-ViT {name}, which has {attribute}; got {type(thing).__name__}. "
                "Load it with AutoModelForImageClassification and AutoImageProcessor after importing ascent_vit."
            )


class ConceptImageClassificationPipeline(Pipeline):
    """
    Classifies images, and says for each class which concepts added what to its logit, and where.

    Images are PIL images, paths, URLs or arrays: one, a list, a generator or a dataset
    (`transformers.pipelines.pt_utils.KeyDataset(dataset, "image")`). One image gives a list of dicts, one per class,
    the most probable first; several give such a list each.

    Every dict has `label`, `score` (as transformers' own pipeline has it: a probability, or the value of a regression),
    `logit`, `class_bias` and `concepts`, a list of dicts with `name`, `stream`, `attention` and `contribution`, the largest
    contribution first. Contributions of all concepts and the bias sum to the logit. With maps, spatial concepts have
    `attention_map` and `contribution_map` too, arrays (H, W) in the original image's pixels, float32.

    Args:
        top_k (`int`, *optional*, defaults to 5): Number of classes to return; None for all.
        top_concepts (`int`, *optional*, defaults to 5):
            Number of concepts to return per class, those of the largest contribution of either sign; None for all.
        class_id (`int` or `str`, *optional*): Index or name of the one class to return, instead of the most probable.
        maps (`bool`, *optional*, defaults to `False`): Whether to return the maps of the spatial concepts among these.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> classifier = pipeline("concept-image-classification", model="USER/NAME", trust_remote_code=True)
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
    image_processor: Any
    model: Any

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Another kind of model is refused here, and not at the first image.
        check_model_and_processor(self.model, self.image_processor)
        config = self.model.config
        self.labels = class_names(config)
        names = concept_names(config)
        self.concepts = [(name, stream, i) for stream in STREAMS for i, name in enumerate(names[stream])]

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
        # Of an array, the last two axes are height and width.
        size = tuple(read.shape[-2:]) if hasattr(read, "shape") else (read.height, read.width)
        return {"pixel_values": pixel_values.to(self.dtype), "sizes": [size]}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        pixel_values, own_size = inputs["pixel_values"], getattr(self.model.config, "image_size", None)
        options = {"output_contributions": True, "output_concept_heads": True, "return_dict": True}
        if own_size is not None and tuple(pixel_values.shape[2:]) != tuple(own_size):
            options["interpolate_pos_encoding"] = True
        outputs = self.model(pixel_values, **options)
        tensors = {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
        return {**tensors, "sizes": inputs["sizes"]}

    @torch.no_grad()
    def postprocess(  # type: ignore[override]
        self,
        outputs: dict[str, Any],
        top_k: int | None = 5,
        top_concepts: int | None = 5,
        class_id: int | None = None,
        maps: bool = False,
    ) -> list[dict[str, Any]]:
        logits = outputs["logits"][0].float()
        if not logits.isfinite().all():
            raise ValueError("The model gives scores that are not finite: its weights or the pixels are damaged.")
        scores = class_scores(logits, score_function(self.model.config))
        biases = self.model.class_bias().float()
        attention = concept_attention(outputs).tolist()
        ranked = (-logits).argsort(stable=True)[:top_k].tolist()
        answer = []
        for k in ranked if class_id is None else [class_id]:
            added = outputs["concept_contributions"][0, :, k].float().tolist()
            chosen = top_contributions(added, top_concepts)
            described = [
                {"name": name, "stream": stream, "attention": attention[i], "contribution": added[i]}
                for i, (name, stream, _) in ((i, self.concepts[i]) for i in chosen)
            ]
            if maps:
                self.add_maps(described, [self.concepts[i][2] for i in chosen], outputs, k)
            values = {"score": scores[k], "logit": logits[k], "class_bias": biases[k]}
            numbers = {name: value.item() for name, value in values.items()}
            answer.append({"label": self.labels[k], **numbers, "concepts": described})
        return answer

    def add_maps(self, described: list[dict[str, Any]], indices: list[int], outputs: dict[str, Any], k: int) -> None:
        """Gives the spatial concepts among those described their maps for class k, in the original image's pixels."""
        places = [i for i, concept in enumerate(described) if concept["stream"] == "spatial"]
        if not places:
            return
        chosen = [indices[i] for i in places]
        heads = outputs["spatial_concept_attention_heads"][0, :, :, chosen].float()  # (A, N, chosen)
        table = self.model.streams()["spatial"].contribution_table()[:, chosen, k].to(heads)
        patches = {
            "attention_map": heads.mean(0).T,
            "contribution_map": torch.einsum("ans,as->sn", heads, table) / num_voices(outputs),
        }
        for name, values in patches.items():
            drawn = values.unflatten(-1, outputs["patch_grid"][0].tolist())
            resized = self.image_processor.resize_concept_maps(drawn, outputs["sizes"][0]).cpu().numpy()
            for i, concept_map in zip(places, resized, strict=True):
                described[i][name] = concept_map


def num_voices(outputs: dict[str, Any]) -> torch.Tensor:
    """How many patches have a voice in the class scores: what they attend to any concept, 1 at most each, 1 at least."""
    attention = outputs["spatial_concept_attention"][0].float()
    return attention.sum(-1).clamp_max(1.0).sum().clamp_min(1.0)


def concept_attention(outputs: dict[str, Any]) -> torch.Tensor:
    """Attention of an image to each concept, to a spatial one the mean over the patches with a voice: `(concepts,)`."""
    attention = {stream: outputs.get(f"{stream}_concept_attention") for stream in STREAMS}
    known = {stream: values[0].float() for stream, values in attention.items() if values is not None}
    if "spatial" in known:
        known["spatial"] = known["spatial"].sum(0) / num_voices(outputs)
    return torch.cat(list(known.values()))


def top_contributions(added: list[float], number: int | None) -> list[int]:
    """Indices of the `number` contributions of largest size, or of all: the largest first, the most negative last."""
    largest_first = sorted(range(len(added)), key=lambda i: -added[i])
    chosen = sorted(largest_first, key=lambda i: -abs(added[i]))[:number]
    return sorted(chosen, key=lambda i: -added[i])


__all__ = ["TASK", "ConceptImageClassificationPipeline", "check_model_and_processor"]

# SPDX-License-Identifier: Apache-2.0
"""Tells one model from another, and one image processor: what is stored beside results that belong to them."""

import dataclasses
import hashlib
import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch


if TYPE_CHECKING:
    from .protocols import ConceptClassifier, ConceptImageProcessor

# A tensor of more values is known by so many of them, spread evenly: training changes all of them.
MOST_VALUES = 1 << 14

# Settings of an image processor that change the pixels.
SETTINGS = (
    *("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_pad", "do_rescale"),
    *("rescale_factor", "do_normalize", "image_mean", "image_std", "window", "patch_size"),
)


def model_digest(model: "ConceptClassifier") -> str:
    """
    SHA-256 of what a model says: its weights, of which those of more than 16,384 values by as many, spread evenly; the
    names of its classes and concepts; its edits. The same on every device, and of the same weights as remote code.
    """
    config = model.config
    names = [config.id2label, config.global_concepts, config.spatial_concepts, getattr(config, "concept_edits", None)]
    digest = hashlib.sha256(json.dumps(names, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        # What quantisation packs is no tensor; offloaded weights are not here.
        if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
            values = tensor.detach().flatten()
            step = -(-values.numel() // MOST_VALUES) or 1
            digest.update(f"{name.removeprefix('_orig_mod.')} {tuple(tensor.shape)}".encode())
            digest.update(values[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def processor_settings(processor: "ConceptImageProcessor") -> dict[str, Any]:
    """The settings of an image processor that change the pixels, as JSON has them; the same of both backends."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items() if item is not None}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value if value is None or isinstance(value, str | bool | float) else int(value)

    values = {name: plain(getattr(processor, name, None)) for name in SETTINGS}
    return {name: value for name, value in values.items() if value not in (None, False)}


class ModelIdentity:
    """
    The digest of a model, computed when it is first asked for or pickled. Until then the model must not change.

    Args:
        model (`torch.nn.Module`): An `AscentViTForImageClassification`, also one loaded as remote code.
    """

    def __init__(self, model: "ConceptClassifier"):
        self._model = model

    @cached_property
    def digest(self) -> str:
        """As [`model_digest`]."""
        return model_digest(self._model)

    def __getstate__(self) -> dict[str, Any]:
        # Another process gets no model with a result of it.
        return {"digest": self.digest}


__all__ = ["ModelIdentity", "model_digest", "processor_settings"]

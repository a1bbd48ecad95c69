# SPDX-License-Identifier: Apache-2.0
"""What a guard belongs to: the very weights, names and image settings that it was calibrated with."""

import hashlib
from typing import TYPE_CHECKING, Any

from modeling_ascent_vit.names_ascent_vit import class_names, concept_names


if TYPE_CHECKING:
    from ascent_vit.inference.protocols import ConceptClassifier, ConceptImageProcessor

SIZES = ("size", "crop_size")
SETTINGS = ("resample", "do_resize", "do_center_crop", "do_pad", "do_rescale", "do_normalize", "rescale_factor")
VALUES = ("image_mean", "image_std")


def weights_digest(model: "ConceptClassifier") -> str:
    """SHA-256 of all weights by name, in hexadecimal; the same on every device, another one in another dtype."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        digest.update(f"{name} {tuple(values.shape)}".encode())
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()


def image_facts(processor: "ConceptImageProcessor") -> dict[str, Any]:
    """Settings of an image processor that change the pixels, as plain values."""
    facts: dict[str, Any] = {}
    for name in SIZES:
        size = getattr(processor, name, None)
        facts[name] = None if size is None else {k: int(v) for k, v in dict(size).items() if v is not None}
    for name in SETTINGS:
        value = getattr(processor, name, None)
        facts[name] = float(value) if isinstance(value, float) else None if value is None else int(value)
    for name in VALUES:
        value = getattr(processor, name, None)
        facts[name] = None if value is None else [float(number) for number in value]
    return facts


def binding(model: "ConceptClassifier", processor: "ConceptImageProcessor") -> dict[str, Any]:
    """What a guard of this model keeps, to be told from other models by."""
    names = concept_names(model.config)
    return {
        "classes": class_names(model.config),
        "concepts": {stream: names[stream] for stream in ("global", "spatial")},
        "weights": weights_digest(model),
        "image": image_facts(processor),
    }


def check_binding(facts: dict[str, Any], model: "ConceptClassifier", processor: "ConceptImageProcessor") -> None:
    """Raises ValueError where a guard was calibrated with another model or image processor, saying what differs."""
    now = binding(model, processor)
    reasons = {
        "classes": "its classes, or their order, are others",
        "concepts": "its concepts, or their order, are others",
        "weights": "its weights are others, or in another dtype",
    }
    differing = [reason for name, reason in reasons.items() if facts.get(name) != now[name]]
    known = facts.get("image", {})
    others = [name for name, value in now["image"].items() if known.get(name) != value]
    differing += [f"the image processor's {name} is another" for name in others]
    if differing:
        raise ValueError(
            f"This guard was calibrated for another model: {differing[0]}. Fit a guard for this model, by "
            "Safeguard.fit or ascent-vit guard."
        )


__all__ = ["binding", "check_binding", "image_facts", "weights_digest"]

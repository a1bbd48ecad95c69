# SPDX-License-Identifier: Apache-2.0
"""What a guard belongs to: the very weights, names and image settings that it was calibrated with."""

from typing import TYPE_CHECKING, Any

from ascent_vit.inference.identity import model_digest, processor_settings
from modeling_ascent_vit.names_ascent_vit import class_names, concept_names


if TYPE_CHECKING:
    from ascent_vit.inference.protocols import ConceptClassifier, ConceptImageProcessor


def binding(model: "ConceptClassifier", processor: "ConceptImageProcessor") -> dict[str, Any]:
    """What a guard of this model keeps, to be told from other models by."""
    names = concept_names(model.config)
    return {
        "classes": class_names(model.config),
        "concepts": {stream: names[stream] for stream in ("global", "spatial")},
        "weights": model_digest(model),
        "image": processor_settings(processor),
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
    known, settings = facts.get("image", {}), now["image"]
    others = [name for name in known | settings if known.get(name) != settings.get(name)]
    differing += [f"the image processor's {name} is another" for name in others]
    if differing:
        raise ValueError(
            f"This guard was calibrated for another model: {differing[0]}. Fit a guard for this model, by "
            "Safeguard.fit or ascent-vit guard."
        )


__all__ = ["binding", "check_binding"]

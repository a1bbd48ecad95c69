# SPDX-License-Identifier: Apache-2.0
"""
ASCENT-ViT: Vision Transformers that explain themselves in human concepts.

Importing the package registers the model with transformers' Auto classes and pipelines, among them the task
"concept-image-classification". What needs more than the model (figures, training, datasets) is imported when it is
first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from modeling_ascent_vit import (
    AscentViTConfig,
    AscentViTForImageClassification,
    AscentViTImageProcessor,
    AscentViTImageProcessorPil,
    AscentViTModel,
)

from .explanation import Explanation, explain, intervene
from .inference import optimize_for_inference


if TYPE_CHECKING:
    from .cases import ConceptIndex
    from .explanation.edit import edit
    from .safeguard import Safeguard
    from .summary import summarize

__version__ = "0.1.0"

# Public names that need more than the model, and the module of each; imported when first used.
_LAZY = {"ConceptIndex": ".cases", "Safeguard": ".safeguard", "edit": ".explanation.edit", "summarize": ".summary"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)


__all__ = [
    "AscentViTConfig",
    "AscentViTForImageClassification",
    "AscentViTImageProcessor",
    "AscentViTImageProcessorPil",
    "AscentViTModel",
    "ConceptIndex",
    "Explanation",
    "Safeguard",
    "edit",
    "explain",
    "intervene",
    "optimize_for_inference",
    "summarize",
]

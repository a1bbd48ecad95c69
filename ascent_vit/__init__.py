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
    from .safeguard import Safeguard

__version__ = "0.1.0"

# Public names that need more than the model, and the module of each; imported when first used.
_LAZY = {"Safeguard": ".safeguard"}


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
    "Explanation",
    "Safeguard",
    "explain",
    "intervene",
    "optimize_for_inference",
]

# SPDX-License-Identifier: Apache-2.0
"""
ASCENT-ViT: Vision Transformers that explain themselves in human concepts.

Importing the package registers the model with transformers' Auto classes and pipelines. What needs more than the model
(explanations, training, datasets) is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from modeling_ascent_vit import (
    AscentViTConfig,
    AscentViTForImageClassification,
    AscentViTImageProcessor,
    AscentViTImageProcessorPil,
    AscentViTModel,
)


if TYPE_CHECKING:
    from .explanation import Explanation, explain

__version__ = "0.1.0"

_LAZY = {"Explanation": "explanation", "explain": "explanation"}

__all__ = [
    "AscentViTConfig",
    "AscentViTForImageClassification",
    "AscentViTImageProcessor",
    "AscentViTImageProcessorPil",
    "AscentViTModel",
    "Explanation",
    "explain",
]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

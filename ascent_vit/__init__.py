# SPDX-License-Identifier: Apache-2.0
"""
ASCENT-ViT: Vision Transformers that explain themselves in human concepts.

Importing the package registers the model with transformers' Auto classes and pipelines, among them the task
"concept-image-classification". What needs more than the model (figures, training, datasets) is imported when it is
first used.
"""

from modeling_ascent_vit import (
    AscentViTConfig,
    AscentViTForImageClassification,
    AscentViTImageProcessor,
    AscentViTImageProcessorPil,
    AscentViTModel,
)

from .explanation import Explanation, explain, intervene
from .inference import optimize_for_inference


__version__ = "0.1.0"

__all__ = [
    "AscentViTConfig",
    "AscentViTForImageClassification",
    "AscentViTImageProcessor",
    "AscentViTImageProcessorPil",
    "AscentViTModel",
    "Explanation",
    "explain",
    "intervene",
    "optimize_for_inference",
]

# SPDX-License-Identifier: Apache-2.0
"""Models ready to answer: loaded whole or rejected, optimised, in evaluation mode."""

from .identity import ModelIdentity
from .load import load_model, load_processor, load_whole
from .mode import evaluation_mode
from .optimize import optimize_for_inference
from .protocols import ConceptClassifier, ConceptImageProcessor


__all__ = [
    "ConceptClassifier",
    "ConceptImageProcessor",
    "ModelIdentity",
    "evaluation_mode",
    "load_model",
    "load_processor",
    "load_whole",
    "optimize_for_inference",
]

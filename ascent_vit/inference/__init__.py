# SPDX-License-Identifier: Apache-2.0
"""Models ready to answer: loaded whole or refused, optimised, in evaluation mode."""

from .load import load_model, load_processor, load_whole
from .mode import evaluation_mode
from .optimize import optimize_for_inference
from .protocols import ConceptClassifier, ConceptImageProcessor


__all__ = [
    "ConceptClassifier",
    "ConceptImageProcessor",
    "evaluation_mode",
    "load_model",
    "load_processor",
    "load_whole",
    "optimize_for_inference",
]

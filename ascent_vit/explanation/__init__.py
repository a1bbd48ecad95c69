# SPDX-License-Identifier: Apache-2.0
"""Why the model says what it says: signed contributions of concepts, and where they were seen."""

from .decomposition import ConceptContribution, Decomposition
from .edit import edit
from .explain import explain
from .explanation import Contrast, Explanation
from .fusion import FusionMaps
from .intervene import CorrectedExplanation, intervene
from .render.table import ExplanationTable
from .tensors import LogitsModel, reshape_transform


__all__ = [
    "ConceptContribution",
    "Contrast",
    "CorrectedExplanation",
    "Decomposition",
    "Explanation",
    "ExplanationTable",
    "FusionMaps",
    "LogitsModel",
    "edit",
    "explain",
    "intervene",
    "reshape_transform",
]

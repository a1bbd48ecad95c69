# SPDX-License-Identifier: Apache-2.0
"""Why the model says what it says: signed contributions of concepts, and where they were seen."""

from .explain import explain
from .explanation import ConceptContribution, Contrast, Explanation
from .fusion import FusionMaps
from .intervention import Intervention, intervene
from .render.table import ExplanationTable


__all__ = [
    "ConceptContribution",
    "Contrast",
    "Explanation",
    "ExplanationTable",
    "FusionMaps",
    "Intervention",
    "explain",
    "intervene",
]

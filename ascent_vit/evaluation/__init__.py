# SPDX-License-Identifier: Apache-2.0
"""How well a concept classifier classifies, and how well its concepts say why."""

from .evaluate import evaluate
from .metrics import (
    AlignmentError,
    ClassMetrics,
    ConceptAUROC,
    ConceptMAP,
    GlobalConceptAccuracy,
    GlobalConceptMetrics,
    PixelTPR,
    PointingGame,
    RelevanceMass,
    SpatialConceptMetrics,
)


__all__ = [
    "AlignmentError",
    "ClassMetrics",
    "ConceptAUROC",
    "ConceptMAP",
    "GlobalConceptAccuracy",
    "GlobalConceptMetrics",
    "PixelTPR",
    "PointingGame",
    "RelevanceMass",
    "SpatialConceptMetrics",
    "evaluate",
]

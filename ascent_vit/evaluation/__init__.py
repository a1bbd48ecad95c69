# SPDX-License-Identifier: Apache-2.0
"""How well a concept classifier classifies, and how well its concepts say why."""

from ascent_vit.utils.metrics import METRICS

from .causal import CausalEffect
from .compare import compare_dataset
from .concept_scores import ConceptScores
from .dataset import Settings, evaluate_dataset
from .evaluate import evaluate
from .faithfulness import Faithfulness
from .intervention import Intervention
from .leakage import PermutedTargets, ShortTraining, leakage
from .metrics import (
    AlignmentError,
    ClassMetrics,
    ConceptAUROC,
    ConceptMAP,
    GlobalConceptAccuracy,
    GlobalConceptMetrics,
    MultiLabelMetrics,
    PixelTPR,
    PointingGame,
    PresenceMetrics,
    RegressionMetrics,
    RelevanceMass,
    SpatialConceptMetrics,
    label_metrics,
)
from .probe import NotApplicableError
from .robustness import Robustness
from .sanity import Randomisation
from .sparsity import accuracy_at_nec


__all__ = [
    "AlignmentError",
    "CausalEffect",
    "ClassMetrics",
    "ConceptAUROC",
    "ConceptMAP",
    "ConceptScores",
    "Faithfulness",
    "GlobalConceptAccuracy",
    "GlobalConceptMetrics",
    "Intervention",
    "METRICS",
    "MultiLabelMetrics",
    "NotApplicableError",
    "PermutedTargets",
    "PixelTPR",
    "PointingGame",
    "PresenceMetrics",
    "Randomisation",
    "RegressionMetrics",
    "RelevanceMass",
    "Robustness",
    "Settings",
    "ShortTraining",
    "SpatialConceptMetrics",
    "accuracy_at_nec",
    "compare_dataset",
    "evaluate",
    "evaluate_dataset",
    "label_metrics",
    "leakage",
]

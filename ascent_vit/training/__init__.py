# SPDX-License-Identifier: Apache-2.0
"""Training by recipe: a YAML file says what to train and on what, and one loop does it."""

from .errors import TrainingError
from .features import cache_features
from .reading import load_recipe
from .recipe import Recipe
from .result import TrainingResult
from .train import train
from .trainer import ConceptMetrics


__all__ = ["ConceptMetrics", "Recipe", "TrainingError", "TrainingResult", "cache_features", "load_recipe", "train"]

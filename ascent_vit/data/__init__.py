# SPDX-License-Identifier: Apache-2.0
"""Concept datasets: images with a class, and with the concepts that annotators saw in them."""

from .annotate import Annotations, DetectedConcept, annotate_dataset, read_concepts
from .augmentation import (
    Augmentation,
    AugmentedConceptDataset,
    ConceptAugmenter,
    EpochSampler,
)
from .batches import CachedConceptDataset, ConceptCollator, cached_bytes
from .card import dataset_card, write_dataset
from .checks import CheckReport, check_concepts, check_dataset, check_once, validate_dataset
from .digits import load_digits_dataset
from .loading import load_concept_dataset
from .prepared import PreparedDataset
from .schema import annotation_from_row, concept_features, concepts_from_features


__all__ = [
    "Annotations",
    "DetectedConcept",
    "annotate_dataset",
    "read_concepts",
    "Augmentation",
    "AugmentedConceptDataset",
    "ConceptAugmenter",
    "EpochSampler",
    "dataset_card",
    "write_dataset",
    "load_digits_dataset",
    "CachedConceptDataset",
    "ConceptCollator",
    "annotation_from_row",
    "cached_bytes",
    "check_concepts",
    "CheckReport",
    "check_dataset",
    "check_once",
    "concepts_from_features",
    "load_concept_dataset",
    "PreparedDataset",
    "concept_features",
    "validate_dataset",
]

# SPDX-License-Identifier: Apache-2.0
"""Concept datasets: images with a class, and with the concepts that annotators saw in them."""

from .augmentation import (
    Augmentation,
    AugmentedConceptDataset,
    AugmentedConceptStream,
    ConceptAugmenter,
    EpochSampler,
)
from .digits import load_digits_dataset
from .loading import (
    CachedConceptDataset,
    ConceptCollator,
    annotation_from_row,
    cached_bytes,
    check_concepts,
    concepts_from_features,
    load_concept_dataset,
)


__all__ = [
    "Augmentation",
    "AugmentedConceptDataset",
    "AugmentedConceptStream",
    "ConceptAugmenter",
    "EpochSampler",
    "CachedConceptDataset",
    "ConceptCollator",
    "annotation_from_row",
    "cached_bytes",
    "check_concepts",
    "concepts_from_features",
    "load_concept_dataset",
    "load_digits_dataset",
]

# SPDX-License-Identifier: Apache-2.0
"""Spatial concepts from an open-vocabulary detector: boxes for concepts that are named in words."""

from .concepts import DetectedConcept, read_concepts
from .dataset import Annotations, annotate_dataset
from .detection import keep_boxes, load_detector


__all__ = ["Annotations", "DetectedConcept", "annotate_dataset", "keep_boxes", "load_detector", "read_concepts"]

# SPDX-License-Identifier: Apache-2.0
"""Explanation by example: images of a dataset that a model decides alike, attends alike, or has patches alike."""

from .index import Case, ConceptIndex


__all__ = ["Case", "ConceptIndex"]

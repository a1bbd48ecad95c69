# Copyright 2026 The ASCENT-ViT project. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
Edits that stay: factors of terms of the exact sum, by concept and class, as `concept_edits` of the configuration has them.
"""

import numbers
from collections.abc import Mapping
from typing import Any

from .names_ascent_vit import STREAMS, class_index, class_names, concept_names, find_concept


# Finite in float16 too.
LARGEST_FACTOR = 10_000

# Factors that are not 1, by stream, index of the concept in it, and index of the class.
Terms = dict[tuple[str, int, int], float]

FIELDS = {"class", "concept", "stream", "factor"}


def check_factor(factor: Any, where: str):
    """Raises one `ValueError` for what cannot be a factor of a term."""
    is_number = isinstance(factor, numbers.Real) and not isinstance(factor, bool)
    if not (is_number and 0 <= factor <= LARGEST_FACTOR):
        raise ValueError(f"The factor of {where} must be a number from 0 to {LARGEST_FACTOR:,}; got {factor!r}.")


def read_edits(config: Any) -> Terms:
    """
    Factors that `config.concept_edits` names.

    Args:
        config (`AscentViTConfig`): configuration of the model.

    Raises:
        ValueError: for entries of another form, classes or concepts that the model does not have, factors out of range,
            and two factors of one term.
    """
    terms: Terms = {}
    if not config.concept_edits:
        return terms
    labels, names = class_names(config), concept_names(config)
    for edit in config.concept_edits:
        if not isinstance(edit, Mapping) or set(edit) != FIELDS or edit["stream"] not in STREAMS:
            raise ValueError(
                "concept_edits must hold entries of class, concept, stream (global, spatial or unsupervised) and factor; "
                f"got {edit!r}."
            )
        if not isinstance(edit["class"], str | None) or not isinstance(edit["concept"], str):
            raise ValueError(f"concept_edits must name concepts, and classes or null for all of them; got {edit!r}.")
        try:
            stream, concept = find_concept(edit["concept"], names, edit["stream"])
            classes = range(len(labels)) if edit["class"] is None else [class_index(edit["class"], labels)]
        except ValueError as error:
            raise ValueError(
                f"concept_edits does not fit the model. {error} Rename what is edited in concept_edits too; for other "
                "classes or concepts, undo the edits before you change them."
            ) from error
        check_factor(edit["factor"], f"{edit['concept']!r} in concept_edits")
        for index in classes:
            if (stream, concept, index) in terms:
                raise ValueError(f"concept_edits has two factors of {edit['concept']!r} for {labels[index]!r}.")
            terms[stream, concept, index] = float(edit["factor"])
    return {term: factor for term, factor in terms.items() if factor != 1}


def write_edits(config: Any, terms: Terms) -> list[dict[str, Any]] | None:
    """
    Entries for `concept_edits`, by the names that classes and concepts have now, in the order of the contributions'
    columns: one for a factor that a concept has for all classes. None where no factor differs from 1.

    Args:
        config (`AscentViTConfig`): configuration of the model.
        terms (`dict`): factors, as [`read_edits`] returns them.
    """
    labels, names = class_names(config), concept_names(config)
    by_concept: dict[tuple[str, int], dict[int, float]] = {}
    for (stream, concept, index), factor in terms.items():
        if factor != 1:
            by_concept.setdefault((stream, concept), {})[index] = factor
    edits: list[dict[str, Any]] = []
    for stream, concept in sorted(by_concept, key=lambda place: (STREAMS.index(place[0]), place[1])):
        factors = by_concept[stream, concept]
        of_all = len(factors) == len(labels) and len(set(factors.values())) == 1
        chosen = {None: factors[0]} if of_all else {labels[index]: factors[index] for index in sorted(factors)}
        edits += [
            {"class": label, "concept": names[stream][concept], "stream": stream, "factor": factor}
            for label, factor in chosen.items()
        ]
    return edits or None


__all__ = ["LARGEST_FACTOR", "Terms", "check_factor", "read_edits", "write_edits"]

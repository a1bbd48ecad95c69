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
"""Names of classes and concepts, and what they stand for; an unknown name is answered with the nearest ones."""

import operator
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

from .suggestions_ascent_vit import suggest


STREAMS = ("global", "spatial", "unsupervised")


def class_names(config: Any) -> list[str]:
    """
    Names of a model's classes, in the order of its logits; `config` is its `AscentViTConfig`. Classes that have one
    name are told apart by their indices, as in "crane (3)", so that no two here are the same.
    """
    # `from_pretrained(..., id2label=)` sets it as it is, and transformers' example scripts write indices as texts.
    labels = {int(i): name for i, name in config.id2label.items()}
    names = [labels[i] for i in range(config.num_labels)]
    while repeated := {name for name, number in Counter(names).items() if number > 1}:
        names = [f"{name} ({i})" if name in repeated else name for i, name in enumerate(names)]
    return names


def concept_names(config: Any) -> dict[str, list[str]]:
    """Names of a model's concepts by stream, in the order of the contributions; `config` is its `AscentViTConfig`."""
    names = iter(config.concepts)
    numbers = (config.num_global_concepts, config.num_spatial_concepts, config.num_unsupervised_concepts)
    return {stream: list(islice(names, number)) for stream, number in zip(STREAMS, numbers, strict=True)}


def class_index(class_id: int | str, labels: Sequence[str]) -> int:
    """
    Index of a class.

    Args:
        class_id (`int` or `str`): Index or name of the class.
        labels (`Sequence[str]`): Names of all classes.

    Raises:
        ValueError: for a class that is not among `labels`, with the nearest ones, and for the name of several classes.
    """
    if isinstance(class_id, str):
        same = [label for i, label in enumerate(labels) if label == f"{class_id} ({i})"]
        if class_id not in labels and len(same) > 1:
            raise ValueError(
                f"The model has {len(same)} classes {class_id!r}: give the index of one, or "
                f"{' or '.join(map(repr, same))}."
            )
        if class_id not in labels:
            raise ValueError(
                f"The model has no class {class_id!r} among its {len(labels)}: {suggest(class_id, labels)}"
            )
        return labels.index(class_id)
    try:
        index = operator.index(class_id)
    except TypeError:
        raise ValueError(f"A class is given by its name or index; got {type(class_id).__name__}.") from None
    if not 0 <= index < len(labels):
        nearest = min(max(index, 0), len(labels) - 1)
        raise ValueError(
            f"The model has no class {index}: its classes are 0 to {len(labels) - 1}; the nearest, {nearest}, is "
            f"{labels[nearest]!r}."
        )
    return index


def find_concept(name: str, concept_names: dict[str, list[str]], stream: str | None = None) -> tuple[str, int]:
    """
    Stream of a concept, and its index in the stream.

    Args:
        name (`str`): Name of the concept.
        concept_names (`dict[str, list[str]]`): Names of the concepts of each stream.
        stream (`str`, *optional*): Stream of the concept, needed where several have a concept of that name.

    Raises:
        ValueError: for a concept that the model does not have, with the nearest ones, or has in several streams.
    """
    if stream is not None and not concept_names.get(stream):
        having = ", ".join(known for known, names in concept_names.items() if names)
        raise ValueError(f"The model has no {stream} concepts: its concepts are {having}.")
    searched = {known: names for known, names in concept_names.items() if stream in (None, known)}
    found = [(known, names.index(name)) for known, names in searched.items() if name in names]
    if len(found) > 1:
        streams = " and ".join(known for known, _ in found)
        raise ValueError(f"There is a {streams} concept {name!r}: say of which stream.")
    if not found:
        names = [known for names in searched.values() for known in names]
        raise ValueError(f"The model has no concept {name!r} among its {len(names)}: {suggest(name, names)}")
    return found[0]


__all__ = ["STREAMS", "class_index", "class_names", "concept_names", "find_concept"]

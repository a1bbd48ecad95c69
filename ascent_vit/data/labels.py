# SPDX-License-Identifier: Apache-2.0
"""Labels of a dataset as people have them, brought to the kinds of the schema: a class, several classes, or values."""

import logging
from collections.abc import Mapping
from typing import Any

from .conventions import rewrite_column
from .schema import PROBLEM_TYPES, innermost, is_fraction, problem_type
from .splits import holds_null


logger = logging.getLogger(__name__)


def _kind(feature: Any) -> str:
    """Says in words what labels of a feature are."""
    number = "a list of " if hasattr(feature, "feature") else "one "
    return number + ("values" if is_fraction(innermost(feature)) else "classes" if number != "one " else "class")


def check_kinds(dataset: Any) -> None:
    """
    Checks that the labels of all splits are of one kind, so that none is read as another: fractions are values to
    predict, whole numbers and text are classes.

    Raises:
        ValueError: naming two splits whose labels differ, or for dicts and for lists in lists.
    """
    first = None
    for name, split in dataset.items():
        feature = split.features["label"]
        if isinstance(innermost(feature), Mapping) or hasattr(getattr(feature, "feature", None), "feature"):
            raise ValueError(
                f"Column label of {name} must hold a class, a list of classes, or numbers for each row; got {feature}."
            )
        if holds_null(feature):
            continue
        first = first or (name, _kind(feature))
        if _kind(feature) != first[1]:
            raise ValueError(
                f"Column label holds {first[1]} for each row in the split {first[0]}, and {_kind(feature)} in {name}: "
                "give all splits the same. Whole numbers are classes unless problem_type is regression."
            )


def _as_values(split: Any, name: str) -> Any:
    """Gives whole numbers of a split as fractions, which are values to predict."""
    from datasets import List, Value

    feature = split.features["label"]
    leaf = innermost(feature)
    if not isinstance(leaf, Value) or not ("int" in leaf.dtype or is_fraction(leaf)):
        raise ValueError(f"problem_type is regression, but column label of {name} holds no numbers: {feature}.")
    if is_fraction(leaf):
        return split
    value = Value("float32")
    has_lists = hasattr(feature, "feature")
    return split.cast_column("label", List(value, length=getattr(feature, "length", -1)) if has_lists else value)


def _with_length(split: Any, name: str) -> Any:
    """Gives lists of values of a split the length that all of them have."""
    from datasets import Dataset, List

    feature = split.features["label"]
    is_open = hasattr(feature, "feature") and getattr(feature, "length", -1) < 0 and is_fraction(feature.feature)
    if not is_open:
        return split
    if not isinstance(split, Dataset):
        raise ValueError(
            f"Column label of {name} holds lists of values whose number a stream does not tell: leave streaming out."
        )
    lengths = {len(values) for values in split["label"] if values is not None}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"Column label of {name} must hold as many values in each row; got lists of {sorted(lengths)} values."
        )
    return split.cast_column("label", List(feature.feature, length=lengths.pop()))


def _parted(split: Any, separator: str) -> Any:
    """Parts texts of several classes at a separator."""
    from datasets import List, Value

    feature = split.features["label"]
    if not (isinstance(feature, Value) and "string" in feature.dtype):
        return split

    def parts(text: str | None) -> list[str] | None:
        return None if text is None else [part.strip() for part in text.split(separator) if part.strip()]

    return rewrite_column(split, "label", parts, List(feature))


def read_labels(dataset: Any, problem: str | None = None, separator: str | None = None) -> Any:
    """
    Brings the labels of all splits to a kind of the schema.

    Args:
        dataset: dict of all splits, or of their streams.
        problem: what is to be predicted, of `PROBLEM_TYPES`; None for what the column's type says.
        separator: sign that parts the classes in a text, where an image has several.

    Raises:
        ValueError: for an unknown problem, labels that are no numbers where values are to be predicted, or lists of
            values of unequal length, and see [`check_kinds`].
    """
    if problem is not None and problem not in PROBLEM_TYPES:
        raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}; got {problem!r}.")
    for name, split in dataset.items():
        if problem == "regression":
            split = _as_values(split, name)
        elif problem == "multi_label_classification" and separator:
            split = _parted(split, separator)
        dataset[name] = _with_length(split, name)
    check_kinds(dataset)
    return dataset


def check_problem(feature: Any, problem: str | None) -> str:
    """Gives what the feature of `label` says is predicted; ValueError where `problem`, if given, says otherwise."""
    found = problem_type(feature)
    if problem not in (None, found):
        hint = " Give lists of classes, or text and its separator." if problem == "multi_label_classification" else ""
        raise ValueError(f"problem_type is {problem}, but the dataset's label is for {found}: {feature}.{hint}")
    return found


__all__ = ["check_kinds", "check_problem", "read_labels"]

# SPDX-License-Identifier: Apache-2.0
"""
The schema of concept datasets: its columns, their features and names, and what a row means.

| column | feature | meaning |
|---|---|---|
| `image` | Image | |
| `label` | ClassLabel | the class |
| | List(ClassLabel) | or all classes that the image has; [] = none of them |
| | Value(float) or List(Value(float), n) | or one value, or n values, to predict |
| `concepts` | List(ClassLabel) | global concepts that are present; null = not known, [] = none |
| `unknown_concepts` | List(ClassLabel) | global concepts that may be present or not |
| `objects` | {bbox: List(List(float32, 4)), category: List(ClassLabel)} | spatial concepts' x, y, width, height |
| `points` | {xy: List(List(float32, 2)), category: List(ClassLabel)} | spatial concepts' x, y |
| `mask` | Image | per pixel 0 = not annotated, i = spatial concept i - 1, 255 = ignore |
| `present` | List(ClassLabel) | all spatial concepts that are somewhere in the image; null = not known, [] = none |
| `unknown_present` | List(ClassLabel) | spatial concepts that may be somewhere in the image or not |
| `group_id` | Value | rows that belong together, as a patient's, have the same: never in two splits; null = alone |

Coordinates are pixels of the image as `datasets` decodes it, which is upright.

`present` is for concepts whose place is not known, be it of each image or of all images of a class alike: those listed
are somewhere in the image, the others nowhere. A row may have places too, of concepts that it lists.

The names of the concepts stand in the features: those of `concepts` are the global ones, those of the `category` of
`objects` and `points` and of `present` the spatial ones. An image of class numbers has no place for names; those of a
mask are, in this order, the names of these columns, the names given as `spatial_concepts`, the names of `concepts`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modeling_ascent_vit.concept_targets_ascent_vit import read_placed


if TYPE_CHECKING:
    from datasets import Features

GLOBAL_COLUMNS = ("concepts", "unknown_concepts")
SPATIAL_COLUMNS = ("objects", "points", "mask")
PRESENCE_COLUMNS = ("present", "unknown_present")
ANNOTATION_COLUMNS = GLOBAL_COLUMNS + SPATIAL_COLUMNS + PRESENCE_COLUMNS
COLUMNS = ("image", "label", *ANNOTATION_COLUMNS)

# Rows with the same value, such as the slices of a patient, belong together: no two splits may share them.
GROUP_COLUMN = "group_id"

# What a model predicts by the kinds of `label`: one class, several classes, values; the names are transformers' own.
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")

# The columns of concepts with a place: the key of their coordinates, and what these are.
COORDINATES = {"objects": ("bbox", "x, y, width, height"), "points": ("xy", "x, y")}


def _check_names(what: str, names: Sequence[str]) -> list[str]:
    if isinstance(names, str) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"{what} must be a list of names; got {names!r}.")
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise ValueError(f"{what} must differ from each other; {', '.join(map(repr, repeated))} is there twice.")
    return list(names)


def concept_features(
    labels: Sequence[str],
    global_concepts: Sequence[str] | None = None,
    spatial_concepts: Sequence[str] | None = None,
    columns: Collection[str] = ("objects",),
    extra: Mapping[str, Any] | None = None,
    problem_type: str = "single_label_classification",
) -> "Features":
    """
    Builds the features of a concept dataset.

    Args:
        labels: names of the classes, in the order of their ids; of the values, whose number alone is stored.
        global_concepts: names of the concepts of whole images, for the column concepts.
        spatial_concepts: names of the concepts with a place. Names of a mask alone cannot be stored in its column:
            they are told to [`load_concept_dataset`], or are those of the global concepts.
        columns: those of the columns objects, points, mask, present, unknown_present and unknown_concepts that there
            are. Without spatial concepts there are only mask, whose concepts may be the global ones, and
            unknown_concepts.
        extra: further features, such as group_id, by column; for objects and points, a dict of further keys.
        problem_type: what is predicted: "single_label_classification", "multi_label_classification" (an image has
            several classes, or none) or "regression" (values).

    Returns:
        `Features` with the columns in the order of the schema, then the extra ones.

    Raises:
        ValueError: for an unknown column, a column without its concepts, or names that are not all different.

    Example:

    ```python
    >>> concept_features(["even", "odd"], global_concepts=["0", "1"], spatial_concepts=["0", "1"], columns=["mask"])
    ```
    """
    from datasets import ClassLabel, Features, List, Value
    from datasets import Image as ImageFeature

    columns = list(columns)
    known = SPATIAL_COLUMNS + PRESENCE_COLUMNS
    unknown = [column for column in columns if column not in (*known, "unknown_concepts")]
    if unknown:
        raise ValueError(f"columns may be {', '.join(known)} and unknown_concepts; got {', '.join(unknown)}.")
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}; got {problem_type!r}.")
    names = _check_names("labels", labels)
    label: Any = ClassLabel(names=names)
    if problem_type == "multi_label_classification":
        label = List(label)
    elif problem_type == "regression":
        label = Value("float32") if len(names) == 1 else List(Value("float32"), length=len(names))
    features: dict[str, Any] = {"image": ImageFeature(), "label": label}
    if global_concepts:
        features["concepts"] = List(ClassLabel(names=_check_names("global_concepts", global_concepts)))
    if "unknown_concepts" in columns:
        if not global_concepts:
            raise ValueError("The column unknown_concepts needs global_concepts.")
        features["unknown_concepts"] = features["concepts"]
    if spatial_concepts:
        categories = List(ClassLabel(names=_check_names("spatial_concepts", spatial_concepts)))
        if "objects" in columns:
            features["objects"] = {"bbox": List(List(Value("float32"), length=4)), "category": categories}
        if "points" in columns:
            features["points"] = {"xy": List(List(Value("float32"), length=2)), "category": categories}
    if "mask" in columns and (spatial_concepts or global_concepts):
        features["mask"] = ImageFeature()
    if spatial_concepts:
        features |= {column: categories for column in PRESENCE_COLUMNS if column in columns}
    for name, feature in (extra or {}).items():
        if name in ("objects", "points") and name in features and isinstance(feature, Mapping):
            features[name] = {**feature, **features[name]}
        elif name in COLUMNS:
            raise ValueError(f"extra features must have names of their own; {name} is a column of the schema.")
        else:
            features[name] = feature
    return Features(features)


def innermost(feature: Any) -> Any:
    """The feature of the items of a list, of any depth; other features as they are."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return feature


def is_fraction(feature: Any) -> bool:
    """Whether a feature is of floating point numbers."""
    from datasets import Value

    return isinstance(feature, Value) and feature.dtype in ("float16", "float32", "float64")


def problem_type(feature: Any) -> str:
    """
    Tells from the feature of `label` what is predicted.

    Returns:
        "single_label_classification" for a ClassLabel, "multi_label_classification" for a list of ClassLabels, and
        "regression" for a floating point number, or a list of a fixed number of them.

    Raises:
        ValueError: for any other feature.
    """
    from datasets import ClassLabel

    if isinstance(feature, ClassLabel):
        return PROBLEM_TYPES[0]
    item = getattr(feature, "feature", None)
    if isinstance(item, ClassLabel):
        return PROBLEM_TYPES[1]
    if is_fraction(feature) or (is_fraction(item) and getattr(feature, "length", -1) > 0):
        return PROBLEM_TYPES[2]
    raise ValueError(
        "Column label must hold a ClassLabel, whose names are those of the model, a list of ClassLabels, or floating "
        f'point numbers, as many in each row; got {feature}. Cast it, for example dataset.cast_column("label", ...).'
    )


def label_names(feature: Any) -> list[str]:
    """Names of what the feature of `label` has: of classes; of values, which it does not name, LABEL_0 and so on."""
    if problem_type(feature) == "regression":
        return [f"LABEL_{i}" for i in range(max(getattr(feature, "length", 1), 1))]
    return list(innermost(feature).names)


def label_text(feature: Any, label: Any) -> str:
    """A label as people read it: the name of a class, or of several, or values; `feature` is that of the column."""
    names = getattr(innermost(feature), "names", None)
    items = label if isinstance(label, list) else [label]
    if names is None:
        texts = [f"{item:.6g}" if isinstance(item, float) else str(item) for item in items]
    else:
        texts = [names[i] if isinstance(i, int) and 0 <= i < len(names) else str(i) for i in items]
    return ", ".join(texts) or "none"


def category_feature(feature: Any) -> Any:
    """The feature of the categories of objects or points, which are a dict of lists or a list of dicts."""
    feature = innermost(feature)
    return innermost(feature.get("category")) if isinstance(feature, Mapping) else None


def concepts_from_features(
    features: "Features", spatial_concepts: list[str] | None = None
) -> tuple[list[str], list[str], list[str]]:
    """
    Reads the names of classes and concepts from the features of a dataset.

    Args:
        features: features of the dataset.
        spatial_concepts: names of a mask's concepts, 1 being the first, for a dataset without objects and points.

    Returns:
        Names of the labels, see [`label_names`], of the global and of the spatial concepts, each in the order of their
        ids.

    Raises:
        ValueError: for a label of no kind of the schema, concepts that are no ClassLabel, for columns of spatial
            concepts with different names, or a mask without names.
    """
    from datasets import ClassLabel

    labels = label_names(features["label"])
    found = {name: innermost(features[name]) for name in GLOBAL_COLUMNS if name in features}
    found |= {
        f"{name}.category": category_feature(features[name]) for name in ("objects", "points") if name in features
    }
    found |= {name: innermost(features[name]) for name in PRESENCE_COLUMNS if name in features}
    names: dict[str, list[str]] = {}
    for column, feature in found.items():
        if not isinstance(feature, ClassLabel):
            raise ValueError(
                f"Column {column} must hold a ClassLabel, whose names are those of the model; got {feature}. "
                f'Cast it, for example dataset.cast_column("{column.split(".")[0]}", ...).'
            )
        names[column] = list(feature.names)
    global_concepts = names.get("concepts", [])
    spatial = {column.split(".")[0]: names[column] for column in names if column not in GLOBAL_COLUMNS}
    first = next(iter(spatial), "")
    for column, own in spatial.items():
        if own != spatial[first]:
            raise ValueError(f"The categories of {first} and {column} must have the same names in the same order.")
    if names.get("unknown_concepts", global_concepts) != global_concepts:
        raise ValueError("concepts and unknown_concepts must have the same names in the same order.")
    if spatial:
        if spatial_concepts is not None and list(spatial_concepts) != spatial[first]:
            raise ValueError(
                "spatial_concepts differ from the names of the categories in the dataset: leave them out."
            )
        return labels, global_concepts, spatial[first]
    if "mask" not in features:
        return labels, global_concepts, []
    if not (spatial_concepts or global_concepts):
        raise ValueError(
            "The dataset has a mask, but no names for its values: give them as spatial_concepts, in the recipe as "
            "dataset_options: {spatial_concepts: [...]}, or each with its number as mask_values: {1: ...}."
        )
    return labels, global_concepts, list(spatial_concepts or global_concepts)


def annotation_from_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Picks the annotations of a row for the image processor: the schema's columns that are not null."""
    return {name: row[name] for name in ANNOTATION_COLUMNS if row.get(name) is not None}


def placed_concepts(row: Mapping[str, Any], num_concepts: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    Reads the objects and points of a row.

    Returns:
        By column, coordinates as `COORDINATES` names them, `(n, 4)` or `(n, 2)` float64, and ids of the concepts
        `(n,)` int64. Columns that are absent or null are left out.

    Raises:
        ValueError: for annotations that the image processor would refuse.
    """
    found = {}
    for column, (key, names) in COORDINATES.items():
        placed = None if row.get(column) is None else read_placed(row[column], key, names, num_concepts, column)
        if placed is not None:
            found[column] = placed
    return found


__all__ = [
    "ANNOTATION_COLUMNS",
    "COLUMNS",
    "COORDINATES",
    "GLOBAL_COLUMNS",
    "GROUP_COLUMN",
    "PRESENCE_COLUMNS",
    "PROBLEM_TYPES",
    "SPATIAL_COLUMNS",
    "annotation_from_row",
    "category_feature",
    "concept_features",
    "concepts_from_features",
    "innermost",
    "is_fraction",
    "label_names",
    "label_text",
    "placed_concepts",
    "problem_type",
]

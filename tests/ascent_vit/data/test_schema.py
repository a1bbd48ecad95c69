# SPDX-License-Identifier: Apache-2.0
"""The schema: features, names and rows."""

import pytest
from datasets import ClassLabel, Features, List, Value
from datasets import Image as ImageFeature

from ascent_vit.data import annotation_from_row, concept_features, concepts_from_features


FEATURES = concept_features(
    ["cat", "dog"],
    ["day", "night"],
    ["ear", "paw"],
    ["objects", "points", "mask", "present", "unknown_present", "unknown_concepts"],
)


def test_features_are_those_of_the_schema():
    categories = List(ClassLabel(names=["ear", "paw"]))
    assert (
        Features(
            {
                "image": ImageFeature(),
                "label": ClassLabel(names=["cat", "dog"]),
                "concepts": List(ClassLabel(names=["day", "night"])),
                "unknown_concepts": List(ClassLabel(names=["day", "night"])),
                "objects": {"bbox": List(List(Value("float32"), length=4)), "category": categories},
                "points": {"xy": List(List(Value("float32"), length=2)), "category": categories},
                "mask": ImageFeature(),
                "present": categories,
                "unknown_present": categories,
            }
        )
        == FEATURES
    )
    assert concepts_from_features(FEATURES) == (["cat", "dog"], ["day", "night"], ["ear", "paw"])
    assert list(concept_features(["cat"], spatial_concepts=["ear", "paw"])) == ["image", "label", "objects"]
    assert list(concept_features(["cat"], ["day"], columns=["mask"])) == ["image", "label", "concepts", "mask"]


def test_extra_features():
    scores = List(Value("float32"))
    extra = {"id": Value("int64"), "objects": {"score": scores}}
    features = concept_features(["cat"], spatial_concepts=["ear"], extra=extra)
    assert features["id"] == Value("int64") and set(features["objects"]) == {"bbox", "category", "score"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"labels": ["a", "a"]}, "labels must differ from each other; 'a' is there twice"),
        ({"labels": "ab"}, "labels must be a list of names"),
        ({"labels": ["a"], "spatial_concepts": ["b", ""]}, "spatial_concepts must be a list of names"),
        (
            {"labels": ["a"], "columns": ["boxes"]},
            "columns may be objects, points, mask, present, unknown_present and unknown_concepts; got box",
        ),
        ({"labels": ["a"], "columns": ["unknown_concepts"]}, "unknown_concepts needs global_concepts"),
        ({"labels": ["a"], "extra": {"label": Value("int64")}}, "label is a column of the schema"),
    ],
)
def test_bad_features(arguments, message):
    with pytest.raises(ValueError, match=message):
        concept_features(**arguments)


LABELS, GLOBAL, SPATIAL = ["cat", "dog"], ["indoors", "outdoors", "night"], ["ear", "tail"]
NAMED = concept_features(LABELS, GLOBAL, SPATIAL, ["objects", "points"])


class TestNames:
    def test_of_classes_and_both_streams(self):
        assert concepts_from_features(Features(NAMED)) == (LABELS, GLOBAL, SPATIAL)

    def test_of_objects_as_a_list_of_dicts(self):
        item = {"bbox": List(Value("float32"), length=4), "category": ClassLabel(names=SPATIAL)}
        assert concepts_from_features(Features(NAMED | {"objects": List(item)}))[2] == SPATIAL

    def test_of_a_mask(self):
        features = Features({name: NAMED[name] for name in ("image", "label", "concepts")} | {"mask": ImageFeature()})
        assert concepts_from_features(features)[2] == GLOBAL
        assert concepts_from_features(features, ["kidney", "tumour"])[2] == ["kidney", "tumour"]
        del features["concepts"]
        with pytest.raises(ValueError, match="no names for its values"):
            concepts_from_features(features)

    def test_of_neither_stream(self):
        features = Features({name: NAMED[name] for name in ("image", "label")})
        assert concepts_from_features(features) == (LABELS, [], [])

    def test_must_be_those_of_a_class_label(self):
        with pytest.raises(ValueError, match="Column concepts must hold a ClassLabel"):
            concepts_from_features(Features(NAMED | {"concepts": List(Value("int64"))}))

    @pytest.mark.parametrize("columns", [["present"], ["mask", "present", "unknown_present"]])
    def test_of_lists_alone(self, columns):
        features = concept_features(LABELS, GLOBAL, SPATIAL, columns)
        assert list(features) == ["image", "label", "concepts", *columns]
        assert concepts_from_features(features) == (LABELS, GLOBAL, SPATIAL)
        with pytest.raises(ValueError, match="Column present must hold a ClassLabel"):
            concepts_from_features(Features(features | {"present": List(Value("string"))}))

    @pytest.mark.parametrize("column", ["present", "unknown_present"])
    def test_of_lists_and_places_must_agree(self, column):
        lists = List(ClassLabel(names=SPATIAL[::-1]))
        with pytest.raises(ValueError, match=f"objects and {column} must have the same names in the same order"):
            concepts_from_features(Features(NAMED | {column: lists}))

    def test_of_objects_and_points_must_agree(self):
        points = NAMED["points"] | {"category": List(ClassLabel(names=SPATIAL[::-1]))}
        with pytest.raises(ValueError, match="objects and points must have the same names"):
            concepts_from_features(Features(NAMED | {"points": points}))


def test_annotations_are_the_schemas_columns_that_are_not_null(make_dataset):
    row = make_dataset(4)[3]
    assert annotation_from_row(row | {"extra": 1}) == {"objects": {"bbox": [[0, 0, 16, 8]], "category": [1]}}

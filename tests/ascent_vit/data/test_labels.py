# SPDX-License-Identifier: Apache-2.0
"""Labels of each kind: a class, several classes, or values; and those that could be taken for another kind."""

import csv
import re

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from ascent_vit.data import (
    CachedConceptDataset,
    ConceptCollator,
    PreparedDataset,
    check_dataset,
    concept_features,
    dataset_card,
    load_concept_dataset,
    write_dataset,
)
from ascent_vit.data.inspect import dataset_table, format_table, picture_sheet
from ascent_vit.data.loading import unite
from ascent_vit.data.schema import label_names, label_text, problem_type
from modeling_ascent_vit import AscentViTImageProcessorPil


CLASSES = ["cat", "dog", "owl"]
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def split_of(labels, feature=None) -> Dataset:
    features = None if feature is None else Features({"image": ImageFeature(), "label": feature})
    dataset = Dataset.from_dict({"image": [IMAGE] * len(labels), "label": labels}, features=features)
    return dataset if features else dataset.cast_column("image", ImageFeature())


def made(problem: str, labels, names=CLASSES) -> Dataset:
    return split_of(labels, concept_features(names, problem_type=problem)["label"])


class TestKinds:
    @pytest.mark.parametrize(
        "feature, problem, names",
        [
            (ClassLabel(names=CLASSES), SINGLE, CLASSES),
            (List(ClassLabel(names=CLASSES)), MULTI, CLASSES),
            (Value("float32"), REGRESSION, ["LABEL_0"]),
            (Value("float64"), REGRESSION, ["LABEL_0"]),
            (List(Value("float32"), length=2), REGRESSION, ["LABEL_0", "LABEL_1"]),
        ],
    )
    def test_problem_and_names(self, feature, problem, names):
        assert problem_type(feature) == problem and label_names(feature) == names

    @pytest.mark.parametrize(
        "feature", [Value("int64"), Value("string"), List(Value("float32")), List(Value("int64")), Value("bool")]
    )
    def test_others_are_refused(self, feature):
        with pytest.raises(ValueError, match="Column label must hold a ClassLabel"):
            problem_type(feature)

    def test_features_are_those_that_are_read_back(self):
        for problem in (SINGLE, MULTI, REGRESSION):
            assert problem_type(concept_features(CLASSES, problem_type=problem)["label"]) == problem
        assert concept_features(["age"], problem_type=REGRESSION)["label"] == Value("float32")
        with pytest.raises(ValueError, match="problem_type must be one of"):
            concept_features(CLASSES, problem_type="multi")

    def test_text_of_labels(self):
        several = List(ClassLabel(names=CLASSES))
        assert [label_text(several, label) for label in ([0, 2], [])] == ["cat, owl", "none"]
        assert label_text(ClassLabel(names=CLASSES), 1) == "dog"
        assert label_text(List(Value("float32"), length=2), [1.5, 30.0]) == "1.5, 30"


class TestLoading:
    def load(self, tmp_path, options=None, **splits):
        DatasetDict(splits).save_to_disk(tmp_path / "set")
        return load_concept_dataset(tmp_path / "set", **(options or {}))

    def test_lists_of_names(self, tmp_path):
        loaded = self.load(tmp_path, train=split_of([["owl", "cat"], [], ["dog"]]), test=split_of([["cat"]]))
        assert loaded["train"].features["label"] == List(ClassLabel(names=CLASSES))
        assert loaded["train"]["label"][:] == [[2, 0], [], [1]] and loaded["test"]["label"][:] == [[0]]

    def test_text_is_parted_where_several_classes_are_asked_for(self, tmp_path):
        options = {"problem_type": MULTI, "separator": ";"}
        loaded = self.load(tmp_path, options, train=split_of(["owl; cat", "", "dog"]))
        assert loaded["train"]["label"][:] == [[2, 0], [], [1]]
        with pytest.raises(ValueError, match="problem_type is multi_label_classification, but .* its separator"):
            load_concept_dataset(tmp_path / "set", problem_type=MULTI)

    def test_numbers_of_a_table(self, tmp_path):
        """Fractions are values; whole numbers are classes, unless the user says otherwise."""
        (tmp_path / "train").mkdir(parents=True)
        for i in range(3):
            IMAGE.save(tmp_path / "train" / f"{i}.png")
        with open(tmp_path / "train" / "metadata.csv", "w", newline="") as file:
            csv.writer(file).writerows([["file_name", "weight", "age"], *([f"{i}.png", i + 0.5, i] for i in range(3))])
        fractions = load_concept_dataset(tmp_path, columns={"label": "weight"}, labels=["weight"])["train"]
        assert problem_type(fractions.features["label"]) == REGRESSION and fractions["label"][:] == [0.5, 1.5, 2.5]
        for problem, found in ((None, SINGLE), (REGRESSION, REGRESSION)):
            loaded = load_concept_dataset(tmp_path, columns={"label": "age"}, problem_type=problem)["train"]
            assert problem_type(loaded.features["label"]) == found and loaded["label"][:] == [0, 1, 2]

    def test_whole_numbers_as_values(self, tmp_path):
        loaded = self.load(tmp_path, {"problem_type": REGRESSION}, train=split_of([3, 70]))
        assert loaded["train"].features["label"] == Value("float32") and loaded["train"]["label"][:] == [3.0, 70.0]
        assert load_concept_dataset(tmp_path / "set")["train"].features["label"] == ClassLabel(names=["3", "70"])

    def test_lists_of_values_get_their_length(self, tmp_path):
        loaded = self.load(tmp_path, train=split_of([[0.5, 1.5], [2.5, 3.5]]))
        assert loaded["train"].features["label"].length == 2
        uneven = DatasetDict(train=split_of([[0.5, 1.5], [2.5]]))
        with pytest.raises(ValueError, match=r"as many values in each row; got lists of \[1, 2\] values"):
            unite(uneven)

    @pytest.mark.parametrize(
        "first, second",
        [
            ([["cat"], ["dog"]], ["cat"]),
            ([0, 1], [0.5]),
            ([0.5, 1.5], [[0.5, 1.5]]),
            (["cat", "dog"], [1.5]),
        ],
    )
    def test_kinds_that_differ_between_splits_are_refused(self, first, second):
        with pytest.raises(ValueError, match="in the split train, and .* in test: give all splits the same"):
            unite(DatasetDict(train=split_of(first), test=split_of(second)))

    def test_text_where_values_are_asked_for(self):
        with pytest.raises(ValueError, match="column label of train holds no numbers"):
            unite(DatasetDict(train=split_of(["cat", "dog"])), problem_type=REGRESSION)

    def test_names_of_values_are_as_many(self, tmp_path):
        with pytest.raises(ValueError, match="labels must name the 1 value of a row; got 2 names"):
            self.load(tmp_path, {"labels": ["age", "weight"]}, train=split_of([0.5, 1.5]))


class TestCheck:
    @pytest.mark.parametrize(
        "problem, label, message",
        [
            (MULTI, None, "must be a list of classes, empty for none of them, from 0 to 2; got None"),
            (MULTI, [3], "from 0 to 2; got .3."),
            (MULTI, [None], "from 0 to 2; got .None."),
            (MULTI, [0, 1, 1], "has the class 1 twice; it must list each class of the image once"),
            (REGRESSION, None, "must be finite numbers; got None"),
            (REGRESSION, float("nan"), "must be finite numbers; got nan"),
        ],
    )
    def test_rows_that_are_refused(self, problem, label, message):
        good = [0, 2] if problem == MULTI else 1.25
        names = CLASSES if problem == MULTI else ["age"]
        split = made(problem, [good, good], names)
        table = {"image": [IMAGE] * 2, "label": [good, label]}
        if label != [3]:
            split = Dataset.from_dict(table, features=split.features)
        else:
            stored = split.data.table.set_column(1, "label", [[good, label]])
            split = Dataset(stored, info=split.info)
        report = check_dataset(DatasetDict(train=split))
        assert len(report.errors) == 1 and report.bad_rows == {"train": [1]}
        assert re.search(message, report.errors[0])

    def test_valid_rows(self):
        assert not check_dataset(DatasetDict(train=made(MULTI, [[0, 1], [], [2]]))).errors
        report = check_dataset(DatasetDict(train=made(REGRESSION, [[0.5, 1.5]], ["age", "weight"])))
        assert not report.errors and not report.warnings

    def test_a_class_without_an_image_is_warned_of(self):
        report = check_dataset(DatasetDict(train=made(MULTI, [[0, 1], []])))
        assert any("1 of 3 classes have no row in train: 'owl'" in warning for warning in report.warnings)

    def test_whole_numbers_written_as_fractions_are_warned_of(self):
        report = check_dataset(DatasetDict(train=made(REGRESSION, [0.0, 1.0, 2.0, 1.0], ["age"])))
        assert any("3 different whole numbers from 0 to 2" in warning for warning in report.warnings)


@pytest.fixture
def processor(make_config):
    return AscentViTImageProcessorPil.from_model_config(make_config(num_unsupervised_concepts=2))


class TestBatches:
    def test_labels_of_each_kind(self, processor):
        several = ConceptCollator(processor, 3)(list(made(MULTI, [[0, 2], []])))["labels"]
        assert torch.equal(several, torch.tensor([[1.0, 0, 1], [0, 0, 0]]))
        value = ConceptCollator(processor)(list(made(REGRESSION, [0.5, 1.5], ["age"])))["labels"]
        assert torch.equal(value, torch.tensor([0.5, 1.5]))
        values = ConceptCollator(processor, 2)(list(made(REGRESSION, [[0.5, 1.5]] * 2, ["age", "weight"])))["labels"]
        assert torch.equal(values, torch.tensor([[0.5, 1.5]] * 2))

    def test_a_split_in_memory_has_the_same(self, processor):
        split = made(MULTI, [[0, 2], [], [1]])
        cached = CachedConceptDataset(split, processor, num_labels=3)
        assert torch.equal(
            cached.__getitems__([2, 0])["labels"], ConceptCollator(processor, 3)([split[2], split[0]])["labels"]
        )

    def test_lists_of_classes_need_their_number(self, processor):
        rows = list(made(MULTI, [[0, 2]]))
        with pytest.raises(ValueError, match="num_labels=..."):
            ConceptCollator(processor)(rows)
        with pytest.raises(ValueError, match="classes from 0 to 2, of 2"):
            ConceptCollator(processor, 2)(rows)


class TestShown:
    @pytest.mark.parametrize(
        "problem, labels, names, shown",
        [
            (MULTI, [[0, 1], []], CLASSES, ["the classes that each has", "all classes that it has", "3 classes: cat"]),
            (REGRESSION, [[0.5, 1.5]] * 2, ["a", "b"], ["values to predict", "2 values to predict for each image"]),
            (REGRESSION, [0.5, 1.5], ["a"], ["1 value to predict for each image"]),
            (SINGLE, [0, 1], CLASSES, ["images with a class, and", "its class", "- 3 classes: cat, dog, owl"]),
        ],
    )
    def test_card_and_round_trip(self, problem, labels, names, shown, tmp_path):
        prepared = PreparedDataset(DatasetDict(train=made(problem, labels, names)), "Set", "mit", "Made.", {})
        card = str(dataset_card(prepared))
        assert all(text in card for text in shown)
        write_dataset(prepared, tmp_path)
        loaded = load_concept_dataset(tmp_path)["train"]
        assert loaded["label"][:] == labels and problem_type(loaded.features["label"]) == problem

    def test_table_and_pictures(self):
        dataset = DatasetDict(train=made(MULTI, [[0, 1], [], [1]]))
        table = dataset_table(dataset)
        assert table["splits"]["train"]["classes"] == 2 and table["missing"]["train"]["classes"] == ["owl"]
        titles = {axes.get_title(loc="left") for axes in picture_sheet(dataset).axes}
        assert {"train 0: cat, dog", "train 1: none"} <= titles
        values = dataset_table(DatasetDict(train=made(REGRESSION, [0.5, 1.5], ["age"])))
        assert "classes" not in values["splits"]["train"] and "classes" not in format_table(values)

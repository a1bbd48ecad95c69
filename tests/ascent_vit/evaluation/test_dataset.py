# SPDX-License-Identifier: Apache-2.0
"""All metrics of a model on a split of a concept dataset."""

from types import SimpleNamespace

import pytest
from datasets import ClassLabel, Features
from torch.utils.data import DataLoader

from ascent_vit.data import ConceptCollator, load_digits_dataset
from ascent_vit.evaluation import METRICS, evaluate, evaluate_dataset
from ascent_vit.evaluation.dataset import check_names
from ascent_vit.utils.metrics import EPOCH_METRICS, LABEL_METRICS
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


DIGITS = [f"digit {digit}" for digit in range(10)]
# Metrics of models for several classes of an image, and for values.
OTHERS = {*LABEL_METRICS["multi_label_classification"], *LABEL_METRICS["regression"]} - {"ece"}
CURVES = {"intervention_curve", "intervention_curve_gain", "intervention_curve_random"}
COUNTS = {
    f"{name}_images" for name in ("insertion_deletion", "intervention", "robustness", "randomisation")
} | {"num_images"}  # fmt: skip


@pytest.fixture(scope="module")
def split():
    split = load_digits_dataset(copies=1, canvas=32)["test"].select(range(12))
    return split.add_column("present", split["concepts"][:], feature=split.features["concepts"])


@pytest.fixture
def build(make_config):
    def build(**kwargs):
        streams = {"global_concepts": DIGITS, "spatial_concepts": DIGITS} | kwargs
        names = ["even", "odd"]
        config = make_config(
            id2label=dict(enumerate(names)), label2id={"even": 0, "odd": 1}, num_labels=2,
            backbone_kwargs={"image_size": 32, "num_hidden_layers": 1}, **streams,
        )  # fmt: skip
        return AscentViTForImageClassification(config), AscentViTImageProcessor.from_model_config(config)

    return build


def test_everything(build, split):
    values = evaluate_dataset(*build(), split, images=5, steps=3, batch_size=4, sanity=True)
    assert set(values) == set(METRICS) - OTHERS - {"top5_accuracy"} | CURVES | COUNTS | {"left_out"}
    assert values["num_images"] == 12 and values["left_out"] == []
    assert {values[name] for name in COUNTS - {"num_images"}} == {5}
    assert len(values["intervention_curve"]) == 4
    shares = set(METRICS) & set(values) - {"alignment_error"}
    assert {name for name in shares if not -1e-6 <= values[name] <= 1 + 1e-6} == set()


def test_what_cannot_be_judged_is_left_out_and_said(build, split, caplog):
    model, processor = build(spatial_concepts=[])
    values = evaluate_dataset(model, processor, split, images=4, steps=2, skip=["intervention"], sanity=True)
    assert values["left_out"] == [
        "faithfulness: Insertion and deletion needs maps, and the model has no spatial concepts",
        "intervention: not asked for",
        "robustness: Robustness needs maps, and the model has no spatial concepts",
        "sanity: Randomisation needs maps, and the model has no spatial concepts",
    ]
    assert "accuracy" in values and not any(name.startswith(("insertion", "robustness")) for name in values)
    assert "Left out: robustness" in caplog.text


def test_a_dataset_without_concepts_serves_for_the_rest(build, split):
    values = evaluate_dataset(*build(), split.select_columns(["image", "label"]), images=2, steps=2)
    assert {"accuracy", "insertion_auc", "robustness_flip"} <= set(values) and "concept_map" not in values
    assert values["left_out"] == [
        "intervention: Intervention needs images with labels and annotated concepts of the model"
    ]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["odd", "even"], "number 0 is 'even' in the model and 'odd' in the dataset"),
        (["even", "odd", "neither"], "the model has 2, the dataset 3"),
    ],
)
def test_other_classes(build, split, classes, message):
    features = Features(split.features.copy() | {"label": ClassLabel(names=classes)})
    with pytest.raises(ValueError, match=f"classes of model and dataset must have the same names.*{message}"):
        evaluate_dataset(*build(), split.cast(features))


def test_other_concepts_and_classes_without_names(build, split):
    model, processor = build(spatial_concepts=["ink", "paper"])
    with pytest.raises(ValueError, match="spatial concepts of model and dataset.*the model has 2, the dataset 10"):
        evaluate_dataset(model, processor, split)
    config = SimpleNamespace(
        num_labels=2, problem_type=None, id2label={0: "LABEL_0", 1: "LABEL_1"}, global_concepts=[], spatial_concepts=[]
    )
    check_names(config, split.features)


def test_bad_arguments(build, split):
    model, processor = build()
    with pytest.raises(ValueError, match="skip may name faithfulness, intervention, robustness; got 'speed'"):
        evaluate_dataset(model, processor, split, skip=["speed"])
    with pytest.raises(ValueError, match="images must be 1 or more; got 0"):
        evaluate_dataset(model, processor, split, images=0)
    with pytest.raises(ValueError, match="no images"):
        evaluate_dataset(model, processor, split.select([]))


def test_what_may_choose_an_epoch_is_what_one_pass_measures(build, split):
    values = evaluate(build()[0], DataLoader(split, 6, collate_fn=ConceptCollator(build()[1])))
    assert set(values) - {"additivity_error"} == set(EPOCH_METRICS) - OTHERS - {"top5_accuracy"}
    assert list(METRICS)[: len(EPOCH_METRICS)] == list(EPOCH_METRICS)


def test_every_metric_has_a_meaning():
    assert all(metric.meaning for metric in METRICS.values())

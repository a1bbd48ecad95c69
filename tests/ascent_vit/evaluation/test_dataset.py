# SPDX-License-Identifier: Apache-2.0
"""All metrics of a model on a split of a concept dataset."""

from types import SimpleNamespace

import pytest
import torch
from datasets import ClassLabel, Features
from torch.utils.data import DataLoader

from ascent_vit.data import ConceptCollator, load_digits_dataset
from ascent_vit.evaluation import METRICS, Settings, evaluate, evaluate_dataset
from ascent_vit.evaluation.dataset import KEPT_BYTES, KeptBatches, check_names, measure_dataset
from ascent_vit.evaluation.probe import choose_subset
from ascent_vit.utils.metrics import EPOCH_METRICS, LABEL_METRICS
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


DIGITS = [f"digit {digit}" for digit in range(10)]
# Metrics of models for several classes of an image, and for values.
OTHERS = {*LABEL_METRICS["multi_label_classification"], *LABEL_METRICS["regression"]} - {"ece"}
CURVES = {"intervention_curve", "intervention_curve_gain", "intervention_curve_random"}
COUNTS = {
    f"{name}_images"
    for name in (
        "insertion_deletion", "intervention", "robustness", "causal_concept_effect", "concept_scores", "randomisation",
    )
} | {"num_images"}  # fmt: skip
# Of a handful of images there is no telling of these.
OF_MANY = {"concept_completeness", "concept_task_leakage", "oracle_impurity", "niche_impurity"}


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
    assert set(values) | OF_MANY == set(METRICS) - OTHERS - {"top5_accuracy"} | CURVES | COUNTS | {"left_out"}
    assert values["num_images"] == 12 and values["left_out"] == []
    assert {values[name] for name in COUNTS - {"num_images"}} == {5}
    assert len(values["intervention_curve"]) == 4
    shares = set(METRICS) & set(values) - {"alignment_error", "num_effective_concepts", "concept_completeness"}
    assert {name for name in shares if not -1e-6 <= abs(values[name]) <= 1 + 1e-6} == set()


def test_intervals_of_everything(build, split):
    model, processor = build()
    options = {"images": 9, "steps": 3, "batch_size": 4, "purity": True}
    plain = evaluate_dataset(model, processor, split, **options)
    values = evaluate_dataset(model, processor, split, **options, with_intervals=True)
    ends = {name for name in values if name.endswith(("_low", "_high"))}
    assert {name: value for name, value in values.items() if name not in ends} == plain
    # A draw of these is no sample, or they are no mean.
    without = {"additivity_error", "num_effective_concepts", *OF_MANY}
    expected = set(METRICS) & set(plain) - without
    assert {name.rpartition("_")[0] for name in ends} - {"concept_completeness"} == expected
    for name in expected:
        assert values[f"{name}_low"] - 1e-6 <= values[name] <= values[f"{name}_high"] + 1e-6, name


def test_what_cannot_be_judged_is_left_out_and_said(build, split, caplog):
    model, processor = build(spatial_concepts=[])
    values = evaluate_dataset(model, processor, split, images=4, steps=2, skip=["intervention"], sanity=True)
    assert values["left_out"] == [
        "faithfulness: Insertion and deletion needs maps, and the model has no spatial concepts",
        "intervention: not asked for",
        "robustness: Robustness needs maps, and the model has no spatial concepts",
        "causal: Causal concept effect needs maps, and the model has no spatial concepts",
        "sanity: Randomisation needs maps, and the model has no spatial concepts",
    ]
    assert "accuracy" in values and not any(name.startswith(("insertion", "robustness")) for name in values)
    assert "Left out: robustness" in caplog.text


def test_a_dataset_without_concepts_serves_for_the_rest(build, split):
    values = evaluate_dataset(*build(), split.select_columns(["image", "label"]), images=2, steps=2)
    assert {"accuracy", "insertion_auc", "robustness_flip"} <= set(values) and "concept_map" not in values
    assert values["left_out"] == [
        "intervention: Intervention needs images with labels and annotated concepts of the model",
        "causal: Causal concept effect needs images with annotated spatial concepts of the model",
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


def test_fewer_images_for_curves_are_some_of_the_others(build, split):
    model, processor = build()
    settings = Settings(images=8, curve_images=3, steps=2, batch_size=4, skip=("concepts", "causal"))
    values, samples = measure_dataset(model, processor, split, settings)
    assert (values["insertion_deletion_images"], values["intervention_images"]) == (3, 8)
    few = evaluate_dataset(model, processor, split, images=3, steps=2)
    assert values["insertion_auc"] == pytest.approx(few["insertion_auc"])
    assert values["robustness_flip"] != pytest.approx(few["robustness_flip"])
    assert set(choose_subset(12, 3, 0)) < set(choose_subset(12, 8, 0))
    with pytest.raises(ValueError, match="curve_images must be 1 or more"):
        Settings(curve_images=0)


def test_batches_are_made_once_unless_they_are_large(monkeypatch):
    made = []

    class Loader(list):
        def __iter__(self):
            made.append(1)
            return super().__iter__()

    batches = Loader({"pixel_values": torch.full((2,), float(i))} for i in range(3))
    kept = KeptBatches(batches)
    assert [len(kept), list(kept), list(kept), made] == [3, list(batches), list(batches), [1] * 3]
    made.clear()
    monkeypatch.setattr("ascent_vit.evaluation.dataset.KEPT_BYTES", 23)
    large = KeptBatches(batches)
    assert list(large) == list(large) and len(made) == 2 and large.batches is None
    # No tensor of theirs comes again, so that none of their tokens need be kept.
    assert (kept.memory.most_bytes, large.memory.most_bytes) == (KEPT_BYTES, 0)


def test_bad_arguments(build, split):
    model, processor = build()
    with pytest.raises(ValueError, match="skip may name faithfulness, .*, concepts; got 'speed'"):
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

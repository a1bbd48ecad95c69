# SPDX-License-Identifier: Apache-2.0
"""Each metric on cases worked out by hand, and against scikit-learn and the model's own loss."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score, top_k_accuracy_score

from ascent_vit.evaluation import (
    AlignmentError,
    ClassMetrics,
    ConceptAUROC,
    ConceptMAP,
    GlobalConceptAccuracy,
    GlobalConceptMetrics,
    PixelTPR,
    PointingGame,
    PresenceMetrics,
    RelevanceMass,
    SpatialConceptMetrics,
)
from modeling_ascent_vit.modeling_ascent_vit import alignment_loss


NAN = float("nan")


def compute(metric, attention, target):
    metric.update(torch.tensor(attention), torch.tensor(target))
    return metric.compute().item()


def random_spatial(seed, images=7, patches=12, concepts=4):
    """Attention and targets with annotated patches, unannotated ones, and patches of which it is partly unknown."""
    generator = torch.Generator().manual_seed(seed)
    attention = torch.randn(images, patches, concepts, generator=generator).softmax(-1)
    target = torch.randint(0, 2, (images, patches, concepts), generator=generator).float()
    target[torch.rand(images, patches, generator=generator) < 0.3] = NAN
    target[torch.rand(images, patches, concepts, generator=generator) < 0.05] = NAN
    target[0] = NAN
    return attention, target


def test_global_concept_accuracy_judges_images_with_exactly_one_known_concept():
    attention = [[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [0.6, 0.3, 0.1]]
    target = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, NAN, 0.0], [0.0, 0.0, 0.0]]
    assert compute(GlobalConceptAccuracy(), attention, target) == 0.5


def test_global_concept_accuracy_of_a_tie_is_the_share_of_right_ones():
    assert compute(GlobalConceptAccuracy(), [[0.4, 0.4, 0.2]], [[0.0, 1.0, 0.0]]) == 0.5


def test_pointing_game_by_hand():
    # Concept 0 peaks on patch 1, concept 1 on patch 0, concept 2 on patch 2.
    attention = [[[0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]]
    hit_miss_absent = [[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]
    assert compute(PointingGame(), attention, hit_miss_absent) == 0.5
    peak_without_annotation = [[[0.0, 0.0, 1.0], [NAN, NAN, NAN], [NAN, NAN, NAN]]]
    assert compute(PointingGame(), attention, peak_without_annotation) == 0.0


def test_pointing_game_of_a_constant_map_is_the_annotated_share():
    attention = torch.full((1, 8, 2), 0.5)
    target = torch.zeros(1, 8, 2)
    target[0, :2, 0] = 1
    metric = PointingGame()
    metric.update(attention, target)
    assert metric.compute().item() == 0.25


def test_pixel_tpr_by_hand():
    # Right, wrong, right, and four that cannot be judged: unknown, partly unknown twice, none of the concepts.
    attention = [[[0.6, 0.4], [0.3, 0.7], [0.8, 0.2], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.2, 0.8]]]
    target = [[[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [NAN, NAN], [1.0, NAN], [1.0, NAN], [0.0, 0.0]]]
    assert compute(PixelTPR(), attention, target) == pytest.approx(2 / 3)


def test_relevance_mass_by_hand():
    # Concept 0: 0.4 and 0.1 of 1.0 inside. Concept 1: 0.2 of 2.0. Concept 2 is nowhere annotated.
    attention = [[[0.4, 0.2, 0.4], [0.1, 0.8, 0.1], [0.5, 1.0, 0.5]]]
    target = [[[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [NAN, NAN, NAN]]]
    assert compute(RelevanceMass(), attention, target) == pytest.approx((0.5 + 0.1) / 2)


def test_relevance_mass_of_an_empty_map_is_zero():
    assert compute(RelevanceMass(), [[[0.0, 1.0], [0.0, 1.0]]], [[[1.0, 0.0], [NAN, NAN]]]) == 0.0


def test_pointing_game_and_relevance_mass_agree_with_quantus():
    """Maps without ties, where the two count alike. Quantus is no dependency: the test runs where it is installed."""
    quantus = pytest.importorskip("quantus")
    attention, target = torch.rand(6, 25, 1), (torch.rand(6, 25, 1) < 0.4).float()
    target[:, 0] = 1
    maps, inside = (values.view(6, 1, 5, 5).numpy() for values in (attention, target))
    for metric, reference in (
        (PointingGame(), quantus.PointingGame),
        (RelevanceMass(), quantus.RelevanceMassAccuracy),
    ):
        expected = reference(abs=False, normalise=False, disable_warnings=True)(
            model=None, x_batch=maps, y_batch=np.zeros(6, dtype=int), a_batch=maps, s_batch=inside, channel_first=True
        )
        metric.update(attention, target)
        assert metric.compute().item() == pytest.approx(np.mean(expected), abs=1e-6)


def test_alignment_error_by_hand():
    attention = torch.tensor([[[0.5, 0.5], [0.9, 0.1]], [[0.2, 0.8], [0.5, 0.5]], [[1.0, 0.0], [1.0, 0.0]]])
    # Image 0: 0.5 for patch 0, 0 for patch 1, whose target is unknown. Image 1: both concepts, then nothing.
    target = torch.tensor([[[1.0, 0.0], [1.0, NAN]], [[2.0, 2.0], [0.0, 0.0]], [[NAN, NAN], [NAN, NAN]]])
    metric = AlignmentError()
    metric.update((attention, target))
    assert metric.compute().item() == pytest.approx((0.5 + 0.18 + 0.0) / 3)
    with_none = AlignmentError(none_concept=True)
    with_none.update((attention, target))
    assert with_none.compute().item() == pytest.approx((0.5 + (0.18 + 0.5) / 2 + 0.0) / 3)


@pytest.mark.parametrize("none_concept", [False, True])
def test_alignment_error_is_the_models_squared_error_loss(none_concept):
    attention, target = random_spatial(0)
    metric = AlignmentError(none_concept)
    metric.update((attention, target), (attention[:, :1], target[:, :1]))
    expected = alignment_loss(attention, target, "mse", none_concept)
    expected += alignment_loss(attention[:, :1], target[:, :1], "mse", none_concept)
    assert metric.compute().item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("metric_class", [PointingGame, PixelTPR, RelevanceMass])
def test_spatial_metrics_do_not_depend_on_how_batches_are_cut(metric_class):
    attention, target = random_spatial(1)
    whole, parts = metric_class(), metric_class()
    whole.update(attention, target)
    for start, stop in ((0, 1), (1, 4), (4, 7)):
        parts.update(attention[start:stop], target[start:stop])
    assert parts.compute().item() == pytest.approx(whole.compute().item(), abs=1e-12)
    assert 0 < whole.compute().item() < 1


def test_alignment_error_does_not_depend_on_how_batches_are_cut():
    attention, target = random_spatial(2)
    whole, parts = AlignmentError(), AlignmentError()
    whole.update((attention, target))
    for image in range(len(attention)):
        parts.update((attention[image : image + 1], target[image : image + 1]))
    assert parts.compute().item() == pytest.approx(whole.compute().item(), abs=1e-12)


@pytest.mark.parametrize(
    ("metric_class", "reference"), [(ConceptMAP, average_precision_score), (ConceptAUROC, roc_auc_score)]
)
def test_concept_ranking_agrees_with_scikit_learn(metric_class, reference):
    generator = torch.Generator().manual_seed(3)
    attention = torch.randn(60, 5, generator=generator).softmax(-1)
    target = torch.randint(0, 2, (60, 5), generator=generator).float()
    target[torch.rand(60, 5, generator=generator) < 0.2] = NAN
    target[:, 3] = 0  # never present
    target[:, 4] = 1  # always present
    metric = metric_class()
    for start in range(0, 60, 25):
        metric.update(attention[start : start + 25], target[start : start + 25])
    known = ~target.isnan()
    expected = [reference(target[known[:, c], c], attention[known[:, c], c]) for c in range(3)]
    assert metric.compute().item() == pytest.approx(np.mean(expected), abs=1e-6)


def test_concept_ranking_tells_small_attention_apart_beside_one_that_rounds_above_one():
    attention = torch.tensor([[1 + 1e-6], [2e-9], [1e-9], [0.0]])
    target = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    for metric in (ConceptMAP(), ConceptAUROC()):
        metric.update(attention, target)
        assert metric.compute().item() == 1.0


def test_concept_ranking_of_a_single_concept():
    assert compute(ConceptAUROC(), [[0.9], [0.2], [0.4]], [[1.0], [0.0], [1.0]]) == 1.0


@pytest.mark.parametrize(
    ("collection", "shape"),
    [(GlobalConceptMetrics, (2, 3)), (SpatialConceptMetrics, (2, 4, 3)), (PresenceMetrics, (2, 3))],
)
def test_metrics_without_anything_to_judge_are_nan(collection, shape):
    metrics = collection()
    metrics.update(torch.full(shape, 1 / 3), torch.full(shape, NAN))
    assert all(value.isnan() for value in metrics.compute().values())


def test_class_metrics_agree_with_scikit_learn():
    generator = torch.Generator().manual_seed(4)
    probabilities = torch.randn(80, 8, generator=generator, dtype=torch.float64).softmax(-1)
    labels = torch.randint(0, 7, (80,), generator=generator)  # class 7 is never right
    metrics = ClassMetrics(8)
    for start in range(0, 80, 32):
        metrics.update(probabilities[start : start + 32], labels[start : start + 32])
    values = {name: value.item() for name, value in metrics.compute().items()}
    predicted = probabilities.argmax(-1)
    assert values["accuracy"] == pytest.approx((predicted == labels).float().mean().item())
    assert values["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-6)
    top5 = top_k_accuracy_score(labels.numpy(), probabilities.numpy(), k=5, labels=range(8))
    assert values["top5_accuracy"] == pytest.approx(top5, abs=1e-6)


def test_calibration_error_by_hand():
    # Bins of 1/15: 0.95 twice, one right: gap 0.45. 0.61 once, right: gap 0.39.
    probabilities = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.61, 0.39]])
    metrics = ClassMetrics(2)
    metrics.update(probabilities, torch.tensor([0, 1, 0]))
    assert metrics.compute()["ece"].item() == pytest.approx((2 * 0.45 + 0.39) / 3, abs=1e-6)
    assert set(metrics.keys()) == {"accuracy", "macro_f1", "ece"}


def test_collections_keep_metrics_apart_that_agree_on_the_first_batch():
    # One patch and one concept each: all three metrics are 1 of 1 after the first batch, and then differ.
    metrics = SpatialConceptMetrics()
    metrics.update(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[1.0, 0.0], [NAN, NAN]]]))
    metrics.update(torch.tensor([[[0.4, 0.6], [0.1, 0.9]]]), torch.tensor([[[1.0, 0.0], [NAN, NAN]]]))
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values == pytest.approx({"pointing_game": 1.0, "pixel_tpr": 0.5, "relevance_mass": (1 + 0.8) / 2})


@pytest.mark.parametrize("collection", [ClassMetrics(10), GlobalConceptMetrics(), SpatialConceptMetrics()])
def test_collections_state_a_primary_metric_that_they_have(collection):
    assert collection.primary_metric in collection

# SPDX-License-Identifier: Apache-2.0
"""Thresholds, temperatures and limits against numpy by hand, scikit-learn, and simulated promises."""

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from ascent_vit.safeguard.calibration import (
    fit_presence,
    fit_temperature,
    fit_thresholds,
    group_classes,
    leave_one_out,
    limit_of,
)
from ascent_vit.safeguard.doubt import LEAST_ATTENTION, neighbour_distance, softmax


def draw(rng, number, weights=(0.5, 0.3, 0.2), sharp=1.5):
    labels = rng.choice(len(weights), number, p=weights)
    return sharp * (np.eye(len(weights))[labels] + 0.8 * rng.normal(size=(number, len(weights)))), labels


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_thresholds_are_the_order_statistic(alpha):
    logits, labels = draw(np.random.default_rng(0), 300)
    probabilities = softmax(logits)
    scores = 1 - probabilities[np.arange(300), labels]
    for per_class in (True, False):
        thresholds, shared = fit_thresholds(probabilities, labels, alpha, per_class)
        for k in range(3):
            ranked = np.sort(scores[labels == k] if per_class else scores)
            rank = int(np.ceil((len(ranked) + 1) * (1 - alpha)))
            assert thresholds[k] == pytest.approx(1 - ranked[rank - 1], abs=1e-8)
        assert len(shared) == (0 if per_class else 3)


@pytest.mark.parametrize("per_class", [True, False])
def test_sets_hold_what_they_promise(per_class):
    rng, alpha, covered = np.random.default_rng(1), 0.1, []
    for _ in range(300):
        logits, labels = draw(rng, 120, (0.6, 0.35, 0.05))
        thresholds, _ = fit_thresholds(softmax(logits), labels, alpha, per_class)
        new, truth = draw(rng, 400, (0.6, 0.35, 0.05))
        inside = softmax(new)[np.arange(400), truth] >= thresholds[truth]
        covered.append([inside.mean(), inside[truth == 0].mean()])
    # The standard error of these means is below 0.003.
    marginal, first = np.mean(covered, 0)
    assert 0.89 < marginal < (0.95 if per_class else 0.92)
    assert first > 0.89 or not per_class


def test_small_classes_are_joined_until_they_are_enough():
    labels = np.repeat([0, 1, 2, 3], [30, 12, 3, 1])
    groups, shared = group_classes(labels, 5, needed=9)
    # 3 + 1 + 0 images are not enough: the next larger class joins.
    assert shared.tolist() == [1, 2, 3, 4]
    assert [np.atleast_1d(group).tolist() for group in groups] == [[1, 2, 3, 4], [0]]
    groups, shared = group_classes(labels, 4, needed=3)
    assert shared.tolist() == [2, 3]
    groups, shared = group_classes(labels, 4, needed=1)
    assert shared.tolist() == [] and len(groups) == 4
    logits, labels = draw(np.random.default_rng(6), 200, (0.9, 0.08, 0.02))
    thresholds, shared = fit_thresholds(softmax(logits), labels, 0.05)
    assert shared.tolist() == [1, 2] and thresholds[1] == thresholds[2] != thresholds[0]


def test_temperature_is_scikit_learns():
    logits, labels = draw(np.random.default_rng(2), 2000, sharp=6)
    base = LogisticRegression().fit(logits, labels)
    base.coef_, base.intercept_ = np.eye(3), np.zeros(3)
    reference = CalibratedClassifierCV(FrozenEstimator(base), method="temperature", ensemble=False).fit(logits, labels)
    temperature = fit_temperature(logits, labels)
    assert temperature > 1.5
    expected = reference.predict_proba(logits)
    np.testing.assert_allclose(softmax(logits / temperature), expected, atol=2e-3)


def test_a_model_without_errors_is_not_made_infinitely_sure():
    labels = np.arange(60) % 3
    temperature = fit_temperature(4 * np.eye(3)[labels], labels)
    surest = softmax(4 * np.eye(3)[labels] / temperature).max(1)
    assert (surest < 1 - 1e-3).all()


def test_presence_is_a_logistic_regression_of_the_logarithm():
    rng = np.random.default_rng(3)
    attention = rng.uniform(0, 1, (4000, 2))
    odds = 2 * np.log(attention + LEAST_ATTENTION) + 1
    presence = (rng.random(attention.shape) < 1 / (1 + np.exp(-odds))).astype(float)
    presence[::7] = np.nan
    slope, bias = fit_presence(attention, presence)
    assert slope == pytest.approx(2, abs=0.2) and bias == pytest.approx(1, abs=0.2)
    assert fit_presence(attention, np.full_like(presence, np.nan)) == [1.0, 0.0]


def test_limits_are_exceeded_as_rarely_as_promised():
    rng = np.random.default_rng(4)
    shares = [(rng.normal(size=500) > limit_of(rng.normal(size=39), 0.05)).mean() for _ in range(400)]
    assert 0.03 < np.mean(shares) < 0.055
    assert limit_of(np.arange(5.0), 0.05) == 4


def test_leaving_one_out_is_the_distance_to_the_others():
    features = np.random.default_rng(5).normal(size=(20, 4))
    expected = [neighbour_distance(features[i], np.delete(features, i, 0), 3) for i in range(20)]
    np.testing.assert_allclose(leave_one_out(features, 3), expected, atol=1e-9)

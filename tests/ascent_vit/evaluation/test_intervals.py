# SPDX-License-Identifier: Apache-2.0
"""Intervals of figures, and of differences between two models on the same images."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from ascent_vit.evaluation import Intervention, Robustness
from ascent_vit.evaluation.intervals import intervals
from ascent_vit.evaluation.samples import EvaluatorSample
from ascent_vit.utils.bootstrap import bootstrap_interval


@dataclass
class Right:
    """Images that a model classifies right or wrong."""

    right: np.ndarray

    @property
    def number(self):
        return len(self.right)

    def figures(self, counts):
        share = counts @ self.right / counts.sum(1)
        return {"accuracy": share, "ece": np.abs(share - 0.7), "r2": np.full(len(share), np.nan)}


def test_an_interval_is_that_of_the_bootstrap():
    right = (np.random.default_rng(0).random(80) < 0.8).astype(float)
    found = intervals(Right(right), seed=4)
    assert found["accuracy"] == pytest.approx((right.mean(), *bootstrap_interval(right, seed=4)))
    assert set(found) == {"accuracy", "ece"}


def test_the_interval_of_what_chance_adds_to_is_turned_about_the_figure():
    right = np.array([1.0] * 70 + [0.0] * 30)
    value, low, high = intervals(Right(right))["ece"]
    # In every draw it is above 0, which it is not.
    assert value == pytest.approx(0) and low == 0 and high == pytest.approx(0)


def test_differences_are_paired():
    generator = np.random.default_rng(0)
    right = (generator.random(200) < 0.8).astype(float)
    better = np.maximum(right, generator.random(200) < 0.2)
    value, low, high = intervals(Right(better), Right(right))["accuracy"]
    assert value == pytest.approx(better.mean() - right.mean()) and 0 < low < value < high
    # Of other images of the same number, the two accuracies' own chance would count too.
    _, first, last = intervals(Right(better), Right(generator.permutation(right)))["accuracy"]
    assert last - first > 1.5 * (high - low)
    assert intervals(Right(right), Right(right))["accuracy"] == (0, 0, 0)
    with pytest.raises(ValueError, match="the same images; got 200 and 100"):
        intervals(Right(right), Right(right[:100]))


def test_one_image_has_no_interval():
    assert intervals(Right(np.ones(1))) == {}


def test_figures_of_an_evaluator_are_its_results_of_the_drawn_rows():
    steps = 3
    names = [str(point) for point in range(2 * (steps + 1))]
    rows = np.random.default_rng(0).random((6, len(names)))
    rows[4] = np.nan
    sample = EvaluatorSample(Intervention(steps), names, rows)
    counts = np.array([[1, 1, 1, 1, 1, 1], [0, 3, 0, 1, 2, 0], [0, 0, 0, 0, 6, 0]], dtype=float)
    found = sample.figures(counts)
    for draw, chosen in enumerate(([0, 1, 2, 3, 5], [1, 1, 1, 3])):
        means = rows[chosen].mean(0)
        expected = torch.trapezoid(torch.tensor(means[: steps + 1]), torch.linspace(0, 1, steps + 1).double())
        assert found["intervention_auc"][draw] == pytest.approx(expected.item())
    # Of images that cannot be judged there is no figure, and so no interval of those few images.
    assert np.isnan(found["intervention_auc"][2])
    assert sample.values()["intervention_images"] == 5


def test_a_column_without_images_has_no_interval():
    rows = np.array([[0.5, np.nan, 0.25, 1.0]] * 4)
    names = ["robustness_flip", "robustness_rotation", "robustness_scale", "robustness_translation"]
    found = intervals(EvaluatorSample(Robustness(), names, rows))
    assert set(found) == set(names) - {"robustness_rotation"} and found["robustness_scale"] == (0.25, 0.25, 0.25)

# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from ascent_vit.utils.bootstrap import bootstrap_interval


def test_interval_of_a_mean_is_that_of_the_normal_law():
    """Of many values the mean is normal: 1.96 standard errors to either side, 1.645 for a level of 0.9."""
    values = np.random.default_rng(1).normal(3, 2, size=4000)
    error = values.std() / np.sqrt(len(values))
    for level, width in ((0.95, 1.96), (0.9, 1.645)):
        low, high = bootstrap_interval(values, draws=4000, level=level)
        assert (low, high) == pytest.approx(
            (values.mean() - width * error, values.mean() + width * error), abs=0.15 * error
        )


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        low, high = bootstrap_interval(generator.random(100) < 0.7, seed=trial, draws=300)
        covered += low <= 0.7 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_seed_decides_the_draws():
    values = np.random.default_rng(0).random(50)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_statistics_of_one_draw_of_many_and_of_rows():
    values = np.random.default_rng(0).random(50)
    one = bootstrap_interval(values, lambda draw: float(np.median(draw)))
    assert one == pytest.approx(bootstrap_interval(values, np.median))
    low, high = bootstrap_interval(np.arange(50), lambda rows, axis: np.stack([np.median(values[rows], axis)] * 2))
    assert low == pytest.approx([one[0]] * 2) and high == pytest.approx([one[1]] * 2)


def test_equal_values_have_an_interval_without_width():
    assert bootstrap_interval([0.25] * 10) == (0.25, 0.25)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [[1.0, 2.0]]])
def test_refuses_what_has_no_interval(values):
    with pytest.raises(ValueError, match="two or more finite values"):
        bootstrap_interval(values)

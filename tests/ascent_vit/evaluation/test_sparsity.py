# SPDX-License-Identifier: Apache-2.0
"""Accuracy at a number of effective concepts: cases known beforehand."""

import numpy as np
import pytest

from ascent_vit.evaluation import accuracy_at_nec
from ascent_vit.evaluation.sparsity import truncate_weights


def drawn(classes, concepts, number=600, seed=0):
    """Scores in which the first concepts are the classes, one each, and the others chance."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, number)
    scores = generator.random((number, concepts))
    scores[np.arange(number), labels] += 1
    return scores, labels


def test_one_concept_a_class_is_enough_where_it_tells_the_class():
    train, test = drawn(4, 30), drawn(4, 30, seed=1)
    assert accuracy_at_nec(*train, *test, effective=1) > 0.95
    assert accuracy_at_nec(*train, *test) > 0.95


def test_five_concepts_are_not_enough_where_many_tell_a_little():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 2000)
    scores = generator.normal(size=(2000, 100)) + 0.3 * labels[:, None]
    parts = (scores[:1000], labels[:1000], scores[1000:], labels[1000:])
    few, all_of_them = (accuracy_at_nec(*parts, effective=number) for number in (5, 100))
    # Of k such scores the mean is 0.3 apart, with a deviation of 1 / sqrt(k): 0.63 and 0.93 for 5 and 100.
    assert few == pytest.approx(0.63, abs=0.06) and all_of_them > 0.85


def test_labels_need_not_start_at_0_and_names_of_scales_do_not_count():
    (scores, labels), test = drawn(3, 10), drawn(3, 10, seed=1)
    plain = accuracy_at_nec(scores, labels, *test)
    scale = np.logspace(-3, 3, 10)
    assert accuracy_at_nec(scores * scale, labels + 7, test[0] * scale, test[1] + 7) == pytest.approx(plain, abs=0.01)


def test_truncation_keeps_the_greatest_weights():
    weights = np.array([[0.1, -3.0, 0.0], [2.0, 0.2, -0.3]])
    assert truncate_weights(weights, 3).tolist() == [[0, -3, 0], [2, 0, -0.3]]
    assert np.array_equal(truncate_weights(weights, 6), weights)


def test_bad_arguments():
    scores, labels = drawn(2, 3, number=10)
    with pytest.raises(ValueError, match="effective must be 1 or more; got 0"):
        accuracy_at_nec(scores, labels, scores, labels, effective=0)
    with pytest.raises(ValueError, match="two classes or more"):
        accuracy_at_nec(scores, labels * 0, scores, labels)

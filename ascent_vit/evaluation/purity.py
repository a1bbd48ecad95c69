# SPDX-License-Identifier: Apache-2.0
"""
Impurity of concepts' scores: do they tell of other concepts more than the concepts themselves do?

Espinosa Zarlenga, Barbiero, Shams, Kazhdan, Bhatt, Weller and Jamnik, "Towards Robust Metrics for Concept
Representation Evaluation", AAAI 2023.
"""

import warnings
from typing import Any

import numpy as np


# As in the authors' code: share of the images to judge by, units of the classifiers, steps of the niches' threshold.
TEST_SHARE = 0.2
ORACLE_UNITS, NICHE_UNITS = (32,), (20, 20)
THRESHOLDS = np.arange(0.0, 1.0, 0.05)
EPOCHS = 200


def column_aurocs(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each column of (n, C), NaN where all images agree."""
    from sklearn.metrics import roc_auc_score

    return np.array(
        [
            roc_auc_score(target, score) if target.min() < target.max() else np.nan
            for target, score in zip(truth.T, predicted.T, strict=True)
        ]
    )


def fit_classifier(units: tuple[int, ...], inputs: np.ndarray, truth: np.ndarray, seed: int) -> Any:
    """Fits a small neural network that tells all concepts at once, (n, features) -> (n, C)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier(units, random_state=seed, max_iter=EPOCHS, learning_rate_init=0.01)
    with warnings.catch_warnings():
        # So many epochs are what is asked for.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(inputs, truth.astype(int))


def split_images(scores: np.ndarray, truth: np.ndarray, seed: int) -> tuple[np.ndarray, ...]:
    """Scores and truth to fit on, and to judge by; scores with mean 0 and deviation 1 where they are fitted."""
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    train, test = train_test_split(np.arange(len(scores)), test_size=TEST_SHARE, random_state=seed)
    scale = StandardScaler().fit(scores[train])
    return scale.transform(scores[train]), truth[train], scale.transform(scores[test]), truth[test]


def purity_matrix(scores: np.ndarray, truth: np.ndarray, seed: int) -> np.ndarray:
    """How well (i, j) the score of concept i tells whether concept j is there: area under the ROC curve, (C, C)."""
    train_scores, train_truth, test_scores, test_truth = split_images(scores, truth, seed)
    rows = []
    for i in range(scores.shape[1]):
        classifier = fit_classifier(ORACLE_UNITS, train_scores[:, [i]], train_truth, seed)
        rows.append(column_aurocs(test_truth, classifier.predict_proba(test_scores[:, [i]])))
    return np.array(rows)


def oracle_impurity(scores: np.ndarray, truth: np.ndarray, seed: int = 0) -> float:
    """
    Measures the oracle impurity score (OIS): how far what each concept's score tells of every concept is from what the
    concept itself tells of them.

        || A(scores) - A(truth) ||_F / (C / 2)

    A(x) has at (i, j) the area under the ROC curve of a small neural network that tells concept j by x_i alone; the
    diagonal of A(truth) is 1. Fitted on four fifths of the images, measured on the others.

    Args:
        scores: scores of the concepts, (n, C).
        truth: which concepts are there, (n, C), 1 or 0, both in each column.
        seed: random seed of the split and of the networks.

    Returns:
        From 0, as pure as the concepts themselves, to 1. Pairs with concepts that all judged images have, or none, are
        left out.
    """
    expected = purity_matrix(truth, truth, seed)
    np.fill_diagonal(expected, 1.0)
    distance = np.sqrt(np.nansum((purity_matrix(scores, truth, seed) - expected) ** 2))
    return float(distance / (truth.shape[1] / 2))


def niche_impurity(scores: np.ndarray, truth: np.ndarray, seed: int = 0) -> float:
    """
    Measures the niche impurity score (NIS): how well a concept is told by the scores of all concepts that have little
    to do with it.

    One small neural network tells all concepts by all scores. The niche of a concept at a threshold b are the scores
    whose correlation with it is above b, in size. With the scores of its niche at their mean, how well the network
    still tells the concept is the area under its ROC curve, mean over concepts; the area under that against b, from 0
    to 0.95 by trapezoids, is the score. Fitted on four fifths of the images, measured on the others.

    Args:
        scores, truth, seed: arguments of [`oracle_impurity`].

    Returns:
        From 0 to 0.95; 0.475 where what is outside of the niches tells nothing. It grows as concepts are told by their
        own scores, once these are outside of their niche at high thresholds: compare models on the same concepts.
    """
    train_scores, train_truth, test_scores, test_truth = split_images(scores, truth, seed)
    classifier = fit_classifier(NICHE_UNITS, train_scores, train_truth, seed)
    number = scores.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.nan_to_num(np.abs(np.corrcoef(train_scores.T, train_truth.T)[:number, number:]))
    values = []
    for threshold in THRESHOLDS:
        outside = correlation <= threshold
        predicted = np.stack(
            [classifier.predict_proba(test_scores * outside[:, j])[:, j] for j in range(number)], axis=1
        )
        values.append(np.nanmean(column_aurocs(test_truth, predicted)))
    return float(np.trapezoid(values, THRESHOLDS))


__all__ = ["niche_impurity", "oracle_impurity"]

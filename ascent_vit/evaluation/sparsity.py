# SPDX-License-Identifier: Apache-2.0
"""Accuracy at a number of effective concepts, by a sparse layer on concepts' scores."""

import warnings

import numpy as np

from .probe import check_counts


# Share of the L1 norm in the penalty, as in the authors' code, and by how much it falls from one layer to the next.
L1_SHARE, STEP, MOST_STEPS = 0.99, 2**0.5, 40
ITERATIONS = 200


def truncate_weights(weights: np.ndarray, number: int) -> np.ndarray:
    """Weights with the `number` that are greatest in size, and 0 for the others."""
    kept = np.zeros(weights.size, dtype=bool)
    kept[np.argsort(-np.abs(weights), axis=None, kind="stable")[:number]] = True
    return np.where(kept.reshape(weights.shape), weights, 0.0)


def accuracy_at_nec(
    train_scores: np.ndarray,
    train_labels: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    effective: int = 5,
    seed: int = 0,
) -> float:
    """
    Measures accuracy at a number of effective concepts (ANEC; Srivastava, Yan and Weng, "VLG-CBM: Training Concept
    Bottleneck Models with Vision-Language Guidance", NeurIPS 2024), to compare concepts with those of other models.

    A linear layer from the concepts' scores to the classes is trained on the training images with an elastic net,
    whose penalty falls until classes have `effective` weights each in the mean; what is above that number is
    truncated, the smallest weights first, over all classes at once. Its accuracy on other images is the metric. Scores
    are brought to mean 0 and deviation 1 of the training images. Two classes share one row of weights. The authors
    solve by GLM-SAGA, this by scikit-learn's SAGA.

    Args:
        train_scores: scores of the concepts in the training images, (n, C).
        train_labels: their classes, (n,).
        scores, labels: those of other images, (m, C) and (m,).
        effective: number of concepts of a class, in the mean; all of them if there are fewer.
        seed: random seed of the solver.

    Returns:
        Accuracy, from 0 to 1.

    Raises:
        ValueError: for an `effective` below 1, or training images of one class.

    Example:

    ```python
    >>> train, test = (ConceptScores().sample(model, batches).table for batches in (train_batches, test_batches))
    >>> accuracy_at_nec(train.scores, train.labels, test.scores, test.labels)
    ```
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import l1_min_c

    check_counts(effective=effective)
    if len(np.unique(train_labels)) < 2:
        raise ValueError("accuracy_at_nec needs training images of two classes or more.")
    scale = StandardScaler().fit(train_scores)
    inputs = scale.transform(train_scores)
    strength = l1_min_c(inputs, train_labels, loss="log")
    layer = LogisticRegression(
        solver="saga", l1_ratio=L1_SHARE, warm_start=True, max_iter=ITERATIONS, random_state=seed
    )
    with warnings.catch_warnings():
        # Each layer starts where the one before ended.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for _ in range(MOST_STEPS):
            strength *= STEP
            layer.set_params(C=strength).fit(inputs, train_labels)
            number = min(effective * len(layer.coef_), layer.coef_.size)
            if np.count_nonzero(layer.coef_) >= number:
                break
    layer.coef_ = truncate_weights(layer.coef_, number)
    return float(layer.score(scale.transform(scores), labels))


__all__ = ["accuracy_at_nec"]

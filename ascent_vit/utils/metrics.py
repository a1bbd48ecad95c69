# SPDX-License-Identifier: Apache-2.0
"""
The figures of an evaluation: names, meanings and directions, in the order in which cards and tables show them.

They are here, apart from the code that measures them, because a model is published without the packages that measure.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricInfo:
    """
    What is known of a metric beside its values.

    Args:
        meaning: what it measures, as a model card says it.
        greater_is_better: whether a greater value is better.
    """

    meaning: str
    greater_is_better: bool = True


# Measured after each epoch of a training too, so that one of them may choose the weights to keep.
EPOCH_METRICS = {
    "accuracy": MetricInfo("share of images whose class is right"),
    "top5_accuracy": MetricInfo("share of images whose class is among the five most probable"),
    "macro_f1": MetricInfo("F1 score of the classes, averaged over classes"),
    "label_map": MetricInfo("mean average precision of the classes' probabilities, where an image may have several"),
    "label_f1_macro": MetricInfo("F1 score of the classes above a probability of 0.5, averaged over classes"),
    "label_f1_micro": MetricInfo("F1 score of the classes above a probability of 0.5, over all images and classes"),
    "ece": MetricInfo(
        "expected calibration error of the class probability, 15 bins; 0 is best", greater_is_better=False
    ),
    "mae": MetricInfo("mean absolute error of the predicted values; 0 is best", greater_is_better=False),
    "rmse": MetricInfo("root of the mean squared error of the predicted values; 0 is best", greater_is_better=False),
    "r2": MetricInfo("share of the values' variance that the predictions explain, R squared"),
    "concept_map": MetricInfo("mean average precision of the attention to concepts of the whole image"),
    "concept_auroc": MetricInfo("area under the ROC curve of the attention to concepts of the whole image"),
    "global_concept_accuracy": MetricInfo("of images with one annotated concept, share where it is the most attended"),
    "alignment_error": MetricInfo("squared distance of attention from annotation; 0 is best", greater_is_better=False),
    "pointing_game": MetricInfo("share of annotated concepts whose attention map has its maximum on the annotation"),
    "pixel_tpr": MetricInfo("share of annotated patches whose most attended concept is an annotated one"),
    "relevance_mass": MetricInfo("share of an attention map that lies inside the annotation"),
    "presence_map": MetricInfo("mean average precision of a concept's strongest attention at any place of an image"),
    "presence_auroc": MetricInfo("area under the ROC curve of the strongest attention to a concept at any place"),
}

# The metrics of what is predicted, by transformers' names of problems; the first chooses the weights to keep.
LABEL_METRICS = {
    "single_label_classification": ("accuracy", "top5_accuracy", "macro_f1", "ece"),
    "multi_label_classification": ("label_map", "label_f1_macro", "label_f1_micro", "ece"),
    "regression": ("mae", "rmse", "r2"),
}

METRICS = EPOCH_METRICS | {
    "insertion_auc": MetricInfo("class probability as patches are shown in the order of their contribution"),
    "insertion_auc_random": MetricInfo("the same in random order"),
    "deletion_auc": MetricInfo(
        "class probability as patches are hidden in the order of their contribution; low is good",
        greater_is_better=False,
    ),
    "deletion_auc_random": MetricInfo("the same in random order", greater_is_better=False),
    "intervention_auc": MetricInfo("accuracy as concepts are corrected in the order of their uncertainty"),
    "intervention_auc_gain": MetricInfo("the same in the order of the change that a correction is expected to make"),
    "intervention_auc_random": MetricInfo("the same in random order"),
    "randomisation_head": MetricInfo(
        "agreement of maps with those of a model whose concept head is random; low is good", greater_is_better=False
    ),
    "randomisation_fusion": MetricInfo("the same with a random fusion and pyramid too", greater_is_better=False),
    "randomisation_backbone": MetricInfo("the same with everything random", greater_is_better=False),
    "robustness_flip": MetricInfo("agreement of maps of an image and its mirror image, mapped back"),
    "robustness_rotation": MetricInfo("agreement of maps of an image and its rotation, mapped back"),
    "robustness_scale": MetricInfo("agreement of maps of an image and its rescaling, mapped back"),
    "robustness_translation": MetricInfo("agreement of maps of an image and its translation, mapped back"),
    "causal_concept_effect": MetricInfo(
        "fall of the class probability as the patches of one annotated concept are removed"
    ),
    "causal_concept_effect_random": MetricInfo("the same for as many patches at random", greater_is_better=False),
    "num_effective_concepts": MetricInfo(
        "number of concepts that contribute to a class, mean over classes", greater_is_better=False
    ),
    "accuracy_nec5": MetricInfo("accuracy where a class has five concepts in the mean, and the others their mean"),
    "concept_completeness": MetricInfo(
        "accuracy by the scores of the named concepts alone, over that of the model, both above guessing"
    ),
    "concept_task_leakage": MetricInfo(
        "what a concept's score tells of the class beyond the concept itself, as a share of 1; 0 is best",
        greater_is_better=False,
    ),
    "oracle_impurity": MetricInfo(
        "what concepts' scores tell of other concepts beyond the concepts themselves; 0 is best",
        greater_is_better=False,
    ),
    "niche_impurity": MetricInfo(
        "how well a concept is told by the scores of concepts that have little to do with it; low is good",
        greater_is_better=False,
    ),
    "additivity_error": MetricInfo(
        "largest difference between a logit and the sum of its contributions and bias", greater_is_better=False
    ),
}


__all__ = ["EPOCH_METRICS", "LABEL_METRICS", "METRICS", "MetricInfo"]

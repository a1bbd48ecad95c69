# SPDX-License-Identifier: Apache-2.0
"""
What the concepts of a model are worth: how many of them its classes use, how much of the class they tell, and whether
each tells more than its name says.

Symbols: n images, C named concepts (global, then spatial), K classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from modeling_ascent_vit.class_scores_ascent_vit import score_function

from .errors import NotApplicableError
from .evaluate import check_labels, fill_targets
from .probe import rows_of_images
from .purity import niche_impurity, oracle_impurity


if TYPE_CHECKING:
    from accelerate import Accelerator

    from ascent_vit.inference.protocols import ConceptClassifier

# Folds of images, and concepts that a class may have in the mean (ANEC-5 of VLG-CBM).
FOLDS, EFFECTIVE = 5, 5


class ContributionMoments(Metric):
    """Mean and standard deviation over images of what each concept contributes to each class, (concepts, K) both."""

    is_differentiable = False
    full_state_update = False
    number: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, concepts: int, classes: int, **kwargs):
        super().__init__(**kwargs)
        self.add_state("number", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        for name in ("total", "squares"):
            self.add_state(name, torch.zeros(concepts, classes, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, contributions: Tensor):
        """Adds contributions (B, concepts, K)."""
        contributions = contributions.cpu().double()
        self.number += len(contributions)
        self.total += contributions.sum(0)
        self.squares += contributions.square().sum(0)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Means, standard deviations, and whether a concept contributes anything at all."""
        mean = self.total / self.number
        return mean, (self.squares / self.number - mean.square()).clamp_min(0).sqrt(), self.squares > 0


def strongest_entries(strengths: Tensor, per_class: int) -> Tensor:
    """Marks the greatest of strengths (concepts, K), `per_class` in the mean over classes; all if there are fewer."""
    number = min(per_class * strengths.shape[1], strengths.numel())
    marked = torch.zeros(strengths.numel(), dtype=torch.bool)
    marked[strengths.flatten().argsort(descending=True, stable=True)[:number]] = True
    return marked.view(strengths.shape)


def concept_truth(batch: dict[str, Tensor], out: Any) -> Tensor:
    """
    Which concepts are in an image, (B, C): 1, 0, and NaN where it is unknown.

    A spatial concept is there if it is listed as present or annotated at a place. It is absent if the list says so,
    or, without a list, if the image has annotated places and none of them is its.
    """
    attention, maps = out.global_concept_attention, out.spatial_concept_attention
    targets = {
        "concept_targets": attention,
        "spatial_concept_targets": maps,
        "spatial_concept_presence": None if maps is None else maps.amax(1),
    }
    known = [fill_targets(name, batch, values) for name, values in targets.items()]
    whole, places, listed = (None if values is None else values.cpu().float() for values in known)
    columns = [] if whole is None else [whole]
    if places is not None and listed is not None:
        placed = (places > 0).any(1)
        absent = placed.any(-1, keepdim=True) & ~placed & listed.isnan()
        columns.append(torch.where(placed, 1.0, torch.where(absent, 0.0, listed)))
    truth = torch.cat(columns, dim=-1)
    return torch.where(truth.isnan(), truth, (truth > 0).float())


@dataclass(frozen=True)
class ConceptTable:
    """
    Concepts and classes of images.

    Args:
        scores: the model's score of each concept, (n, C).
        truth: which concepts are there, (n, C), NaN where it is unknown.
        labels: classes, (n,).
        right: whether the model's class is right, (n,).
        right_truncated: the same with a few concepts for each class, (n,).
        num_classes: number of classes of the model.
    """

    scores: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    right: np.ndarray
    right_truncated: np.ndarray
    num_classes: int

    def judged(self) -> "ConceptTable":
        """The concepts that some images have and others have not, in the images where all of them are known."""
        some = (self.truth == 1).any(0) & (self.truth == 0).any(0)
        known = ~np.isnan(self.truth[:, some]).any(1)
        columns = {name: getattr(self, name)[known] for name in ("labels", "right", "right_truncated")}
        return replace(self, scores=self.scores[known][:, some], truth=self.truth[known][:, some], **columns)


def predict_labels(scores: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Classes of images (n,) by their concepts' scores alone, from logistic regression on the other folds' images."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    predicted = np.empty_like(labels)
    for train, test in KFold(min(FOLDS, len(labels)), shuffle=True, random_state=seed).split(scores):
        if len(np.unique(labels[train])) == 1:
            predicted[test] = labels[train][0]
            continue
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        predicted[test] = classifier.fit(scores[train], labels[train]).predict(scores[test])
    return predicted


def concept_task_leakage(scores: np.ndarray, truth: np.ndarray, labels: np.ndarray, seed: int = 0) -> float:
    """
    Measures concepts-task leakage (CTL; Parisini, Chakraborti, Harbron, MacArthur and Banerji, "Leakage and
    Interpretability in Concept-Based Models", 2025): the mean over concepts of

        max(0, I(score; label) - I(truth; label)) / H(label)

    I is mutual information: of the truth by counting, of a score by its nearest neighbours (Ross, "Mutual Information
    between Discrete and Continuous Data Sets", PLoS ONE 2014; scikit-learn's, 3 neighbours), as the authors have it.

    Args:
        scores: scores of the concepts, (n, C).
        truth: which concepts are there, (n, C), 1 or 0.
        labels: classes, (n,).
        seed: random seed of the small noise that keeps scores apart.

    Returns:
        From 0, a concept's score tells no more of the class than the concept itself, to 1. NaN with one class alone.
    """
    from sklearn.feature_selection import mutual_info_classif
    from sklearn.metrics import mutual_info_score

    entropy = mutual_info_score(labels, labels)
    if entropy == 0 or not scores.shape[1]:
        return float("nan")
    soft = mutual_info_classif(scores, labels, discrete_features=False, n_neighbors=3, random_state=seed)
    hard = np.array([mutual_info_score(column, labels) for column in truth.T])
    return float(np.maximum(0, soft - hard).mean() / entropy)


class ConceptSample:
    """
    Images with the scores of their concepts.

    Args:
        table: concepts and classes of the images.
        evaluator: evaluator that measured them.
        effective: mean number of concepts that contribute to a class.
    """

    def __init__(self, table: ConceptTable, evaluator: "ConceptScores", effective: float):
        self.table, self.evaluator, self.effective = table, evaluator, effective
        self.number = len(table.labels)
        predicted = predict_labels(table.scores, table.labels, evaluator.seed)
        self.hits = np.stack([table.right, table.right_truncated, predicted == table.labels], axis=1).astype(float)

    def values(self) -> dict[str, Any]:
        """The results of all images."""
        whole = {name: float(value[0]) for name, value in self.figures(np.ones((1, self.number))).items()}
        results = {"num_effective_concepts": self.effective, **whole}
        judged, seed = self.table.judged(), self.evaluator.seed
        if len(judged.labels) > FOLDS:
            results["concept_task_leakage"] = concept_task_leakage(judged.scores, judged.truth, judged.labels, seed)
            if self.evaluator.purity and judged.scores.shape[1] > 1:
                results["oracle_impurity"] = oracle_impurity(judged.scores, judged.truth, seed)
                results["niche_impurity"] = niche_impurity(judged.scores, judged.truth, seed)
        results = {name: value for name, value in results.items() if np.isfinite(value)}
        return results | {self.evaluator.count_name: self.number}

    def figures(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Figures of drawn images; those that compare images with each other have none, as a draw repeats images."""
        right, truncated, predicted = (counts @ self.hits).T / counts.sum(1)
        guessed = 1 / self.table.num_classes
        with np.errstate(invalid="ignore", divide="ignore"):
            completeness = np.where(right > guessed, (predicted - guessed) / (right - guessed), np.nan)
        return {"accuracy_nec5": truncated, "concept_completeness": completeness}


@dataclass(frozen=True)
class ConceptScores:
    """
    What the named concepts of a model are worth, of a model for one class of an image.

    - `num_effective_concepts` (NEC of Srivastava, Yan and Weng, "VLG-CBM: Training Concept Bottleneck Models with
      Vision-Language Guidance", NeurIPS 2024): the number of concepts that contribute to a class at all, mean over
      classes.
    - `accuracy_nec5`: accuracy where classes have five concepts each, in the mean: of all pairs of concept and class
      those whose contribution varies most over the images are kept, and the others contribute their mean. As in the
      paper, weights are truncated over all classes at once, and what is left out has its mean; other than there,
      nothing is trained again, so that five concepts may do better than it says.
    - `concept_completeness` (Yeh et al., "On Completeness-Aware Concept-Based Explanations in Deep Neural Networks",
      NeurIPS 2020): `(accuracy by concepts - 1/K) / (accuracy of the model - 1/K)`. The accuracy by concepts is that
      of a logistic regression on the scores of the named concepts, fitted on the other four fifths of the images. 1:
      the scores tell the class as well as the model does; above 1, better.
    - `concept_task_leakage`: see [`concept_task_leakage`].
    - With `purity`, `oracle_impurity` and `niche_impurity`: see [`oracle_impurity`] and [`niche_impurity`].

    A concept's score in an image is its attention, of a spatial concept the strongest at any place. The last three
    judge the concepts that some images have and others have not, in images where all of them are known.

    Cost: 2 forward passes per image, and small classifiers on the scores.

    Args:
        seed (`int`, *optional*, defaults to 0): Random seed of the folds and classifiers.
        purity (`bool`, *optional*, defaults to `False`): Whether to measure impurity too, which takes two small neural
            networks for each concept.

    Raises:
        NotApplicableError: when called, for a model for several classes of an image or for values, without named
            concepts, or images without labels.
    """

    seed: int = 0
    purity: bool = False
    description: ClassVar[str] = "Concept scores"
    count_name: ClassVar[str] = "concept_scores_images"
    primary_metric: ClassVar[str] = "concept_completeness"
    greater_is_better: ClassVar[bool] = True

    def __call__(
        self,
        model: "ConceptClassifier",
        dataloader: Iterable[dict[str, Tensor]],
        accelerator: "Accelerator | None" = None,
        progress: bool = False,
    ) -> dict[str, Any]:
        """Evaluates a model; arguments are those of [`evaluate`]."""
        return self.sample(model, dataloader, accelerator, progress).values()

    def sample(
        self,
        model: "ConceptClassifier",
        dataloader: Iterable[dict[str, Tensor]],
        accelerator: "Accelerator | None" = None,
        progress: bool = False,
    ) -> ConceptSample:
        """Measures a model image by image. Arguments and errors are those of a call."""
        bare_model = model if accelerator is None else accelerator.unwrap_model(model)
        config = bare_model.config
        if score_function(config) != "softmax":
            raise NotApplicableError(f"{self.description} are measured for one class of an image")
        if not config.num_global_concepts + config.num_spatial_concepts:
            raise NotApplicableError(f"{self.description} need named concepts, and the model has none")
        mean, strength, contributes = self.moments(model, dataloader, accelerator, progress)
        left_out = ~strongest_entries(strength, EFFECTIVE)

        def measure(model: "ConceptClassifier", pixels: Tensor, batch: dict[str, Tensor]) -> Tensor:
            labels = check_labels(batch.get("labels"), config)
            if labels is None:
                raise NotApplicableError(f"{self.description} need images with labels")
            out = model(pixels.to(next(model.parameters()).dtype), output_contributions=True)
            missing = (out.concept_contributions.cpu().double() - mean) * left_out
            truncated = out.logits.cpu().double() - missing.sum(1)
            strongest = out.spatial_concept_attention
            attention = [out.global_concept_attention, None if strongest is None else strongest.amax(1)]
            scores = torch.cat([each for each in attention if each is not None], dim=-1).float().cpu()
            labels = labels.cpu()
            right = [(logits.argmax(-1).cpu() == labels)[:, None].float() for logits in (out.logits, truncated)]
            return torch.cat([labels[:, None].float(), *right, scores, concept_truth(batch, out)], dim=1)

        rows = rows_of_images(model, dataloader, measure, accelerator, progress, self.description)
        labels, right, truncated = rows[:, :3].T
        scores, truth = np.split(rows[:, 3:], 2, axis=1)
        table = ConceptTable(scores, truth, labels.astype(int), right, truncated, config.num_labels)
        return ConceptSample(table, self, contributes.sum(0).double().mean().item())

    def moments(
        self,
        model: "ConceptClassifier",
        dataloader: Iterable[dict[str, Tensor]],
        accelerator: "Accelerator | None",
        progress: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and spread of each contribution over all images, and whether there is any, (concepts, K) each."""
        moments: ContributionMoments | None = None

        def measure(model: "ConceptClassifier", pixels: Tensor, batch: dict[str, Tensor]) -> Tensor:
            nonlocal moments
            out = model(pixels.to(next(model.parameters()).dtype), output_contributions=True)
            found = out.concept_contributions
            found = found if accelerator is None else accelerator.gather_for_metrics(found)
            if moments is None:
                moments = ContributionMoments(*found.shape[1:], sync_on_compute=accelerator is None)
            moments.update(found)
            return torch.zeros(len(pixels), 1)

        rows_of_images(model, dataloader, measure, accelerator, progress, "Contributions")
        assert moments is not None
        return moments.compute()


__all__ = ["ConceptScores", "concept_task_leakage"]

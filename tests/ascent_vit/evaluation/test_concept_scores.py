# SPDX-License-Identifier: Apache-2.0
"""What concepts are worth: cases known beforehand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ascent_vit.evaluation import ConceptScores, NotApplicableError
from ascent_vit.evaluation.concept_scores import concept_task_leakage, concept_truth, strongest_entries
from ascent_vit.evaluation.purity import niche_impurity, oracle_impurity
from modeling_ascent_vit import AscentViTForImageClassification


class SumOfConcepts(torch.nn.Module):
    """A linear model of concepts, which its pixels are."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight).float())
        self.config = SimpleNamespace(
            num_labels=self.weight.shape[1], problem_type=None,
            num_global_concepts=len(self.weight), num_spatial_concepts=0,
        )  # fmt: skip

    def forward(self, pixel_values, output_contributions=True):
        contributions = pixel_values[..., None] * self.weight
        return SimpleNamespace(
            logits=contributions.sum(1) + 0.1,
            concept_contributions=contributions,
            global_concept_attention=pixel_values,
            spatial_concept_attention=None,
        )


def evaluate_concepts(weight, scores, labels, **kwargs):
    batch = {"pixel_values": torch.as_tensor(scores).float(), "labels": torch.as_tensor(labels).long()}
    half = len(scores) // 2
    parts = [{name: values[part] for name, values in batch.items()} for part in (slice(half), slice(half, None))]
    return ConceptScores(**kwargs)(SumOfConcepts(weight), parts)


def drawn(number, concepts, seed=0):
    return np.random.default_rng(seed).random((number, concepts))


def test_number_of_effective_concepts():
    """The example of PyC: the first class uses two concepts, the second one."""
    weight = [[1.0, 0.0], [0.0, 0.3], [-0.5, 0.0]]
    found = evaluate_concepts(weight, drawn(20, 3), np.arange(20) % 2)
    assert found["num_effective_concepts"] == 1.5 and found["concept_scores_images"] == 20
    functional = pytest.importorskip("torch_concepts.nn.functional")
    assert functional.number_of_effective_concepts(torch.tensor(weight).T) == 1.5


def test_accuracy_with_five_concepts_a_class():
    # Twelve concepts: each class has one that decides, and faint ones that say the opposite all together.
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 200)
    scores = generator.random((200, 12)) * 0.1
    scores[:, 0] += labels == 0
    scores[:, 1] += labels == 1
    scores[:, 2:] += (labels == 1)[:, None] * 0.02
    weight = np.zeros((12, 2))
    weight[0, 0] = weight[1, 1] = 1.0
    weight[2:, 0] = 8.0
    whole = evaluate_concepts(weight, scores, labels)
    assert whole["num_effective_concepts"] == 6
    # Ten entries are kept: the two that decide and eight of the ten faint ones, whose mean no longer differs by class.
    strengths = torch.tensor((scores[..., None] * weight).std(0))
    kept = strongest_entries(strengths, 5)
    assert kept.sum() == 10 and kept[0, 0] and kept[1, 1]
    contributions = scores[..., None] * weight
    truncated = contributions * kept.numpy() + contributions.mean(0) * ~kept.numpy()
    assert whole["accuracy_nec5"] == pytest.approx((truncated.sum(1).argmax(-1) == labels).mean())


def test_few_concepts_are_all_kept():
    scores, labels = drawn(60, 4), np.arange(60) % 3
    found = evaluate_concepts(drawn(4, 3, 1), scores, labels)
    assert found["accuracy_nec5"] == pytest.approx(((scores @ drawn(4, 3, 1)).argmax(-1) == labels).mean())


def test_completeness():
    labels = np.arange(300) % 3
    known = np.eye(3)[labels] + drawn(300, 3) * 0.1
    assert evaluate_concepts(np.eye(3), known, labels)["concept_completeness"] == pytest.approx(1, abs=0.02)
    # The scores tell one class of three, so two thirds of guessing's errors are left: (2/3 - 1/3) / (1 - 1/3).
    one = np.concatenate([known[:, :1], np.zeros((300, 1))], axis=1)
    found = ConceptScores().sample(SumOfConcepts(np.eye(2, 3)), [
        {"pixel_values": torch.tensor(one).float(), "labels": torch.tensor(labels)}
    ])  # fmt: skip
    found.hits[:, 0] = 1
    assert found.figures(np.ones((1, 300)))["concept_completeness"][0] == pytest.approx(0.5, abs=0.08)


def test_a_model_that_only_guesses_has_no_completeness():
    found = evaluate_concepts(np.eye(2), np.tile([0.9, 0.1], (40, 1)), np.ones(40))
    assert "concept_completeness" not in found and "concept_task_leakage" not in found


def test_leakage_is_what_a_score_tells_beyond_its_concept():
    generator = np.random.default_rng(0)
    labels, truth = generator.integers(0, 4, 2000), generator.integers(0, 2, (2000, 2))
    pure = truth + 0.1 * generator.random(truth.shape)
    assert concept_task_leakage(pure, truth, labels) == pytest.approx(0, abs=0.02)
    # One of two concepts tells the whole label in its decimals: half of all there is to tell.
    leaky = pure.copy()
    leaky[:, 0] = truth[:, 0] + 0.1 * labels + 0.01 * generator.random(2000)
    assert concept_task_leakage(leaky, truth, labels) == pytest.approx(0.5, abs=0.02)
    # What the concept itself tells of the label is none.
    assert concept_task_leakage(labels[:, None] + 0.0, np.array(labels > 1)[:, None], labels) == pytest.approx(
        0.5, abs=0.05
    )
    assert concept_task_leakage((labels > 1)[:, None] + 0.0, (labels > 1)[:, None], labels) == pytest.approx(
        0, abs=0.02
    )
    assert np.isnan(concept_task_leakage(pure, truth, np.zeros(2000)))


def test_oracle_impurity():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, (600, 3)).astype(float)
    assert oracle_impurity(truth, truth) == pytest.approx(0, abs=0.02)
    # Each score has all three concepts in it: six areas of 1 where the concept alone has 1/2.
    mixed = (truth * [1, 2, 4]).sum(1, keepdims=True) + np.zeros((600, 3))
    expected = np.sqrt(6 * 0.5**2) / 1.5
    assert oracle_impurity(mixed, truth) == pytest.approx(expected, abs=0.1)


def test_niche_impurity():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, (600, 3)).astype(float)
    pure = niche_impurity(truth + 0.01 * generator.random(truth.shape), truth)
    assert pure == pytest.approx(0.475, abs=0.05)
    # Two scores together tell the first concept, and neither does alone: no niche has them.
    mixed = truth.copy()
    mixed[:, 0] = truth[:, 0] != truth[:, 1]
    assert niche_impurity(mixed, truth) == pytest.approx(pure + 0.475 / 3, abs=0.06)


def test_truth_of_lists_and_places():
    nan = torch.nan
    out = SimpleNamespace(global_concept_attention=torch.zeros(3, 2), spatial_concept_attention=torch.zeros(3, 4, 3))
    places = torch.full((3, 4, 3), nan)
    places[0, 0] = torch.tensor([1.0, 0, 0])
    places[2, 1] = torch.tensor([0.0, 1, 0])
    batch = {
        "concept_targets": torch.tensor([[1.0, 0], [nan, 1], [nan, nan]]),
        "spatial_concept_targets": places,
        "spatial_concept_presence": torch.tensor([[1.0, 0, nan], [nan, 1, 0], [nan, nan, 1]]),
    }
    expected = [[1, 0, 1, 0, 0], [nan, 1, nan, 1, 0], [nan, nan, 0, 1, 1]]
    assert torch.equal(concept_truth(batch, out).nan_to_num(-1), torch.tensor(expected).nan_to_num(-1))


def test_a_real_model_and_those_that_do_not_serve(make_config):
    config = make_config(num_global_concepts=3, num_spatial_concepts=4, num_unsupervised_concepts=2)
    model = AscentViTForImageClassification(config).train()
    batch = {
        "pixel_values": torch.randn(12, 3, 48, 48),
        "labels": torch.arange(12) % config.num_labels,
        "concept_targets": torch.eye(3)[torch.arange(12) % 3],
        "spatial_concept_targets": torch.eye(4)[torch.randint(0, 4, (12, model.eval()(
            torch.zeros(1, 3, 48, 48)).spatial_concept_attention.shape[1]))],
    }  # fmt: skip
    values = ConceptScores(purity=True)(model.train(), [batch])
    assert values["num_effective_concepts"] == 9 and model.training
    assert {"accuracy_nec5", "concept_scores_images"} <= set(values)
    with pytest.raises(NotApplicableError, match="need images with labels"):
        ConceptScores()(model, [{"pixel_values": batch["pixel_values"]}])
    with pytest.raises(NotApplicableError, match="one class of an image"):
        ConceptScores()(AscentViTForImageClassification(make_config(problem_type="regression")), [])
    with pytest.raises(NotApplicableError, match="need named concepts"):
        ConceptScores()(AscentViTForImageClassification(make_config(num_unsupervised_concepts=3)), [])

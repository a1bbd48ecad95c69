# SPDX-License-Identifier: Apache-2.0
"""Figures of images drawn from a split: those that torchmetrics has of the same images, repeated as often."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from ascent_vit.evaluation import evaluate
from ascent_vit.evaluation.records import SplitRecords, ranking_scores


class Outputs(torch.nn.Module):
    """Gives the outputs that a batch carries in its pixels' place."""

    def __init__(self, outputs, problem_type=None, num_labels=7):
        super().__init__()
        self.config = SimpleNamespace(
            num_labels=num_labels,
            problem_type=problem_type,
            none_concept=True,
            image_size=None,
            num_spatial_concepts=4,
        )
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.outputs = outputs

    def class_bias(self):
        return torch.zeros(self.config.num_labels)

    def forward(self, pixel_values, output_contributions=True):
        rows = pixel_values[:, 0].long()
        chosen = {name: values[rows] for name, values in self.outputs.items()}
        return SimpleNamespace(**chosen, concept_contributions=chosen["logits"][:, None])


def outputs_of(number, num_labels):
    generator = torch.Generator().manual_seed(3)
    return {
        # Coarse, so that scores tie.
        "logits": torch.randn(number, num_labels, generator=generator).mul(2).round(decimals=1),
        "global_concept_attention": torch.rand(number, 5, generator=generator).round(decimals=1),
        "spatial_concept_attention": torch.rand(number, 9, 4, generator=generator).round(decimals=1),
    }


def batch_of(rows, labels):
    generator = torch.Generator().manual_seed(4)
    number = len(labels)
    targets = {
        "concept_targets": torch.randint(0, 2, (number, 5), generator=generator).float(),
        "spatial_concept_targets": (torch.rand(number, 9, 4, generator=generator) > 0.8).float(),
        "spatial_concept_presence": torch.randint(0, 2, (number, 4), generator=generator).float(),
    }
    for values in targets.values():
        values[torch.rand(values.shape, generator=generator) > 0.9] = torch.nan
    # Nothing at all is known of the last image.
    for values in targets.values():
        values[-1] = torch.nan
    chosen = {name: values[rows] for name, values in (targets | {"labels": labels}).items()}
    return chosen | {"pixel_values": rows[:, None].float()}


PROBLEMS = {
    "single_label_classification": lambda: torch.arange(20) % 6,
    "multi_label_classification": lambda: torch.arange(140).view(20, 7) % 3 % 2,
    "regression": lambda: torch.randn(20, 7, generator=torch.Generator().manual_seed(5)) + 50,
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_figures_are_those_of_an_evaluation_of_the_drawn_images(problem):
    labels = PROBLEMS[problem]()
    model = Outputs(outputs_of(20, 7), problem)
    counts = np.stack([np.ones(20), np.bincount(np.random.default_rng(0).integers(0, 20, 20), minlength=20)])
    records = SplitRecords(model.config)
    evaluate(model, [batch_of(torch.arange(12), labels), batch_of(torch.arange(12, 20), labels)], records=records)
    assert records.number == 20
    figures = records.figures(counts)
    for draw, count in enumerate(counts.astype(int)):
        rows = torch.arange(20).repeat_interleave(torch.from_numpy(count))
        expected = evaluate(model, [batch_of(rows, labels)])
        del expected["additivity_error"]
        assert {name: values[draw] for name, values in figures.items()} == pytest.approx(expected, rel=1e-6, abs=2e-6)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=2, max_size=12))
def test_rankings_agree_with_scikit_learn(rows):
    scores, target, count = (np.array(column) for column in zip(*rows, strict=True))
    found = ranking_scores(scores.astype(float), target, count[None].astype(float))
    chosen, drawn = target.repeat(count), scores.repeat(count)
    if chosen.any() and not chosen.all():
        expected = [average_precision_score(chosen, drawn), roc_auc_score(chosen, drawn)]
        assert [values[0] for values in found] == pytest.approx(expected)
    else:
        assert np.isnan(found).all()


def test_without_labels_and_concepts_there_is_nothing_to_draw():
    records = SplitRecords(SimpleNamespace(num_labels=2, problem_type=None, none_concept=False))
    records.update({"logits": torch.zeros(3, 2)})
    assert records.number == 0 and records.figures(np.ones((1, 0))) == {}

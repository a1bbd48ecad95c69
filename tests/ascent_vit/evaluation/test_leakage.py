# SPDX-License-Identifier: Apache-2.0
"""Leakage: permuted targets, the formula on models that are known, and real trainings."""

from types import SimpleNamespace

import pytest
import torch

from ascent_vit.data import CachedConceptDataset, load_digits_dataset
from ascent_vit.evaluation import PermutedTargets, ShortTraining, leakage
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


def make_rows(number, side=48, patches=36):
    """Bright images are class 1 and show concept 1, in each patch too; dark ones are class 0 and show concept 0."""
    return [
        {
            "pixel_values": torch.randn(3, side, side) + (2.0 if i % 2 else -2.0),
            "labels": torch.tensor(i % 2),
            "concept_targets": torch.eye(2)[i % 2],
            "spatial_concept_targets": torch.eye(2)[i % 2].repeat(patches, 1),
        }
        for i in range(number)
    ]


def batches(rows):
    return torch.utils.data.DataLoader(rows, batch_size=8)


@pytest.mark.parametrize("number", [2, 3, 11])
def test_every_row_gets_the_targets_of_another_one(number):
    rows = make_rows(number)
    for i, row in enumerate(rows):
        row["concept_targets"] = torch.tensor([float(i)])
        row["spatial_concept_targets"] = torch.tensor([[float(i)]])
        row["spatial_concept_presence"] = torch.tensor([float(i)])
    permuted = PermutedTargets(rows, seed=0)
    donors = [int(permuted[i]["concept_targets"]) for i in range(number)]
    assert sorted(donors) == list(range(number)) and all(donor != i for i, donor in enumerate(donors))
    for i, donor in enumerate(donors):
        assert permuted[i]["spatial_concept_targets"].item() == donor
        assert permuted[i]["spatial_concept_presence"].item() == donor
        assert permuted[i]["labels"] is rows[i]["labels"] and permuted[i]["pixel_values"] is rows[i]["pixel_values"]
    assert donors == [int(PermutedTargets(rows, seed=0)[i]["concept_targets"]) for i in range(number)]


class Says(torch.nn.Module):
    """Says the class that its function gives for the image's mean."""

    def __init__(self, rule):
        super().__init__()
        self.config = SimpleNamespace(num_labels=2, problem_type=None)
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.rule = rule

    def forward(self, pixel_values):
        chosen = self.rule(pixel_values.mean((1, 2, 3))).long()
        return SimpleNamespace(logits=torch.nn.functional.one_hot(chosen, 2).float())


def test_formula_by_hand():
    rows = make_rows(8)
    always_one, right = Says(torch.ones_like), Says(lambda mean: mean > 0)
    rows[0]["labels"] = torch.tensor(1)  # one dark image is class 1: 5 of 8, and brightness is right in 7 of 8
    models = iter([right, always_one])
    values = leakage(lambda dataset: next(models), rows, batches(rows))
    assert values == {
        "leakage": 0.0,
        "leakage_accuracy_true": 7 / 8,
        "leakage_accuracy_permuted": 5 / 8,
        "leakage_majority": 5 / 8,
        "leakage_images": 8,
    }
    models = iter([right, right])
    assert leakage(lambda dataset: next(models), rows, batches(rows))["leakage"] == 1.0
    with pytest.raises(ValueError, match="train longer, or leave leakage out"):
        leakage(lambda dataset: always_one, rows, batches(rows))


def test_rows_that_do_not_serve():
    rows = make_rows(4)
    with pytest.raises(ValueError, match="2 rows or more; the dataset has 1"):
        leakage(lambda dataset: None, rows[:1], batches(rows))
    for row in rows:
        del row["concept_targets"], row["spatial_concept_targets"]
    with pytest.raises(ValueError, match="give rows with concept_targets or spatial_concept_targets"):
        leakage(lambda dataset: None, rows, batches(rows))
    with pytest.raises(ValueError, match="steps must be 1 or more"):
        ShortTraining(lambda: None, steps=0)


def test_short_training_is_the_same_each_time(make_config):
    rows, state = make_rows(8), torch.get_rng_state()
    train = ShortTraining(lambda: AscentViTForImageClassification(make_config(num_labels=2)), steps=2, batch_size=4)
    for row in rows:
        del row["concept_targets"], row["spatial_concept_targets"]
    first, second = train(rows), train(rows)
    assert torch.equal(torch.get_rng_state(), state) and not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    longer = ShortTraining(train.build_model, steps=3, batch_size=4)(rows)
    assert not torch.equal(longer.global_stream.concepts, first.global_stream.concepts)


def test_short_training_takes_a_dataset_that_gives_whole_batches(make_config):
    digits = load_digits_dataset(copies=1, canvas=32)["test"].select(range(8))
    names = [f"digit {digit}" for digit in range(10)]
    config = make_config(
        num_labels=2, global_concepts=names, spatial_concepts=names, backbone_kwargs={"image_size": 32}
    )
    rows = CachedConceptDataset(digits, AscentViTImageProcessor.from_model_config(config))
    train = ShortTraining(lambda: AscentViTForImageClassification(config), steps=2, batch_size=4)
    assert not train(rows).training
    permuted = PermutedTargets(rows, seed=0)
    assert not train(permuted).training
    # Moved through the images once, all targets are still there.
    found = sum(permuted[i]["concept_targets"] for i in range(8))
    assert found.tolist() == rows.__getitems__(range(8))["concept_targets"].sum(0).tolist()


@pytest.mark.slow
def test_a_heavy_concept_loss_leaves_less_room_to_leak(make_config):
    """Class and concept are the same here: permuted targets that must be met leave the class nothing to pass by."""
    rows, held_out = make_rows(64), make_rows(32)
    found = []
    for weight in (0.0, 100.0):
        config = make_config(
            num_labels=2, global_concepts=["dark", "bright"], spatial_concepts=["dark here", "bright here"],
            concept_loss_weight=weight, entropy_loss_weight=0.0, fusion_levels=0,
        )  # fmt: skip
        train = ShortTraining(lambda config=config: AscentViTForImageClassification(config), steps=60, batch_size=16)
        found.append(leakage(train, rows, batches(held_out)))
    free, bound = found
    assert free["leakage_accuracy_true"] == bound["leakage_accuracy_true"] == 1.0
    assert free["leakage"] == 1.0
    assert bound["leakage"] <= free["leakage"]

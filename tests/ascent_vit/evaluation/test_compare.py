# SPDX-License-Identifier: Apache-2.0
"""Two models on the same images."""

import copy
from functools import partial

import pytest
import torch

from ascent_vit.data import load_digits_dataset
from ascent_vit.evaluation import Settings, compare_dataset, evaluate_dataset
from ascent_vit.evaluation.compare import verdict
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


DIGITS = [f"digit {digit}" for digit in range(10)]


@pytest.fixture(scope="module")
def split():
    return load_digits_dataset(copies=1, canvas=32)["test"].select(range(40))


def build(make_config, **kwargs):
    config = make_config(
        id2label={0: "even", 1: "odd"}, label2id={"even": 0, "odd": 1}, num_labels=2,
        backbone_kwargs={"image_size": 32, "num_hidden_layers": 1},
        **{"global_concepts": DIGITS, "spatial_concepts": DIGITS} | kwargs,
    )  # fmt: skip
    return AscentViTForImageClassification(config), AscentViTImageProcessor.from_model_config(config)


def answer(answers, model, args, outputs):
    """Puts the next batch of answers in place of a model's own."""
    outputs.logits = torch.nn.functional.one_hot(next(answers), 2).float()


def test_a_model_does_not_differ_from_itself_and_does_from_one_that_is_always_wrong(make_config, split):
    model, processor = build(make_config)
    settings = Settings(images=12, steps=2, batch_size=20, skip=("robustness", "concepts"))
    values = compare_dataset((model, processor), (copy.deepcopy(model), processor), split, settings)
    differences = {name: value for name, value in values.items() if "_difference" in name}
    assert {"accuracy_difference", "insertion_auc_difference_low", "ece_difference_high"} <= set(differences)
    assert set(differences.values()) == {0.0}
    alone = evaluate_dataset(model, processor, split, **vars(settings))
    assert {name: values[name] for name in alone} == alone
    assert values["accuracy_other"] == alone["accuracy"]

    labels = torch.tensor(split["label"][:])
    answering = []
    for shift in (0, 1):
        # Images this small all go in one batch.
        answers = iter([(labels + shift) % 2])
        answering.append((copy.deepcopy(model), processor))
        answering[-1][0].register_forward_hook(partial(answer, answers))
    only = Settings(images=2, batch_size=20, skip=("faithfulness", "intervention", "robustness", "causal", "concepts"))
    values = compare_dataset(*answering, split, only)
    assert [values[f"accuracy{end}"] for end in ("", "_other", "_difference", "_difference_low")] == [1, 0, 1, 1]


def test_what_one_model_cannot_be_judged_by_is_said(make_config, split):
    maps, none = build(make_config), build(make_config, spatial_concepts=[])
    settings = Settings(images=4, steps=2, skip=("faithfulness", "intervention", "concepts", "causal"))
    values = compare_dataset(maps, none, split, settings)
    assert "robustness_flip" in values and "robustness_flip_difference" not in values
    assert values["left_out"][-1].endswith("no spatial concepts (the other model)")


def test_better_is_not_said_where_the_interval_contains_0():
    assert verdict("accuracy", 0.01, 0.05) == "better" and verdict("accuracy", -0.05, -0.01) == "worse"
    assert verdict("deletion_auc", 0.01, 0.05) == "worse" and verdict("deletion_auc", -0.05, -0.01) == "better"
    assert (
        verdict("insertion_auc_random", 0.1, 0.2) == verdict("causal_concept_effect_random", -0.2, -0.1) == "differs"
    )
    assert verdict("accuracy", -0.001, 0.2) == verdict("ece", 0.0, 0.1) == verdict("ece", 0, 0) == "not shown"

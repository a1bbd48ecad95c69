# SPDX-License-Identifier: Apache-2.0
"""Steps, decay, freezing and moving average."""

import dataclasses

import pytest
import torch

from ascent_vit.data import concepts_from_features
from ascent_vit.training import Recipe
from ascent_vit.training.blocks import freeze
from ascent_vit.training.build import build_model
from ascent_vit.training.optimisation import (
    Freezer,
    StepPlan,
    build_optimizer,
    moving_average,
    parameter_groups,
    plan_steps,
)
from modeling_ascent_vit import AscentViTForImageClassification


RECIPE = Recipe(
    num_train_epochs=10,
    warmup_epochs=2,
    head_only_epochs=1,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=2,
)


@pytest.mark.parametrize(
    "changes, num_images, num_processes, expected",
    [
        ({}, 160, 1, StepPlan(10, 100, 20, 10)),
        ({}, 175, 1, StepPlan(10, 100, 20, 10)),
        ({}, 160, 2, StepPlan(5, 50, 10, 5)),
        ({"num_train_epochs": 2.25, "warmup_epochs": 0.5, "head_only_epochs": 0}, 160, 1, StepPlan(10, 23, 5, 0)),
        ({"max_steps": 25}, 160, 1, StepPlan(10, 25, 5, 2)),
        ({"max_steps": 3}, 160, 1, StepPlan(10, 3, 0, 0)),
        ({"max_steps": 400}, 160, 1, StepPlan(10, 400, 20, 10)),
        ({"max_steps": 50}, None, 1, StepPlan(50, 50, 10, 5)),
    ],
)
def test_plan(changes, num_images, num_processes, expected):
    assert plan_steps(dataclasses.replace(RECIPE, **changes), num_images, num_processes) == expected


def test_plan_of_what_cannot_be_planned():
    with pytest.raises(ValueError, match="has 15 images, fewer than the 16 of one step"):
        plan_steps(RECIPE, 15)
    with pytest.raises(ValueError, match="give max_steps"):
        plan_steps(RECIPE, None)


def test_only_matrices_decay(make_config):
    model = AscentViTForImageClassification(make_config())
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, plain = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(plain["params"]) == len(names)
    for parameter in plain["params"]:
        assert names[parameter].endswith(("bias", "gamma")) or "norm" in names[parameter]
    assert not any(names[p].endswith("bias") or "norm" in names[p] for p in decayed["params"])


def test_freezing_leaves_alone_what_was_never_trained():
    module = torch.nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    freezer = Freezer(module)
    module(torch.ones(1, 2)).sum().backward()
    freezer.freeze(True)
    assert not module.weight.requires_grad and module.weight.grad is None
    freezer.freeze(False)
    assert module.weight.requires_grad and not module.bias.requires_grad


def test_moving_average_holds_weights_and_statistics():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2)).train()
    average = moving_average(model, 0.9)
    expected = None
    for step in range(4):
        with torch.no_grad():
            model[0].weight.fill_(step)
        model(torch.full((3, 1, 2, 2), float(step)) + torch.arange(3.0).view(3, 1, 1, 1))
        now = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}
        expected = now if expected is None else {k: 0.9 * v + 0.1 * now[k] for k, v in expected.items()}
        average.update_parameters(model)
    assert expected["1.running_mean"].abs().min() > 0
    for name, value in expected.items():
        torch.testing.assert_close(average.module.state_dict()[name], value)
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_the_backbone_has_a_learning_rate_of_its_own(tiny_recipe, few_digits):
    recipe = tiny_recipe(backbone_learning_rate=1e-5, weight_decay=0.1)
    model = build_model(recipe, *concepts_from_features(few_digits["train"].features))[0]
    groups = build_optimizer(model, recipe).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (1e-3, 0.1),
        (1e-3, 0),
        (1e-5, 0.1),
        (1e-5, 0),
    ]
    backbone = {id(parameter) for parameter in model.ascent_vit.backbone.parameters()}
    inside = [{id(parameter) in backbone for parameter in group["params"]} for group in groups]
    assert inside == [{False}, {False}, {True}, {True}]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


BACKBONE = "ascent_vit.backbone."
# Learning rate 1, decay 0.5, three layers: what is before the first layer, each layer, and what is behind the last.
LAYER_RATES = {
    "vit": {
        "embeddings.": 0.125,
        "layers.0.": 0.25,
        "layers.1.": 0.5,
        "layers.2.": 1.0,
        "layernorm.": 1.0,
    },
    "beit": {
        "embeddings.": 0.125,
        "shared_position_bias.": 0.125,
        "layers.0.": 0.25,
        "layers.1.": 0.5,
        "layers.2.": 1.0,
    },
    "clip_vision_model": {
        "embeddings.": 0.125,
        "pre_layrnorm.": 0.125,
        "encoder.layers.0.": 0.25,
        "encoder.layers.1.": 0.5,
        "encoder.layers.2.": 1.0,
    },
}


@pytest.mark.parametrize("family", LAYER_RATES)
def test_each_layer_of_the_backbone_has_a_learning_rate_of_its_own(family, make_config):
    options = {"use_shared_relative_position_bias": True} if family == "beit" else {}
    model = AscentViTForImageClassification(make_config(family, backbone_kwargs=options | {"num_hidden_layers": 3}))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.1, 1.0, 0.5)
    assert "lr" not in groups[0] and "lr" not in groups[1]
    assert [group["lr"] for group in groups[2:]] == [0.125, 0.125, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    found = 0
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            rates = [rate for start, rate in LAYER_RATES[family].items() if name.startswith(f"{BACKBONE}{start}")]
            assert rates == ([group["lr"]] if name.startswith(BACKBONE) else []), name
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
            found += 1
    assert found == len(names)


def test_layers_that_are_frozen_have_no_learning_rate(tiny_recipe, few_digits):
    recipe = tiny_recipe(layer_decay=0.5, frozen_layers=1)
    model = build_model(recipe, *concepts_from_features(few_digits["train"].features))[0]
    freeze(model, 1)
    groups = build_optimizer(model, recipe).param_groups
    assert [group["lr"] for group in groups] == [1e-3] * 4
    assert len(groups[2]["params"]) == sum(
        p.ndim > 1 for p in model.ascent_vit.backbone.parameters() if p.requires_grad
    )

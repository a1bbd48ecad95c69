# SPDX-License-Identifier: Apache-2.0
"""Randomised weights: which ones, and what is compared."""

import pytest
import torch
from scipy.stats import spearmanr

from ascent_vit.evaluation import NotApplicableError, Randomisation
from ascent_vit.evaluation.sanity import randomised_models, rank_correlation, stage_of
from modeling_ascent_vit import AscentViTForImageClassification


def changed_stages(model, other):
    before, after = model.state_dict(), other.state_dict()
    return {stage_of(name) for name in before if not torch.equal(before[name], after[name])}


def disturbed(model):
    """As after training: no weight has its initial value."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_the_cascade_leaves_the_model_and_the_random_state_alone(make_config):
    model = disturbed(AscentViTForImageClassification(make_config()).train())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    models = randomised_models(model, seed=0)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert changed_stages(model, models["head"]) == {"head"}
    assert changed_stages(model, models["fusion"]) == {"head", "fusion"}
    assert changed_stages(model, models["backbone"]) == {"head", "fusion", "backbone"}
    again, other = randomised_models(model, seed=0), randomised_models(model, seed=1)
    assert not changed_stages(models["backbone"], again["backbone"])
    assert changed_stages(models["backbone"], other["backbone"])


def test_a_model_without_pyramid_has_no_such_stage(make_config):
    model = AscentViTForImageClassification(make_config(fusion_levels=0))
    values = Randomisation()(model, [{"pixel_values": torch.randn(2, 3, 48, 48)}])
    assert set(values) == {"randomisation_head", "randomisation_backbone", "randomisation_images"}


def test_correlation_agrees_with_scipy():
    maps, others = torch.randn(4, 5, 3), torch.randn(4, 5, 3).round()
    expected = [abs(spearmanr(a.flatten(), b.flatten()).statistic) for a, b in zip(maps, others, strict=True)]
    assert rank_correlation(maps, others).tolist() == pytest.approx(expected, abs=1e-5)
    assert rank_correlation(maps, -maps).tolist() == pytest.approx([1] * 4, abs=1e-5)
    assert rank_correlation(maps, torch.ones(4, 5, 3)).tolist() == [0] * 4
    assert rank_correlation(maps[:1], maps[:1]).tolist() == pytest.approx([1], abs=1e-5)


def test_a_model_that_was_never_trained_equals_itself_with_its_own_seed(make_config):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = AscentViTForImageClassification(make_config())
    batches = [{"pixel_values": torch.randn(3, 3, 48, 48)}]
    values = Randomisation(seed=5)(model, batches)
    stages = ("head", "fusion", "backbone")
    assert [values[f"randomisation_{stage}"] for stage in stages] == pytest.approx([1] * 3, abs=1e-4)
    changed = Randomisation(seed=6)(model, batches)
    assert all(changed[f"randomisation_{stage}"] < 0.95 for stage in stages)
    assert values["randomisation_images"] == 3


def test_models_without_maps(make_config):
    model = AscentViTForImageClassification(make_config(num_global_concepts=3))
    with pytest.raises(NotApplicableError, match="Randomisation needs maps"):
        Randomisation()(model, [])

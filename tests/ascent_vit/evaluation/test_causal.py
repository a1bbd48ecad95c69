# SPDX-License-Identifier: Apache-2.0
"""Causal concept effect: cases known beforehand, and against PyC."""

from types import SimpleNamespace

import pytest
import torch

from ascent_vit.evaluation import CausalEffect, NotApplicableError
from modeling_ascent_vit import AscentViTForImageClassification


class FirstPatch(torch.nn.Module):
    """Class 1 by the mean value of the first of 2 x 2 patches, which concept 0 is at; concept 1 is at the last."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(num_labels=2, problem_type=None, num_spatial_concepts=2, patch_size=(2, 2))
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values):
        score = 2 * pixel_values[..., :2, :2].mean((1, 2, 3))
        return SimpleNamespace(
            logits=torch.stack([torch.zeros_like(score), score], dim=-1),
            spatial_concept_attention=torch.full((len(score), 4, 2), 0.5),
            patch_grid=torch.tensor([[2, 2]] * len(score)),
        )


def images(number):
    pixels = torch.zeros(number, 3, 4, 4)
    pixels[..., :2, :2] = torch.linspace(2, 4, number).view(-1, 1, 1, 1)
    return pixels


def annotated(number, *places):
    targets = torch.full((number, 4, 2), torch.nan)
    for patch, concept in places:
        targets[:, patch] = torch.eye(2)[concept]
    return targets


def effects(targets, **kwargs):
    pixels = images(len(targets))
    return CausalEffect(**kwargs)(FirstPatch(), [{"pixel_values": pixels, "spatial_concept_targets": targets}])


def test_a_concept_that_decides_and_one_that_does_not():
    before = torch.sigmoid(2 * torch.linspace(2, 4, 5))
    # The first patch has 3/4 of its value above the image's mean colour, and loses them.
    after = torch.sigmoid(2 * torch.linspace(2, 4, 5) / 4)
    found = effects(annotated(5, (0, 0)))
    assert found["causal_concept_effect"] == pytest.approx((before - after).mean().item(), abs=1e-6)
    assert found["causal_concept_effect_images"] == 5
    assert effects(annotated(5, (3, 1)))["causal_concept_effect"] == pytest.approx(0, abs=1e-6)
    # Of all four patches, there is one choice alone.
    whole = effects(annotated(5, (0, 0), (1, 0), (2, 0), (3, 0)))
    assert whole["causal_concept_effect"] == pytest.approx(whole["causal_concept_effect_random"], abs=1e-6)


def test_one_concept_of_an_image_is_drawn_by_the_seed():
    targets = annotated(40, (0, 0), (3, 1))
    found = effects(targets)
    both = [effects(annotated(40, place))["causal_concept_effect"] for place in ((0, 0), (3, 1))]
    assert min(both) + 0.03 < found["causal_concept_effect"] < max(both) - 0.03
    assert found == effects(targets) != effects(targets, seed=1)
    assert 0 < found["causal_concept_effect_random"] < max(both)


def test_agrees_with_pyc():
    """PyC (`pytorch-concepts`) is no dependency: the test runs where it is installed."""
    functional = pytest.importorskip("torch_concepts.nn.functional")
    model, pixels = FirstPatch(), images(5)
    removed = pixels.clone()
    removed[..., :2, :2] = pixels.mean((-2, -1), keepdim=True)
    present, absent = (model(each).logits.softmax(-1) for each in (pixels, removed))
    expected = functional.cace_score(absent, present)[1].item()
    assert effects(annotated(5, (0, 0)))["causal_concept_effect"] == pytest.approx(expected, abs=1e-6)


def test_images_that_do_not_serve(make_config):
    with pytest.raises(NotApplicableError, match="needs images with annotated spatial concepts"):
        effects(annotated(3))
    partly = annotated(3, (0, 0))
    partly[1] = torch.nan
    assert effects(partly)["causal_concept_effect_images"] == 2
    with pytest.raises(NotApplicableError, match="no spatial concepts"):
        CausalEffect()(AscentViTForImageClassification(make_config(num_global_concepts=3)), [])

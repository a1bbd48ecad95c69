# SPDX-License-Identifier: Apache-2.0
"""Insertion and deletion: against a plain loop in float64, against Quantus, and on cases known beforehand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ascent_vit.evaluation import Faithfulness, NotApplicableError
from ascent_vit.evaluation.faithfulness import masked_scores, numbers_of_patches, spread_patches
from modeling_ascent_vit import AscentViTForImageClassification


class SumOfPatches(torch.nn.Module):
    """A linear concept model of its own: class 0 against class 1 is a weighted sum of the patches' mean values."""

    def __init__(self, grid=(3, 2), patch_size=(2, 4), channels=3):
        super().__init__()
        self.config = SimpleNamespace(num_labels=2, problem_type=None, num_spatial_concepts=2, patch_size=patch_size)
        self.weight = torch.nn.Parameter(torch.randn(grid))
        self.channels, self.patch_size = channels, patch_size

    def patches(self, pixel_values):
        return torch.nn.functional.avg_pool2d(pixel_values.mean(1, keepdim=True), self.patch_size)[:, 0]

    def forward(self, pixel_values):
        score = (self.weight * self.patches(pixel_values)).sum((-2, -1))
        return SimpleNamespace(logits=torch.stack([score, torch.zeros_like(score)], dim=-1))

    def contribution_maps(self, pixel_values, class_ids):
        maps = self.weight * self.patches(pixel_values)
        maps = torch.where(class_ids[:, 0, None, None] == 0, maps, -maps)
        return torch.stack([0.25 * maps, 0.75 * maps], dim=1)[:, None]


def probability(model, image, predicted):
    with torch.no_grad():
        return model(image[None]).logits.softmax(-1)[0, predicted].item()


def areas_by_loops(model, image, steps):
    """Insertion and deletion area of one image, patch by patch."""
    height, width = model.patch_size
    predicted = model(image[None]).logits.argmax().item()
    maps = model.contribution_maps(image[None], torch.tensor([[predicted]]))[0, 0].sum(0)
    places = sorted(np.ndindex(*maps.shape), key=lambda place: -maps[place].item())
    mean = image.mean((-2, -1), keepdim=True).expand_as(image)
    areas = []
    for start, end in ((mean, image), (image, mean)):
        numbers = sorted({round(step * len(places) / steps) for step in range(steps + 1)})
        curve = []
        for number in numbers:
            changed = start.clone()
            for i, j in places[:number]:
                rows, columns = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
                changed[:, rows, columns] = end[:, rows, columns]
            curve.append(probability(model, changed, predicted))
        areas.append(np.trapezoid(curve, np.array(numbers) / len(places)))
    return areas


@pytest.mark.parametrize("steps", [1, 2, 6, 16])
def test_areas_are_those_of_a_loop_over_patches(steps):
    model, images = SumOfPatches().double(), torch.randn(5, 3, 6, 8, dtype=torch.float64)
    batches = [{"pixel_values": images[:3]}, {"pixel_values": images[3:]}]
    values = Faithfulness(steps=steps, batch_size=4)(model, batches)
    expected = np.mean([areas_by_loops(model, image, steps) for image in images], axis=0)
    assert [values["insertion_auc"], values["deletion_auc"]] == pytest.approx(expected, abs=1e-6)
    assert values["insertion_deletion_images"] == 5
    if steps > 1:
        assert values["insertion_auc"] > values["insertion_auc_random"]
        assert values["deletion_auc"] < values["deletion_auc_random"]


def test_one_decisive_patch_by_hand():
    # Patches are 3 and -1, 3 decides; the mean colour is 1, and each of the 2 patches is a step.
    model = SumOfPatches(grid=(1, 2), patch_size=(1, 1))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 0.0]]))
    image = torch.tensor([3.0, -1.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    values = Faithfulness(steps=2)(model, [{"pixel_values": image}])
    low, high = (1 / (1 + np.exp(-score)) for score in (2.0, 6.0))
    assert values["insertion_auc"] == pytest.approx((low + high) / 4 + high / 2, abs=1e-6)
    assert values["deletion_auc"] == pytest.approx((low + high) / 4 + low / 2, abs=1e-6)


def test_deletion_curve_agrees_with_quantus():
    """
    Quantus' pixel flipping, patch by patch, of the same attributions gives the points after the first one.

    Its own "mean" is that of the image as changed so far; here the mean of the whole image is given as a number.
    Quantus is no dependency: the test runs where it is installed.
    """
    quantus = pytest.importorskip("quantus")
    model, image = SumOfPatches(grid=(4, 4), patch_size=(2, 2)), torch.randn(1, 1, 8, 8)
    model.channels = 1
    predicted = model(image).logits.argmax(-1)
    maps = model.contribution_maps(image, predicted[:, None])[:, 0].sum(1)
    attribution = maps.detach().repeat_interleave(2, -2).repeat_interleave(2, -1)[:, None].numpy()

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            return self.model(pixel_values).logits

    flipping = quantus.PixelFlipping(
        features_in_step=4, perturb_baseline=image.mean().item(), abs=False, normalise=False, disable_warnings=True
    )
    (expected,) = flipping(
        model=Logits().eval(),
        x_batch=image.numpy(),
        y_batch=predicted.numpy(),
        a_batch=attribution,
        softmax=True,
        device="cpu",
    )
    ranks = torch.argsort(-maps.flatten(1)).argsort(-1).view(1, 1, 4, 4)
    shown = ranks >= torch.arange(1, 17).view(1, -1, 1, 1)
    with torch.no_grad():
        curve = masked_scores(model, image, predicted, shown, 4)
    assert curve[0].tolist() == pytest.approx(np.asarray(expected).ravel().tolist(), abs=1e-5)


def test_contributions_that_are_all_equal_score_as_random_order(make_config):
    model = AscentViTForImageClassification(make_config())
    with torch.no_grad():
        model.spatial_stream.value.weight.zero_()
    values = Faithfulness(steps=4)(model, [{"pixel_values": torch.randn(3, 3, 48, 48)}])
    assert values["insertion_auc"] == values["insertion_auc_random"]
    assert values["deletion_auc"] == values["deletion_auc_random"]


def test_real_model_in_any_batches(make_config):
    model, images = AscentViTForImageClassification(make_config()).train(), torch.randn(5, 3, 48, 48)
    whole = Faithfulness(steps=4)(model, [{"pixel_values": images}])
    parts = Faithfulness(steps=4, batch_size=3)(model, [{"pixel_values": images[:1]}, {"pixel_values": images[1:]}])
    assert parts == pytest.approx(whole, abs=1e-6)
    assert model.training
    assert Faithfulness(steps=4, seed=1)(model, [{"pixel_values": images}])["insertion_auc_random"] != pytest.approx(
        whole["insertion_auc_random"], abs=1e-9
    )


def test_pixels_beyond_the_grid_belong_to_the_last_patches():
    mask = torch.tensor([[[True, False], [False, True]]])
    spread = spread_patches(mask, (2, 3), (5, 7))[0, 0]
    assert spread.shape == (5, 7)
    assert spread[:2, :3].all() and not spread[:2, 3:].any()
    assert not spread[2:, :3].any() and spread[2:, 3:].all()


def test_numbers_of_patches():
    assert numbers_of_patches(64, 16).tolist() == list(range(0, 65, 4))
    assert numbers_of_patches(3, 16).tolist() == [0, 1, 2, 3]


def test_models_and_arguments_that_do_not_serve(make_config):
    model = AscentViTForImageClassification(make_config(num_global_concepts=3))
    with pytest.raises(NotApplicableError, match="no spatial concepts"):
        Faithfulness()(model, [])
    with pytest.raises(ValueError, match="steps must be 1 or more; got 0"):
        Faithfulness(steps=0)

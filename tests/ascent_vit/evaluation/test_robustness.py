# SPDX-License-Identifier: Apache-2.0
"""Robustness of maps that move with the image, that do not, and of real models."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ascent_vit.evaluation import NotApplicableError, Robustness
from ascent_vit.evaluation.robustness import Motion, agreement, motions
from modeling_ascent_vit import AscentViTForImageClassification


class Maps(torch.nn.Module):
    """Attention to two concepts from the mean colour of each patch (8 x 8 of them), or the same for every image."""

    def __init__(self, fixed=None):
        super().__init__()
        self.config = SimpleNamespace(num_spatial_concepts=2, patch_size=(4, 4))
        self.colour = torch.nn.Conv2d(3, 2, 1)
        self.fixed = fixed

    def forward(self, pixel_values):
        scores = self.colour(torch.nn.functional.avg_pool2d(pixel_values, 4))
        maps = scores.softmax(1) if self.fixed is None else self.fixed.expand(len(pixel_values), -1, -1, -1)
        grid = torch.tensor(maps.shape[-2:]).expand(len(maps), 2)
        return SimpleNamespace(spatial_concept_attention=maps.flatten(2).transpose(1, 2), patch_grid=grid)


def test_maps_that_move_with_the_image_agree():
    values = Robustness()(Maps(), [{"pixel_values": torch.randn(3, 3, 32, 32)}])
    assert values["robustness_flip"] == pytest.approx(1, abs=1e-6)
    assert values["robustness_translation"] == pytest.approx(1, abs=1e-4)
    assert values["robustness_images"] == 3
    smooth = torch.nn.functional.interpolate(torch.randn(3, 3, 3, 3), 32, mode="bicubic")
    values = Robustness()(Maps(), [{"pixel_values": smooth}])
    assert values["robustness_rotation"] > 0.99 and values["robustness_scale"] > 0.99


def test_maps_that_stay_where_they_are_by_hand():
    # Concept 0 is attended in the left half, concept 1 in the right: mirrored, nothing is left in common.
    halves = torch.zeros(2, 8, 8)
    halves[0, :, :4] = halves[1, :, 4:] = 1
    values = Robustness()(Maps(halves), [{"pixel_values": torch.randn(2, 3, 32, 32)}])
    assert values["robustness_flip"] == pytest.approx(0, abs=1e-6)
    # Shifted by one of 8 columns, 7 of which stay inside, one of them disagrees.
    assert values["robustness_translation"] == pytest.approx(6 / 7, abs=1e-4)


def test_maps_that_are_the_same_everywhere_agree(make_config):
    model = AscentViTForImageClassification(make_config(num_spatial_concepts=4)).train()
    with torch.no_grad():
        model.spatial_stream.query.weight.zero_()
    values = Robustness()(model, [{"pixel_values": torch.randn(2, 3, 48, 48)}])
    assert list(values.values()) == pytest.approx([1, 1, 1, 1, 2], abs=1e-5)
    assert model.training


def test_real_model_in_any_batches(make_config):
    model, images = AscentViTForImageClassification(make_config()), torch.randn(4, 3, 48, 48)
    whole = Robustness()(model, [{"pixel_values": images}])
    parts = Robustness()(model, [{"pixel_values": images[:1]}, {"pixel_values": images[1:]}])
    assert parts == pytest.approx(whole, abs=1e-5)
    assert all(0 < value < 1 for name, value in whole.items() if name != "robustness_images")


@given(st.integers(-2, 2), st.integers(-2, 2), st.booleans())
def test_shifting_and_mirroring_are_undone_exactly(right, down, mirror):
    planes = torch.arange(1.0, 31.0).view(1, 5, 6)
    motion = Motion(mirror=True) if mirror else Motion(shift=(right, down))
    back = motion.inverse.apply(motion.apply(planes))
    expected = planes.clone()
    if not mirror:
        rows, columns = torch.arange(5) + down, torch.arange(6) + right
        inside = ((rows >= 0) & (rows < 5))[:, None] & ((columns >= 0) & (columns < 6))
        expected = torch.where(inside, planes, 0.0)
    assert torch.allclose(back, expected, atol=1e-3)


def test_pixels_move_by_whole_patches():
    planes = torch.zeros(1, 8, 12)
    planes[0, 0, 0] = 1
    moved = Motion(shift=(2, 1)).apply(planes, patch_size=(4, 3))
    assert moved[0, 4, 6] == pytest.approx(1, abs=1e-4) and moved.sum() == pytest.approx(1, abs=1e-3)
    assert [motion.shift for motion in motions((16, 4))["robustness_translation"]] == [(1, 2), (-1, -2)]


def test_agreement_is_the_cosine_of_what_is_inside():
    maps = torch.tensor([[[[1.0, 5.0]], [[0.0, 5.0]]]])
    others = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])
    assert agreement(maps, others, torch.tensor([[True, False]])).item() == pytest.approx(0.5**0.5)
    assert agreement(maps, others, torch.tensor([[False, False]])).isnan().all()


def test_rotation_is_left_out_where_patches_are_not_square(make_config):
    model = Maps()
    model.config.patch_size = (4, 2)
    values = Robustness()(model, [{"pixel_values": torch.randn(2, 3, 32, 32)}])
    assert "robustness_rotation" not in values and "robustness_flip" in values


def test_models_without_maps(make_config):
    model = AscentViTForImageClassification(make_config(num_global_concepts=3))
    with pytest.raises(NotApplicableError, match="Robustness needs maps"):
        Robustness()(model, [])

# SPDX-License-Identifier: Apache-2.0
"""Seeded subsets and orders, and means over images."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ascent_vit.evaluation import Intervention
from ascent_vit.evaluation.dataset import KeptBatches
from ascent_vit.evaluation.probe import (
    ImageEvaluator,
    NotApplicableError,
    TokenMemory,
    choose_subset,
    column_means,
    descending_ranks,
    random_ranks,
    remembered_tokens,
    rows_of_images,
)
from modeling_ascent_vit import AscentViTForImageClassification


def test_subset_is_seeded_sorted_and_never_larger_than_asked_for():
    chosen = choose_subset(50, 10, seed=3)
    assert chosen == sorted(set(chosen)) and len(chosen) == 10 and max(chosen) < 50
    assert chosen == choose_subset(50, 10, seed=3) != choose_subset(50, 10, seed=4)
    assert choose_subset(4, 10, seed=0) == [0, 1, 2, 3]


def test_random_order_of_an_image_is_the_same_in_any_batch():
    images = torch.randn(5, 3, 4, 4)
    ranks = random_ranks(images, 9, seed=0)
    assert torch.equal(ranks.sort(-1).values, torch.arange(9).expand(5, -1))
    assert torch.equal(random_ranks(images[3:], 9, seed=0), ranks[3:])
    assert len({tuple(row) for row in ranks.tolist()}) == 5
    assert not torch.equal(random_ranks(images, 9, seed=1), ranks)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.randoms())
def test_ranks_descend_and_ties_go_by_the_other_order(scores, random):
    ties = list(range(len(scores)))
    random.shuffle(ties)
    ranks = descending_ranks(torch.tensor([scores]).float(), torch.tensor([ties]))[0].tolist()
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], ties[i]))
    assert [ranks[i] for i in order] == list(range(len(scores)))


def test_means_leave_out_what_cannot_be_judged():
    model = torch.nn.Linear(1, 1).train()
    rows = torch.tensor([[1.0, torch.nan], [3.0, torch.nan], [torch.nan, torch.nan]])
    batches = [{"pixel_values": rows[:1]}, {"pixel_values": rows[1:]}]

    def measure(given_model, pixels, batch):
        assert given_model is model and not model.training and not torch.is_grad_enabled()
        return pixels

    (first, second), counts = column_means(rows_of_images(model, batches, measure))
    assert first == 2.0 and second != second and counts == [2, 0]
    assert model.training
    with pytest.raises(ValueError, match="no images"):
        rows_of_images(model, [], measure)


def test_tokens_of_the_same_pixels_are_computed_once(make_config):
    model = AscentViTForImageClassification(make_config()).eval()
    calls = []
    model.ascent_vit.backbone.register_forward_hook(lambda *_: calls.append(1))
    pixels, override = torch.randn(2, 3, 48, 48), torch.tensor([[1.0] + [torch.nan] * 2] * 2)
    with torch.no_grad():
        plain = model(pixels), model(pixels, global_concept_override=override), model(pixels + 1)
        plain_maps = model.contribution_maps(pixels, [0])
        calls.clear()
        with remembered_tokens(model):
            first, second = model(pixels), model(pixels, global_concept_override=override)
            assert len(calls) == 1
            maps = model.contribution_maps(pixels, [0])
            assert len(calls) == 1
            other = model(pixels + 1)
            pixels += 1
            changed = model(pixels)
            assert len(calls) == 3
        assert torch.equal(maps, plain_maps)
    for kept, expected in zip((first, second, other, changed), (*plain, plain[2]), strict=True):
        assert torch.equal(kept.logits, expected.logits)
        assert torch.equal(kept.spatial_concept_attention, expected.spatial_concept_attention)
    assert "forward" not in model.ascent_vit.__dict__


def test_tokens_of_kept_batches_are_computed_once_for_all(make_config):
    model = AscentViTForImageClassification(make_config()).eval()
    calls = []
    model.ascent_vit.backbone.register_forward_hook(lambda *_: calls.append(1))
    batches = KeptBatches([{"pixel_values": torch.randn(2, 3, 48, 48)} for _ in range(2)])

    def measure(model, pixels, batch):
        return model(pixels).logits + 0 * model(pixels + 1).logits

    first = rows_of_images(model, batches, measure)
    assert len(calls) == 4
    assert (rows_of_images(model, batches, measure) == first).all()
    assert len(calls) == 6
    for batch in batches:
        batch["pixel_values"] += 1
    assert (rows_of_images(model, batches, measure) != first).all()
    assert len(calls) == 10
    # Without room, they are computed each time.
    batches.memory = TokenMemory(1)
    rows_of_images(model, batches, measure), rows_of_images(model, batches, measure)
    assert len(calls) == 18


def test_intervention_needs_the_tokens_of_an_image_once(make_config):
    model = AscentViTForImageClassification(make_config())
    calls = []
    model.ascent_vit.backbone.register_forward_hook(lambda *_: calls.append(1))
    batch = {"pixel_values": torch.randn(2, 3, 48, 48), "labels": torch.tensor([0, 1])}
    Intervention(steps=4)(model, [batch | {"concept_targets": torch.eye(3)[:2]}])
    assert len(calls) == 1


class Brightness(ImageEvaluator):
    description = "Brightness"
    count_name = "brightness_images"
    primary_metric = "brightness"

    def measurement(self, model):
        return ["brightness", "darkness"], lambda model, pixels, batch: torch.cat([pixels, -pixels], dim=1)


def test_an_evaluator_names_its_columns_and_counts_its_images():
    model = torch.nn.Linear(1, 1)
    model.config = SimpleNamespace(num_spatial_concepts=2)
    batches = [{"pixel_values": torch.tensor([[1.0], [2.0]])}, {"pixel_values": torch.tensor([[6.0]])}]
    assert Brightness()(model, batches) == {"brightness": 3.0, "darkness": -3.0, "brightness_images": 3}
    model.config.num_spatial_concepts = 0
    with pytest.raises(NotApplicableError, match="^Brightness needs maps, and the model has no spatial concepts$"):
        Brightness()(model, batches)

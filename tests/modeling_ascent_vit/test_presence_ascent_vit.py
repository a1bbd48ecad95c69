# SPDX-License-Identifier: Apache-2.0
"""Places learned from lists: the terms against independent computations, and what the model does with them."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification
from modeling_ascent_vit.presence_ascent_vit import (
    EXPECTED_AREA,
    FEWEST_LISTS,
    INTERCEPT,
    MEMORY,
    RIDGE,
    PresenceMemory,
    area_loss,
    group_lists,
    left_out_error,
    local_tokens,
    own_maps,
    presence_loss,
    similar_lists,
    unplaced_images,
)


NAN = float("nan")
# All lists of two to three of six concepts, each of two images.
LISTS = [
    [float(concept in chosen) for concept in range(6)]
    for number in (2, 3)
    for chosen in itertools.combinations(range(6), number)
]
PRESENCE = torch.tensor(LISTS).repeat(2, 1)


# The terms -----------------------------------------------------------------------------------------------------------


def test_images_of_one_list_are_one_group():
    assert len(LISTS) >= FEWEST_LISTS
    order = torch.randperm(len(PRESENCE))
    lists, averaging, told, is_by_list = group_lists(PRESENCE[order], len(PRESENCE))
    assert sorted(lists.tolist()) == sorted(LISTS) and told.all() and is_by_list
    torch.testing.assert_close(averaging @ PRESENCE[order], lists)
    assert ((averaging > 0).sum(1) == 2).all()


def test_what_is_unknown_does_not_part_images_of_one_list():
    """Of lists of three concepts one that is unknown leaves no doubt which it is."""
    whole = torch.tensor([list_ for list_ in LISTS if sum(list_) == 3])
    presence = whole.repeat(2, 1)
    presence[len(whole) :].scatter_(1, torch.arange(len(whole)).unsqueeze(1) % 6, NAN)
    lists, averaging, told, is_by_list = group_lists(presence, len(presence))
    assert sorted(lists.tolist()) == sorted(whole.tolist()) and told.all() and is_by_list
    torch.testing.assert_close(averaging[:, : len(whole)], averaging[:, len(whole) :])


def test_list_stands_for_those_that_it_does_not_contradict():
    presence = torch.tensor(
        [
            [1.0, 0.0, 1.0, 0.0],
            [1.0, NAN, 1.0, 0.0],
            [1.0, 0.0, NAN, NAN],
            [1.0, 0.0, 0.0, NAN],
            [1.0, NAN, NAN, NAN],
            [NAN, NAN, NAN, NAN],
        ]
    )
    # Of the last two less than half is known.
    assert similar_lists(presence).tolist() == [0, 0, 0, 3, 4, 5]


def test_of_few_lists_every_image_is_a_group():
    presence = torch.eye(3).repeat(4, 1)
    lists, averaging, told, is_by_list = group_lists(presence, 12)
    assert torch.equal(lists, presence) and torch.equal(averaging, torch.eye(12)) and told.all() and not is_by_list


def test_remembered_images_stand_for_lists_that_the_batch_has_not():
    """Of 35 lists the batch has 20, one of them twice; all 35 are remembered."""
    presence = torch.tensor(LISTS)
    lists, averaging, _, is_by_list = group_lists(torch.cat([presence[:20], presence[:1], presence]), 21)
    assert is_by_list and len(lists) == 35
    of_batch = averaging[:, :21].sum(1)
    assert ((of_batch == 1) | (of_batch == 0)).all() and of_batch.sum() == 20
    torch.testing.assert_close(averaging.sum(1), torch.ones(35))
    doubled = (lists == presence[0]).all(1)
    assert averaging[doubled, 0] == averaging[doubled, 20] == 0.5


def test_what_is_unknown_stands_at_the_mean_and_what_is_always_there_is_not_told():
    presence = torch.tensor([[1.0, 0.0, 1.0], [NAN, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, NAN, 1.0]])
    lists, _, told, _ = group_lists(presence, 5)
    assert lists[1, 0] == 0.5 and lists[4, 1] == 0.5
    assert told.tolist() == [True, True, False]


def test_left_out_error_is_that_of_regressions_without_the_group():
    """scikit-learn's ridge regression, once for each group that is left out, in float64."""
    rng = np.random.default_rng(0)
    features, lists = rng.normal(size=(3, 9, 5)), (rng.random((9, 4)) > 0.5).astype(float)
    expected = np.zeros((3, 9, 4))
    for place, group in itertools.product(range(3), range(9)):
        x = features[place] - features[place].mean(0)
        x = x / (x.std(0, ddof=1) + 1e-3) / 5**0.5
        # The intercept is a feature like the others, with a ridge of its own scale.
        x, y = np.column_stack([x, np.full(9, INTERCEPT**0.5)]), lists - lists.mean(0)
        others = np.arange(9) != group
        fitted = Ridge(alpha=RIDGE, fit_intercept=False).fit(x[others], y[others])
        expected[place, group] = (y[group] - fitted.predict(x[group : group + 1])[0]) ** 2
    found = left_out_error(torch.from_numpy(features), torch.from_numpy(lists))
    np.testing.assert_allclose(found.numpy(), expected)


def test_memory_keeps_the_newest_images_without_gradient():
    memory = PresenceMemory()
    seen = torch.empty(0)
    for size in (MEMORY - 3, 2, 4):
        features = torch.randn(size, 3, 5, requires_grad=True)
        presence = torch.randint(0, 2, (size, 6)).float()
        assert torch.equal(memory.lists(presence)[:size], presence)
        found = memory.extend(features, presence)
        seen = torch.cat([features.flatten(1).detach(), seen]) if len(seen) else features.flatten(1).detach()
        assert torch.equal(found.flatten(1), seen) and found.requires_grad
        seen = seen[:MEMORY]
    assert memory.images is not None
    kept, lists = memory.images
    assert kept.shape == (MEMORY, 3, 5) and not kept.requires_grad and lists.shape == (MEMORY, 6)
    assert torch.equal(lists[:4], presence)


def test_area_loss_is_a_divergence():
    gate = torch.rand(5, 7)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(torch.tensor(EXPECTED_AREA)), torch.distributions.Bernoulli(gate.mean(1))
    ).mean()
    torch.testing.assert_close(area_loss(gate), expected)


def test_own_maps_are_attention_over_the_patches():
    attention = torch.rand(4, 7, 3) / 3
    gate = attention.sum(-1)
    maps = own_maps(attention / gate.unsqueeze(-1), gate)
    torch.testing.assert_close(maps.parts, attention / attention.sum(1, keepdim=True))
    torch.testing.assert_close(maps.any, gate / gate.sum(1, keepdim=True))


def scene(num_patches: int = 30, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Early tokens `(B, N, 32)` in which each concept of the list shows at one patch, the other patches being alike; and
    where, as attention `(B, N, 6)`. In an image where a concept is missing, its place shows something else.
    """
    generator = torch.Generator().manual_seed(seed)
    looks = torch.randn(3, 6, 32, generator=generator)
    tokens = 0.3 * torch.randn(len(PRESENCE), num_patches, 32, generator=generator)
    places = torch.zeros(len(PRESENCE), num_patches, 6)
    for image, presence in enumerate(PRESENCE):
        chosen = torch.randperm(num_patches, generator=generator)[:6]
        for concept, patch in enumerate(chosen):
            kind = 0 if presence[concept] else 1
            tokens[image, patch] += looks[kind, concept] + looks[2, concept]
            places[image, patch, concept] = 1
    return tokens, places


def loss_of(attention, tokens, presence=PRESENCE, has_gate=True, parts=None, memory=None):
    torch.manual_seed(0)
    parts = torch.eye(6) if parts is None else parts
    memory = PresenceMemory() if memory is None else memory
    return presence_loss(attention, presence, tokens, tokens, parts, has_gate, memory)


def test_true_places_explain_the_lists_better_than_others():
    tokens, places = scene()
    true = loss_of(0.02 + 0.9 * places, tokens)
    exchanged = loss_of(0.02 + 0.9 * places.roll(1, dims=-1), tokens)
    anywhere = loss_of(torch.full_like(places, 0.15 / 6), tokens)
    elsewhere = loss_of(0.02 + 0.9 * places.roll(1, dims=1), tokens)
    assert true < 0.9 * min(exchanged, anywhere, elsewhere)


@pytest.mark.parametrize("has_gate", [False, True])
def test_places_are_found_by_descent(has_gate):
    """From no knowledge of place: attention is a function of the tokens alone, shared by all images."""
    tokens, places = scene()
    torch.manual_seed(0)
    which, whether = torch.nn.Linear(32, 6), torch.nn.Linear(32, 1)
    memory = PresenceMemory()
    optimizer = torch.optim.Adam([*which.parameters(), *whether.parameters()], lr=0.05)

    def attention():
        return which(tokens).softmax(-1) * (whether(tokens).sigmoid() if has_gate else 1.0)

    for _ in range(150):
        optimizer.zero_grad()
        presence_loss(attention(), PRESENCE, tokens, tokens, torch.eye(6), has_gate, memory).backward()
        optimizer.step()
    found = attention().argmax(1)
    hits = places.gather(1, found.unsqueeze(1)).squeeze(1)[PRESENCE == 1]
    # One patch of thirty by chance.
    assert hits.mean() > 0.5


@pytest.mark.parametrize("has_gate", [False, True])
def test_places_of_few_lists_are_found_by_small_batches(has_gate):
    """Three lists, 14 images a step: what was learned of earlier ones is remembered."""
    tokens, places = scene()
    few = (PRESENCE[:, 3:] == 0).all(-1) | (PRESENCE[:, :3] == 0).all(-1) | (PRESENCE[:, [0, 2, 4]] == 0).all(-1)
    chosen, generator = few.nonzero().squeeze(1), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    which, whether = torch.nn.Linear(32, 6), torch.nn.Linear(32, 1)
    memory = PresenceMemory()
    optimizer = torch.optim.Adam([*which.parameters(), *whether.parameters()], lr=0.05)
    for _ in range(150):
        batch = chosen[torch.randperm(len(chosen), generator=generator)[:14]]
        attention = which(tokens[batch]).softmax(-1) * (whether(tokens[batch]).sigmoid() if has_gate else 1.0)
        optimizer.zero_grad()
        presence_loss(
            attention, PRESENCE[batch], tokens[batch], tokens[batch], torch.eye(6), has_gate, memory
        ).backward()
        optimizer.step()
    found = (which(tokens).softmax(-1) * (whether(tokens).sigmoid() if has_gate else 1.0)).argmax(1)
    hits = places.gather(1, found.unsqueeze(1)).squeeze(1)[chosen][PRESENCE[chosen] == 1]
    assert hits.mean() > 0.5


def test_part_is_a_place_shared_by_its_concepts():
    tokens, places = scene()
    parts = torch.zeros(6, 3)
    parts[torch.arange(6), torch.arange(6) // 2] = 1
    shared = (places[..., 0::2] + places[..., 1::2]).repeat_interleave(2, dim=-1) / 2
    assert loss_of(0.02 + 0.9 * shared, tokens, parts=parts) < loss_of(
        0.02 + 0.9 * shared.roll(2, -1), tokens, parts=parts
    )


def test_gradient_is_that_of_finite_differences():
    tokens, places = scene(num_patches=8)
    attention = (0.05 + 0.1 * torch.rand_like(places)).requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(attention, tokens), attention)
    direction = torch.randn_like(places)
    step = 1e-3
    with torch.no_grad():
        difference = loss_of(attention + step * direction, tokens) - loss_of(attention - step * direction, tokens)
    # What places and smooth names are weighed by counts as given: a few per cent.
    assert difference.item() / (2 * step) == pytest.approx((gradient * direction).sum().item(), rel=0.15)


def test_lists_that_tell_nothing_cost_nothing():
    tokens, places = scene()
    attention = places.requires_grad_()
    for presence in (torch.ones_like(PRESENCE), torch.full_like(PRESENCE, NAN), PRESENCE[:1].repeat(len(PRESENCE), 1)):
        loss = loss_of(attention, tokens, presence)
        assert loss == 0 and torch.autograd.grad(loss, attention)[0].eq(0).all()


def test_images_without_a_list_do_not_count():
    tokens, places = scene()
    attention = 0.1 + 0.5 * places
    presence = torch.cat([PRESENCE, torch.full((4, 6), NAN)])
    more = [torch.cat([values, torch.randn_like(values[:4]).abs()]) for values in (attention, tokens)]
    torch.testing.assert_close(loss_of(*more, presence), loss_of(attention, tokens))


def test_images_with_a_list_and_no_place():
    targets = torch.full((3, 4, 2), NAN)
    targets[0, 1] = 1
    presence = torch.tensor([[1.0, NAN], [1.0, 0.0], [NAN, NAN]])
    assert unplaced_images(presence, targets).tolist() == [False, True, False]
    assert unplaced_images(presence, None).tolist() == [True, True, False]


def test_one_image_after_another_is_learned_from():
    """Alone an image tells nothing; beside those remembered it is predicted by them."""
    tokens, places = scene()
    attention, memory = (0.02 + 0.9 * places).requires_grad_(), PresenceMemory()
    losses = [loss_of(attention[[i]], tokens[[i]], PRESENCE[[i]], memory=memory) for i in range(12)]
    assert losses[0] == losses[1] == 0 and losses[-1] > 0
    (gradient,) = torch.autograd.grad(losses[-1], attention)
    assert gradient[11].abs().sum() > 0 and gradient[:11].eq(0).all()


def test_embeddings_alone_are_trained():
    """Later layers would learn to carry the list from patch to patch."""
    for depth, is_trained in ((2, True), (3, False), (12, False)):
        layers = tuple(torch.zeros(2, 5, 3, requires_grad=True) for _ in range(depth + 1))
        early, middle = local_tokens(layers, layers[-1], num_patches=4)
        assert early.requires_grad is is_trained and not middle.requires_grad
    assert not local_tokens(None, layers[-1], num_patches=4)[0].requires_grad


def test_local_tokens_are_after_a_third_and_two_thirds():
    layers = tuple(torch.full((2, 5, 3), float(layer)) for layer in range(13))
    early, middle = local_tokens(layers, layers[-1], num_patches=4)
    assert early.shape == middle.shape == (2, 4, 3) and (early == 4).all() and (middle == 8).all()
    hierarchical = (torch.zeros(2, 64, 1), torch.zeros(2, 16, 2), layers[-1])
    assert all((tokens == 12).all() for tokens in local_tokens(hierarchical, layers[-1], num_patches=4))


# The model -----------------------------------------------------------------------------------------------------------


def listed_batch(config):
    """As many images as there are lists, of noise."""
    presence = torch.tensor(LISTS)
    return {
        "pixel_values": torch.randn(len(LISTS), 3, 48, 48),
        "labels": torch.arange(len(LISTS)) % config.num_labels,
        "spatial_concept_presence": presence,
    }


def test_loss_is_the_weighted_sum(make_config):
    config = make_config(num_spatial_concepts=6, none_concept=True, concept_loss_weight=3.0, entropy_loss_weight=0.25)
    model = AscentViTForImageClassification(config).train()
    batch = listed_batch(config)
    outputs = model(**batch)
    expected = outputs.class_loss + 3 * outputs.presence_loss + 0.25 * outputs.entropy_loss
    torch.testing.assert_close(outputs.loss, expected)
    assert outputs.hidden_states is None and outputs.alignment_loss is None
    without = model.eval()(**batch)
    assert without.presence_loss is None
    torch.testing.assert_close(without.loss, without.class_loss + 0.25 * without.entropy_loss)


def test_lists_alone_give_a_loss(make_config):
    config = make_config(num_spatial_concepts=6, none_concept=True)
    model = AscentViTForImageClassification(config).train()
    batch = listed_batch(config)
    del batch["labels"]
    outputs = model(**batch)
    torch.testing.assert_close(outputs.loss, outputs.presence_loss)
    outputs.loss.backward()
    assert model.spatial_stream.query.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("is_placed", [False, True])
def test_class_scores_do_not_move_maps_of_images_without_places(make_config, is_placed):
    """With the class loss alone, the gate has a gradient only where an image has a place."""
    weights = {"concept_loss_weight": 0.0, "entropy_loss_weight": 0.0}
    config = make_config(num_spatial_concepts=6, num_global_concepts=0, none_concept=True, **weights)
    model = AscentViTForImageClassification(config).train()
    targets = torch.full((len(LISTS), 36, 6), NAN)
    if is_placed:
        targets[0, 3] = 1
    model(**listed_batch(config), spatial_concept_targets=targets).loss.backward()
    assert bool(model.spatial_stream.gate.weight.grad.abs().sum() > 0) is is_placed
    assert model.spatial_stream.value.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "presence, message",
    [
        (torch.zeros(2, 5), r"spatial_concept_presence must have the shape \(2, 4\); got \(2, 5\)"),
        (torch.full((2, 4), 0.5), "spatial_concept_presence must be 0, 1 or NaN; got 0.5"),
        (torch.zeros(2, 4, dtype=torch.long), "spatial_concept_presence must be floating point"),
        (torch.full((2, 4), -1.0), "spatial_concept_presence must be at most"),
    ],
)
def test_wrong_lists(make_config, presence, message):
    model = AscentViTForImageClassification(make_config())
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(2, 3, 48, 48), spatial_concept_presence=presence)


def test_parts():
    names = ["bill red", "bill long", "upperparts brown", "eye black"]
    config = AscentViTConfig(
        spatial_concepts=names,
        concept_parts={"bill": names[:2], "back": [names[2]], "wing": [names[2]]},
    )
    assert config.part_shares == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]]
    assert AscentViTConfig(spatial_concepts=names).part_shares == torch.eye(4).tolist()
    with pytest.raises(ValueError, match="'bill' has 'bill blue', which is none of them"):
        AscentViTConfig(spatial_concepts=names, concept_parts={"bill": ["bill blue"]})
    with pytest.raises(ValueError, match="'bill' has no concept"):
        AscentViTConfig(spatial_concepts=names, concept_parts={"bill": []})

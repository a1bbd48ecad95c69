# Copyright 2026 The ASCENT-ViT project. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
Places of concepts learned from lists of what is in each image.

A list says which concepts are somewhere in an image. Any token that tells the class tells them all, as deep tokens have
seen the whole image, so that attention trained to name what is listed says nothing of place. Two things do: early tokens,
which have seen little beyond their own patch, and lists that were not learned from. A concept is where early tokens
predict it best in images of other lists, or in other images where there are few different lists.
"""

from typing import NamedTuple

import torch
from torch import nn


# Images of earlier batches that are remembered: what predicts a concept is learned from them too.
MEMORY = 512
# Tokens drawn from a batch: a map is a mixture of what is similar to each, so that it takes the same things in all images.
NUM_ANCHORS = 64
# Temperatures of the similarity, over anchors and over the patches of an image.
ANCHOR_TEMPERATURE, PATCH_TEMPERATURE = 0.05, 0.1
# Ridge of the regression, and the weight of its intercept.
RIDGE, INTERCEPT = 3.0, 0.125
# How sharply the places are told apart, and the weight of the names given to them.
CONTRAST, NAME_WEIGHT = 20.0, 0.1
# Different lists from which on whole lists are left out; of fewer, nothing can be learned about another one.
FEWEST_LISTS = 16
# Share of the patches that show a concept, expected before anything is known.
EXPECTED_AREA = 0.15


def unplaced_images(presence: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    """Images whose list is known `(B, S)` and no place `(B, N, S)`: `(B,)`, bool."""
    listed = ~presence.isnan().all(-1)
    return listed if targets is None else listed & targets.to(presence.device).isnan().all(-1).all(-1)


def local_layers(depth: int) -> tuple[int, int]:
    """Indices of the hidden states of [`local_tokens`], of a backbone of so many layers."""
    return depth // 3, round(depth * 2 / 3)


def local_tokens(
    hidden_states: tuple[torch.Tensor, ...] | None, last: torch.Tensor, num_patches: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Patch tokens after a third, rounded down, and after two thirds of the backbone's layers.

    Args:
        hidden_states (`tuple[torch.Tensor]`, *optional*): those of the backbone, its embeddings first.
        last (`torch.Tensor` of shape `(B, P + N, D)`):
            Tokens that stand in for those of a backbone that gives none of this shape, as hierarchical ones do.
        num_patches (`int`): number N of patches.

    Returns:
        Two tensors of shape `(B, N, D)`, without gradient, except the first where it is of the embeddings, as in a backbone
        of one or two layers: trained together, layers would learn to carry the list from patch to patch. Embeddings, which
        see one patch, may learn what to see of it, as those of a model trained from scratch have to.
    """
    layers = hidden_states or (last,)
    depth = len(layers) - 1
    first, second = local_layers(depth)
    chosen = [layers[first], layers[second].detach()]
    early, middle = (tokens if tokens.shape[:2] == last.shape[:2] else last.detach() for tokens in chosen)
    is_embedding = first == 0 and depth > 0
    return (early if is_embedding else early.detach())[:, -num_patches:], middle[:, -num_patches:]


class PresenceMemory:
    """
    What early tokens were where the parts are, in the last images of earlier batches: of the few images of a batch little
    can be learned about another one (a queue as in He et al., "Momentum Contrast", CVPR 2020).

    It is no part of the model's state: each process has its own, and a training that is resumed starts with none.

    Attributes:
        images (`tuple[torch.Tensor, torch.Tensor]`, *optional*):
            Mean early tokens under M maps in Q images, `(Q, M, D)`, the newest first, and the lists of these, `(Q, S)`.
    """

    def __init__(self):
        self.images: tuple[torch.Tensor, torch.Tensor] | None = None

    def lists(self, presence: torch.Tensor) -> torch.Tensor:
        """Lists of a batch `(B, S)`, then those remembered."""
        return presence if self.images is None else torch.cat([presence, self.images[1].to(presence)])

    def extend(self, features: torch.Tensor, presence: torch.Tensor) -> torch.Tensor:
        """Features of a batch `(B, M, D)`, then those remembered; remembers the batch and forgets the oldest images."""
        presence = self.lists(presence)
        features = features if self.images is None else torch.cat([features, self.images[0].to(features)])
        self.images = features[:MEMORY].detach(), presence[:MEMORY]
        return features


def similar_lists(presence: torch.Tensor) -> torch.Tensor:
    """
    For each list, which of them stands for it: the one that knows most, of those that contradict it nowhere and share at
    least half of the concepts with it. Without this, images of one list would be told apart by what is unknown of them.

    Args:
        presence (`torch.Tensor` of shape `(V, S)`): see [`group_lists`].

    Returns:
        `torch.Tensor` of shape `(V,)`, long.
    """
    known = (~presence.isnan()).to(presence.dtype)
    present = presence.nan_to_num(0.0)
    clashes = present @ (known - present).T
    is_similar = (clashes + clashes.T == 0) & (2 * known @ known.T >= known.shape[1])
    is_similar |= torch.eye(len(known), dtype=torch.bool, device=known.device)
    return torch.where(is_similar, known.sum(1), -1.0).argmax(1)


def group_lists(presence: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    """
    Gathers images of the same list, which are left out together: in them a concept is known by the rest of the list. Where
    there are few different lists, or each concept is in one alone, every image is a group by itself.

    Args:
        presence (`torch.Tensor` of shape `(V, S)`):
            1 for concepts in the image, 0 for others, NaN for unknown; images of the batch first, then remembered ones.
        size (`int`): number of images of the batch.

    Returns:
        Presence in the groups `(U, S)`, where the mean over images stands for what is unknown; the matrix `(U, V)` that
        averages over the images of a group; whether a concept is in two groups and missing in two, so that it can be
        predicted of one by the others, `(S,)`; and whether images are grouped by lists.
    """

    def filled(values: torch.Tensor) -> torch.Tensor:
        return torch.where(values.isnan(), values.nanmean(0).nan_to_num(0.0), values)

    def is_told(lists: torch.Tensor) -> torch.Tensor:
        return ((lists > 0.5).sum(0) >= 2) & ((lists < 0.5).sum(0) >= 2)

    values = filled(presence)
    like = presence[similar_lists(presence)]
    lists, group = torch.unique(filled(torch.where(presence.isnan(), like, presence)), dim=0, return_inverse=True)
    if len(lists) < FEWEST_LISTS or not is_told(lists).any():
        return values, torch.eye(len(values)).to(values), is_told(values), False
    members = nn.functional.one_hot(group).to(values.dtype)
    # Remembered images stand for lists that the batch has not: beside images of the batch they would only dilute these.
    members[size:] *= members[:size].sum(0) == 0
    return lists, (members / members.sum(0)).T, is_told(lists), True


def left_out_error(features: torch.Tensor, lists: torch.Tensor) -> torch.Tensor:
    """
    Squared error of ridge regression on each group by all others, in closed form from the one fit to all (Hastie,
    Tibshirani and Friedman, "The Elements of Statistical Learning", equation 7.64).

    Args:
        features (`torch.Tensor` of shape `(M, U, D)`): features of the groups, under M maps.
        lists (`torch.Tensor` of shape `(U, S)`): presence of the concepts in the groups.

    Returns:
        `torch.Tensor` of shape `(M, U, S)`.
    """
    features = features - features.mean(1, keepdim=True)
    features = features / (features.std(1, keepdim=True) + 1e-3)
    kernel = features @ features.transpose(1, 2) / features.shape[-1] + INTERCEPT
    inverse = torch.linalg.inv(kernel + RIDGE * torch.eye(kernel.shape[-1], device=kernel.device))
    residuals = inverse @ (lists - lists.mean(0)) / inverse.diagonal(dim1=1, dim2=2).unsqueeze(-1)
    return residuals.square()


class Maps(NamedTuple):
    """Where parts are, as the terms of [`presence_loss`] read it; B, N and P count images, patches and parts."""

    parts: torch.Tensor
    """Weights of the patches for each part, sum to 1 over patches, `(B, N, P)`."""
    any: torch.Tensor
    """The same for any part, `(B, N)`."""
    names: torch.Tensor
    """Shares of the parts at each patch, to be taught, `(B, N, P)`, without gradient."""


def own_maps(shares: torch.Tensor, gate: torch.Tensor) -> Maps:
    """Maps as attention has them: shares of the parts `(B, N, P)`, of a gate `(B, N)`."""
    weights = shares * gate.unsqueeze(-1)
    tiny = torch.finfo(weights.dtype).tiny
    return Maps(
        weights / weights.sum(1, keepdim=True).clamp_min(tiny), gate / gate.sum(1, keepdim=True), shares.detach()
    )


def anchored_maps(shares: torch.Tensor, gate: torch.Tensor, middle: torch.Tensor) -> Maps:
    """
    Maps as mixtures of what is similar to anchors, patches drawn at random: attention matters at these alone.

    Args:
        shares (`torch.Tensor` of shape `(B, N, P)`): shares of the parts.
        gate (`torch.Tensor` of shape `(B, N)`): attention of the patches to any concept.
        middle (`torch.Tensor` of shape `(B, N, D)`): tokens by which patches are similar.
    """
    middle = nn.functional.layer_norm(middle, middle.shape[-1:])
    middle = nn.functional.normalize(middle - middle.mean(1, keepdim=True), dim=-1)

    def likeness(anchors: torch.Tensor) -> torch.Tensor:
        return middle @ middle.flatten(0, 1)[anchors].T

    anchors = torch.randint(0, gate.numel(), (NUM_ANCHORS,), device=gate.device)
    smooth = (likeness(anchors) / ANCHOR_TEMPERATURE).softmax(-1) @ gate.flatten()[anchors]
    place = (gate / gate.sum(1, keepdim=True)).detach()
    anchors = torch.multinomial(place.flatten(), NUM_ANCHORS, replacement=True)
    near, mixture = likeness(anchors), shares.flatten(0, 1)[anchors]
    weights = (near / PATCH_TEMPERATURE).softmax(1) @ (mixture / mixture.sum(0).clamp_min(1e-6))
    names = (near / ANCHOR_TEMPERATURE).softmax(-1) @ mixture
    return Maps(weights, smooth / smooth.sum(1, keepdim=True), names.detach())


def area_loss(gate: torch.Tensor) -> torch.Tensor:
    """Divergence of the gate's mean over an image from the expected area, `(B, N) -> ()`."""
    area = gate.mean(1).clamp(1e-6, 1 - 1e-6)
    inside = EXPECTED_AREA * (EXPECTED_AREA / area).log()
    return (inside + (1 - EXPECTED_AREA) * ((1 - EXPECTED_AREA) / (1 - area)).log()).mean()


def which_loss(error: torch.Tensor, variance: torch.Tensor, parts: torch.Tensor, has_contrast: bool) -> torch.Tensor:
    """
    The tokens where a part is shall predict the part's concepts, and better than the tokens where another part is.

    Args:
        error (`torch.Tensor` of shape `(P, S)`): error of predicting each concept by the tokens where each part is.
        variance (`torch.Tensor` of shape `(S,)`): the same without tokens, 0 for concepts that cannot be predicted.
        parts (`torch.Tensor` of shape `(S, P)`): see [`presence_loss`].
        has_contrast (`bool`): whether other parts are looked at.

    Returns:
        `torch.Tensor` of shape `()`.
    """
    variance = variance @ parts
    is_told = variance > 1e-4
    # Of each part's concepts (columns), what the tokens of each part (rows) leave unpredicted.
    error = error @ parts
    loss = error.diagonal()[is_told].sum() / variance.sum()
    if not has_contrast:
        return loss
    unexplained = error / variance.clamp_min(1e-4)
    # A place that predicts everything is no better a place for this part than for others.
    relative = unexplained - 0.5 * unexplained.mean(1, keepdim=True)
    own = is_told.nonzero().squeeze(1)
    return loss + nn.functional.cross_entropy(-CONTRAST * relative.T[is_told], own)


def naming_loss(
    presence: torch.Tensor,
    shares: torch.Tensor,
    place: torch.Tensor,
    smooth: torch.Tensor,
    parts: torch.Tensor,
) -> torch.Tensor:
    """
    Where a part is, the concepts of it that are listed share the attention.

    Args:
        presence (`torch.Tensor` of shape `(B, S)`): 1 for concepts in the image, else 0.
        shares (`torch.Tensor` of shape `(B, N, S)`): attention to concepts, of a patch's attention to any.
        place (`torch.Tensor` of shape `(B, N)`): weights of the patches, sum to 1.
        smooth (`torch.Tensor` of shape `(B, N, P)`): shares of the parts, without gradient.
        parts (`torch.Tensor` of shape `(S, P)`): see [`presence_loss`].
    """
    in_part = (parts > 0).to(parts)
    listed = (presence @ in_part).clamp_min(1)
    targets = (smooth / listed.unsqueeze(1)) @ in_part.T * presence.unsqueeze(1)
    # Not divided out: a patch says little about the names where parts prevail of which nothing is listed.
    return -(place.unsqueeze(-1) * targets * shares.clamp_min(torch.finfo(shares.dtype).tiny).log()).sum((1, 2)).mean()


def presence_loss(
    attention: torch.Tensor,
    presence: torch.Tensor,
    early_tokens: torch.Tensor,
    middle_tokens: torch.Tensor,
    parts: torch.Tensor,
    has_gate: bool,
    memory: PresenceMemory,
) -> torch.Tensor:
    """
    How badly maps of concepts explain the lists of a batch: the early tokens under a concept's map shall predict whether it
    is in the image, by a regression that has not seen the image.

    Where there are many different lists, the regression has seen no image of the same list either, which it could else
    know by any token of such an image. So few lists are left to learn from that maps are mixtures of what is similar to
    anchors, drawn at random, and shall explain their own concepts better than other maps do.

    It depends on the batch as a whole, the larger the better, and on earlier ones.

    Args:
        attention (`torch.Tensor` of shape `(B, N, S)`): attention of the patches, mean over heads.
        presence (`torch.Tensor` of shape `(B, S)`):
            1 for concepts that are somewhere in the image, 0 for those that are not, NaN where it is unknown.
        early_tokens (`torch.Tensor` of shape `(B, N, D)`): patch tokens that predict, see [`local_tokens`].
        middle_tokens (`torch.Tensor` of shape `(B, N, D)`): patch tokens by which patches are similar.
        parts (`torch.Tensor` of shape `(S, P)`): share of each concept's map that each part's has, rows sum to 1.
        has_gate (`bool`): whether attention sums to a gate, else to 1.
        memory (`PresenceMemory`): images of earlier batches, to which those of this batch are added.

    Returns:
        `torch.Tensor` of shape `()`, float32; 0 where there are too few different lists.
    """
    listed = ~presence.isnan().all(-1)
    if not listed.any():
        return attention.sum() * 0.0
    with torch.autocast(attention.device.type, enabled=False):
        attention, presence, early, middle = (
            values[listed].float() for values in (attention, presence, early_tokens, middle_tokens)
        )
        parts, size = parts.float(), len(presence)
        lists, averaging, told, is_by_list = group_lists(memory.lists(presence), size)

        gate = attention.sum(-1)
        shares = attention / gate.unsqueeze(-1).clamp_min(torch.finfo(attention.dtype).tiny)
        maps = anchored_maps(shares @ parts, gate, middle) if is_by_list else own_maps(shares @ parts, gate)
        pooled = torch.cat([maps.parts, maps.any.unsqueeze(-1)], dim=-1).transpose(1, 2) @ early
        features = memory.extend(pooled, presence)
        if not told.any():
            return attention.sum() * 0.0

        weights = averaging[:, :size].sum(1)
        error = left_out_error(averaging @ features.transpose(0, 1), lists)
        # The mean over groups of the batch; remembered ones have no gradient of their own.
        error = (error * (weights / weights.sum()).view(-1, 1)).sum(1) * told
        variance = (lists - lists.mean(0)).square().mean(0) * told
        loss = which_loss(error[:-1], variance, parts, has_contrast=is_by_list)
        place = (gate / gate.sum(1, keepdim=True)).detach()
        loss = loss + NAME_WEIGHT * naming_loss(presence.nan_to_num(0.0), shares, place, maps.names, parts)
        if has_gate:
            # Where anything is, all concepts are predicted.
            loss = loss + error[-1].sum() / variance.sum() + area_loss(gate)
        return loss


__all__ = ["PresenceMemory", "local_layers", "local_tokens", "presence_loss", "unplaced_images"]

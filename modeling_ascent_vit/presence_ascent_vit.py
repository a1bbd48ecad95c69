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
predict it best in images of other lists.
"""

from typing import NamedTuple

import torch
from torch import nn


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


def local_tokens(
    hidden_states: tuple[torch.Tensor, ...] | None, last: torch.Tensor, num_patches: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Patch tokens after a third and after two thirds of the backbone's layers.

    Args:
        hidden_states (`tuple[torch.Tensor]`, *optional*): those of the backbone, its embeddings first.
        last (`torch.Tensor` of shape `(B, P + N, D)`):
            Tokens that stand in for those of a backbone that gives none of this shape, as hierarchical ones do.
        num_patches (`int`): number N of patches.

    Returns:
        Two tensors of shape `(B, N, D)`.
    """
    layers = hidden_states or (last,)
    chosen = [layers[round((len(layers) - 1) * share)] for share in (1 / 3, 2 / 3)]
    early, middle = (tokens if tokens.shape[:2] == last.shape[:2] else last for tokens in chosen)
    return early[:, -num_patches:], middle[:, -num_patches:]


def group_lists(presence: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Gathers images of the same list, which are left out together: in them a concept is known by the rest of the list. Where
    there are few different lists, or each concept is in one alone, every image is a group by itself.

    Args:
        presence (`torch.Tensor` of shape `(B, S)`): 1 for concepts in the image, 0 for others, NaN for unknown.

    Returns:
        Presence in the groups `(U, S)`, where the mean over images stands for what is unknown; the matrix `(U, B)` that
        averages over the images of a group; and whether a concept is in two groups and missing in two, so that it can be
        predicted of one by the others, `(S,)`.
    """
    known = ~presence.isnan()
    values = presence.nan_to_num(0.0)
    values = torch.where(known, values, values.sum(0) / known.sum(0).clamp_min(1))

    def is_told(lists: torch.Tensor) -> torch.Tensor:
        return ((lists > 0.5).sum(0) >= 2) & ((lists < 0.5).sum(0) >= 2)

    lists, group = torch.unique(values, dim=0, return_inverse=True)
    if len(lists) < FEWEST_LISTS or not is_told(lists).any():
        return values, torch.eye(len(values)).to(values), is_told(values)
    members = nn.functional.one_hot(group).to(values.dtype)
    return lists, (members / members.sum(0)).T, is_told(lists)


def left_out_error(features: torch.Tensor, lists: torch.Tensor) -> torch.Tensor:
    """
    Squared error of ridge regression on each group by all others, in closed form from the one fit to all (Hastie,
    Tibshirani and Friedman, "The Elements of Statistical Learning", equation 7.64).

    Args:
        features (`torch.Tensor` of shape `(M, U, D)`): features of the groups, from M places.
        lists (`torch.Tensor` of shape `(U, S)`): presence of the concepts in the groups.

    Returns:
        `torch.Tensor` of shape `(M, S)`, the mean over groups.
    """
    features = features - features.mean(1, keepdim=True)
    features = features / (features.std(1, keepdim=True) + 1e-3)
    kernel = features @ features.transpose(1, 2) / features.shape[-1] + INTERCEPT
    inverse = torch.linalg.inv(kernel + RIDGE * torch.eye(kernel.shape[-1], device=kernel.device))
    residuals = inverse @ (lists - lists.mean(0)) / inverse.diagonal(dim1=1, dim2=2).unsqueeze(-1)
    return residuals.square().mean(1)


class Places(NamedTuple):
    """What the terms of [`presence_loss`] read of the images whose lists are known; B and N count those and their patches."""

    early: torch.Tensor
    """Features by which concepts are predicted, `(B, N, D)`."""
    middle: torch.Tensor
    """Features of length 1 by which patches are similar, `(B, N, D)`."""
    lists: torch.Tensor
    """Presence in the groups, `(U, S)`."""
    averaging: torch.Tensor
    """Matrix that averages over the images of a group, `(U, B)`."""
    told: torch.Tensor
    """Whether a concept can be predicted, `(S,)`."""

    def likeness(self, anchors: torch.Tensor) -> torch.Tensor:
        """Similarity of the patches to anchors, `(K,)` of all patches: `(B, N, K)`."""
        return self.middle @ self.middle.flatten(0, 1)[anchors].T

    def variance(self) -> torch.Tensor:
        """Error of predicting each concept without any feature, 0 for those that cannot be predicted, `(S,)`."""
        return (self.lists - self.lists.mean(0)).square().mean(0) * self.told

    def error(self, features: torch.Tensor) -> torch.Tensor:
        """Error of predicting each concept by features of groups `(M, U, D)`: `(M, S)`."""
        return left_out_error(features, self.lists) * self.told


def whether_loss(places: Places, gate: torch.Tensor) -> torch.Tensor:
    """
    The tokens where the gate `(B, N)` is open shall predict all concepts, and be few: the share of the variance that is not
    predicted, plus the divergence of the gate's mean from the expected area.
    """
    anchors = torch.randint(0, gate.numel(), (NUM_ANCHORS,), device=gate.device)
    smooth = (places.likeness(anchors) / ANCHOR_TEMPERATURE).softmax(-1) @ gate.flatten()[anchors]
    pooled = ((smooth / smooth.sum(1, keepdim=True)).unsqueeze(1) @ places.early).squeeze(1)
    unexplained = places.error((places.averaging @ pooled).unsqueeze(0)).sum() / places.variance().sum()
    area = gate.mean(1).clamp(1e-6, 1 - 1e-6)
    divergence = EXPECTED_AREA * (EXPECTED_AREA / area).log()
    divergence = divergence + (1 - EXPECTED_AREA) * ((1 - EXPECTED_AREA) / (1 - area)).log()
    return unexplained + divergence.mean()


def which_loss(places: Places, likeness: torch.Tensor, mixture: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """
    The tokens where a part is shall predict the part's concepts, and better than the tokens where another part is.

    Args:
        places (`Places`): images and lists.
        likeness (`torch.Tensor` of shape `(B, N, K)`): similarity of the patches to K anchors.
        mixture (`torch.Tensor` of shape `(K, P)`): the parts' shares at the anchors.
        parts (`torch.Tensor` of shape `(S, P)`): see [`presence_loss`].

    Returns:
        `torch.Tensor` of shape `()`.
    """
    around_anchors = (likeness / PATCH_TEMPERATURE).softmax(1).transpose(1, 2) @ places.early
    pooled = torch.einsum("ub,bkd->kud", places.averaging, around_anchors)
    features = torch.einsum("kp,kud->pud", mixture / mixture.sum(0).clamp_min(1e-6), pooled)
    variance = places.variance() @ parts
    is_told = variance > 1e-4
    # Of each part's concepts (columns), what the tokens of each part (rows) leave unpredicted.
    error = places.error(features) @ parts
    unexplained = error / variance.clamp_min(1e-4)
    # A place that predicts everything is no better a place for this part than for others.
    relative = unexplained - 0.5 * unexplained.mean(1, keepdim=True)
    own = is_told.nonzero().squeeze(1)
    contrast = nn.functional.cross_entropy(-CONTRAST * relative.T[is_told], own)
    return error.diagonal()[is_told].sum() / variance.sum() + contrast


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
) -> torch.Tensor:
    """
    How badly maps of concepts explain the lists of a batch: the early tokens under a concept's map shall predict whether it
    is in the image, by a regression that has not seen the image's list, and better than those under other maps do.

    It depends on the batch as a whole, the larger the better, and on anchors drawn at random.

    Args:
        attention (`torch.Tensor` of shape `(B, N, S)`): attention of the patches, mean over heads.
        presence (`torch.Tensor` of shape `(B, S)`):
            1 for concepts that are somewhere in the image, 0 for those that are not, NaN where it is unknown.
        early_tokens (`torch.Tensor` of shape `(B, N, D)`): patch tokens after a third of the backbone's layers.
        middle_tokens (`torch.Tensor` of shape `(B, N, D)`): patch tokens after two thirds, by which patches are similar.
        parts (`torch.Tensor` of shape `(S, P)`): share of each concept's map that each part's has, rows sum to 1.
        has_gate (`bool`): whether attention sums to a gate, else to 1.

    Returns:
        `torch.Tensor` of shape `()`, float32; 0 where there are too few different lists in the batch.
    """
    listed = ~presence.isnan().all(-1)
    with torch.autocast(attention.device.type, enabled=False):
        lists, averaging, told = group_lists(presence[listed].float())
        if not told.any():
            return attention.sum() * 0.0
        early, middle = (tokens[listed].detach().float() for tokens in (early_tokens, middle_tokens))
        early, middle = (nn.functional.layer_norm(tokens, tokens.shape[-1:]) for tokens in (early, middle))
        middle = nn.functional.normalize(middle - middle.mean(1, keepdim=True), dim=-1)
        places = Places(early, middle, lists, averaging, told)

        attention, parts = attention[listed].float(), parts.float()
        gate = attention.sum(-1)
        shares = attention / gate.unsqueeze(-1).clamp_min(torch.finfo(attention.dtype).tiny)
        place = (gate / gate.sum(1, keepdim=True)).detach()
        anchors = torch.multinomial(place.flatten(), NUM_ANCHORS, replacement=True)
        likeness, mixture = places.likeness(anchors), (shares @ parts).flatten(0, 1)[anchors]
        loss = which_loss(places, likeness, mixture, parts)
        smooth = ((likeness / ANCHOR_TEMPERATURE).softmax(-1) @ mixture).detach()
        in_image = presence[listed].float().nan_to_num(0.0)
        loss = loss + NAME_WEIGHT * naming_loss(in_image, shares, place, smooth, parts)
        return loss + whether_loss(places, gate) if has_gate else loss


__all__ = ["local_tokens", "presence_loss", "unplaced_images"]

# SPDX-License-Identifier: Apache-2.0
"""What of an explanation is compared: unit vectors, whose inner products are cosines."""

from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from ascent_vit.explanation import Explanation

# Faiss compares vectors of such lengths many times faster; zeros fill them up.
MULTIPLE = 16


def unit(values: np.ndarray) -> np.ndarray:
    """A vector scaled to length 1, with zeros up to a multiple of 16 numbers, float32; one of zeros stays."""
    values = values.astype(np.float64)
    length = np.linalg.norm(values)
    scaled = values / length if length > 0 else values
    return np.pad(scaled, (0, -values.size % MULTIPLE)).astype(np.float32)


def contribution_vector(explanation: "Explanation") -> np.ndarray:
    """
    What each concept contributed to the explained class, `(G + S + U,)`, scaled: the bars of the picture.

    Of an image in an index this is the predicted class. So two images are alike if the same concepts made their
    predictions, whatever these are, and an image that is explained for another class finds those that were decided as
    it would be for that class. Contributions to all classes at once are no more than the attention, seen through a
    linear map that parameters alone determine; on birds they find fewer of an image's concepts.
    """
    return unit(explanation.select(explanation.contributions))


def attention_vector(explanation: "Explanation") -> np.ndarray:
    """
    Square roots of the attention to each concept, `(G + S + U,)`, scaled; of a spatial one its share of the patches'.

    Attention competes as probabilities do. The inner product of the square roots of two distributions is their
    Bhattacharyya coefficient, which large and small ones move alike.
    """
    return unit(np.sqrt(np.maximum(explanation.concept_attention, 0)))


def attended_patch(explanation: "Explanation", concept: int) -> tuple[int, int]:
    """Row and column of the patch where a spatial concept, by its index, is attended most."""
    attention = explanation.patch_attention[concept]
    row, column = np.unravel_index(attention.argmax(), attention.shape)
    return int(row), int(column)


def patch_vector(explanation: "Explanation", place: tuple[int, int]) -> np.ndarray:
    """
    The token of a patch as the concept head reads it, scaled.

    Raises:
        ValueError: for an explanation without the tokens.
    """
    if explanation.patch_features is None:
        raise ValueError("This explanation does not hold the patches' tokens: call explain with features=True.")
    return unit(explanation.patch_features[place])


def attended_patches(explanation: "Explanation", number: int) -> dict[tuple[int, int], list[int]]:
    """The patches where the `number` spatial concepts of most attention are attended most, each with its concepts."""
    strongest = explanation.patch_attention.max(axis=(1, 2), initial=0.0)
    patches: dict[tuple[int, int], list[int]] = {}
    for concept in np.argsort(-strongest, kind="stable")[:number].tolist():
        patches.setdefault(attended_patch(explanation, concept), []).append(concept)
    return patches


__all__ = ["attended_patch", "attended_patches", "attention_vector", "contribution_vector", "patch_vector"]

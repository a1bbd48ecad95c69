# SPDX-License-Identifier: Apache-2.0
"""Chooses the rows in which contributions are drawn: concepts that moved the score most, and the sum of the others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..decomposition import Decomposition


# Share of the largest contribution below which a concept has no row of its own: its bar could not be seen.
LEAST_SHARE = 0.01


@dataclass(frozen=True)
class ContributionRow:
    """
    A row of a drawing.

    Args:
        name (`str`): Name of the concept, or for example "12 others".
        stream (`str`, *optional*): Stream of the concept; None for the others, which may be of several streams.
        contributions (`tuple[float, ...]`): Contribution in each explanation drawn; of the others, the exact sum.
    """

    name: str
    stream: str | None
    contributions: tuple[float, ...]

    @property
    def contribution(self) -> float:
        """Contribution in the first explanation."""
        return self.contributions[0]


def contribution_rows(explanations: Sequence[Decomposition], top: int) -> list[ContributionRow]:
    """
    Chooses the rows that one drawing of explanations has; with the class bias they add up to the logit.

    The `top` concepts of the largest contribution of either sign have a row each, unless it is below 1 % of the
    largest one. The last row is the sum of all others, if there are any. Rows of one name, as a global and a spatial
    concept may have, stand together; names are ordered by the absolute value of the sum of their rows.

    Args:
        explanations (`Sequence[Explanation]`):
            One explanation, or several of one model to be shown side by side, of which the largest value counts.
        top (`int`): Number of concepts that may have a row of their own.
    """
    concepts = [(name, stream) for stream, names in explanations[0].concept_names.items() for name in names]
    columns = [explanation.select(explanation.contributions) for explanation in explanations]
    values = np.stack(columns, axis=1).astype(np.float64)
    sizes = np.abs(values).max(axis=1)
    largest_first = np.argsort(-sizes, kind="stable").tolist()
    shown = [i for i in largest_first[:top] if sizes[i] >= LEAST_SHARE * sizes.max()]
    groups: dict[str, list[int]] = {}
    for i in shown:
        groups.setdefault(concepts[i][0], []).append(i)
    ordered = sorted(groups.values(), key=lambda group: -np.abs(values[group].sum(axis=0)).max())
    rows = [ContributionRow(*concepts[i], tuple(values[i].tolist())) for group in ordered for i in group]
    others = values[largest_first[len(shown) :]].T.tolist()
    if number := len(concepts) - len(shown):
        name = f"{number} other{'s' if number > 1 else ''}"
        rows.append(ContributionRow(name, None, tuple(math.fsum(added) for added in others)))
    return rows


def signed(value: float, decimals: int = 2) -> str:
    """Writes a contribution with its sign and decimals, or 0.00 without a sign."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text


__all__ = ["LEAST_SHARE", "ContributionRow", "contribution_rows", "signed"]

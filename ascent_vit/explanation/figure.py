# SPDX-License-Identifier: Apache-2.0
"""Figures that notebooks show."""

import io

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A matplotlib figure that a notebook shows as the value of a cell, also where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


__all__ = ["NotebookFigure"]

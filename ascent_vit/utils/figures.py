# SPDX-License-Identifier: Apache-2.0
"""Figures of matplotlib: encoded, written to files, shown by notebooks."""

import io
import os

from matplotlib.figure import Figure

from .files import write_bytes


def png(figure: Figure, **kwargs) -> bytes:
    """Encodes a figure as PNG; `kwargs` go to `savefig`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", **kwargs)
    return buffer.getvalue()


def write_figure(path: str | os.PathLike, figure: Figure, dpi: int) -> None:
    """Writes a figure as a PNG file, whole or not at all."""
    write_bytes(path, png(figure, dpi=dpi))


class NotebookFigure(Figure):
    """A matplotlib figure that a notebook shows as the value of a cell, also where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        return png(self)


__all__ = ["NotebookFigure", "png", "write_figure"]

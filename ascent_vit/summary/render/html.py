# SPDX-License-Identifier: Apache-2.0
"""Writes a summary as one self-contained web page: classes, concepts, errors and slices, to be searched and sorted."""

import base64
import hashlib
import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ascent_vit.explanation.render.html import encode, json_in_html

from ..pictures import jpeg_uri


HERE = Path(__file__).parent


def summary_to_html(summary: Any, title: str | None = None) -> str:
    """
    Writes one self-contained HTML page that loads nothing from elsewhere.

    Args:
        summary ([`Summary`]): Summary to show.
        title (`str`, *optional*, defaults to `"Summary of a model"`): Title of the page.

    Returns:
        `str`: The page, with at most 3,000 thumbnails, of at most 9 MB together.
    """
    script = read("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    fields = {
        "title": html.escape(title or "Summary of a model"),
        "style": read("page.css"),
        "script": script,
        "script_hash": f"sha256-{digest}",
        "data": json_in_html(page_data(summary)),
    }
    # One pass, so that a name that looks like a field is left as it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], read("page.html"))


def read(name: str) -> str:
    """Text of a file beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


def as_numbers(values: Iterable[Any]) -> str:
    """Base64 of numbers as float32, NaN for None."""
    return encode(np.array(list(values), dtype=np.float32))


def page_data(summary: Any) -> dict[str, Any]:
    """Data of the page's script; tables of numbers as base64 of float32 in C order."""
    import pyarrow.parquet as pq

    shown = sorted(key for key in summary.pictures.images if isinstance(key, int))
    table = pq.read_table(summary.rows, columns=["label", "predicted", "score"]).take(shown).to_pydict()
    captions = zip(shown, table["label"], table["predicted"], table["score"], strict=True)
    maps = [concept.get("mean_map") for concept in summary.concepts]
    return {
        "quality": summary.facts["quality"],
        "grid": summary.facts["grid"],
        "figures": summary.figures,
        "left_out": summary.left_out,
        "classes": summary.classes,
        "concepts": [
            {key: value for key, value in concept.items() if key != "mean_map"}
            | ({} if values is None else {"map": as_numbers(np.ravel(values))})
            for concept, values in zip(summary.concepts, maps, strict=True)
        ],
        "effects": {name: as_numbers(rows) for name, rows in summary.effects.items()},
        "confusions": [pair | {"contrast": as_numbers(pair["contrast"])} for pair in summary.confusions],
        "slices": summary.slices,
        "similar": {str(row): cases for row, cases in summary.similar.items()},
        "images": {str(row): {"label": label, "predicted": said, "score": s} for row, label, said, s in captions},
        "pictures": {str(key): jpeg_uri(data) for key, data in summary.pictures.images.items()},
        "boxes": {
            str(row): {str(patch): [round(edge, 4) for edge in box] for patch, box in boxes.items()}
            for row, boxes in summary.boxes.items()
        },
    }


__all__ = ["summary_to_html"]

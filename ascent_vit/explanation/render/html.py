# SPDX-License-Identifier: Apache-2.0
"""Writes explanations as web pages: image, signed contributions, concept maps on pointing, two classes compared."""

import base64
import hashlib
import html
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..decomposition import Decomposition
from .plot import ATTENTION_COLORS, CONTRIBUTION_COLORS, LEAST_SPAN
from .rows import LEAST_SHARE


HERE = Path(__file__).parent
PALETTE_SIZE = 129  # odd, so that 0 has a colour of its own
MOST_PIXELS = 1024 * 1024
LOSSLESS_PIXELS = 256 * 256

# By what makes scores of the logits: what is known to be right, and how the sum that is shown becomes a score.
RIGHT = {"softmax": "class", "sigmoid": "classes", "none": "value"}
SUM_NOTES = {
    "softmax": "the class bias they add up to the logit, the class score before the softmax.\n"
    "The probability follows from the logits of all classes.",
    "sigmoid": "the class bias they add up to the logit, the class score before the sigmoid.\n"
    "The probability of a class follows from its own logit: an image may have several classes, or none.",
    "none": "the bias they add up to the value.",
}


def explanation_to_html(
    explanation: Decomposition,
    classes: int = 10,
    top: int = 12,
    truth: str | None = None,
    doubt: Any = None,
) -> str:
    """
    Writes one self-contained HTML page that explains a prediction and loads nothing from elsewhere.

    It shows the image, the sum that makes the logit, and the concepts in the rows of
    [`~ascent_vit.explanation.Explanation.plot`]. Pointing at a concept, by mouse, touch or keyboard, draws its
    contribution or attention over the image, interpolated as in
    [`~ascent_vit.explanation.Explanation.contribution_maps`]. Another class can be chosen, and a second one to compare
    with; for a [`~ascent_vit.explanation.Contrast`] the page opens with its two classes.

    Args:
        explanation ([`~ascent_vit.explanation.Explanation`]): Explanation to show.
        classes (`int`, *optional*, defaults to 10):
            Number of classes to choose from, those of the highest scores. The predicted and the explained classes
            are always among them.
        top (`int`, *optional*, defaults to 12):
            Largest number of concepts with a row of their own at first, those of the largest contribution of either
            sign; a button shows all.
        truth (`str`, *optional*): Name of the true class, for the header.
        doubt ([`~ascent_vit.safeguard.Doubt`], *optional*):
            What a guard says of the image: the page then says whether it is decided, and asks what would settle it.

    Returns:
        `str`: The page, which holds the image reduced to at most 2**20 pixels.

    Raises:
        ValueError: for `classes` or `top` below 1.
    """
    if classes < 1:
        raise ValueError(f"classes must be 1 or more classes to choose from; got {classes}.")
    if top < 1:
        raise ValueError(f"top must be 1 or more concepts; got {top}.")
    chosen = choose_classes(explanation, classes)
    summary = f"Predicted: {explanation.prediction}."
    if explanation.score_function == "softmax":
        summary = f"Predicted: {explanation.predicted_label}, probability {explanation.predicted_score:.1%}."
    if truth is not None:
        summary += f" Right {RIGHT[explanation.score_function]}: {truth}."
    number = len(explanation.labels)
    note = ""
    if len(chosen) < number:
        what, which = (
            ("values", "the first") if explanation.is_regression else ("classes", "those of the highest scores")
        )
        note = f"<p>Of the {number} {what}, the {len(chosen)} to choose from are {which}.</p>\n"
    width, height = explanation.image.size
    script = read("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    fields = {
        "title": html.escape(explanation.question),
        "summary": html.escape(summary),
        "image": image_uri(explanation.image),
        "image_alt": html.escape(f"The explained image, {width} x {height} pixels"),
        "width": str(width),
        "height": str(height),
        "classes_note": note,
        "sum_note": SUM_NOTES[explanation.score_function],
        "style": read("page.css"),
        "script": script,
        "script_hash": f"sha256-{digest}",
        "data": json_in_html(page_data(explanation, chosen, top) | {"doubt": None if doubt is None else doubt.tree()}),
    }
    # One pass, so that a name that looks like a field is left as it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], read("page.html"))


def read(name: str) -> str:
    """Text of a file beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


def choose_classes(explanation: Decomposition, number: int) -> list[int]:
    """
    The classes of the highest scores, highest first, with the predicted one and those explained among them; of the
    values of a regression the first.
    """
    order = np.arange(len(explanation.logits)) if explanation.is_regression else -explanation.logits
    ranked = np.argsort(order, kind="stable").tolist()
    needed = {ranked[0], *explanation.class_ids}
    rest = [index for index in ranked if index not in needed][: max(number - len(needed), 0)]
    return [index for index in ranked if index in needed or index in rest]


def page_data(explanation: Decomposition, classes: list[int], top: int) -> dict[str, Any]:
    """Data of the page's script; arrays of the chosen classes as base64 of float32 in C order."""
    from matplotlib import colormaps

    shown, *others = (classes.index(index) for index in explanation.class_ids)
    places = np.linspace(0, 1, PALETTE_SIZE)
    palettes = {"attention": ATTENTION_COLORS, "contribution": CONTRIBUTION_COLORS}
    return {
        "width": explanation.image.width,
        "height": explanation.image.height,
        "axes": axis_shares(explanation),
        "grid": list(explanation.patch_attention_heads.shape[-2:]),
        "classes": [explanation.labels[index] for index in classes],
        "shown": shown,
        "other": others[0] if others else -1,
        "concepts": [
            {"name": name, "stream": stream, "index": index}
            for stream, names in explanation.concept_names.items()
            for index, name in enumerate(names)
        ],
        "contributions": encode(explanation.contributions[:, classes]),
        "attention": encode(explanation.concept_attention),
        "class_biases": encode(explanation.class_biases[classes]),
        "logits": encode(explanation.logits[classes]),
        "score_texts": [explanation.score_text(index) for index in classes],
        "is_regression": explanation.is_regression,
        "patch_attention_heads": encode(explanation.patch_attention_heads),
        "tables": encode(explanation.contribution_table[..., classes] * explanation.attention_share),
        "palettes": {kind: colormaps[name](places, bytes=True)[:, :3].tolist() for kind, name in palettes.items()},
        "top": top,
        "least_share": LEAST_SHARE,
        "least_span": LEAST_SPAN,
    }


def axis_shares(explanation: Decomposition) -> list[dict[str, Any]]:
    """
    Geometry of the patches along the height and the width, as shares of the original image's side: `start` of the
    first patch, length of a `patch`, and the part that is `seen` by the model.
    """
    return [
        {
            "start": axis.crop_start / axis.resized,
            "patch": axis.patch / axis.resized,
            "seen": [axis.crop_start / axis.resized, (axis.crop_start + axis.cropped) / axis.resized],
        }
        for axis in explanation.processor.patch_axes((explanation.image.height, explanation.image.width))
    ]


def encode(values: np.ndarray) -> str:
    """Base64 of the values as little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()


def image_uri(image: Image.Image) -> str:
    """The image as a data URI: PNG if it is small, so that no pixel changes, else JPEG."""
    scale = math.sqrt(MOST_PIXELS / (image.width * image.height))
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    small = image.width * image.height <= LOSSLESS_PIXELS
    kind, options = ("png", {}) if small else ("jpeg", {"quality": 90})
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def json_in_html(data: Any) -> str:
    """Writes JSON for a script element, in which no name can end the element or open a comment."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


__all__ = ["explanation_to_html"]

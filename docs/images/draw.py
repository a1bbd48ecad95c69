# SPDX-License-Identifier: Apache-2.0
"""
Draws the README's picture, and writes the image that it is about.

python docs/images/draw.py FOLDER writes FOLDER/digit.png, a scan of scikit-learn's handwritten digits in the layout of
MNIST, and FOLDER/explanation.png, what hub/concept-mnist says of it before and after a correction.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits
from transformers import AutoImageProcessor, AutoModelForImageClassification

from ascent_vit import Explanation, intervene
from ascent_vit.explanation.render.plot import ATTENTION_COLORS, NEGATIVE, OTHERS_OPACITY, POSITIVE, number_bars
from ascent_vit.explanation.render.rows import contribution_rows, signed


MODEL = Path(__file__).parents[2] / "hub" / "concept-mnist"
SCAN = 444  # a six that may be taken for a five
CORRECTIONS = {("global", "digit 5"): "absent", ("spatial", "digit 5"): "absent"}
BARS = 5
MOST_ATTENTION = 0.6
GREY = "#555555"


def scan(number: int) -> Image.Image:
    """Enlarges a scan of 8 x 8 pixels to MNIST's layout: 20 x 20 pixels in the middle of 28 x 28."""
    pixels = np.round(load_digits().images[number] * (255 / 16)).astype(np.uint8)
    image = Image.new("L", (28, 28))
    image.paste(Image.fromarray(pixels).resize((20, 20), Image.Resampling.BICUBIC), (4, 4))
    return image


def draw_bars(ax, explanation: Explanation):
    """Draws the concepts that moved the score most, and the sum of the others."""
    rows = contribution_rows([explanation], BARS)
    values = [row.contribution for row in rows]
    bars = ax.barh(range(len(rows)), values, color=[POSITIVE if value >= 0 else NEGATIVE for value in values])
    bars[-1].set_alpha(OTHERS_OPACITY)
    number_bars(ax, values, explanation.decimals, fontsize=9)
    places = {"global": " in the image", "spatial": " in its place", None: ""}
    ax.set_yticks(range(len(rows)), [row.name + places[row.stream] for row in rows], fontsize=9)
    ax.invert_yaxis()
    ax.axvline(0, color=GREY, linewidth=0.8)
    room = 0.2 * (max(0, *values) - min(0, *values))
    ax.set_xlim(min(0, *values) - room, max(0, *values) + room)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    sums = f"bias {signed(explanation.class_bias)}, sum = score {signed(explanation.logit)}"
    ax.set_xlabel(sums, fontsize=9, color=GREY, loc="right")
    ax.set_title(f"what each concept added to “{explanation.label}”", fontsize=9, color=GREY, loc="right")


def draw_map(ax, explanation: Explanation, concept: str):
    place = explanation.concept_names["spatial"].index(concept)
    ax.imshow(explanation.attention_maps[place], cmap=ATTENTION_COLORS, vmin=0, vmax=MOST_ATTENTION)
    ax.contour(np.asarray(explanation.image.convert("L")), levels=[128], colors="white", linewidths=1.2)
    ax.set_axis_off()
    ax.set_title(f"where it sees “{concept}”", fontsize=9, color=GREY)


def draw(image: Image.Image) -> Figure:
    model = AutoModelForImageClassification.from_pretrained(MODEL)
    processor = AutoImageProcessor.from_pretrained(MODEL, backend="pil")
    corrected = intervene(model, processor, image, CORRECTIONS)
    figure = Figure(figsize=(9.0, 4.6), layout="constrained", facecolor="white")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 2.4])
    shown = left.subplots()
    shown.imshow(image, cmap="gray")
    shown.set_axis_off()
    shown.set_title("Even or odd?", fontsize=13, fontweight="bold")
    rows = right.subfigures(2, 1, hspace=0.05)
    for row, explanation, sentence, concept in (
        (rows[0], corrected.before, "The model says", "digit 5"),
        (rows[1], corrected.after, "Told that there is no 5, it says", "digit 6"),
    ):
        row.suptitle(f"{sentence} “{explanation.label}”, {explanation.score:.1%}", fontsize=13, fontweight="bold")
        bars, seen = row.subplots(1, 2, width_ratios=[2, 1])
        draw_bars(bars, explanation)
        draw_map(seen, explanation, concept)
    return figure


def main(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    image = scan(SCAN)
    image.save(folder / "digit.png")
    draw(image).savefig(folder / "explanation.png", dpi=170)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)

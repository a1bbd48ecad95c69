# SPDX-License-Identifier: Apache-2.0
"""Figures of explanations: what is drawn, on which scale, and that a user's matplotlib is left alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ascent_vit.explanation import ConceptContribution, Explanation
from ascent_vit.explanation.plot import NEGATIVE, POSITIVE, plot_grid, shorten
from modeling_ascent_vit import AscentViTImageProcessor


# Drawing a name as a formula would fail.
SPATIAL = {"beak": 0.5, "wing": -1.5, "cost $\\frac$": 0.25, "tail": 0.0}


def make_explanation(scale: float = 1.0, **kwargs) -> Explanation:
    """An explanation of a grey image of 40x60 pixels, whose class score is 1.25 times `scale`."""
    concepts = [ConceptContribution("striped", "global", 0, 1.0, 2.0 * scale)]
    concepts += [ConceptContribution(n, "spatial", i, 0.25, scale * c) for i, (n, c) in enumerate(SPATIAL.items())]
    shares = np.array([[0.75, 0.25], [0.0, 0.0]], dtype=np.float32)
    values = {
        "image": Image.new("RGB", (60, 40), (128, 128, 128)),
        "label": "Painted Bunting",
        "label_id": 0,
        "score": 0.9,
        "predicted_label": "Painted Bunting",
        "predicted_score": 0.9,
        "logits": np.array([1.25 * scale, -1.0], dtype=np.float32),
        "class_bias": 0.0,
        "concepts": sorted(concepts, key=lambda concept: -concept.contribution),
        "patch_attention": np.stack([shares] * 4) * scale / 3,
        "patch_contributions": np.stack([shares * c for c in SPATIAL.values()]) * scale,
        "processor": AscentViTImageProcessor(size={"height": 16, "width": 16}, patch_size=8),
    }
    return Explanation(**(values | kwargs))


def axes_with_title(figure, title):
    return [ax for ax in figure.axes if title in ax.get_title()]


def test_bars_are_ranked_signed_and_labelled():
    figure = make_explanation().plot(top=4)
    (ax,) = axes_with_title(figure, "contributions to")
    assert [bar.get_width() for bar in ax.patches] == [2.0, 0.5, 0.25, -1.5]
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["striped (global)", "beak (spatial)", "cost $\\frac$ (spatial)", "wing (spatial)"]
    colors = [bar.get_facecolor() for bar in ax.patches]
    assert colors[0] == colors[2] != colors[3] and POSITIVE != NEGATIVE
    assert ax.yaxis_inverted()  # the first bar is on top
    assert [text.get_text() for text in ax.texts] == ["+2", "+0.5", "+0.25", "-1.5"]
    assert ax.get_xlabel() == "other concepts +0, bias +0, logit +1.25"


def test_maps_are_those_of_the_top_spatial_concepts_in_the_images_geometry():
    explanation = make_explanation()
    figure = explanation.plot()
    attention, contributions = [], []
    for ax in figure.axes:
        if len(ax.images) == 2:
            (contributions if ax.images[1].get_cmap().name == "PuOr" else attention).append(ax)
    assert [ax.get_title() for ax in attention] == ["beak", "cost $\\frac$", "wing"]
    assert len(contributions) == 3
    for axes, maps, limits in (
        (attention, explanation.attention_maps, (0, 0.25)),
        (contributions, explanation.contribution_maps, (-1.125, 1.125)),
    ):
        for ax, index in zip(axes, (0, 2, 1), strict=True):
            photograph, drawn = ax.images
            assert photograph.get_array().shape == (40, 60)
            np.testing.assert_array_equal(drawn.get_array(), maps[index])
            assert drawn.get_clim() == pytest.approx(limits)
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels.count("attention") == labels.count("contribution") == 1


def test_titles_name_prediction_explained_class_and_truth():
    explanation = make_explanation(label="Wren", label_id=1, score=0.1)
    (ax,) = axes_with_title(explanation.plot(truth="Tern"), "predicted")
    assert ax.get_title() == "predicted: Painted Bunting, 90.0%\nexplained: Wren, 10.0%\ntruth: Tern"
    (ax,) = axes_with_title(make_explanation().plot(), "predicted")
    assert ax.get_title() == "predicted: Painted Bunting, 90.0%"


def test_grid_has_a_row_per_image_on_one_scale(tmp_path):
    path = tmp_path / "grid.png"
    plot_grid([make_explanation()], path)
    one = Image.open(path).size
    plot_grid([make_explanation(), make_explanation(2.0), make_explanation()], path, ["Wren", "Tern", "Bunting"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["grid.png"]
    assert Image.open(path).size == (one[0], 3 * one[1])
    assert np.asarray(Image.open(path).convert("L")).std() > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "nothing to draw"),
        (([make_explanation()], ["a", "b"]), "one class per explanation, 1; got 2"),
        (([make_explanation()], None, 0), "top must be 1 or more"),
    ],
)
def test_bad_arguments_write_nothing(arguments, message, tmp_path):
    explanations, *rest = arguments
    with pytest.raises(ValueError, match=message):
        plot_grid(explanations, tmp_path / "grid.png", *rest)
    assert not list(tmp_path.iterdir())


def test_long_names_and_line_breaks_are_shortened():
    assert shorten("has_belly\n  color", 20) == "has_belly color"
    assert shorten("x" * 50, 10) == "x" * 9 + "…"


def test_pyplot_and_its_backend_are_left_alone(tmp_path):
    make_explanation().plot().savefig(tmp_path / "figure.png")
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from test_plot import make_explanation
make_explanation().plot().savefig(sys.argv[2])
assert "matplotlib.pyplot" not in sys.modules
"""
    here = Path(__file__).parent
    process = subprocess.run(
        [sys.executable, "-c", script, str(here), str(tmp_path / "figure.png")],
        env={"PYTHONPATH": str(here.parents[2]), "PATH": "", "MPLBACKEND": "gtk4agg"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr

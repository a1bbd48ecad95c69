# SPDX-License-Identifier: Apache-2.0
"""Figures of explanations: what is drawn, on which scale, and that a user's matplotlib is left alone."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ascent_vit.explanation import Explanation, FusionMaps
from ascent_vit.explanation.render.plot import NEGATIVE, OTHERS_OPACITY, POSITIVE, plot_grid, shorten, top_of, wrapped
from modeling_ascent_vit import AscentViTImageProcessor


# Drawing a name as a formula would fail.
SPATIAL = {"beak": 0.5, "wing": -1.5, "cost $\\frac$": 0.25, "tail": 0.0}


def make_explanation(scale: float = 1.0, **kwargs) -> Explanation:
    """An explanation of a grey image of 40x60 pixels, whose first class has a score of 1.25 times `scale`."""
    added = scale * np.array([2.0, *SPATIAL.values()], dtype=np.float32)
    shares = np.array([[0.75, 0.25], [0.0, 0.0]], dtype=np.float32)
    spatial = np.array(list(SPATIAL.values()), dtype=np.float32)
    biases = np.array([0.0, 0.25], dtype=np.float32)
    values = {
        "image": Image.new("RGB", (60, 40), (128, 128, 128)),
        "label_id": 0,
        "labels": ["Painted Bunting", "Wren"],
        "logits": np.array([1.25 * scale, -1.25 * scale + 0.25], dtype=np.float32),
        "class_biases": biases,
        "concept_names": {"global": ["striped"], "spatial": list(SPATIAL), "unsupervised": []},
        "contributions": np.stack([added, -added], axis=1),
        "head_attention": np.array([[1.0, *[0.25] * 4]], dtype=np.float32),
        "patch_attention_heads": np.stack([shares] * 4)[None] / 3,
        "contribution_table": np.stack([spatial, -spatial], axis=1)[None] * scale * 4,
        "processor": AscentViTImageProcessor(size={"height": 16, "width": 16}, patch_size=8),
    }
    return Explanation(**(values | kwargs))


def axes_with_title(figure, title):
    return [ax for ax in figure.axes if title in ax.get_title()]


def test_bars_are_ranked_signed_and_labelled():
    figure = make_explanation().plot(top=4)
    (ax,) = axes_with_title(figure, "contributions to")
    assert [bar.get_width() for bar in ax.patches] == [2.0, -1.5, 0.5, 0.25, 0.0]
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["striped (global)", "wing (spatial)", "beak (spatial)", "cost $\\frac$ (spatial)", "1 other"]
    colors = [bar.get_facecolor() for bar in ax.patches]
    assert colors[0] == colors[2] != colors[1] and POSITIVE != NEGATIVE
    assert [bar.get_alpha() for bar in ax.patches] == [None] * 4 + [OTHERS_OPACITY]
    assert ax.yaxis_inverted()  # the first bar is on top
    assert [text.get_text() for text in ax.texts] == ["+2.00", "-1.50", "+0.50", "+0.25", "0.00"]
    assert ax.get_xlabel() == "bias 0.00, logit +1.25"


@pytest.mark.parametrize("scale", [1.0, -1.0, 1e-7, 0.0])
@pytest.mark.parametrize("concepts", [1, 6, 108])
def test_names_and_numbers_of_bars_do_not_overlap(scale, concepts):
    added = scale * np.linspace(1, -0.5, concepts, dtype=np.float32)
    explanation = make_explanation(
        contributions=np.stack([added, -added], axis=1),
        concept_names={"global": [f"part {i}" for i in range(concepts)], "spatial": [], "unsupervised": []},
        head_attention=np.zeros((1, concepts), dtype=np.float32),
        patch_attention_heads=np.zeros((1, 0, 2, 2), dtype=np.float32),
        contribution_table=np.zeros((1, 0, 2), dtype=np.float32),
    )
    figure = explanation.plot(top=200)
    figure.canvas.draw()
    (ax,) = axes_with_title(figure, "contributions to")
    names = [label.get_window_extent() for label in ax.get_yticklabels()]
    numbers = [text.get_window_extent() for text in ax.texts]
    assert all(above.y0 > below.y1 - 1 for above, below in pairwise(names))
    zero = ax.transData.transform((0, 0))[0]
    for bar, text, box in zip(ax.patches, ax.texts, numbers, strict=True):
        assert ax.bbox.x0 < box.x0 and box.x1 < ax.bbox.x1
        assert (box.x1 < zero) == (text.get_text().startswith("-")), bar
        assert bar.get_window_extent().height < 60


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
    (ax,) = axes_with_title(make_explanation(label_id=1).plot(truth="Tern"), "predicted")
    assert ax.get_title() == "predicted: Painted\nBunting, 90.5%\nexplained: Wren, 9.5%\ntruth: Tern"
    (ax,) = axes_with_title(make_explanation().plot(), "predicted")
    assert ax.get_title() == "predicted: Painted\nBunting, 90.5%"


def test_contrasts_show_differences():
    figure = make_explanation().contrast("Wren").plot(top=2)
    (ax,) = axes_with_title(figure, "why")
    assert ax.get_title() == 'why "Wren"\nand not "Painted Bunting"'
    assert [bar.get_width() for bar in ax.patches] == [-4.0, 3.0, -1.5]
    assert [label.get_text() for label in ax.get_yticklabels()][-1] == "3 others"
    assert ax.get_xlabel() == "biases +0.25, logits -2.25"
    (ax,) = axes_with_title(figure, "predicted")
    assert ax.get_title().endswith("explained: Wren, 9.5%\ncompared with: Painted\nBunting, 90.5%")
    drawn = [ax.images[1] for ax in figure.axes if len(ax.images) == 2 and ax.images[1].get_cmap().name == "PuOr"]
    np.testing.assert_allclose(drawn[0].get_array(), make_explanation().contribution_maps[1] * -2, atol=1e-6)
    assert [ax.get_ylabel() for ax in figure.axes].count("difference of\ncontributions") == 1


def test_models_without_spatial_concepts_have_bars_alone():
    explanation = make_explanation(
        concept_names={"global": ["striped", *SPATIAL], "spatial": [], "unsupervised": []},
        patch_attention_heads=np.zeros((1, 0, 2, 2), dtype=np.float32),
        contribution_table=np.zeros((1, 0, 2), dtype=np.float32),
    )
    figure = explanation.plot()
    assert [len(ax.images) for ax in figure.axes] == [1, 0]
    figure.canvas.draw()
    with pytest.raises(ValueError, match="no spatial concepts"):
        explanation.plot_heads()


def test_heads_have_a_row_each():
    heads = np.zeros((2, 4, 2, 2), dtype=np.float32)
    heads[1, 1, 0, 1] = 0.5
    table = np.repeat(make_explanation().contribution_table, 2, axis=0)
    explanation = make_explanation(patch_attention_heads=heads, contribution_table=table)
    figure = explanation.plot_heads(top=2)
    axes = [ax for ax in figure.axes if len(ax.images) == 2]
    assert [ax.get_title() for ax in axes] == ["beak", "wing", "", ""]
    assert [text.get_text() for ax in axes for text in ax.texts] == ["head 0", "head 1"]
    for ax, (head, concept) in zip(axes, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True):
        np.testing.assert_array_equal(ax.images[1].get_array(), explanation.head_maps[head, concept])
        assert ax.images[1].get_clim() == (0, 0.5)
    with pytest.raises(ValueError, match="top must be 1 or more"):
        explanation.plot_heads(top=0)


def test_levels_have_a_column_each_with_their_share():
    # Every patch looks at the lower left patch in the first level, and a quarter as much at its own place in the next.
    locations = np.full((4, 1, 2, 1, 2), 0.5, dtype=np.float32)
    locations[:, 0, 0, 0] = [0.5, 1.5]
    weights = np.broadcast_to(np.array([[0.8], [0.2]], dtype=np.float32), (4, 1, 2, 1))
    explanation = make_explanation(fusion=FusionMaps(locations, weights, (2, 2), (8, 16)))
    figure = explanation.plot_levels()
    axes = [ax for ax in figure.axes if len(ax.images) == 2]
    assert [ax.get_title() for ax in axes] == ["scale 1/8: 80.0%", "scale 1/16: 20.0%"]
    assert axes[0].images[1].get_array()[-1, 0] == pytest.approx(0.8)
    assert axes[1].images[1].get_array()[0, 0] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="fusion=True"):
        make_explanation().plot_levels()


@pytest.mark.parametrize("size", [(1, 1), (900, 3), (3, 900), (4000, 1300)])
def test_images_of_any_shape_can_be_seen(size):
    figure = make_explanation(image=Image.new("RGB", size)).plot()
    figure.canvas.draw()
    axes = [ax for ax in figure.axes if ax.images]
    assert len(axes) == 7
    for ax in axes:
        box = ax.get_window_extent()
        assert min(box.width, box.height) > 5
        assert max(max(image.get_array().shape) for image in ax.images) <= 1200


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


def test_scales_of_maps_without_values():
    assert top_of(np.zeros((2, 2)), np.array([-0.25])) == 0.25
    assert top_of(np.zeros((2, 2))) == top_of() == 1


def test_long_names_and_line_breaks_are_shortened():
    assert shorten("has_belly\n  color", 20) == "has_belly color"
    assert shorten("x" * 50, 10) == "x" * 9 + "…"
    assert wrapped("has_belly_color::red", 19) == "has_belly_color::\nred"
    assert wrapped("a: b c", 3) == "a:\nb c"
    assert wrapped("one two three four", 9) == "one two\nthree…"


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
        env={"PYTHONPATH": str(here.parents[3]), "PATH": "", "MPLBACKEND": "gtk4agg"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr


def test_notebooks_show_figures():
    from IPython.core.formatters import DisplayFormatter

    explanation = make_explanation()
    for figure in (explanation.plot(), explanation.plot_heads()):
        shown, _ = DisplayFormatter().format(figure)
        assert shown["image/png"].startswith(b"\x89PNG")


def test_high_titles_are_whole(tmp_path):
    contrast = make_explanation(image=Image.new("RGB", (64, 64))).contrast("Wren", "Painted Bunting")
    figure = contrast.plot()
    figure.savefig(tmp_path / "figure.png")
    assert figure.axes[0].get_title().count("\n") > 1
    assert all(ax.title.get_window_extent().y1 <= figure.bbox.y1 for ax in figure.axes)

# SPDX-License-Identifier: Apache-2.0
"""Explanations as FiftyOne's own labels. They are made, checked and stored as JSON without its database."""

import sys

import numpy as np
import pytest

from ascent_vit.explanation import explain
from ascent_vit.explanation.fiftyone_labels import field_names, on_image
from modeling_ascent_vit import AscentViTImageProcessor


CONCEPTS = {"global_concepts": ["striped", "wing"], "spatial_concepts": ["wing", "bill: red", "bill, red", "Ähre"]}


@pytest.fixture
def fo():
    return pytest.importorskip("fiftyone", reason="FiftyOne is not installed")


@pytest.fixture
def explanation(make_model, image):
    model, processor = make_model(**CONCEPTS, none_concept=True)
    return explain(model, processor, image)


def test_prediction_and_concepts(fo, explanation):
    labels = explanation.to_fiftyone()
    prediction = labels["prediction"]
    assert prediction.label == explanation.predicted_label and prediction.confidence == explanation.score
    assert np.array_equal(prediction.logits, explanation.logits)
    concepts = labels["concepts"].classifications
    assert [(c.label, c.stream, c.index) for c in concepts] == [
        (c.name, c.stream, c.index) for c in explanation.concepts
    ]
    assert len(concepts) == 6 and all(0 <= concept.attention <= 1 for concept in concepts)
    total = sum(concept.contribution for concept in concepts) + prediction.class_bias
    assert total == pytest.approx(prediction.logit, abs=1e-4)


@pytest.mark.parametrize("maps", ["contribution", "attention"])
def test_a_heatmap_of_each_concept(fo, explanation, maps):
    labels = explanation.to_fiftyone(maps=maps)
    values = explanation.patch_contributions if maps == "contribution" else explanation.patch_attention
    names = [name for name, label in labels.items() if isinstance(label, fo.Heatmap)]
    assert names == [f"{maps}_wing", f"{maps}_bill_red_1", f"{maps}_bill_red_2", f"{maps}_ähre"]
    for name, expected in zip(names, values, strict=True):
        heatmap = labels[name]
        assert np.array_equal(heatmap.map, expected) and heatmap.map.shape == (6, 6)
        low, high = heatmap.range
        assert low <= heatmap.map.min() and heatmap.map.max() <= high
        assert (low, high) == ((0, 1) if maps == "attention" else (-high, high))
    if maps == "contribution":
        added = sum(labels[name].map.sum() for name in names)
        spatial = [c.contribution for c in labels["concepts"].classifications if c.stream == "spatial"]
        assert added == pytest.approx(sum(spatial), abs=1e-4)
        assert labels[names[0]].range[1] == pytest.approx(np.abs(values).max())


def test_a_sample_takes_and_keeps_them(fo, explanation, tmp_path):
    explanation.image.save(tmp_path / "bird.png")
    labels = explanation.to_fiftyone(row={"label": 1})
    sample = fo.Sample(filepath=str(tmp_path / "bird.png"), **labels)
    assert {name for name in labels if sample.has_field(name)} == set(labels)
    for label in labels.values():
        again = type(label).from_dict(label.to_dict())
        assert again.to_dict() == label.to_dict()
    heatmap = fo.Heatmap.from_json(sample.contribution_wing.to_json())
    assert np.array_equal(heatmap.map, explanation.patch_contributions[0])


def test_truth_in_shares_of_the_image(fo, explanation):
    """Of an image 90 wide and 60 high, a box that leaves it is clipped; indices and names are the model's."""
    row = {
        "label": "House Wren",
        "objects": {"bbox": [[9.0, 6.0, 45.0, 30.0], [81.0, 54.0, 18.0, 12.0]], "category": [0, "bill: red"]},
        "points": {"xy": [[45.0, 15.0]], "category": [3]},
    }
    labels = explanation.to_fiftyone(row=row)
    assert labels["truth"].label == "House Wren"
    boxes = labels["truth_objects"].detections
    assert [box.label for box in boxes] == ["wing", "bill: red"]
    np.testing.assert_allclose([box.bounding_box for box in boxes], [[0.1, 0.1, 0.5, 0.5], [0.9, 0.9, 0.1, 0.1]])
    (point,) = labels["truth_points"].keypoints
    assert point.label == "Ähre" and point.points == [pytest.approx((0.5, 0.25))]
    assert set(explanation.to_fiftyone(row={"label": None})).isdisjoint({"truth", "truth_objects", "truth_points"})


def test_a_contrast(fo, explanation):
    contrast = explanation.contrast("House Wren", "Winter Wren")
    labels = contrast.to_fiftyone()
    assert labels["prediction"].question == "Why House Wren and not Winter Wren?"
    assert np.array_equal(labels["contribution_wing"].map, contrast.patch_contributions[0])


def test_where_a_crop_leaves_patches_off_the_image_maps_are_drawn_in_it(make_model, image):
    model, processor = make_model(**CONCEPTS)
    whole = explain(model, processor, image)
    assert on_image(whole, whole.patch_attention) is whole.patch_attention
    cropping = AscentViTImageProcessor.from_model_config(model.config, do_center_crop=True, size={"shortest_edge": 48})
    cropped = explain(model, cropping, image)
    drawn = on_image(cropped, cropped.patch_attention)
    assert drawn.shape == (4, 60, 90) and not drawn[:, :, :15].any() and drawn[:, :, 20:70].all()
    np.testing.assert_allclose(drawn, cropped.attention_maps, atol=1e-6)
    large = explain(model, cropping, image.resize((900, 600)))
    drawn = on_image(large, large.patch_attention)
    assert drawn.shape == (4, 256, 256) and drawn.dtype == np.float32
    rows, columns = (((np.arange(256) + 0.5) * size / 256).astype(int) for size in (600, 900))
    np.testing.assert_allclose(drawn, large.attention_maps[:, rows][:, :, columns], atol=1e-6)


def test_names_of_fields():
    assert field_names("attention", ["has_bill::red", "::", "a b", "A.B"]) == [
        "attention_has_bill_red",
        "attention_1",
        "attention_a_b_2",
        "attention_a_b_3",
    ]


def test_what_is_wrong_is_one_sentence(explanation, monkeypatch):
    with pytest.raises(ValueError, match="maps must be contribution or attention; got 'gradient'."):
        explanation.to_fiftyone(maps="gradient")
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(ImportError, match="to_fiftyone needs FiftyOne, which is not installed: pip install fiftyone."):
        explanation.to_fiftyone()

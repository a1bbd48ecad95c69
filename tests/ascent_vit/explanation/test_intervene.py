# SPDX-License-Identifier: Apache-2.0
"""Concepts set by name: the model gets the overrides that hand-made tensors give it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ascent_vit import explain, intervene


NAMES = {
    "global_concepts": ["striped", "spotted", "plain"],
    "spatial_concepts": ["beak", "wing", "tail"],
    "num_unsupervised_concepts": 2,
}


@pytest.fixture
def model_and_processor(make_model):
    return make_model(**NAMES)


@pytest.fixture
def logits_with(model_and_processor, image):
    """Logits of the model for overrides made by hand."""
    model, processor = model_and_processor

    def run(global_row=None, spatial_rows=None):
        overrides = {}
        if global_row is not None:
            overrides["global_concept_override"] = torch.tensor([global_row], dtype=torch.float32)
        if spatial_rows is not None:
            overrides["spatial_concept_override"] = torch.as_tensor(spatial_rows, dtype=torch.float32)[None]
        with torch.no_grad():
            return model(**processor(image, return_tensors="pt"), **overrides).logits[0].numpy()

    return run


NAN = float("nan")


@pytest.mark.parametrize(
    ("corrections", "row"),
    [
        ({"striped": "present"}, [1, NAN, NAN]),
        ({"striped": "present", "plain": "present"}, [0.5, NAN, 0.5]),
        ({"spotted": "absent"}, [NAN, 0, NAN]),
        ({"striped": "present", "spotted": "absent"}, [1, 0, NAN]),
        ({"striped": 0.25}, [0.25, NAN, NAN]),
        ({"striped": np.float32(0.25), "plain": 0}, [0.25, NAN, 0]),
    ],
)
def test_global_concepts(model_and_processor, image, logits_with, corrections, row):
    result = intervene(*model_and_processor, image, corrections)
    np.testing.assert_allclose(result.before.logits, logits_with(), atol=1e-6)
    np.testing.assert_allclose(result.after.logits, logits_with(row), atol=1e-6)
    assert np.abs(result.change).max() > 1e-3
    assert result.after.additivity_error < 1e-5


def test_attention_shows_the_correction(model_and_processor, image):
    result = intervene(*model_and_processor, image, {"striped": "present", "wing": "absent"})
    assert [result.after.concept(name).attention for name in ("striped", "spotted", "plain")] == [1, 0, 0]
    assert result.after.concept("wing").attention == result.after.concept("wing").contribution == 0
    assert np.all(result.after.patch_attention[1] == 0)
    before, after = result.before.patch_attention, result.after.patch_attention
    np.testing.assert_allclose(after.sum(0), 1, atol=1e-6)
    assert np.all(after[[0, 2]] >= before[[0, 2]])
    assert result.before.logits.tolist() == explain(*model_and_processor, image).logits.tolist()


# 60x90 pixels on 6x6 patches: a patch is 10 high and 15 wide.
MASK = np.zeros((60, 90), dtype=bool)
MASK[10:30, 30:45] = True


@pytest.mark.parametrize(
    ("region", "patches"),
    [
        ({"bbox": [30, 10, 15, 20]}, [(1, 2), (2, 2)]),
        ({"bbox": [[30, 10, 15, 10], [0, 50, 30, 10]]}, [(1, 2), (5, 0), (5, 1)]),
        ({"bbox": np.array([30.0, 10.0, 15.0, 20.0])}, [(1, 2), (2, 2)]),
        ({"xy": [44.5, 10]}, [(1, 2)]),
        ({"xy": [(0, 0), (89.9, 59.9)]}, [(0, 0), (5, 5)]),
        ({"mask": MASK}, [(1, 2), (2, 2)]),
        ({"mask": Image.fromarray(MASK)}, [(1, 2), (2, 2)]),
        ({"mask": MASK * 255, "xy": [0, 0]}, [(1, 2), (2, 2), (0, 0)]),
    ],
)
def test_present_in_a_region(model_and_processor, image, logits_with, region, patches):
    rows = np.full((6, 6, 3), np.nan)
    for row, column in patches:
        rows[row, column, 1] = 1
    result = intervene(*model_and_processor, image, {"wing": region})
    np.testing.assert_allclose(result.after.logits, logits_with(spatial_rows=rows.reshape(36, 3)), atol=1e-6)
    marked = np.zeros((6, 6), dtype=bool)
    marked[tuple(zip(*patches, strict=True))] = True
    assert np.all(result.after.patch_attention[1][marked] == 1)
    np.testing.assert_array_equal(result.after.patch_attention[:, ~marked], result.before.patch_attention[:, ~marked])


def test_regions_share_their_patches(model_and_processor, image, logits_with):
    rows = np.full((6, 6, 3), np.nan)
    rows[0, 0] = [0.5, 0.5, 0]
    rows[0, 1] = [np.nan, 1, 0]
    rows[:, :, 2] = 0
    corrections = {"beak": {"xy": [0, 0]}, "wing": {"bbox": [0, 0, 30, 10]}, "tail": "absent"}
    result = intervene(*model_and_processor, image, corrections)
    np.testing.assert_allclose(result.after.logits, logits_with(spatial_rows=rows.reshape(36, 3)), atol=1e-6)


def test_present_everywhere(model_and_processor, image, logits_with):
    rows = np.full((36, 3), np.nan)
    rows[:, :2] = 0.5
    result = intervene(*model_and_processor, image, {"beak": "present", "wing": "present"})
    np.testing.assert_allclose(result.after.logits, logits_with(spatial_rows=rows), atol=1e-6)


def test_several_images(model_and_processor, image):
    images = [image, image.rotate(90, expand=True), image.rotate(180)]
    corrections = [{"striped": "present"}, {}, {"wing": {"xy": [5, 5]}}]
    results = intervene(*model_and_processor, images, corrections, class_ids=2, batch_size=2)
    for one, correction, result in zip(images, corrections, results, strict=True):
        alone = intervene(*model_and_processor, one, correction, class_ids=2)
        np.testing.assert_allclose(result.after.logits, alone.after.logits, atol=1e-5)
        assert result.before.label_id == result.after.label_id == 2
    np.testing.assert_allclose(results[1].change, 0, atol=1e-6)
    same = intervene(*model_and_processor, iter(images), {"spotted": "absent"})
    assert len(same) == 3 and all(result.after.concept("spotted").attention == 0 for result in same)


def test_prediction_changes_and_result_is_json(model_and_processor, image):
    model, processor = model_and_processor
    with torch.no_grad():
        model.global_stream.projection.weight.mul_(100)
    results = [intervene(model, processor, image, {name: "present"}) for name in NAMES["global_concepts"]]
    assert any(result.changes_prediction for result in results)
    for result in results:
        labels = (result.before.predicted_label, result.after.predicted_label)
        assert result.changes_prediction == (labels[0] != labels[1])
        values = json.loads(json.dumps(result.to_dict()))
        assert values["after"]["logits"] == pytest.approx(
            np.add(values["before"]["logits"], values["change"]), rel=1e-4
        )


def test_names_in_two_streams(make_model, image):
    model, processor = make_model(global_concepts=["red", "blue"], spatial_concepts=["red", "wing"])
    with pytest.raises(ValueError, match="There is a global and spatial concept 'red'"):
        intervene(model, processor, image, {"red": "absent"})
    result = intervene(model, processor, image, {("spatial", "red"): "absent"})
    assert result.after.concept("red", "spatial").attention == 0 < result.after.concept("red", "global").attention


@pytest.mark.parametrize(
    ("corrections", "message"),
    [
        ({"stripes": "present"}, "no concept 'stripes' among its 8: did you mean 'striped'"),
        ({"UNSUPERVISED_CONCEPT_0": "present"}, "only global and spatial concepts can be set"),
        ({"striped": "yes"}, "'striped' is set to 'present', 'absent', an attention of 0 or more; got 'yes'"),
        ({"striped": {"xy": [0, 0]}}, "'striped' is set to"),
        ({"wing": {"box": [0, 0, 1, 1]}}, "or a region"),
        ({"wing": {}}, "or a region"),
        ({"wing": -0.5}, "an attention of 0 or more"),
        ({"wing": True}, "an attention of 0 or more"),
        ({"wing": NAN}, "an attention of 0 or more"),
        ({"wing": {"xy": [90, 0]}}, "must lie in the image"),
        ({"wing": {"bbox": [0, 0, 5]}}, r"must be a list of \[x, y, width, height\]"),
        ({"wing": {"mask": np.ones((5, 5))}}, "height 60 and width 90; got height 5 and width 5"),
        ({"striped": "absent", ("global", "striped"): "present"}, "'striped' is given twice"),
        ([{}, {}], "one for each of the 1 images; got 2"),
    ],
)
def test_bad_corrections(model_and_processor, image, corrections, message):
    with pytest.raises(ValueError, match=message):
        intervene(*model_and_processor, image, corrections)


@pytest.mark.parametrize("stream", ["global", "spatial"])
def test_models_with_one_stream(make_model, image, stream):
    model, processor = make_model(**{f"num_{stream}_concepts": 2})
    result = intervene(model, processor, image, {f"{stream.upper()}_CONCEPT_1": "absent"})
    assert result.after.concept(f"{stream.upper()}_CONCEPT_0").attention == pytest.approx(1)


def test_one_of_a_group_sets_the_others(model_and_processor, image):
    groups = {"pattern": ["striped", "spotted", "plain"], "end": ["beak", "tail"]}
    region = {"beak": {"bbox": [10, 10, 30, 20]}}
    result = intervene(*model_and_processor, image, {"striped": 0.25, **region}, groups=groups)
    by_hand = {"striped": 0.25, "spotted": "absent", "plain": "absent", **region, "tail": "absent"}
    np.testing.assert_array_equal(result.after.logits, intervene(*model_and_processor, image, by_hand).after.logits)
    # What is said to be absent says nothing of the others, and what is given stays.
    result = intervene(*model_and_processor, image, {"striped": "absent", "spotted": 0}, groups=groups)
    by_hand = intervene(*model_and_processor, image, {"striped": "absent", "spotted": 0})
    np.testing.assert_array_equal(result.after.logits, by_hand.after.logits)
    both = {"beak": "present", "tail": "present"}
    result = intervene(*model_and_processor, image, both, groups=groups)
    np.testing.assert_array_equal(result.after.logits, intervene(*model_and_processor, image, both).after.logits)


def test_groups_by_the_names_of_concepts(make_model, image):
    names = {"global_concepts": ["bill::long", "bill::short", "eye::red", "large"], "spatial_concepts": ["a", "b"]}
    model_and_processor = make_model(**names)
    result = intervene(*model_and_processor, image, {"bill::long": 0.3, "large": 0.1}, groups="prefix")
    by_hand = intervene(*model_and_processor, image, {"bill::long": 0.3, "bill::short": "absent", "large": 0.1})
    np.testing.assert_array_equal(result.after.logits, by_hand.after.logits)
    with pytest.raises(ValueError, match="no concept 'bill::wide'"):
        intervene(*model_and_processor, image, {"large": 0.1}, groups={"bill": ["bill::wide"]})

# SPDX-License-Identifier: Apache-2.0
"""Explanations as results: sums, other classes, contrasts, maps, files."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from ascent_vit import explain


def test_contributions_and_bias_are_the_logit(model_and_processor, image):
    model, processor = model_and_processor
    for class_id in range(5):
        explanation = explain(model, processor, image, class_ids=class_id)
        total = sum(concept.contribution for concept in explanation.concepts) + explanation.class_bias
        assert total == pytest.approx(explanation.logits[class_id], abs=1e-5)
        assert explanation.additivity_error < 1e-5
        assert explanation.class_bias == pytest.approx(model.class_bias()[class_id].item())


def test_concepts_are_sorted_by_signed_contribution(model_and_processor, image):
    explanation = explain(*model_and_processor, image)
    contributions = [concept.contribution for concept in explanation.concepts]
    assert contributions == sorted(contributions, reverse=True)
    assert min(contributions) < 0 < max(contributions)
    top = explanation.top(2)
    assert {abs(concept.contribution) for concept in top} == set(sorted(map(abs, contributions))[-2:])
    assert top[0].contribution > top[1].contribution
    assert {concept.stream for concept in explanation.top(9, stream="spatial")} == {"spatial"}


def test_patch_maps_sum_to_contributions_and_are_drawn_in_the_images_pixels(model_and_processor, image):
    explanation = explain(*model_and_processor, image.crop((0, 0, 90, 54)), class_ids=2)
    spatial = {c.index: c for c in explanation.concepts if c.stream == "spatial"}
    for index, concept in spatial.items():
        assert explanation.patch_contributions[index].sum() == pytest.approx(concept.contribution, abs=1e-5)
        assert explanation.patch_attention[index].mean() == pytest.approx(concept.attention, abs=1e-6)
    assert explanation.patch_attention.shape == (4, 6, 6)
    assert explanation.attention_maps.shape == explanation.contribution_maps.shape == (4, 54, 90)
    # 54x90 pixels on 6x6 patches: a patch is 9 high and 15 wide, and its centre pixel has its value.
    np.testing.assert_allclose(explanation.attention_maps[:, 31, 37], explanation.patch_attention[:, 3, 2], atol=1e-6)
    np.testing.assert_allclose(
        explanation.contribution_maps[:, 4, 82], explanation.patch_contributions[:, 0, 5], atol=1e-6
    )


def test_to_dict_is_json_and_complete(model_and_processor, image):
    explanation = explain(*model_and_processor, image)
    values = json.loads(json.dumps(explanation.to_dict(maps=True)))
    assert values["label"] == explanation.label and values["image_size"] == [60, 90]
    assert values["concepts"][0] == {
        "name": explanation.concepts[0].name,
        "stream": explanation.concepts[0].stream,
        "index": explanation.concepts[0].index,
        "attention": explanation.concepts[0].attention,
        "contribution": explanation.concepts[0].contribution,
    }
    np.testing.assert_allclose(values["patch_contributions"], explanation.patch_contributions)
    assert "patch_attention" not in explanation.to_dict()


def test_another_class_is_what_explain_says_of_it(model_and_processor, image):
    predicted = explain(*model_and_processor, image)
    for class_id in range(5):
        other, fresh = predicted.for_class(class_id), explain(*model_and_processor, image, class_ids=class_id)
        assert other.to_dict(maps=True) == fresh.to_dict(maps=True)
        assert other.predicted_label == predicted.predicted_label
    assert predicted.for_class("House Wren").label_id == 3
    with pytest.raises(ValueError, match="did you mean 'House Wren'"):
        predicted.for_class("house wrens")


def test_contrast_is_the_difference_of_two_explanations(model_and_processor, image):
    explanation = explain(*model_and_processor, image)
    contrast = explanation.contrast("House Wren", "Winter Wren")
    first, second = explanation.for_class(3), explanation.for_class(4)
    assert (contrast.label, contrast.other_label) == ("House Wren", "Winter Wren")
    assert contrast.logit == pytest.approx(first.logit - second.logit, abs=1e-6)
    assert contrast.class_bias == pytest.approx(first.class_bias - second.class_bias, abs=1e-6)
    assert contrast.additivity_error < 1e-5
    total = sum(concept.contribution for concept in contrast.concepts)
    assert total + contrast.class_bias == pytest.approx(contrast.logit, abs=1e-5)
    for concept in contrast.concepts:
        of_first, of_second = (e.concept(concept.name) for e in (first, second))
        assert concept.contribution == pytest.approx(of_first.contribution - of_second.contribution, abs=1e-6)
        assert concept.attention == of_first.attention
    contributions = [concept.contribution for concept in contrast.concepts]
    assert contributions == sorted(contributions, reverse=True)
    difference = first.patch_contributions - second.patch_contributions
    np.testing.assert_allclose(contrast.patch_contributions, difference, atol=1e-6)
    values = json.loads(json.dumps(contrast.to_dict()))
    assert values["other_label"] == "Winter Wren"
    assert values["other_score"] == pytest.approx(second.score)
    assert contrast.for_class(3).to_dict() == first.to_dict()


def test_contrast_is_antisymmetric(model_and_processor, image):
    explanation = explain(*model_and_processor, image)
    there, back = explanation.contrast(0, 2), explanation.contrast(2, 0)
    assert there.logit == -back.logit
    np.testing.assert_array_equal(there.patch_contributions, -back.patch_contributions)
    assert {c.name: c.contribution for c in there.concepts} == {c.name: -c.contribution for c in back.concepts}


def test_contrast_is_with_the_best_other_class_by_default(model_and_processor, image):
    explanation = explain(*model_and_processor, image)
    best, second, *_, last = np.argsort(-explanation.logits)
    assert explanation.contrast(int(best)).other_id == second
    assert explanation.contrast(int(last)).other_id == best
    with pytest.raises(ValueError, match="needs two classes; got 'House Wren' twice"):
        explanation.contrast(3, "House Wren")


def test_heads_average_to_attention(model_and_processor, image):
    explanation = explain(*model_and_processor, image)
    assert explanation.patch_attention_heads.shape == (2, 4, 6, 6)
    assert explanation.head_maps.shape == (2, 4, 60, 90)
    np.testing.assert_allclose(explanation.head_maps.mean(0), explanation.attention_maps, atol=1e-6)
    assert np.abs(np.diff(explanation.head_maps, axis=0)).max() > 0.01
    assert explanation.head_attention.shape == (2, 9)
    by_place = {(c.stream, c.index): c.attention for c in explanation.concepts}
    in_columns = [by_place[s, i] for s, names in explanation.concept_names.items() for i in range(len(names))]
    np.testing.assert_allclose(in_columns, explanation.concept_attention)
    np.testing.assert_allclose(explanation.concept_attention[3:7], explanation.patch_attention.mean((1, 2)), atol=1e-6)


def test_concepts_by_name(make_model, image):
    names = {"global_concepts": ["striped", "spotted"], "spatial_concepts": ["striped", "beak", "wing"]}
    explanation = explain(*make_model(**names), image)
    assert explanation.concept("beak").stream == "spatial"
    assert explanation.concept("striped", stream="global").index == 0
    with pytest.raises(ValueError, match="There is a global and spatial concept 'striped'"):
        explanation.concept("striped")
    with pytest.raises(ValueError, match="no concept 'beek' among its 5: did you mean 'beak'"):
        explanation.concept("beek")
    with pytest.raises(ValueError, match="no unsupervised concepts: its concepts are global, spatial"):
        explanation.concept("beak", stream="unsupervised")


@pytest.mark.parametrize("suffix", [".json", ".png", ".html"])
@pytest.mark.parametrize("contrasted", [False, True])
def test_saved_by_suffix(model_and_processor, image, tmp_path, suffix, contrasted):
    explanation = explain(*model_and_processor, image)
    if contrasted:
        explanation = explanation.contrast("House Wren")
    path = tmp_path / "new" / f"file{suffix}"
    explanation.save(path)
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    if suffix == ".json":
        assert json.loads(path.read_text()) == json.loads(json.dumps(explanation.to_dict()))
        explanation.save(path, maps=True)
        assert np.shape(json.loads(path.read_text())["patch_contributions"]) == (4, 6, 6)
    elif suffix == ".png":
        explanation.save(path, top=2, truth="House Wren")
        assert Image.open(path).size[0] > 500
    else:
        assert path.read_text().lower().startswith("<!doctype html>")
        assert "House Wren" in path.read_text()


def test_other_suffixes_are_refused(model_and_processor, image, tmp_path):
    with pytest.raises(ValueError, match="saved as .json, .png or .html; got file.pdf"):
        explain(*model_and_processor, image).save(tmp_path / "file.pdf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("compared", [False, True])
def test_explanations_are_pickled_and_replaced(model_and_processor, image, compared):
    explanation = explain(*model_and_processor, image)
    if compared:
        explanation = explanation.contrast(0, 1)
    for other in (pickle.loads(pickle.dumps(explanation)), dataclasses.replace(explanation)):
        assert type(other) is type(explanation)
        assert other.to_dict(maps=True) == explanation.to_dict(maps=True)

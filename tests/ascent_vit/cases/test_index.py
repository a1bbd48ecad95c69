# SPDX-License-Identifier: Apache-2.0
"""An index finds what a comparison with every image finds, in float64; it is of one model, and saved whole."""

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from ascent_vit import ConceptIndex, explain


NUMBER, DAMAGED = 40, 7
# Half precision of unit vectors.
TOLERANCE = 2e-3


@pytest.fixture
def explanations(model_and_processor, pictures):
    """Explanations of the images of the index, by row."""
    made = explain(*model_and_processor, pictures, features=True)
    return {i: explanation for i, explanation in enumerate(made) if i != DAMAGED}


@pytest.fixture
def query(model_and_processor, pictures):
    return explain(*model_and_processor, pictures[3].rotate(20), features=True)


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def strongest_patch(explanation, concept):
    attention = explanation.patch_attention[concept]
    height, width = attention.shape
    place = max(((i, j) for i in range(height) for j in range(width)), key=lambda at: attention[at])
    return place, explanation.patch_features[place]


def reference(query, explanations, compare):
    """Rows by their similarity to the query, most similar first."""
    scores = {row: compare(query, explanation) for row, explanation in explanations.items()}
    return sorted(scores.items(), key=lambda item: -item[1])


def assert_found(cases, expected):
    """The cases are the first of the expected rows; rows of nearly the same score may change places."""
    scores = dict(expected)
    np.testing.assert_allclose([case.score for case in cases], [s for _, s in expected[: len(cases)]], atol=TOLERANCE)
    for case in cases:
        assert case.score == pytest.approx(scores[case.row], abs=TOLERANCE)
    assert len({case.row for case in cases}) == len(cases)


@pytest.mark.parametrize("label", [None, "Winter Wren"])
def test_contributions(index, explanations, query, label):
    query = query if label is None else query.for_class(label)
    expected = reference(
        query,
        explanations,
        lambda q, e: cosine(q.contributions[:, q.label_id], e.contributions[:, e.logits.argmax()]),
    )
    assert_found(query.similar(index, k=10), expected)
    assert_found(index.similar(query, k=NUMBER + 5), expected)
    assert len(index.similar(query, k=NUMBER + 5)) == NUMBER - 1


def test_attention(index, explanations, query):
    expected = reference(
        query, explanations, lambda q, e: cosine(np.sqrt(q.head_attention.mean(0)), np.sqrt(e.head_attention.mean(0)))
    )
    assert_found(index.similar(query, k=10, by="attention"), expected)


@pytest.mark.parametrize("concept", range(4))
def test_patches(index, explanations, query, concept):
    """Of the images that attend to the concept as one of the two most attended, by brute force."""
    strength = {row: e.patch_attention.reshape(4, -1).max(1) for row, e in explanations.items()}
    held = {row: e for row, e in explanations.items() if (strength[row] > strength[row][concept]).sum() < 2}
    expected = reference(
        query, held, lambda q, e: cosine(strongest_patch(q, concept)[1], strongest_patch(e, concept)[1])
    )
    cases = index.similar(query, k=8, concept=query.concept_names["spatial"][concept])
    assert len(cases) == min(8, len(held))
    assert_found(cases, expected)
    assert all(case.patch == strongest_patch(explanations[case.row], concept)[0] for case in cases)


def test_by_patch_takes_the_concept_that_contributes_most(index, query):
    name = query.top(1, stream="spatial")[0].name
    assert [c.row for c in index.similar(query, by="patch")] == [c.row for c in index.similar(query, concept=name)]


def test_an_image_of_the_index_finds_itself(index, explanations):
    for by in ("contributions", "attention", "patch"):
        (case,) = index.similar(explanations[11], k=1, by=by)
        assert case.row == 11 and case.score == pytest.approx(1, abs=TOLERANCE)


def test_classes_are_the_datasets_by_name(index, explanations, query):
    """Of a row without a label, the class is the predicted one; of one that the model does not know, it is none."""
    names = ["House Wren", "Painted Bunting", "Dodo"]
    labels = {row: names[row % 3] for row in explanations} | {5: explanations[5].predicted_label}
    for label in ("Painted Bunting", "House Wren", labels[5]):
        wanted = query.for_class(label)
        for same in (True, False):
            for kwargs in ({}, {"by": "attention"}, {"concept": "wing"}):
                cases = index.similar(wanted, k=NUMBER, same_class=same, **kwargs)
                assert cases and all((labels[case.row] == label) is same for case in cases)
            assert len(index.similar(wanted, k=NUMBER, same_class=same)) == sum(
                (found == label) is same for found in labels.values()
            )
    assert index.similar(query.for_class("Black Tern"), same_class=True) == [
        case for case in index.similar(query.for_class("Black Tern"), k=NUMBER) if labels[case.row] == "Black Tern"
    ]


def test_cases_say_what_they_are(index, explanations, pictures, query):
    for case in index.similar(query, k=NUMBER):
        assert case.label == (None if case.row == 5 else ["House Wren", "Painted Bunting", "Dodo"][case.row % 3])
        assert case.prediction == explanations[case.row].predicted_label and case.patch is None
        small = pictures[case.row].resize(case.thumbnail.size)
        assert np.abs(np.asarray(small, int) - np.asarray(case.thumbnail, int)).mean() < 8
    assert repr(index).startswith("ConceptIndex(39 images of ")


def test_damaged_images_are_left_out_with_one_sentence(model_and_processor, dataset, caplog, capsys):
    with caplog.at_level("WARNING"):
        index = ConceptIndex.build(*model_and_processor, dataset, progress=True)
    (record,) = (each for each in caplog.records if each.name.startswith("ascent_vit"))
    assert record.message.startswith("1 images could not be read and are left out. The first: The image of row 7")
    assert "Indexing: 100%" in capsys.readouterr().err
    assert len(index) == NUMBER - 1 and len(index.left_out) == 1 and index.facts["left_out"] == 1
    assert index.similar(explain(*model_and_processor, dataset[0]["image"]))[0].thumbnail is None


def test_saved_and_loaded(index, query, tmp_path):
    index.save(tmp_path / "model" / "index")
    for folder in (tmp_path / "model", tmp_path / "model" / "index"):
        loaded = ConceptIndex.load(folder)
        assert loaded.facts == index.facts
        for kwargs in ({}, {"by": "attention", "same_class": False}, {"concept": "wing"}):
            found, expected = (each.similar(query, k=4, **kwargs) for each in (loaded, index))
            plain = [dataclasses.replace(case, thumbnail=None) for case in found]
            assert plain == [dataclasses.replace(case, thumbnail=None) for case in expected]
    with pytest.raises(FileExistsError, match="not empty"):
        index.save(tmp_path / "model" / "index")
    facts = json.loads((tmp_path / "model" / "index" / "index.json").read_text())
    assert facts["dataset"]["rows"] == NUMBER and facts["cases"] == NUMBER - 1
    assert str(tmp_path) not in (tmp_path / "model" / "index" / "index.json").read_text()


def test_saving_leaves_nothing_half_done(index, tmp_path, monkeypatch):
    def failing(*args, **kwargs):
        shutil.copyfile(index.folder / "index.json", args[1] / "index.json")
        raise OSError("the disk is full")

    monkeypatch.setattr("ascent_vit.cases.index.shutil.copytree", failing)
    with pytest.raises(OSError, match="the disk is full"):
        index.save(tmp_path / "index")
    assert not list(tmp_path.iterdir())


def test_damaged_indexes_are_refused(index, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no index.json"):
        ConceptIndex.load(tmp_path)
    damages = {
        "attention.faiss": lambda path: path.write_bytes(path.read_bytes()[:200]),
        "contributions.faiss": lambda path: shutil.copyfile(index.folder / "features.faiss", path),
        "cases/state.json": lambda path: path.unlink(),
    }
    for number, (name, damage) in enumerate(damages.items()):
        index.save(tmp_path / str(number))
        damage(tmp_path / str(number) / name)
        with pytest.raises(ValueError, match="is damaged, build it again"):
            ConceptIndex.load(tmp_path / str(number))
    index.save(tmp_path / "newer")
    facts = json.loads((tmp_path / "newer" / "index.json").read_text())
    (tmp_path / "newer" / "index.json").write_text(json.dumps(facts | {"format": 2}))
    with pytest.raises(ValueError, match="not of the form that this version reads"):
        ConceptIndex.load(tmp_path / "newer")


def test_explanations_of_another_model_are_refused(index, model_and_processor, pictures, query):
    model, processor = model_and_processor
    assert index.similar(pickle.loads(pickle.dumps(query)))
    with torch.no_grad():
        model.ascent_vit.backbone.layernorm.bias[3] += 1e-3
    other = explain(model, processor, pictures[3])
    with pytest.raises(ValueError, match="of another model than the index was built with"):
        index.similar(other)
    with torch.no_grad():
        model.ascent_vit.backbone.layernorm.bias[3] -= 1e-3
    model.config.id2label = dict(model.config.id2label) | {0: "White Tern"}
    with pytest.raises(ValueError, match="of another model than the index was built with"):
        index.similar(explain(model, processor, pictures[3]))


def test_another_image_processor_is_refused(index, model_and_processor, pictures):
    model, processor = model_and_processor
    processor.image_mean = [0.4, 0.4, 0.4]
    with pytest.raises(ValueError, match="other settings of the image processor"):
        index.similar(explain(model, processor, pictures[3]))


def test_wrong_questions(index, model_and_processor, pictures, query):
    with pytest.raises(ValueError, match="k must be 1 or more; got 0"):
        index.similar(query, k=0)
    with pytest.raises(ValueError, match='by must be "contributions", "attention" or "patch"; got \'colour\''):
        index.similar(query, by="colour")
    with pytest.raises(ValueError, match="no spatial concept 'crown'|has no spatial concept|did you mean"):
        index.similar(query, concept="red crowns")
    with pytest.raises(ValueError, match="call explain with features=True"):
        index.similar(explain(*model_and_processor, pictures[0]), concept="wing")
    with pytest.raises(ValueError, match="take for_class of this contrast"):
        index.similar(query.contrast("Black Tern", "Winter Wren"))


def test_an_index_without_patches(model_and_processor, dataset, query):
    index = ConceptIndex.build(*model_and_processor, dataset, concepts_per_image=0)
    assert len(index.patches) == 0 and index.similar(query)
    with pytest.raises(ValueError, match="The index holds no patches"):
        index.similar(query, by="patch")


def test_wrong_datasets(model_and_processor, dataset):
    with pytest.raises(ValueError, match="leave the streaming out"):
        ConceptIndex.build(*model_and_processor, dataset.to_iterable_dataset())
    with pytest.raises(ValueError, match="There is no image that can be read"):
        ConceptIndex.build(*model_and_processor, dataset.select([DAMAGED]))


def test_several_classes_of_an_image_and_values(make_config, make_index_model, dataset, pictures):
    names = {0: "House Wren", 1: "Painted Bunting", 2: "Dodo"}
    labels = {"id2label": names, "num_labels": 3, "num_spatial_concepts": 4}
    model, processor = make_index_model(make_config(problem_type="multi_label_classification", **labels))
    index = ConceptIndex.build(model, processor, dataset)
    query = explain(model, processor, pictures[0], class_ids="Dodo")
    assert {case.label for case in index.similar(query, k=3, same_class=True)} <= {"Dodo", None}
    model, processor = make_index_model(make_config(problem_type="regression", **labels))
    index = ConceptIndex.build(model, processor, dataset.remove_columns("label").add_column("label", [0.5] * NUMBER))
    query = explain(model, processor, pictures[0])
    (case,) = index.similar(query, k=1)
    assert case.row == 0 and case.prediction == ", ".join(f"{value:.6g}" for value in query.logits)
    with pytest.raises(ValueError, match="leave same_class out"):
        index.similar(query, same_class=True)


def test_the_package_is_imported_without_faiss():
    code = "import sys, ascent_vit; assert 'faiss' not in sys.modules and 'datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'ConceptIndex' in ascent_vit.__all__"], check=True)

# SPDX-License-Identifier: Apache-2.0
"""Summaries, against explanations of the same images one by one, and against the metrics of an evaluation."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Features, List, Value
from PIL import Image
from torch.utils.data import DataLoader

from ascent_vit import explain, intervene, summarize
from ascent_vit.data import ConceptCollator
from ascent_vit.evaluation import evaluate
from ascent_vit.utils.bootstrap import bootstrap_interval


@pytest.fixture
def summary(balanced, digits):
    model, processor = balanced()
    return model, processor, summarize(model, processor, digits, batch_size=7, by=["sample", "label"])


def explanations_of(model, processor, split):
    return explain(model.double(), processor, split["image"][:])


def test_means_are_those_of_explanations(summary, digits, close):
    model, processor, found = summary
    explained = explanations_of(model, processor, digits)
    contributions = np.stack([one.contributions for one in explained]).astype(np.float64)
    labels = np.array(digits["label"])
    close(found.effects["all"], contributions.mean(0))
    for k in range(2):
        close(np.array(found.effects["class"])[:, k], contributions[labels == k].mean(0)[:, k])
        assert found.classes[k]["images"] == (labels == k).sum()
    tables = [stream.contribution_table().sum(0) for stream in model.streams().values()]
    close(found.effects["weights"], torch.cat(tables).detach().numpy())
    attention = np.stack([one.concept_attention for one in explained]).mean(0)
    close([concept["attention"] for concept in found.concepts], attention)
    maps = np.stack([one.patch_attention for one in explained]).mean(0)
    close([concept["mean_map"] for concept in found.concepts if concept["stream"] == "spatial"], maps)


def test_exemplars_are_the_strongest_patches(summary, digits, close):
    model, processor, found = summary
    explained = explanations_of(model, processor, digits)
    for concept in found.concepts:
        index = int(concept["name"][-1])
        if concept["stream"] == "spatial":
            maps = np.stack([one.patch_attention[index].ravel() for one in explained])
            patches = [exemplar["patch"] for exemplar in concept["exemplars"]]
            assert patches == [int(maps[exemplar["row"]].argmax()) for exemplar in concept["exemplars"]]
        else:
            maps = np.array([[one.concept_attention[index]] for one in explained])
        strongest = np.sort(maps.max(1))[::-1][:9]
        close([exemplar["attention"] for exemplar in concept["exemplars"]], strongest)
        close([maps[exemplar["row"]].max() for exemplar in concept["exemplars"]], strongest)


def test_typical_cases_are_near_the_mean_of_right_ones(summary, digits, close):
    model, processor, found = summary
    explained = explanations_of(model, processor, digits)
    labels, predicted = np.array(digits["label"]), np.array([one.predicted_id for one in explained])
    for k, item in enumerate(found.classes):
        rows = np.flatnonzero((labels == k) & (predicted == k))
        vectors = np.stack([explained[row].contributions[:, k] for row in rows]).astype(np.float64)
        distances = np.linalg.norm(vectors - vectors.mean(0), axis=1)
        ordered = rows[np.argsort(distances)].tolist()
        assert [case["row"] for case in item["typical"]] == ordered[: len(item["typical"])]
        assert [case["row"] for case in item["atypical"]] == ordered[::-1][: len(item["atypical"])]
        close([case["distance"] for case in item["typical"]], np.sort(distances)[: len(item["typical"])])
        assert item["accuracy"] == len(rows) / (labels == k).sum()
        assert item["predicted"] == (predicted == k).sum()


def test_errors_and_what_would_put_them_right(summary, digits, close):
    model, processor, found = summary
    explained = explanations_of(model, processor, digits)
    labels, predicted = np.array(digits["label"]), np.array([one.predicted_id for one in explained])
    wrong = np.flatnonzero(labels != predicted)
    assert found.figures["errors"] == len(wrong) == sum(pair["images"] for pair in found.confusions) > 4
    counts = [pair["images"] for pair in found.confusions]
    assert counts == sorted(counts, reverse=True)
    table = pq.read_table(found.rows).to_pydict()
    for pair in found.confusions:
        rows = [row for row in wrong if labels[row] == pair["label_id"]]
        contrasts = [explained[row].contrast(pair["label_id"], pair["predicted_id"]) for row in rows]
        close(pair["contrast"], np.mean([one.select(one.contributions) for one in contrasts], axis=0))
        close(pair["bias"], contrasts[0].class_bias)
        assert set(pair["rows"]) <= set(rows)
    # Each global concept of some images corrected by another way than the sum, by the model run again.
    for row in wrong[:4].tolist():
        (digit,) = digits[row]["concepts"]
        image = digits[row]["image"]
        for concept in range(10):
            after = intervene(model, processor, image, {("global", f"digit {concept}"): float(concept == digit)}).after
            assert (concept in table["put_right"][row]) == (after.predicted_id == labels[row])
    right = [row for row in wrong.tolist() if table["put_right"][row]]
    assert found.figures["put_right"] == len(right) > 0 and found.figures["correctable"] == len(wrong)
    assert sum(pair["put_right"] for pair in found.confusions) == len(right)


def test_figures_are_those_of_an_evaluation(summary, digits, close):
    model, processor, found = summary
    loader = DataLoader(digits, 7, collate_fn=ConceptCollator(processor))
    metrics = evaluate(model, loader)
    for name in ("accuracy", "concept_map", "pointing_game", "relevance_mass"):
        assert found.figures[name] == pytest.approx(metrics[name], abs=1e-6), name
    split = digits.add_column("present", digits["concepts"][:], feature=digits.features["concepts"])
    metrics = evaluate(model, DataLoader(split, 7, collate_fn=ConceptCollator(processor)))
    spatial = [item for item in summarize(model, processor, split).concepts if item["stream"] == "spatial"]
    known = [item["average_precision"] for item in spatial if item["average_precision"] is not None]
    assert np.mean(known) == pytest.approx(metrics["presence_map"], abs=1e-6)


def test_slices(summary, digits):
    model, processor, found = summary
    labels = np.array(digits["label"])
    right = labels == [one.predicted_id for one in explanations_of(model, processor, digits)]
    concepts = np.array([row[0] for row in digits["concepts"]])
    slices = {(item["by"], item["value"]): item for item in found.slices if item["by"] != "size"}
    everything = slices["all", "all images"]
    assert everything["images"] == 30 and everything["mean"] == right.mean()
    assert (everything["low"], everything["high"]) == bootstrap_interval(right.astype(float))
    for digit in range(10):
        item = slices.get(("concept", f"digit {digit} (global)"))
        if item:
            assert item["images"] in {(concepts == digit).sum()} and item["mean"] == right[concepts == digit].mean()
    sizes = [item for item in found.slices if item["by"] == "size"]
    assert sum(item["images"] for item in sizes) == 30 and 2 <= len(sizes) <= 4
    assert slices["sample", str(digits["sample"][3])]["images"] == 1
    assert slices["label", "odd"]["images"] == labels.sum()


def test_no_figure_depends_on_the_batches(balanced, digits):
    model, processor = balanced()
    model = model.double()
    one, many = (summarize(model, processor, digits, batch_size=size).to_dict() for size in (4, 30))
    assert json.loads(json.dumps(one), parse_float=lambda text: round(float(text), 9)) == json.loads(
        json.dumps(many), parse_float=lambda text: round(float(text), 9)
    )


def test_the_table_adds_up(summary, digits, close):
    model, _, found = summary
    table = pq.read_table(found.rows)
    names = json.loads(table.schema.metadata[b"ascent_vit"])
    assert names["labels"] == ["even", "odd"] and len(names["concepts"]["spatial"]) == 10
    rows = table.to_pydict()
    assert rows["row"] == list(range(30)) and rows["label"] == ["odd" if i else "even" for i in digits["label"]]
    predicted, bias = np.array(rows["predicted_id"]), model.class_bias().detach().numpy()
    sums = np.sum(rows["contributions"], axis=1) + bias[predicted]
    close(sums, np.array(rows["logits"])[np.arange(30), predicted], atol=1e-5)
    labels = np.array(digits["label"])
    close(
        np.sum(rows["contributions_label"], axis=1) + bias[labels],
        np.array(rows["logits"])[np.arange(30), labels],
        atol=1e-5,
    )
    digit = np.array(rows["presence"])[:, :10].argmax(1)
    assert digit.tolist() == [concepts[0] for concepts in digits["concepts"]]


def test_suspicion_where_attention_lies_off_the_annotation(build, digits):
    """A concept that looks at what nobody annotated is named, one that looks at it is not."""
    from ascent_vit.summary.tally import agreement

    targets = torch.full((2, 9, 3), torch.nan)
    targets[:, 4] = torch.tensor([1.0, 0.0, 0.0])
    maps = torch.full((2, 9, 3), 0.1)
    maps[:, 4, 0], maps[:, 4, 2] = 0.9, 0.0
    sums = agreement(maps.double(), targets.double())
    share = (sums["mass_on_annotated"] / sums["mass"]).tolist()
    even = (sums["mass_if_even"] / sums["mass"]).tolist()
    assert even == pytest.approx([1 / 9] * 3)
    assert share == pytest.approx([0.9 / 1.7, 1 / 9, 0.0])


def test_splits_without_labels_say_what_they_can(balanced, digits):
    model, processor = balanced()
    whole = summarize(model, processor, digits)
    bare = summarize(model, processor, digits.remove_columns("label"))
    unknown = summarize(
        model,
        processor,
        digits.remove_columns("label").add_column("label", [-1] * 30, feature=digits.features["label"]),
    )
    assert bare.figures["labelled"] == 0 and "accuracy" not in bare.figures and bare.confusions == []
    assert bare.slices == [] and "no labels" in bare.left_out[0]
    assert [item["exemplars"] for item in bare.concepts] == [item["exemplars"] for item in whole.concepts]
    assert sum(item["images"] for item in bare.classes) == 30 and bare.classes[0]["typical"]
    assert unknown.figures == bare.figures


def test_rows_without_label_are_left_out_of_classes(balanced, digits, close):
    model, processor = balanced()
    labels = [None if i % 3 == 0 else label for i, label in enumerate(digits["label"])]
    split = digits.remove_columns("label").add_column("label", labels, feature=digits.features["label"])
    found = summarize(model, processor, split)
    right = [i for i in range(30) if i % 3]
    assert found.figures["labelled"] == 20 and found.figures["images"] == 30
    labelled = summarize(model, processor, digits.select(right))
    assert found.figures["accuracy"] == labelled.figures["accuracy"]
    close(found.effects["class"], labelled.effects["class"])
    for one, other in zip(found.classes, labelled.classes, strict=True):
        assert [case["row"] for case in one["typical"]] == [right[case["row"]] for case in other["typical"]]


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_other_problems(build, digits, problem, close):
    model, processor = build(problem_type=problem)
    if problem == "regression":
        labels, feature = [[float(i), 1.0] for i in digits["label"]], List(Value("float32"), length=2)
    else:
        labels, feature = [[i] if i else [0, 1] for i in digits["label"]], List(ClassLabel(names=["even", "odd"]))
    split = digits.remove_columns("label").add_column("label", labels, feature=feature)
    found = summarize(model, processor, split)
    assert "does not predict one class" in found.left_out[0] and found.confusions == []
    explained = explanations_of(model, processor, digits)
    contributions = np.stack([one.contributions for one in explained]).astype(np.float64)
    odd = np.array([1 in one for one in labels]) if problem != "regression" else np.ones(30, dtype=bool)
    close(np.array(found.effects["class"])[:, 1], contributions[odd].mean(0)[:, 1])
    logits = np.stack([one.logits for one in explained])
    if problem == "regression":
        wanted = np.abs(logits - np.array(labels)).mean()
        assert found.figures["mae"] == pytest.approx(wanted, rel=1e-5)
    else:
        truth = np.array([[0 in one, 1 in one] for one in labels])
        assert found.figures["label_accuracy"] == pytest.approx(((logits > 0) == truth).mean())


@pytest.mark.parametrize("streams", [{"global_concepts": []}, {"spatial_concepts": []}, {"none_concept": True}])
def test_any_streams(balanced, digits, streams):
    found = summarize(*balanced(**streams), digits)
    assert len(found.concepts) == 10 if "none_concept" not in streams else 20
    assert found.to_html().startswith("<!DOCTYPE html>")


def test_what_is_not_the_models_is_refused(balanced, digits):
    model, processor = balanced()
    other = digits.cast(Features(digits.features.copy() | {"label": ClassLabel(names=["odd", "even"])}))
    with pytest.raises(ValueError, match="number 0 is 'even' in the model and 'odd' in the dataset"):
        summarize(model, processor, other)
    with pytest.raises(ValueError, match="no column 'colour'; it has image"):
        summarize(model, processor, digits, by=["colour"])
    with pytest.raises(ValueError, match="'mask' holds no texts, numbers or classes"):
        summarize(model, processor, digits, by=["mask"])
    with pytest.raises(ValueError, match="no images"):
        summarize(model, processor, digits.select([]))
    with pytest.raises(ValueError, match="a stream is read once"):
        summarize(model, processor, digits.to_iterable_dataset())


def test_similar_cases_of_errors(balanced, digits):
    class Index:
        def similar(self, explanation, k):
            assert explanation.image.size == (32, 32)
            picture = Image.new("RGB", (32, 32), "red")
            return [
                SimpleNamespace(row=i, score=1 - i / 10, label="odd", prediction="even", thumbnail=picture)
                for i in range(k)
            ]

    model, processor = balanced()
    found = summarize(model, processor, digits, index=Index())
    shown = [row for pair in found.confusions for row in pair["rows"]]
    assert list(found.similar) == shown and len(shown) > 2
    assert [case["row"] for case in found.similar[shown[0]]] == [0, 1, 2]
    assert found.similar[shown[0]][0]["picture"] in found.pictures.images


def test_an_index_of_another_model_is_refused_before_the_pass(balanced, digits, monkeypatch):
    class Index:
        def similar(self, explanation, k):
            raise ValueError("The index is of another model.")

    monkeypatch.setattr("ascent_vit.summary.run.look_at", None)
    with pytest.raises(ValueError, match="another model"):
        summarize(*balanced(), digits, index=Index())


def test_a_saved_summary(summary, tmp_path):
    found = summary[2]
    found.save(tmp_path / "report", title="Digits", model="m")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "images.parquet",
        "index.html",
        "summary.json",
    ]
    saved = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert saved["model"] == "m" and saved["figures"] == found.figures
    assert pq.read_table(tmp_path / "report" / "images.parquet").num_rows == 30
    with pytest.raises(FileExistsError, match="not empty"):
        found.save(tmp_path / "report")

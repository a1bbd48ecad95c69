# SPDX-License-Identifier: Apache-2.0
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch


FOLDER = Path(__file__).parents[2] / "benchmarks" / "peers"
STUDY = FOLDER.parent / "study"
MODULES = ("rows", "features", "sparse", "judge", "concepts", "explainers", "explanations", "report")
NAN = float("nan")


@pytest.fixture(scope="module")
def peers():
    """The benchmark's modules, which import each other and the study's as scripts do."""
    before, path = set(sys.modules), list(sys.path)
    sys.path[:0] = [str(FOLDER), str(STUDY)]
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path[:] = path
    for name in set(sys.modules) - before:
        source = str(getattr(sys.modules[name], "__file__", ""))
        if source.startswith((str(FOLDER), str(STUDY))):
            del sys.modules[name]


@pytest.fixture(scope="module")
def splits(peers):
    """Features of images of 4 classes in which 6 concepts, a class's own ones, can be read with some noise."""
    generator = torch.Generator().manual_seed(0)
    concepts = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 1, 0], [1, 1, 0, 0, 0, 1.0]])
    directions = torch.randn(6, 16, generator=generator)

    def split(count):
        labels = torch.arange(count) % 4
        features = concepts[labels] @ directions + 0.3 * torch.randn(count, 16, generator=generator)
        return peers["features"].Split(features, -features, labels, concepts[labels])

    return {"train": split(200), "validation": split(40), "test": split(80)}


def test_every_row_of_every_table_is_well_formed(peers):
    """No two rows are the same, each has its method, and rows of the study that are shown exist."""
    methods = {"concepts": peers["concepts"].METHODS, "explanations": peers["explainers"].EXPLAINERS}
    labels = []
    for table, values in peers["rows"].read_tables().items():
        runs = peers["rows"].runs_of(table)
        labels += [run.label for run in runs]
        assert all(run.method in methods.get(run.kind, peers["explainers"].EXPLAINERS) for run in runs)
        assert len({json.dumps(run.settings() | {"name": ""}) for run in runs}) == len(runs)
        source = values.get("study", {"rows": []})
        if source["rows"]:
            known = {run.name for run in importlib.import_module("plan").runs_of(source["table"])}
            assert set(source["rows"]) <= known
    assert len(set(labels)) == len(labels)


def test_committed_results_are_of_the_rows_listed(peers):
    results = FOLDER / "results"
    runs = [run for table in peers["rows"].read_tables() for run in peers["rows"].runs_of(table)]
    assert set(results.rglob("*.json")) == {run.path(results) for run in runs if run.result(results) is not None}


def test_the_page_is_what_the_report_writes(peers, tmp_path):
    page = tmp_path / "README.md"
    page.write_text((FOLDER / "README.md").read_text())
    peers["report"].main(FOLDER / "results", STUDY / "results", page)
    assert page.read_text() == (FOLDER / "README.md").read_text()


@pytest.mark.parametrize(("method", "options"), [("post-hoc", {}), ("sparse", {"class_strength": 1.0})])
def test_linear_concept_models_learn_and_take_corrections(peers, splits, method, options):
    peer, facts = peers["concepts"].METHODS[method](splits, 0, **options)
    test = splits["test"]
    assert peers["judge"].accuracy_of(peer, test) > 0.9 and 0 < facts["weights_per_class"] <= 6
    with torch.no_grad():
        _, probabilities = peer(test.cls)
        given, _ = peer(test.cls, test.concepts)
        same, _ = peer(test.cls, torch.full_like(test.concepts, NAN))
        plain, _ = peer(test.cls)
        wrong, _ = peer(test.cls, 1 - test.concepts)
    assert ((probabilities > 0.5) == (test.concepts > 0)).float().mean() > 0.9
    assert torch.equal(same, plain)
    assert (given.argmax(-1) == test.labels).all() and not (wrong.argmax(-1) == test.labels).all()


def test_settings_are_chosen_on_validation_and_kept_for_other_seeds(peers, splits):
    run = peers["rows"].PeerRun(
        "t", "n", "t", 0, "concepts", "sparse", "birds", "d", tune={"class_strength": [1e-6, 1.0]}
    )
    _, facts = peers["concepts"].choose(run, splits, None)
    assert facts["arguments"] == {"class_strength": 1.0} and facts["trials"] == 2
    _, facts = peers["concepts"].choose(run, splits, {"arguments": {"class_strength": 1e-6}})
    assert facts["arguments"] == {"class_strength": 1e-6} and facts["trials"] == 1


def test_elastic_net_is_as_good_as_scikit_learns(peers, splits):
    from sklearn.linear_model import LogisticRegression

    scores, labels, penalty, share = splits["train"].cls.double(), splits["train"].labels, 0.02, 0.9
    scores = (scores - scores.mean(0)) / scores.std(0)
    model = LogisticRegression(
        C=1 / (penalty * len(labels)), l1_ratio=share, solver="saga", max_iter=2000, tol=1e-5, random_state=0
    ).fit(scores.numpy(), labels.numpy())

    def objective(weights, bias):
        loss = torch.nn.functional.cross_entropy(scores @ weights.T + bias, labels)
        return (loss + penalty * (share * weights.abs().sum() + (1 - share) / 2 * weights.square().sum())).item()

    start = scores.new_zeros(4, 16), scores.new_zeros(4)
    weights, bias = peers["sparse"].elastic_net(scores, labels, penalty, start, share)
    theirs = objective(torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_))
    assert abs(objective(weights, bias) - theirs) < 1e-3 < objective(*start) - theirs
    assert abs((weights != 0).sum().item() - np.count_nonzero(model.coef_)) <= 4


def test_accuracy_at_a_number_of_effective_concepts(peers, splits):
    scores = {name: split.cls for name, split in splits.items()}
    few, many = (peers["sparse"].accuracy_at(scores, splits, concepts) for concepts in (0.25, 5.0))
    assert few < many and many > 0.9
    pruned = peers["sparse"].prune(torch.arange(1.0, 13).view(2, 6), 2.0)
    assert peers["sparse"].effective_concepts(pruned) == 2.0 and pruned.max() == 12


def test_peers_are_judged_as_our_model_is(peers, splits):
    """The names are those of `ascent-vit evaluate`, and corrections of all concepts lead to the right class."""
    peer, _ = peers["sparse"].train_sparse(splits, 0, class_strength=1.0)
    found = peers["judge"].judge(peer, splits["test"], 4, steps=2)
    assert {"accuracy", "concept_map", "intervention_auc", "concept_accuracy"} <= set(found)
    assert found["intervention_curve"][0] == pytest.approx(found["accuracy"])
    assert found["intervention_curve"][-1] == 1.0


@pytest.mark.slow
def test_models_of_pyc(peers, splits):
    pytest.importorskip("torch_concepts")
    pyc = importlib.import_module("pyc")
    for kind, independent in (("cbm", False), ("cem", True)):
        peer, facts = pyc.train_pyc(
            splits, 0, kind, learning_rate=0.03, max_epochs=60, patience=None, independent=independent
        )
        with torch.no_grad():
            plain, probabilities = peer(splits["test"].cls)
            part = torch.full_like(probabilities, NAN)
            same, _ = peer(splits["test"].cls, part)
            part[:, 2] = 1
            _, given = peer(splits["test"].cls, part)
        assert facts["steps"] == 60 and torch.equal(plain, same)
        assert (plain.argmax(-1) == splits["test"].labels).float().mean() > 0.8
        assert (given[:, 2] > 0.999).all() and torch.equal(given[:, :2], probabilities[:, :2])


def tiny_classifier():
    """A classifier of 16 x 16 pixels that sees the brightness of the top left patch of four alone."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))
            self.config = SimpleNamespace(num_labels=2, problem_type=None)

        def forward(self, pixel_values, **kwargs):
            score = self.weight * pixel_values[:, :, :8, :8].mean((1, 2, 3))
            return SimpleNamespace(logits=torch.stack([-score, score], dim=-1))

    return Model().eval()


@pytest.mark.parametrize("method", ["integrated-gradients", "occlusion", "kernel-shap"])
def test_captum_finds_the_patch_that_is_seen(peers, method):
    pytest.importorskip("captum")
    options = {"n_samples": 30} if method == "kernel-shap" else {}
    explain = peers["explainers"].EXPLAINERS[method](tiny_classifier(), 8, **options)
    torch.manual_seed(0)
    maps = explain(torch.rand(2, 3, 16, 16) + 0.5, None)
    assert maps.shape == (2, 2, 2)
    assert (maps.flatten(1).argmax(-1) == 0).all() and (maps[:, 0, 0] > 10 * maps[:, 1, 1].abs()).all()


def test_maps_are_made_once_and_judged(peers):
    model, calls = tiny_classifier(), []

    def explain(pixels, classes):
        calls.append(len(pixels))
        return torch.nn.functional.avg_pool2d(pixels.mean(1), 8)

    explained = peers["explanations"].Explained(model, explain, 8)
    pixels = torch.rand(3, 3, 16, 16) + 0.5
    output = explained(pixels)
    assert output.patch_grid.tolist() == [[2, 2]] and output.spatial_concept_attention.shape == (3, 4, 1)
    assert explained.contribution_maps(pixels, torch.ones(3, 1).long()).shape == (3, 1, 1, 2, 2) and calls == [3]
    row = {"bbox": [0.0, 0.0, 8.0, 16.0], "image": SimpleNamespace(width=16, height=16)}
    maps = torch.tensor([[[3.0, 1.0], [0.0, -5.0]]])
    assert peers["explanations"].in_the_box(maps, [row], (16, 16)) == [(1.0, 0.75)]


def test_costs_are_ratios_of_pairs(peers, monkeypatch):
    """Of seconds that the calls name; the first pair is not counted."""
    monkeypatch.setattr(peers["explanations"], "time_of", lambda call: call())
    seconds = iter([1, 100, 2, 3, 4, 12, 2, 4])
    found = peers["explanations"].cost_ratios(
        lambda image: next(seconds), lambda image: next(seconds), torch.zeros(2, 3, 4, 4), turns=3
    )
    assert found["cost"] == 2.0 and found["prediction_milliseconds"] == 2000


def test_features_are_the_backbones_tokens_and_are_computed_once(peers, tmp_path, monkeypatch):
    from datasets import DatasetDict

    from ascent_vit.data import ConceptCollator, concepts_from_features, load_digits_dataset
    from ascent_vit.training import load_recipe
    from ascent_vit.training.build import build_model

    backbone = "{model_type: vit, image_size: 16, patch_size: 8, hidden_size: 16, num_hidden_layers: 1, "
    backbone += "num_attention_heads: 2, intermediate_size: 16}"
    recipe = load_recipe("digits", (f"model.backbone_config={backbone}", "cache_features=true", "seed=0"))
    whole = load_digits_dataset(copies=1, canvas=16)
    dataset = DatasetDict({name: split.select(range(6)) for name, split in whole.items()})
    torch.manual_seed(0)
    model, processor = build_model(recipe, *concepts_from_features(dataset["train"].features))
    monkeypatch.setattr(peers["features"], "build_model", lambda *arguments: (model, processor))
    found = peers["features"].compute_features(recipe, dataset, tmp_path)
    batch = ConceptCollator(processor)([dataset["test"][i] for i in range(6)])
    with torch.no_grad():
        tokens = model.ascent_vit.backbone(batch["pixel_values"]).last_hidden_state
    torch.testing.assert_close(found["test"].cls, tokens[:, 0], rtol=0, atol=2e-3)
    torch.testing.assert_close(found["test"].pooled("cls_mean")[:, 16:], tokens[:, 1:].mean(1), rtol=0, atol=2e-3)
    assert found["test"].labels.tolist() == dataset["test"]["label"][:]
    assert torch.equal(found["test"].concepts, batch["concept_targets"])
    monkeypatch.setattr(peers["features"], "build_model", None)
    again = peers["features"].compute_features(recipe, dataset, tmp_path)
    assert all(torch.equal(found[name].cls, again[name].cls) for name in found)

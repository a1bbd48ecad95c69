# SPDX-License-Identifier: Apache-2.0
import dataclasses
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
MODULES = (
    *("rows", "features", "sparse", "judge", "ground", "ours", "concepts", "explainers", "tcav", "explanations"),
    "report",
)
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
    methods = {"concepts": peers["concepts"].NAMES, "explanations": peers["explanations"].METHODS}
    labels = []
    for table, values in peers["rows"].read_tables().items():
        runs = peers["rows"].runs_of(table)
        labels += [run.label for run in runs]
        assert all(run.method in methods.get(run.kind, peers["explainers"].EXPLAINERS) for run in runs)
        assert len({json.dumps(run.settings() | {"name": ""}) for run in runs}) == len(runs)
        grounds = {(run.ground, run.seed) for run in runs if run.ground}
        grounds |= {(run.arguments["study"], run.seed) for run in runs if "study" in run.arguments}
        assert all(peers["ground"].study_run(*ground) for ground in grounds)
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


def test_leakage_is_what_scores_tell_beyond_their_concepts(peers, splits):
    """Concepts that all images have say nothing; scores of the class in the place of a concept's leak it."""
    test, leakage = splits["test"], peers["concepts"].leakage_of
    noise = 0.01 * torch.randn(len(test.labels), 6, generator=torch.Generator().manual_seed(0))
    assert leakage(test.concepts + noise, test) < 0.1
    assert leakage(test.labels[:, None] + noise, test) > 0.3
    same = dataclasses.replace(test, concepts=torch.cat([test.concepts, torch.ones(len(test.labels), 1)], 1))
    scores = torch.cat([test.labels[:, None] + noise, noise[:, :1]], 1)
    assert leakage(scores, same) == leakage(scores[:, :6], test)


def test_peers_are_judged_as_our_model_is(peers, splits):
    """The names are those of `ascent-vit evaluate`, and corrections of all concepts lead to the right class."""
    peer, _ = peers["sparse"].train_sparse(splits, 0, class_strength=1.0)
    found = peers["judge"].judge(peer, splits["test"], 4)
    assert {"accuracy", "concept_map", "concept_accuracy"} <= set(found)
    found |= peers["judge"].correct(peer, splits["test"], 4, steps=2)
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


def small_model(global_concepts, labels, **fields):
    from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification

    backbone = {"model_type": "vit", "image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2}
    backbone |= {"num_attention_heads": 2, "intermediate_size": 16}
    config = AscentViTConfig(
        backbone_config=backbone,
        global_concepts=global_concepts,
        num_labels=labels,
        fusion_levels=0,
        concept_attention_heads=2,
        **fields,
    )
    torch.manual_seed(0)
    return AscentViTForImageClassification(config).eval()


def test_our_model_is_asked_once_and_is_then_a_peer(peers):
    model = small_model(["a", "b", "c"], 2)
    pixels = torch.rand(5, 3, 16, 16)
    rows = [
        {"pixel_values": image, "labels": i % 2, "concept_targets": torch.eye(3)[i % 3]}
        for i, image in enumerate(pixels)
    ]

    def collate(rows):
        return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}

    split = peers["ours"].ask(model, rows, collate, "Asking")
    peer = peers["ours"].Seen(2, 7)
    with torch.no_grad():
        out = model(pixels)
    logits, attention = peer(split.pooled(peer.features))
    torch.testing.assert_close(logits, out.logits)
    torch.testing.assert_close(attention, out.global_concept_attention)
    assert split.labels.tolist() == [0, 1, 0, 1, 0] and torch.equal(split.concepts, torch.eye(3)[[0, 1, 2, 0, 1]])
    found = peers["judge"].judge(peer, split, 2)
    assert found["accuracy"] == (out.logits.argmax(-1) == split.labels).float().mean().item()


def test_a_small_backbone_learns_the_concept(peers, tmp_path):
    """Its classes are the concepts, and it is trained once."""
    from datasets import DatasetDict

    from ascent_vit.data import load_digits_dataset
    from ascent_vit.training import load_recipe

    backbone = "{model_type: vit, image_size: 16, patch_size: 8, hidden_size: 16, num_hidden_layers: 1, "
    backbone += "num_attention_heads: 2, intermediate_size: 16}"
    recipe = load_recipe("digits", (f"model.backbone_config={backbone}", "num_train_epochs=1"))
    whole = load_digits_dataset(copies=1, canvas=16)
    dataset = DatasetDict({name: split.select(range(64)) for name, split in whole.items()})
    named = peers["ground"].with_concept_as_class(dataset["train"])
    assert named["label"][:] == [concepts[0] for concepts in dataset["train"]["concepts"]]
    assert len(named.features["label"].names) == 10
    own = peers["ground"].on_trained_backbone(recipe, dataset, tmp_path)
    weights = (tmp_path / "backbone" / "model.safetensors").read_bytes()
    again = peers["ground"].on_trained_backbone(recipe, dataset, tmp_path)
    assert own == again and own.backbone == str(tmp_path / "backbone") and "backbone_config" not in own.model
    assert (tmp_path / "backbone" / "model.safetensors").read_bytes() == weights
    several = dataset["train"].map(lambda row: {"concepts": [0, 1]})
    with pytest.raises(ValueError, match="none or several"):
        peers["ground"].with_concept_as_class(several)


def test_peers_have_recipe_budget_and_images_of_the_study(peers, monkeypatch, tmp_path):
    from datasets import DatasetDict

    from ascent_vit.data import load_digits_dataset

    whole = load_digits_dataset(copies=1, canvas=16)
    dataset = DatasetDict(whole | {"test": whole["test"].select([0] * 1200)})
    monkeypatch.setattr(peers["ground"], "load", lambda run, recipe, folder: dataset)
    recipe, splits = peers["ground"].study_ground("mnist/linear", 2, tmp_path)
    assert recipe == peers["ground"].study_run("mnist/linear", 2).load_recipe() and recipe.seed == 2
    assert {name: len(split) for name, split in splits.items()} == {"train": 250 * 32, "validation": 100, "test": 1000}
    for name in ("mnist/nothing", "mnist"):
        with pytest.raises(ValueError, match=f"no row {name} with seed 0"):
            peers["ground"].study_run(name, 0)


def test_agreement_with_the_attributes_of_classes(peers):
    attributes = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]])
    agree = peers["tcav"].attributes_auroc
    assert agree(attributes.float(), attributes) == 1.0 and agree(-attributes.float(), attributes) == 0.0
    assert agree(torch.tensor([[3.0, 0, 0], [2, 1, 0], [1, 1, 0], [0, 0, 0]]), attributes) == pytest.approx(0.875)


def test_captums_tcav_is_the_gradient_towards_a_concept(peers, tmp_path):
    """The concept's direction tells bright images from dark ones; a score is the gradient of the class along it."""
    pytest.importorskip("captum")
    from datasets import Dataset, Features, Image, List, Value
    from PIL import Image as PillowImage
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            image_size=16,
            patch_size=8,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
        )
    ).eval()
    values = [255 if i % 2 else 40 for i in range(24)]
    images = [PillowImage.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in values]
    features = Features({"image": Image(), "label": Value("int64"), "concepts": List(Value("int64"))})
    concepts = [[0, 1] if i % 2 else [1] for i in range(24)]
    split = Dataset.from_dict(
        {"image": images, "label": [i % 2 for i in range(24)], "concepts": concepts}, features=features
    )

    def processor(image, return_tensors):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        return {"pixel_values": pixels + 0.01 * torch.randn(pixels.shape)}

    tcav = peers["tcav"]
    truth = tcav.truth_of(split, 2)
    assert truth.tolist() == [[i % 2, 1] for i in range(24)]
    sets = tcav.concept_sets(split, truth, processor, 8, 0)
    assert list(sets) == [0] and [len(concept.data_iter.dataset) for concept in sets[0]] == [8, 8]
    pixels = torch.stack(list(tcav.Images(split, [0, 1], processor)))
    outputs = model(pixels, output_hidden_states=True)
    before_last = outputs.hidden_states[-2]
    (gradients,) = torch.autograd.grad(outputs.logits[:, 1].sum(), before_last)
    explain = tcav.ConceptSensitivity(model, sets, 2, str(tmp_path))
    torch.testing.assert_close(model(pixels).logits, outputs.logits)
    magnitude, share = explain(pixels, 1)
    direction = explain.tcav.cavs["0-1"]["cls"].stats
    direction = direction["weights"][list(direction["classes"]).index(0)].float()
    assert (before_last[1, 0] - before_last[0, 0]) @ direction > 0
    slopes = gradients[:, 0] @ direction
    torch.testing.assert_close(magnitude, torch.stack([slopes.mean(), torch.zeros(())]))
    assert share.tolist() == [(slopes > 0).float().mean().item(), 0]

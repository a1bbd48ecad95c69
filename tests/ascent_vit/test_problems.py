# SPDX-License-Identifier: Apache-2.0
"""Several classes of an image, and values: every place that shows a score shows the same, and models of both learn."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from PIL import Image
from torch.utils.data import DataLoader
from transformers import EvalPrediction, pipeline

from ascent_vit.data import ConceptCollator, concept_features
from ascent_vit.evaluation import Faithfulness, evaluate_dataset, label_metrics, leakage
from ascent_vit.evaluation.faithfulness import masked_scores
from ascent_vit.explanation import explain, intervene
from ascent_vit.export import export_model
from ascent_vit.publishing.card import ModelCardContent, model_card
from ascent_vit.training import ConceptMetrics, load_recipe, train
from ascent_vit.training.recipe import recipe_for_problem
from ascent_vit_cli.app import run
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
CLASSES = ["red", "green", "blue"]
COLOURS = ((220, 40, 40), (40, 200, 60), (60, 80, 230))
BACKBONE = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
BACKBONE |= {"intermediate_size": 64, "image_size": 32, "patch_size": 8}
RECIPE = {
    "model": {"backbone_config": BACKBONE, "fusion_heads": 4, "pyramid_norm": "group", "entropy_loss_weight": 0.0},
    "learning_rate": 3e-3,
    "num_train_epochs": 10,
    "warmup_epochs": 0.5,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
}


def drawn(number: int, seed: int, problem: str) -> Dataset:
    """Dark images with up to three squares of a colour each: its colours, or the sum of their weights, 1, 2 and 4."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list] = {"image": [], "label": [], "objects": []}
    for _ in range(number):
        pixels = rng.integers(0, 40, (32, 32, 3), dtype=np.uint8)
        places, shown = rng.permutation(9), np.flatnonzero(rng.random(3) < 0.5).tolist()
        boxes = [[int(places[i] % 3) * 11, int(places[i] // 3) * 11, 8, 8] for i in shown]
        for i, (x, y, *_) in zip(shown, boxes, strict=True):
            pixels[y : y + 8, x : x + 8] = COLOURS[i]
        rows["image"].append(Image.fromarray(pixels))
        rows["label"].append(shown if problem == MULTI else 0.5 + sum(2**i for i in shown))
        rows["objects"].append({"bbox": boxes, "category": shown})
    names = CLASSES if problem == MULTI else ["weight"]
    return Dataset.from_dict(rows, features=concept_features(names, spatial_concepts=CLASSES, problem_type=problem))


def make_model(make_config, problem: str, **kwargs):
    names = {MULTI: CLASSES, REGRESSION: ["weight"]}[problem]
    names = kwargs.pop("names", names)
    config = make_config(
        num_labels=len(names), id2label=dict(enumerate(names)), problem_type=problem, spatial_concepts=CLASSES,
        global_concepts=["day", "night"], backbone_kwargs={"image_size": 32}, **kwargs,
    )  # fmt: skip
    model = AscentViTForImageClassification(config).eval()
    with torch.no_grad():
        for stream in model.streams().values():
            stream.projection.weight.mul_(60)
            stream.projection.bias.normal_()
    return model, AscentViTImageProcessor.from_model_config(config)


@pytest.fixture
def image() -> Image.Image:
    return drawn(1, 3, MULTI)[0]["image"]


PROBLEMS = [(MULTI, CLASSES), (REGRESSION, ["weight"]), (REGRESSION, ["weight", "height"])]


class TestScoresAreTheSame:
    @pytest.fixture(params=PROBLEMS, ids=["several classes", "one value", "two values"])
    def case(self, request, make_config, image):
        """Problem, model, image processor, and the scores of transformers' own pipeline by name."""
        problem, names = request.param
        model, processor = make_model(make_config, problem, names=names)
        standard = pipeline("image-classification", model=model, image_processor=processor)
        return problem, model, processor, {item["label"]: item["score"] for item in standard(image, top_k=len(names))}

    def test_explanation(self, case, image):
        problem, model, processor, scores = case
        explanation = explain(model, processor, image)
        assert dict(zip(explanation.labels, explanation.scores.tolist(), strict=True)) == pytest.approx(scores)
        assert explanation.additivity_error < 1e-4
        first = next(iter(scores)) if problem == MULTI else "weight"
        assert explanation.label == explanation.predicted_label == first
        assert explanation.score == explanation.predicted_score == pytest.approx(scores[first])
        chosen = (
            [name for name, score in scores.items() if score > 0.5] if problem == MULTI else list(explanation.labels)
        )
        values = explanation.to_dict()
        assert values["predicted_labels"] == chosen and values["score"] == explanation.score
        assert all(name in explanation.prediction for name in chosen)

    def test_concept_pipeline(self, case, image):
        _, model, processor, scores = case
        told = pipeline("concept-image-classification", model=model, image_processor=processor)
        found = told(image, top_k=None, top_concepts=None)
        assert {item["label"]: item["score"] for item in found} == pytest.approx(scores)
        assert [item["label"] for item in found] == list(scores)
        for item in found:
            total = sum(concept["contribution"] for concept in item["concepts"]) + item["class_bias"]
            assert total == pytest.approx(item["logit"], abs=1e-4)

    def test_space(self, case, image, tmp_path):
        space_app = pytest.importorskip("ascent_vit.publishing.space_app", reason="Gradio is not installed")
        problem, model, processor, scores = case
        image.save(tmp_path / "image.png")
        corrected = space_app.explain_both(model, processor, tmp_path / "image.png", {"red": "absent"})
        shown = space_app.scores(corrected.before)
        if problem == MULTI:
            assert shown == pytest.approx(scores)
        else:
            values = dict(part.split(" = ") for part in shown.split("; "))
            assert {name: float(value) for name, value in values.items()} == pytest.approx(scores, rel=1e-3)
        assert corrected.after.prediction in space_app.outcome(corrected).replace("</b>", "")
        table = space_app.contributions_table(corrected.before, corrected.after, True)
        assert ("= value" in table) == (problem == REGRESSION)
        space_app.build_app(model, processor, "drawn")

    def test_faithfulness_ends_at_the_score(self, case, image):
        problem, model, processor, scores = case
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        shown = torch.arange(16).view(1, 1, 4, 4) < torch.tensor([0, 8, 16]).view(1, -1, 1, 1)
        with torch.no_grad():
            curve = masked_scores(model, pixels, torch.tensor([0]), shown, 2)
        assert curve[0, -1].item() == pytest.approx(scores[model.config.id2label[0]], abs=1e-5)
        loader = [{"pixel_values": pixels}]
        assert Faithfulness(steps=4)(model, loader)["insertion_deletion_images"] == 1

    def test_exported_example(self, case, image, tmp_path):
        problem, model, processor, scores = case
        export_model(model, processor, tmp_path / "exported", to="torch-export")
        image.save(tmp_path / "image.png")
        command = [sys.executable, str(tmp_path / "exported" / "example.py"), str(tmp_path / "image.png")]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        pattern = r"^(\w+): (?:probability|value) ([-+.\d]+)"
        found = {name: float(value) for name, value in re.findall(pattern, shown, flags=re.M)}
        expected = {name: score for name, score in scores.items() if problem == REGRESSION or score > 0.5}
        assert found == pytest.approx(expected or dict([next(iter(scores.items()))]), abs=1e-4)

    def test_evaluate(self, case, image):
        """On one image whose labels are its own scores, or its own classes, there is no error."""
        problem, model, processor, scores = case
        names = list(model.config.id2label.values())
        own = [scores[name] for name in names]
        label = [i for i, score in enumerate(own) if score > 0.5] if problem == MULTI else own
        features = concept_features(names, ["day", "night"], CLASSES, problem_type=problem)
        label = label[0] if problem == REGRESSION and len(names) == 1 else label
        row = {"image": image, "label": label, "concepts": [0], "objects": {"bbox": [[0, 0, 8, 8]], "category": [0]}}
        split = Dataset.from_list([row, row], features=features)
        values = evaluate_dataset(model, processor, split, images=2, steps=2, skip=["robustness"])
        if problem == REGRESSION:
            assert values["mae"] < 1e-5 and values["rmse"] < 1e-5 and "accuracy" not in values
            assert any("the model predicts values" in sentence for sentence in values["left_out"])
        else:
            assert values["label_f1_micro"] == 1 and "accuracy" not in values
            # What is predicted is right as long as nothing is corrected.
            assert values["intervention_curve"][0] == 1

    def test_pictures_and_pages(self, case, image, tmp_path):
        problem, model, processor, scores = case
        explanation = explain(model, processor, image)
        title = explanation.plot(truth="red").axes[0].get_title()
        page = explanation.to_html(truth="red")
        assert all(text in page for text in ("red", explanation.question, explanation.score_text(0)))
        assert ("add up to the value" in page) == (problem == REGRESSION)
        assert ("before the sigmoid" in page) == (problem == MULTI)
        assert title.startswith("predicted: ") and "softmax" not in page


def test_no_class_is_an_answer(make_config, image):
    model, processor = make_model(make_config, MULTI)
    with torch.no_grad():
        model.spatial_stream.projection.bias.sub_(100)
    explanation = explain(model, processor, image)
    assert explanation.predicted_ids == [] and explanation.prediction.startswith("no class (most probable: ")
    assert explanation.plot().axes[0].get_title().startswith("predicted: no class\nmost probable: ")


def test_values_are_not_compared(make_config, image):
    model, processor = make_model(make_config, REGRESSION, names=["weight", "height"])
    with pytest.raises(ValueError, match="this model predicts values: explain one of them"):
        explain(model, processor, image).contrast("weight", "height")
    assert not intervene(model, processor, image, {"red": "absent"}).changes_prediction


class TestClassesOfOneName:
    @pytest.fixture
    def case(self, make_config, image):
        names = ["crane", "wren", "crane"]
        config = make_config(num_labels=3, id2label=dict(enumerate(names)), backbone_kwargs={"image_size": 32})
        model = AscentViTForImageClassification(config).eval()
        processor = AscentViTImageProcessor.from_model_config(config)
        with torch.no_grad():
            model.spatial_stream.projection.bias.copy_(torch.tensor([1.0, 0.0, 2.0]))
        return model, processor, explain(model, processor, image)

    def test_the_predicted_one_is_explained(self, case):
        _, _, explanation = case
        assert explanation.label_id == 2 and explanation.label == "crane (2)"
        assert explanation.for_class(explanation.predicted_label).label_id == 2
        assert explanation.contrast(explanation.predicted_label).class_ids == (2, 0)

    def test_the_space_shows_all_of_them(self, case):
        space_app = pytest.importorskip("ascent_vit.publishing.space_app", reason="Gradio is not installed")
        scores = space_app.scores(case[2])
        assert list(scores) == ["crane (0)", "wren", "crane (2)"] and sum(scores.values()) == pytest.approx(1)

    def test_their_name_is_refused(self, case, image):
        model, processor, explanation = case
        message = "The model has 2 classes 'crane': give the index of one, or 'crane .0.' or 'crane .2.'."
        for ask in (explanation.for_class, lambda name: explain(model, processor, image, name)):
            with pytest.raises(ValueError, match=message):
                ask("crane")

    def test_the_pipeline_tells_them_apart(self, case, image):
        model, processor, explanation = case
        told = pipeline("concept-image-classification", model=model, image_processor=processor)
        found = {item["label"]: item["score"] for item in told(image, top_k=None)}
        assert found == pytest.approx(dict(zip(explanation.labels, explanation.scores.tolist(), strict=True)))


class TestMetrics:
    def test_of_several_classes(self, make_config):
        from sklearn.metrics import average_precision_score, f1_score

        config = make_config(num_labels=4, problem_type=MULTI)
        scores = torch.rand(50, 4, dtype=torch.float64)
        labels = (torch.rand(50, 4) < 0.4).float()
        metrics = label_metrics(config)
        for part in (slice(0, 20), slice(20, 50)):
            metrics.update(scores[part], labels[part])
        values = {name: value.item() for name, value in metrics.compute().items()}
        truth, decided = labels.numpy(), (scores > 0.5).numpy()
        assert values["label_map"] == pytest.approx(average_precision_score(truth, scores.numpy(), average="macro"))
        for average in ("macro", "micro"):
            assert values[f"label_f1_{average}"] == pytest.approx(f1_score(truth, decided, average=average))
        assert values.keys() == {"label_map", "label_f1_macro", "label_f1_micro", "ece"}

    @pytest.mark.parametrize("number", [1, 2])
    def test_of_values(self, make_config, number):
        from sklearn.metrics import mean_absolute_error, r2_score

        # Far from 0, where float32 would lose their variance.
        truth = 1e5 + torch.randn(50, number, dtype=torch.float64)
        values = truth + 0.5 * torch.randn_like(truth)
        metrics = label_metrics(make_config(num_labels=number, problem_type=REGRESSION))
        for part in (slice(0, 20), slice(20, 50)):
            metrics.update(values[part], truth[part])
        got = {name: value.item() for name, value in metrics.compute().items()}
        assert got["mae"] == pytest.approx(mean_absolute_error(truth, values))
        assert got["rmse"] == pytest.approx((truth - values).square().mean().sqrt().item())
        assert got["r2"] == pytest.approx(r2_score(truth, values), abs=1e-6)

    def test_one_image_has_no_variance(self, make_config):
        metrics = label_metrics(make_config(num_labels=1, problem_type=REGRESSION))
        metrics.update(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
        assert metrics.compute()["r2"].isnan() and metrics.compute()["mae"] == 1

    @pytest.mark.parametrize("problem, number", [(MULTI, 3), (REGRESSION, 1), (REGRESSION, 2)])
    def test_of_trainer(self, make_config, problem, number):
        metrics = ConceptMetrics(make_config(num_labels=number, problem_type=problem))
        logits = np.random.default_rng(0).normal(size=(20, number)).astype(np.float32)
        labels = (logits > 0.2).astype(np.float32)
        values = metrics(EvalPrediction(predictions=logits, label_ids=labels[:, 0] if number == 1 else labels))
        expected = {"label_f1_micro", "label_map"} if problem == MULTI else {"mae", "r2"}
        assert expected <= values.keys() and "accuracy" not in values

    def test_models_and_datasets_of_other_kinds(self, make_config):
        model, processor = make_model(make_config, MULTI)
        with pytest.raises(ValueError, match="is for multi_label_classification, and the dataset's label is for regr"):
            evaluate_dataset(model, processor, drawn(2, 0, REGRESSION))

    def test_leakage_needs_one_class(self, make_config):
        model, processor = make_model(make_config, MULTI)
        loader = DataLoader(drawn(4, 0, MULTI), 2, collate_fn=ConceptCollator(processor, 3))
        rows = [{name: values[0] for name, values in batch.items()} for batch in loader]
        with pytest.raises(ValueError, match="Leakage compares accuracies"):
            leakage(lambda dataset: model, rows, loader)


class TestRecipe:
    @pytest.mark.parametrize(
        "problem, metric, greatest",
        [(SINGLE, "accuracy", True), (MULTI, "label_map", True), (REGRESSION, "mae", False)],
    )
    def test_the_metric_that_chooses(self, problem, metric, greatest):
        recipe = recipe_for_problem(load_recipe("digits", ["metric_for_best_model=null"]), problem)
        assert recipe.metric_for_best_model == metric and recipe.best_is_greatest == greatest
        kept = recipe_for_problem(load_recipe("digits"), problem)
        assert kept.metric_for_best_model == "global_concept_accuracy"

    @pytest.mark.parametrize(
        "change, message",
        [
            (
                "metric_for_best_model=accuracy",
                "accuracy is no metric of labels for regression, which are mae, rmse, r2",
            ),
            ("label_smoothing=0.1", "label_smoothing is for labels of one class an image"),
            ("class_weights=balanced", "class_weights is for labels of one class an image"),
        ],
    )
    def test_what_does_not_fit_the_labels(self, change, message):
        with pytest.raises(ValueError, match=message):
            recipe_for_problem(load_recipe("digits", [change]), REGRESSION)

    def test_another_problem_than_the_data_s(self, tmp_path):
        dataset = DatasetDict(train=drawn(8, 0, MULTI), validation=drawn(8, 1, MULTI))
        recipe = load_recipe("digits", ["problem_type=single_label_classification"])
        message = (
            "problem_type is single_label_classification, but the dataset's label is for multi_label_classification"
        )
        with pytest.raises(ValueError, match=message):
            train(recipe, tmp_path / "run", dataset=dataset)


@pytest.mark.parametrize("problem", [MULTI, REGRESSION])
def test_a_few_steps(problem, tmp_path):
    """What is written down of a run: the problem, the names, and metrics of its kind."""
    dataset = DatasetDict(
        {name: drawn(16, seed, problem) for seed, name in enumerate(("train", "validation", "test"))}
    )
    path = tmp_path / "recipe.yaml"
    options = {} if problem == MULTI else {"dataset_options": {"labels": ["weight"]}}
    path.write_text(yaml.safe_dump(RECIPE | options | {"num_train_epochs": 1, "save_total_limit": 1}))
    result = train(load_recipe(path), tmp_path / "run", dataset=dataset)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["problem_type"] == problem
    assert list(config["id2label"].values()) == (CLASSES if problem == MULTI else ["weight"])
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert report["best_metric"] == ("label_map" if problem == MULTI else "mae")
    assert result.metrics[report["best_metric"]] >= 0 and "accuracy" not in result.metrics
    if problem == REGRESSION:
        # After one step the model still predicts what it began with, the mean.
        mean = float(np.mean(dataset["train"]["label"]))
        spread = float(np.mean(np.abs(np.array(dataset["test"]["label"][:]) - mean)))
        assert result.metrics["mae"] == pytest.approx(spread, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("problem", [MULTI, REGRESSION])
def test_it_learns_and_is_published(problem, tmp_path, capsys):
    splits = {"train": (256, 0), "validation": (48, 1), "test": (48, 2)}
    DatasetDict({name: drawn(*which, problem) for name, which in splits.items()}).save_to_disk(tmp_path / "data")
    recipe = RECIPE | {"dataset": str(tmp_path / "data")}
    if problem == REGRESSION:
        recipe |= {"dataset_options": {"labels": ["weight"]}}
    else:
        recipe |= {"model": RECIPE["model"] | {"none_concept": True}, "processor": {"unannotated": "none"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_dir, data = tmp_path / "run", str(tmp_path / "data")
    assert run(["train", "--recipe", str(tmp_path / "recipe.yaml"), "--output", str(run_dir)]) == 0
    model = str(run_dir / "model")
    output = ["--output", str(run_dir / "evaluation.json"), "--images", "16", "--steps", "4", "--skip", "robustness"]
    assert run(["evaluate", model, "--dataset", data, *output]) == 0
    values = json.loads((run_dir / "evaluation.json").read_text())
    assert values["label_map"] > 0.9 if problem == MULTI else values["r2"] > 0.8
    assert values["insertion_auc"] > values["insertion_auc_random"] > values["deletion_auc"]
    assert run(["explain", data, "--split", "test", "--model", model, "--output", str(tmp_path / "table")]) == 0
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "table" / "explanations.parquet").to_pylist()
    assert len(table) == 48 and all(row["additivity_error"] < 1e-4 for row in table)
    first = drawn(1, 2, problem)[0]["label"]
    assert table[0]["label"] == (
        (", ".join(CLASSES[i] for i in first) or "none") if problem == MULTI else f"{first:g}"
    )
    published = tmp_path / "published"
    options = ["--dataset-name", "squares", "--dry-run", "--output", str(published)]
    assert run(["publish", str(run_dir), "--repo-id", "ann/squares", *options]) == 0
    card = (published / "README.md").read_text()
    assert ("`label_map`" in card) == (problem == MULTI) and ("`r2`" in card) == (problem == REGRESSION)
    assert ("of which an image may have several" in card) == (problem == MULTI)
    capsys.readouterr()


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_the_card_s_own_example_runs(function, make_config, tmp_path):
    problem = {"softmax": SINGLE, "sigmoid": MULTI, "none": REGRESSION}[function]
    names = ["weight"] if problem == REGRESSION else CLASSES
    model, processor = make_model(make_config, MULTI, names=names)
    model.config.problem_type = problem
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    content = ModelCardContent.from_model_dir(
        tmp_path / "model", model_name="squares", repo_id=str(tmp_path / "model"), dataset_name="squares"
    )
    assert content.score_function == function
    blocks = re.findall(r"```python\n(.*?)```", str(model_card(content)), flags=re.S)
    block = next(block for block in blocks if "post_process_concepts" in block)
    drawn(1, 0, MULTI)[0]["image"].save(tmp_path / "image.png")
    shown = subprocess.run(
        [sys.executable, "-c", "import ascent_vit\n" + block], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    explanation = explain(model, processor, tmp_path / "image.png")
    assert explanation.label in shown.splitlines()

# SPDX-License-Identifier: Apache-2.0
import importlib
import json
import logging
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml
from typer.testing import CliRunner


FOLDER = Path(__file__).parents[2] / "benchmarks" / "study"
MODULES = ("plan", "plain", "data", "heads", "pointing", "run", "report")

CACHED = [
    "cache_features=true",
    "augmentation={}",
    "model.fusion_levels=0",
    "model.spatial_concepts=[]",
    "model.concept_loss_weight=0",
]
TINY = {
    "digits": {
        "title": "Digits",
        "recipe": "digits",
        "dataset": "digits",
        "set": [
            "dataset_options.copies=1",
            "dataset_options.canvas=16",
            "model.backbone_config={model_type: vit, image_size: 16, patch_size: 8, hidden_size: 16, "
            "num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16}",
            "model.pyramid_channels=[4, 4, 4, 4]",
            "per_device_train_batch_size=32",
            "num_train_epochs=1",
            "warmup_epochs=0",
            "metric_for_best_model=accuracy",
        ],
        "seeds": [0],
        "steps": 2,
        "measures": ["robustness", "scales"],
        "images": 2,
        "minutes": 1,
        "runs": {
            "ascent-vit": {"title": "ASCENT-ViT"},
            "linear": {"title": "linear", "head": "linear"},
            "linear-cached": {
                "title": "linear on cached features",
                "head": "linear",
                "set": CACHED,
            },
            "linear-tuned": {
                "title": "linear, fine-tuned",
                "head": "linear",
                "start": "linear-cached",
                "set": [*CACHED, "frozen_layers=1", "learning_rate=1e-9"],
            },
        },
    }
}


@pytest.fixture(scope="module")
def study():
    """The study's modules, which import each other as scripts beside each other do."""
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        del sys.modules[name]


def invoke(module, *arguments):
    import typer

    app = typer.Typer()
    app.command()(module.main)
    # The program sets logging up on the stream that the runner closes behind it.
    handlers = logging.root.handlers[:]
    try:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])
    finally:
        logging.root.handlers[:] = handlers


def test_every_run_of_every_table_is_well_formed(study):
    """Its recipe loads with its overrides, no two runs of a table are the same, and each has its place."""
    labels = []
    for table in study["plan"].read_tables():
        runs = study["plan"].runs_of(table)
        assert len({run.seed for run in runs}) >= 3
        # One measure for all rows of a table: a backbone alone names no concept.
        plain = any(run.head == "linear" for run in runs)
        measures = {"accuracy", "none"} | (set() if plain else {"global_concept_accuracy"})
        for run in runs:
            recipe = run.load_recipe()
            assert recipe.seed == run.seed and recipe.metric_for_best_model in measures and run.minutes > 0
            labels.append(run.label)
        settings = [json.dumps(run.settings() | {"name": ""}) for run in runs]
        assert len(set(settings)) == len(settings)
    assert len(set(labels)) == len(labels)


def test_a_result_counts_for_its_own_settings_alone(study, tmp_path):
    run = study["plan"].runs_of("digits")[0]
    path = run.path(tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"settings": run.settings() | {"overrides": []}}))
    assert run.result(tmp_path) is None
    path.write_text(json.dumps({"settings": run.settings()}))
    assert run.result(tmp_path) is not None
    assert run not in list(study["run"].missing([run], tmp_path))


def test_committed_results_are_of_the_runs_listed(study):
    """No file is left of settings that no run has any more."""
    results = FOLDER / "results"
    runs = [run for table in study["plan"].read_tables() for run in study["plan"].runs_of(table)]
    whole = {run.path(results) for run in runs if run.result(results) is not None}
    assert set(results.rglob("*.json")) == whole


def test_rows_and_verdicts(study):
    verdict = study["report"].verdict
    assert verdict("accuracy", [0.90, 0.91, 0.92], [0.95, 0.96, 0.97]) == "better (+5.0)"
    assert verdict("accuracy", [0.90, 0.91, 0.92], [0.85, 0.86, 0.87]) == "worse (-5.0)"
    assert verdict("accuracy", [0.90, 0.91, 0.92], [0.80, 0.90, 0.99]).startswith("no difference")
    assert verdict("accuracy", [0.90, 0.91, 0.92], [0.99]) == "too few seeds"
    assert study["report"].mean_and_spread([0.9, 0.91, 0.92]) == "91.0 ± 1.0"
    assert study["report"].mean_and_spread([0.9]) == "90.0 (n=1)"


def test_train_parts_and_widened_digits(study):
    """A train split of few images repeats them alone; on a wider canvas the same ink is smaller."""
    data, plan = study["data"], study["plan"]
    run = next(run for run in plan.runs_of("leakage") if run.seed == 1)
    recipe = run.load_recipe()
    small = data.load_digits_dataset(seed=1, copies=1, canvas=16)
    few = plan.dataclasses.replace(run, train_images=5, steps=2)
    train = data.train_part(few, recipe, small)["train"]
    assert len(train) == 2 * recipe.per_device_train_batch_size and len(set(train["sample"])) == 5
    test = small["test"].select(range(4))
    boxes, wide = data.ink_boxes(test), data.ink_boxes(data.widened(test, 2.0))
    assert wide[:, 2] - wide[:, 0] == pytest.approx((boxes[:, 2] - boxes[:, 0]) / 2)
    parts = data.scale_parts(small["test"])
    heights = [part for name, part in parts.items() if name.startswith("height")]
    assert sum(len(part) for part in heights) == len(small["test"])


def test_cost_counts_attention_in_every_model(study):
    """A backbone with any concept head has more arithmetic than the same with one matrix."""
    run = next(run for run in study["plan"].runs_of("digits") if run.name == "concept-transformer")
    names = (["even", "odd"], ["a", "b"], ["a", "b"])
    recipe = run.load_recipe()
    concepts = study["run"].cost(study["run"].build_model(recipe, *names)[0].eval())
    plain = study["run"].cost(study["plain"].build_plain(recipe, *names)[0].eval())
    assert concepts["parameters"] > plain["parameters"] and concepts["multiply_adds"] > plain["multiply_adds"]
    # Two layers' attention of 65 tokens, scores and values.
    backbone = recipe.model["backbone_config"]
    tokens, width = 65, backbone["hidden_size"]
    linear = tokens * (4 * width**2 + 2 * width * backbone["intermediate_size"]) + 2 * tokens**2 * width
    embedding = 64 * 3 * 4 * 4 * width
    assert plain["multiply_adds"] == 2 * linear + embedding + 2 * width


def test_sigmoid_attention_keeps_contributions_exact(study, make_config):
    import torch

    from modeling_ascent_vit import AscentViTForImageClassification

    model = AscentViTForImageClassification(make_config(num_unsupervised_concepts=0, num_global_concepts=3)).eval()
    sigmoid = study["plan"].dataclasses.replace(study["plan"].runs_of("digits")[0], attention="sigmoid")
    with study["run"].attention_of(sigmoid, sigmoid.load_recipe()), torch.no_grad():
        out = model(torch.randn(2, 3, 48, 48), output_contributions=True)
    assert (out.global_concept_attention.sum(-1) - 1).abs().min() > 0.1
    torch.testing.assert_close(out.concept_contributions.sum(1) + model.class_bias(), out.logits)


def test_a_linear_head_on_cached_features_is_one(study, make_config):
    import torch

    from modeling_ascent_vit import AscentViTForImageClassification

    run = next(run for run in study["plan"].runs_of("birds-pretrained") if run.name == "linear")
    fields = {"num_spatial_concepts": 0, "num_unsupervised_concepts": 0, "num_global_concepts": 3, "fusion_levels": 0}
    model = AscentViTForImageClassification(make_config(**fields)).eval()
    pixels = torch.randn(2, 3, 48, 48)
    with study["run"].attention_of(run, run.load_recipe()), torch.no_grad():
        logits = model(pixels).logits
        token = model.ascent_vit(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(logits, model.global_stream.projection(token))


def test_what_heads_hold_beside_their_mean(study, make_config):
    """Two heads on three tokens by hand; a model of one head holds nothing beside the mean, one of two does."""
    import torch

    from modeling_ascent_vit import AscentViTForImageClassification

    first = [[0.5, 0.4, 0.1], [0.2, 0.0, 0.0], [0.0, 0.4, 0.1]]
    second = [[0.0, 0.1, 0.1], [0.6, 0.0, 0.0], [0.1, 0.0, 0.0]]
    found = study["heads"].judge_heads(torch.tensor([first, second]))
    # The mean of the shares is 0.25 0.45 0.3, then 1 0 0, then 0.5 0.4 0.1.
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.25], [1.0, 0.0], [0.5, 0.5]]))

    batch = {
        "pixel_values": torch.randn(16, 3, 48, 48),
        "labels": torch.arange(16) % 5,
        "spatial_concept_targets": (torch.rand(16, 36, 4) < 0.5).float(),
    }
    for num_heads in (1, 2):
        model = AscentViTForImageClassification(make_config(concept_attention_heads=num_heads)).eval()
        for stream in model.streams().values():
            torch.nn.init.normal_(stream.concepts, std=5.0)
        metrics = study["heads"].measure_heads(model, [batch])
        with torch.no_grad():
            accuracy = (model(batch["pixel_values"]).logits.argmax(-1) == batch["labels"]).float().mean().item()
        if num_heads == 1:
            assert metrics["accuracy_of_mean"] == accuracy
            assert metrics["heads_same"] == metrics["global_heads_same"] == 1.0 and metrics["heads_distance"] == 0.0
        else:
            assert metrics["heads_same"] < 1.0 and metrics["heads_distance"] > 0.0


def test_concepts_of_other_photographs(study):
    """Each photograph's concepts are those of another one, its points where that one's are by share of the sides."""
    from datasets import ClassLabel, Dataset, Features, Image, List, Value
    from PIL import Image as Picture

    kinds = ClassLabel(names=["a", "b", "c"])
    points = {"xy": List(List(Value("float32"), length=2)), "category": List(kinds)}
    features = Features({"image": Image(), "label": kinds, "concepts": List(kinds), "points": points})
    sizes = [(10, 20), (40, 30), (8, 8)]
    rows = {
        "image": [Picture.new("RGB", size) for size in sizes],
        "label": [0, 1, 2],
        "concepts": [[0], [1], [2]],
        "points": [{"xy": [[w / 2, h / 4]] * i, "category": [i] * i} for i, (w, h) in enumerate(sizes)],
    }
    found = study["data"].permuted(Dataset.from_dict(rows, features=features), seed=1)
    given = [concepts[0] for concepts in found["concepts"]]
    assert sorted(given) == [0, 1, 2] and all(i != concept for i, concept in enumerate(given))
    assert found["label"][:] == [0, 1, 2] and [image.size for image in found["image"]] == sizes
    for concept, row, (width, height) in zip(given, found["points"], sizes, strict=True):
        assert row["category"] == [concept] * concept and row["xy"] == [[width / 2, height / 4]] * concept


def test_pointing_within_pixels(study):
    """Two concepts on a grid of 2 x 3 patches of 16 pixels, in an image twice as large as the model sees it."""
    import torch

    centres = study["pointing"].patch_centres((32, 48), (2, 3))
    assert centres.tolist() == [[8, 8], [24, 8], [40, 8], [8, 24], [24, 24], [40, 24]]
    maps = torch.zeros(6, 3)
    maps[0, 0], maps[1, 0] = 3.0, 1.0
    maps[5, 2] = 1.0
    row = {"bbox": [0.0, 0.0, 40.0, 60.0], "points": {"xy": [[46.0, 16.0], [80.0, 78.0]], "category": [0, 2]}}
    # As the model sees them, the points are at (23, 8) and (40, 39), 15 pixels from (8, 8) and from (40, 24), and the
    # box ends at x = 20.
    found = study["pointing"].judge_image(maps, row, centres, torch.tensor([0.5, 0.5]))
    assert found.tolist() == [[1.0, 0.75], [1.0, 0.0]]
    row["points"]["xy"][0][0] += 1
    assert study["pointing"].judge_image(maps, row, centres, torch.tensor([0.5, 0.5]))[:, 0].tolist() == [0.0, 1.0]


def test_missing_runs_are_made_and_reported(study, tmp_path, monkeypatch):
    """From nothing to a page: a run that exists is not made again, one that is cut off goes on, the page has both."""
    monkeypatch.setattr(study["data"], "WIDER", (2.0,))
    monkeypatch.setattr(study["data"], "TEST_COPIES", 1)
    tables = tmp_path / "tables.yaml"
    monkeypatch.setattr(study["plan"].read_tables, "__defaults__", (tables,))
    monkeypatch.setattr(study["plan"].runs_of, "__defaults__", (tables,))
    tables.write_text(yaml.safe_dump(TINY))
    options = ["--table", "digits", "--output", tmp_path / "results", "--work", tmp_path / "work"]
    assert invoke(study["run"], *options, "--only", "nothing").exit_code == 2

    # Cut off after training, before it is judged.
    with monkeypatch.context() as patch:
        patch.setattr(study["run"], "measure", mock.Mock(side_effect=OSError("No space left on device")))
        assert invoke(study["run"], *options).exit_code == 1
    assert not list((tmp_path / "results").rglob("*.json"))
    metrics = tmp_path / "work" / "digits" / "ascent-vit-seed0" / "metrics.json"
    before = json.loads(metrics.read_text())["train_seconds"]
    again = invoke(study["run"], *options)
    assert again.exit_code == 0, again.output
    files = sorted((tmp_path / "results" / "digits").glob("*.json"))
    names = ["ascent-vit", "linear-cached", "linear", "linear-tuned"]
    assert [path.name for path in files] == [f"{name}-seed0.json" for name in names]
    frozen, tuned = (json.loads(files[index].read_text()) for index in (1, 3))
    # With steps of next to nothing it is what it started from, which was trained again for it.
    assert tuned["metrics"]["accuracy"] == frozen["metrics"]["accuracy"] and tuned["settings"]["start"] == names[1]
    assert (tmp_path / "work" / "digits" / "linear-cached-seed0" / "model").is_dir()
    assert json.loads(files[1].read_text())["parameters"] == json.loads(files[2].read_text())["parameters"]
    first = json.loads(files[0].read_text())
    assert first["train_seconds"] == before and first["steps"] == 2 and 0 <= first["metrics"]["accuracy"] <= 1
    assert first["scales"]["canvas 2 times as wide"]["num_images"] == 360
    assert first["parameters"] > json.loads(files[1].read_text())["parameters"]
    assert not metrics.exists()

    times = [path.stat().st_mtime_ns for path in files]
    assert invoke(study["run"], *options).exit_code == 0
    assert [path.stat().st_mtime_ns for path in files] == times

    files[2].unlink()
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- begin digits -->old<!-- end digits -->\nafter\n")
    assert invoke(study["report"], "--results", tmp_path / "results", "--page", page).exit_code == 0
    text = page.read_text()
    assert text.startswith("Before\n") and text.endswith("after\n") and "old" not in text
    accuracy = f"{100 * first['metrics']['accuracy']:.1f} (n=1)"
    assert f"| ASCENT-ViT | {accuracy} |" in text and "- linear: seed 0" in text
    assert (tmp_path / "figures" / "digits-by-size.png").stat().st_size > 1000

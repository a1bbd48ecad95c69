# SPDX-License-Identifier: Apache-2.0
"""The published models: they load, are small, and are as good as their cards say."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModelForImageClassification

from ascent_vit import Safeguard
from ascent_vit.data import load_concept_dataset
from ascent_vit.evaluation import evaluate
from ascent_vit.publishing import ModelCardContent
from ascent_vit.publishing.card import card_metadata, check_card, format_interval, format_value
from ascent_vit.publishing.examples import write_card_examples
from ascent_vit.publishing.source import find_source, read_records
from ascent_vit.publishing.stage import run_figures, run_intervals


HUB = Path(__file__).parents[2] / "hub"
NAMES = ["birds", "concept-mnist", "digits"]
MEBIBYTES, PARAMETERS = 12, {"birds": 6_000_000, "concept-mnist": 2_000_000, "digits": 2_000_000}


def load(name):
    model = AutoModelForImageClassification.from_pretrained(HUB / name)
    return model, AutoImageProcessor.from_pretrained(HUB / name)


def figures_of(name) -> dict[str, float]:
    records = read_records(find_source(HUB / name))
    return run_figures(records["metrics.json"], records["evaluation.json"])


def measure(model, processor, images, labels, digits, batch_size=250) -> dict[str, float]:
    """Accuracy, and the share of images whose most attended global concept is their digit."""
    right = named = 0
    for start in range(0, len(images), batch_size):
        batch = slice(start, start + batch_size)
        with torch.no_grad():
            outputs = model(**processor(images[batch], return_tensors="pt"))
        right += (outputs.logits.argmax(-1) == torch.tensor(labels[batch])).sum().item()
        named += (outputs.global_concept_attention.argmax(-1) == torch.tensor(digits[batch])).sum().item()
    return {"accuracy": right / len(images), "global_concept_accuracy": named / len(images)}


def test_the_folder_holds_what_is_tested():
    assert sorted(path.name for path in HUB.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_what_is_written_of_the_model_now(name, tmp_path):
    card = ModelCard.load(HUB / name / "README.md")
    images = [Image.open(path) for path in sorted((HUB / name / "examples").glob("*"))]
    widget = write_card_examples(images, *load(name), tmp_path)
    content = ModelCardContent.from_model_dir(
        HUB / name,
        model_name=name,
        dataset_name=card.data.eval_results[0].dataset_name,
        dataset_id=(card.data.datasets or [None])[0],
        license=card.data.license,
        metrics=figures_of(name),
        widget=widget,
    )
    expected = card_metadata(content).to_dict()
    header = card.data.to_dict()
    # Photographs of birds may not be passed on.
    assert len(widget) == (0 if name == "birds" else 4)
    # Where the Hub has no name for a licence, the card gives one and says where it is.
    named = [header.pop(field, None) for field in ("license_name", "license_link")]
    assert all(named) == (card.data.license == "other")
    # Scores of another processor may round differently.
    for shown, given in zip(header.pop("widget", []), expected.pop("widget", []), strict=True):
        assert shown["src"] == given["src"]
        assert [each["label"] for each in shown["output"]] == [each["label"] for each in given["output"]]
        scores = [each["score"] for each in given["output"]]
        assert [each["score"] for each in shown["output"]] == pytest.approx(scores, abs=2e-4)
    assert header == expected
    figures = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", card.text, flags=re.M))
    assert figures == {metric: format_value(value) for metric, value in figures_of(name).items()}
    intervals = run_intervals(read_records(find_source(HUB / name))["evaluation.json"])
    shown = dict(re.findall(r"^\| `(\w+)` \| \S+ \| (\S+ to \S+) \|", card.text, flags=re.M))
    assert shown == {metric: format_interval(ends) for metric, ends in intervals.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_guard_is_the_models_and_the_card_says_what_it_promises(name):
    guard = Safeguard.from_pretrained(HUB / name)
    assert sum(path.stat().st_size for path in (HUB / name / "guard").iterdir()) < 200_000
    facts = guard.judge.facts
    card = " ".join((HUB / name / "README.md").read_text(encoding="utf-8").split())
    assert f"Calibrated on {facts['images']:,} images ({facts['split']} of {facts['dataset']})" in card
    assert f"holds the right one for a share of {1 - facts['alpha']:.4g} at least" in card
    assert (f"{1 - facts['alpha']:.4g} at least, of each class by itself" in card) == facts["per_class"]
    doubt = guard(Image.new("RGB", (64, 64), "white"))
    assert len(doubt.labels) >= 1 and set(doubt.strangeness) == {"features", "attention"}


def test_a_published_guard_knows_its_digits():
    guard = Safeguard.from_pretrained(HUB / "digits")
    test = load_concept_dataset("digits", canvas=64, copies=12, seed=0)["test"]
    doubts = guard(test["image"][:60], batch_size=30)
    names = test.features["label"].names
    covered = [names[label] in doubt.labels for doubt, label in zip(doubts, test["label"], strict=False)]
    assert np.mean(covered) > 0.95
    assert np.mean([doubt.verdict == "decide" for doubt in doubts]) > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_small_and_its_card_is_valid(name):
    folder = HUB / name
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MEBIBYTES * 2**20
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert sum(weights.get_tensor(key).numel() for key in weights.keys()) < PARAMETERS[name]  # noqa: SIM118
    text = (folder / "README.md").read_text(encoding="utf-8")
    check_card(text)
    runs = {
        "birds": "one run with seed 0",
        "digits": "3 runs that differ in their seed (0, 1, 2)",
        "concept-mnist": "2 runs that differ in their seed (0, 1)",
    }
    assert runs[name] in " ".join(text.split())
    model, _ = load(name)
    assert all(concept in text.replace("\\", "") for concept in model.config.concepts)


def test_the_digits_are_read_as_well_as_the_card_says():
    model, processor = load("digits")
    test = load_concept_dataset("digits", canvas=64, copies=12, seed=0)["test"]
    digits = [concepts[0] for concepts in test["concepts"]]
    figures = figures_of("digits")
    for name, value in measure(model, processor, test["image"][:], test["label"][:], digits).items():
        # A different processor rounds differently, which may decide an image or two.
        assert value == pytest.approx(figures[name], abs=2.5 / len(test)), name
    # The other figures of the same pass.
    batch = processor(test["image"][:100], return_tensors="pt") | {"labels": torch.tensor(test["label"][:100])}
    assert evaluate(model, [batch])["additivity_error"] < 1e-5


@pytest.mark.slow
def test_mnist_is_read_as_well_as_the_card_says(shared_folder):
    import datasets

    path = next((shared_folder / "data" / "mnist").rglob("test-*.parquet"), None)
    if path is None:
        pytest.skip("no MNIST in the real data")
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train").cast_column("image", datasets.Image())
    images = rows["image"][:]
    digits = rows["label"][:]
    figures = figures_of("concept-mnist")
    measured = measure(*load("concept-mnist"), images, [digit % 2 for digit in digits], digits)
    for name, value in measured.items():
        assert value == pytest.approx(figures[name], abs=2.5 / len(images)), name
    assert measured["accuracy"] > 0.995 and measured["global_concept_accuracy"] > 0.993


@pytest.mark.slow
def test_the_birds_are_seen_as_well_as_the_card_says(shared_folder):
    from torch.utils.data import DataLoader

    from ascent_vit.data import ConceptCollator
    from ascent_vit.data.adapters.cub import prepare

    test = prepare(shared_folder / "data" / "cub", global_concepts="all").dataset["test"]
    model, processor = load("birds")
    test = test.select_columns(["image", "label", "concepts", "points"])
    found = evaluate(model, DataLoader(test, 32, collate_fn=ConceptCollator(processor)))
    figures = figures_of("birds")
    for name in ("accuracy", "top5_accuracy", "concept_map", "pixel_tpr", "pointing_game", "relevance_mass"):
        assert found[name] == pytest.approx(figures[name], abs=2.5 / len(test)), name

# SPDX-License-Identifier: Apache-2.0
"""Model cards: valid metadata, figures as measured, code that runs, nothing empty, nothing that escapes."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from ascent_vit.publishing import ModelCardContent, model_card, write_model_card
from ascent_vit.publishing.card import check_card, escape_markdown
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


METRICS = {"accuracy": 0.98765, "macro_f1": 0.9, "pixel_tpr": 0.75, "additivity_error": 2.4e-7}


def make_content(**kwargs) -> ModelCardContent:
    values = {
        "model_name": "ASCENT-ViT birds",
        "classes": ["wren", "tern"],
        "global_concepts": ["small", "large"],
        "spatial_concepts": ["beak", "wing"],
        "dataset_name": "Birds",
        "metrics": METRICS,
        "seed": 3,
        "command": "ascent-vit train --recipe birds --output birds",
        "training_data": "Photographs, CC BY 4.0.",
        "concept_source": "Points set by hand.",
        "settings": {"learning_rate": 1e-3, "num_train_epochs": 5},
    }
    return ModelCardContent(**(values | kwargs))


WIDGET = [{"src": "examples/01.png", "output": [{"label": "wren", "score": 0.75}, {"label": "tern", "score": 0.25}]}]


def test_metadata_is_what_the_hub_reads():
    content = make_content(
        dataset_id="user/birds", base_model="facebook/dinov2-small", new_version="user/birds-2", widget=WIDGET
    )
    data = ModelCard(str(model_card(content))).data
    assert data.library_name == "transformers" and data.pipeline_tag == "image-classification"
    assert data.license == "apache-2.0" and data.model_name == "ASCENT-ViT birds"
    assert data.datasets == ["user/birds"]
    assert (data.base_model, data.base_model_relation) == ("facebook/dinov2-small", "finetune")
    assert data.new_version == "user/birds-2" and data.widget == WIDGET
    assert {"ascent-vit", "explainability", "concept-based-models"} <= set(data.tags)
    assert data.metrics == ["accuracy", "f1"]
    # The figures whose names the Hub knows; the table has all.
    results = {result.metric_type: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {"accuracy": 0.98765, "f1": 0.9}
    assert {(r.task_type, r.dataset_type, r.dataset_split) for r in results.values()} == {
        ("image-classification", "user/birds", "test")
    }
    bare = model_card(make_content(metrics={"pixel_tpr": 0.75})).data.to_dict()
    assert not bare.keys() & {"model-index", "metrics", "base_model_relation", "new_version", "widget"}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("base_model_relation", "distilled", "one of adapter, finetune, merge, quantized"),
        ("base_model", None, "goes with base_model"),
        ("base_model", "a/b/c", "must be ids of the Hub"),
        ("new_version", "no id", "must be ids of the Hub"),
        ("metrics", "accuracy", "metrics in the header .* must be a list"),
        ("widget", [{"text": "wren"}], "needs src"),
        ("widget", [{"src": "a.png", "output": [{"label": "wren"}]}], "needs a label and a score"),
    ],
)
def test_a_header_that_the_hub_would_not_take(field, value, message):
    card = model_card(make_content(base_model="facebook/dinov2-small", new_version="user/birds-2", widget=WIDGET))
    check_card(str(card))
    card.data[field] = value
    with pytest.raises(ValueError, match=message):
        check_card(str(card))


def test_body_says_what_was_given():
    text = model_card(make_content(annotation_coverage=0.2)).text
    for part in ("wren, tern", "small, large", "beak, wing", "Photographs, CC BY 4.0.", "Points set by hand."):
        assert part in text
    assert "one run with seed 3." in text and "ascent-vit train --recipe birds --output birds\n```" in text
    assert "at least 20%," in text and "2501.09221" in text and "author    = {Sinha, Sanchit and Xiong" in text
    rows = dict(re.findall(r"^\| `?([\w\\]+)`? \| ([^|]+) \|", text, flags=re.M))
    assert rows["accuracy"] == "0.9877" and rows["additivity_error"] == "2.4e-07"
    assert rows["learning\\_rate"] == "0.001"
    shown = model_card(
        make_content(figures_files=["training/metrics.json"], widget=WIDGET, widget_source="Of Ann.")
    ).text
    assert "In full: [training/metrics.json](training/metrics.json)" in shown and "Of Ann." in shown


def test_unannotated_patches_and_none_are_said_as_they_are():
    ignoring = model_card(make_content()).text
    assert "were left out" in ignoring and "also over an image or a patch that shows none of them" in ignoring
    with_none = model_card(make_content(unannotated="none", none_concept=True)).text
    assert "count as showing none" in with_none and 'the concepts and "none of these"' in with_none


MINIMAL = {
    "metrics": {},
    "seed": None,
    "command": None,
    "training_data": None,
    "concept_source": None,
    "settings": {},
}


@pytest.mark.parametrize("left_out", [{name: value} for name, value in MINIMAL.items()] + [MINIMAL])
@pytest.mark.parametrize("streams", [{}, {"global_concepts": []}, {"spatial_concepts": []}])
def test_no_section_is_empty(left_out, streams):
    text = model_card(make_content(**left_out, **streams)).text
    assert not re.search(r"^#+ .*\n+(#|\Z)", text, flags=re.M)
    assert not re.search(r"\n\n\n", text)
    assert not re.search(r"None|\(0\)|\{\{|\{%", text.partition("## Citation")[0])
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        assert table.count("\n") > 2


def test_names_cannot_break_out_of_their_place():
    names = ["a|b", "## title", "<img src=x onerror=y>", "x\n\n---\n# y", "[link](http://evil)", "`code`", "$x$"]
    text = model_card(make_content(global_concepts=names, classes=names, model_name="*bold* {{ seed }}")).text
    plain = model_card(make_content(global_concepts=["n"] * 7, classes=["n"] * 7)).text
    assert text.count("\n") == plain.count("\n")
    assert re.findall(r"^#+ ", text, flags=re.M) == re.findall(r"^#+ ", plain, flags=re.M)
    assert not re.search(r"(?<!\\)<img|(?<!\\)\[link|(?<!\\)`code|(?<!\\)\$x", text)
    assert escape_markdown("{{ seed }}") in text
    assert ModelCard(str(model_card(make_content(model_name="a: b\n- c")))).data.model_name == "a: b\n- c"


def test_escaped_text_reads_the_same():
    text = "has_bill::a<b> (c) | d* \\e #1 [x] & ~y~ $z$ {q} !"
    assert re.sub(r"\\(.)", r"\1", escape_markdown(text)) == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {"accurracy": 1.0}}, "Unknown metric 'accurracy'"),
        ({"metrics": {"accuracy": float("nan")}}, "accuracy must be a finite number"),
        ({"global_concepts": [], "spatial_concepts": []}, "needs the model's concepts"),
    ],
)
def test_bad_content_writes_nothing(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_model_card(tmp_path, make_content(**change))
    assert not list(tmp_path.iterdir())


def test_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        write_model_card(tmp_path / "nowhere", make_content())
    with pytest.raises(FileNotFoundError, match="config.json does not exist"):
        ModelCardContent.from_model_dir(tmp_path, model_name="x", dataset_name="y")


@pytest.fixture
def model_dir(make_config, tmp_path):
    config = make_config(
        global_concepts=["small", "large", "grey"],
        spatial_concepts=["beak", "wing"],
        num_unsupervised_concepts=2,
        none_concept=True,
        num_labels=12,
        id2label={i: f"bird {i}" for i in range(12)},
    )
    folder = tmp_path / "model"
    AscentViTForImageClassification(config).save_pretrained(folder)
    AscentViTImageProcessor.from_model_config(config, annotation_coverage=0.3).save_pretrained(folder)
    return folder


def test_content_from_a_models_folder(model_dir):
    content = ModelCardContent.from_model_dir(model_dir, model_name="Birds", dataset_name="Birds")
    assert content.classes == [f"bird {i}" for i in range(12)]
    assert content.global_concepts == ["small", "large", "grey"] and content.spatial_concepts == ["beak", "wing"]
    assert content.num_unsupervised_concepts == 2 and content.none_concept
    assert content.annotation_coverage == 0.3 and content.unannotated == "ignore"
    assert "Besides these, 2 learned without targets" in model_card(content).text


@pytest.mark.slow
def test_code_of_the_card_runs(model_dir, tmp_path):
    content = ModelCardContent.from_model_dir(
        model_dir, model_name="Birds", dataset_name="Birds", repo_id=str(model_dir)
    )
    path = write_model_card(model_dir, dataclasses.replace(content, metrics=METRICS))
    assert path == model_dir / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) == 3
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    source = str(Path(__file__).parents[3])
    environment = os.environ | {"PYTHONPATH": source, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    for block in blocks:
        process = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
        assert "bird " in process.stdout
    assert Image.open(tmp_path / "explanation.png").size[0] > 500

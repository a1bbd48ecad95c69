# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit edit`; what it does to a model is tested with `edit`."""

import json

import pytest
import torch

from ascent_vit.inference import load_whole
from ascent_vit.publishing import ModelCardContent
from ascent_vit.publishing.card import check_card, model_card
from ascent_vit_cli.app import run
from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification
from modeling_ascent_vit.image_processing_pil_ascent_vit import AscentViTImageProcessorPil


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> str:
    """A model with the classes and concepts of the digits, which tells more than one of the two classes."""
    digits = [f"digit {i}" for i in range(10)]
    backbone = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = AscentViTConfig(
        backbone_config={"model_type": "vit", "image_size": 32, "patch_size": 8, **backbone},
        global_concepts=digits,
        spatial_concepts=digits,
        id2label={0: "even", 1: "odd"},
        fusion_heads=4,
    )
    torch.manual_seed(0)
    model = AscentViTForImageClassification(config)
    for stream in model.streams().values():
        torch.nn.init.normal_(stream.projection.weight, std=10)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model.save_pretrained(folder)
    AscentViTImageProcessorPil.from_model_config(config).save_pretrained(folder)
    return str(folder)


def one_error(capsys) -> str:
    """The one line on stderr that says what was wrong."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")].pop()


def test_before_and_after(model_folder, tmp_path, capsys):
    out = tmp_path / "out"
    terms = ["--remove", "even=global:digit 3", "--remove", "spatial:digit 4", "--scale", "odd=spatial:digit 5=0.5"]
    dataset = ["--dataset", "digits", "--option", "copies=1", "--option", "canvas=32", "--batch-size", "64"]
    assert run(["edit", model_folder, *terms, *dataset, "--output", str(out)]) == 0
    shown = capsys.readouterr().out
    written = json.loads((out / "edit.json").read_text())
    edited = load_whole(out)
    expected = {("global", 3, 0): 0, ("spatial", 4, 0): 0, ("spatial", 4, 1): 0, ("spatial", 5, 1): 0.5}
    assert edited.edited_terms() == expected
    assert written["concept_edits"] == edited.config.concept_edits
    assert written["touched_classes"] == ["even", "odd"]
    for when in ("before", "after"):
        figures = written[when]
        right = sum(entry["accuracy"] * entry["images"] for entry in figures["classes"].values())
        assert right / figures["num_images"] == pytest.approx(figures["accuracy"])
        assert sum(entry["predicted"] for entry in figures["classes"].values()) == figures["num_images"] == 360
        assert f"{figures['classes']['odd']['accuracy']:.4f}" in shown
    assert written["before"]["ece"] != written["after"]["ece"]
    assert "even: digit 3 (global) removed" in shown and "all classes: digit 4 (spatial) removed" in shown
    figures = json.loads((out / "training" / "metrics.json").read_text())
    assert figures["accuracy"] == written["after"]["accuracy"]
    content = ModelCardContent.from_model_dir(out, model_name="edited", dataset_name="digits")
    card = str(model_card(content))
    check_card(card)
    assert "| even | digit 3 | removed |" in card and "| odd | digit 5 | times 0.5 |" in card
    assert "| all | digit 4 | removed |" in card

    assert run(["edit", str(out), "--undo", "--output", str(tmp_path / "undone")]) == 0
    before, after = load_whole(model_folder).state_dict(), load_whole(tmp_path / "undone").state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --remove, --only or --scale, or --undo alone"),
        (["--undo", "--remove", "global:digit 3"], "Give --remove, --only or --scale, or --undo alone"),
        (["--undo"], "has no edits to undo"),
        (["--remove", "digit 3"], "global and spatial concepts have it; write global:digit 3"),
        (["--remove", "evn=global:digit 3"], "did you mean 'even'"),
        (["--remove", "even=global:digit 33"], "no concept 'global:digit 33'"),
        (["--remove", "even"], "no concept 'even'"),
        (["--scale", "global:digit 3"], "--scale takes CLASS=CONCEPT=FACTOR"),
        (["--scale", "global:digit 3=-1"], "from 0 to 10,000"),
        (["--scale", "global:digit 3=1", "--scale", "global:digit 3=2"], "two factors"),
        (["--remove", "global:digit 3", "--scale", "even=global:digit 3=2"], "two factors"),
        (["--only", "global:digit 3", "--remove", "even=global:digit 3"], "both only and remove"),
        (["--remove", "global:digit 3", "--option", "seed=1"], "--option is of a dataset"),
        (["--remove", "global:digit 3", "--dataset", "digits", "--split", "dev"], "has no split dev"),
    ],
)
def test_bad_usage_is_one_sentence(model_folder, tmp_path, capsys, arguments, message):
    assert run(["edit", model_folder, *arguments, "--output", str(tmp_path / "out")]) == 2
    assert message in one_error(capsys)
    assert not (tmp_path / "out").exists()


def test_names_with_equals_signs(tmp_path, capsys):
    config = AscentViTConfig(
        backbone_config={"model_type": "vit", "image_size": 32, "patch_size": 8, "hidden_size": 32,
                         "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
        spatial_concepts=["a=b", "b", "c"],
        id2label={0: "a", 1: "x=y"},
        fusion_heads=4,
    )  # fmt: skip
    AscentViTForImageClassification(config).save_pretrained(tmp_path / "model")
    AscentViTImageProcessorPil.from_model_config(config).save_pretrained(tmp_path / "model")
    command = ["edit", str(tmp_path / "model"), "--output", str(tmp_path / "out"), "--only"]
    assert run([*command, "a=b"]) == 2
    assert "can be read in two ways" in one_error(capsys)
    assert run([*command, "x=y=a=b"]) == 0
    assert load_whole(tmp_path / "out").edited_terms() == {("spatial", 1, 1): 0, ("spatial", 2, 1): 0}

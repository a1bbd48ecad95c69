# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit export`; what it writes is tested with `export_model`."""

import json

import pytest
import torch

from ascent_vit_cli.app import run
from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification
from modeling_ascent_vit.image_processing_pil_ascent_vit import AscentViTImageProcessorPil


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> str:
    """A model with the classes and concepts of the digits."""
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
    folder = tmp_path_factory.mktemp("model") / "tiny"
    AscentViTForImageClassification(config).save_pretrained(folder)
    AscentViTImageProcessorPil.from_model_config(config).save_pretrained(folder)
    return str(folder)


def one_error(capsys) -> str:
    """The one line on stderr that says what was wrong."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")].pop()


def test_export_with_dataset(model_folder, tmp_path, capsys):
    arguments = ["export", model_folder, "--to", "torch-export", "--output", str(tmp_path / "out")]
    options = ["--option", "copies=1", "--option", "canvas=32", "--batch-size", "64", "--seed", "5"]
    assert run([*arguments, "--dataset", "digits", *options]) == 0
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert report["seed"] == 5 and report["measured"]["class_agreement"] == 1
    assert f"num_images on test: {report['measured']['num_images']}" in shown
    assert "logits: differs by at most" in shown and f"Exported: {tmp_path / 'out'}" in shown
    assert "# tiny for torch.export" in (tmp_path / "out" / "README.md").read_text()

    assert run(arguments) == 2
    assert "is not empty: name another one" in one_error(capsys)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--to", "tflite"], "--to must be one of onnx, torch-export, aotinductor, openvino; got 'tflite'"),
        (["--to", "executorch"], "ExecuTorch cannot run the model"),
        (["--to", "torch-export", "--quantize", "int8"], "torch-export takes --quantize none, bf16; got 'int8'"),
        (["--to", "torch-export", "--option", "seed=1"], "--option is of a dataset: name one"),
        (["--to", "torch-export", "--dataset", "digits", "--split", "dev"], "has no split dev"),
    ],
)
def test_bad_usage_is_one_sentence(model_folder, tmp_path, capsys, arguments, message):
    assert run(["export", model_folder, *arguments, "--output", str(tmp_path / "out")]) == 2
    assert message in one_error(capsys)
    assert not (tmp_path / "out").exists()


def test_a_missing_model_is_named(tmp_path, capsys):
    arguments = ["export", str(tmp_path / "none"), "--to", "torch-export", "--output", str(tmp_path / "out")]
    assert run(arguments) == 2
    assert "There is no model folder" in one_error(capsys)

# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit annotate`, with a tiny OWLv2 with random weights."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from huggingface_hub import DatasetCard
from PIL import Image
from transformers import (
    CLIPTokenizer,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
)

from ascent_vit.data import load_concept_dataset
from ascent_vit_cli.app import run


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    """The command for eight pictures whose class has another column name."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<pad>", "<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[], pad_token="<pad>", model_max_length=16
    )
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokens), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = Owlv2Config(
        text_config={**layers, **text, "max_position_embeddings": 16},
        vision_config={**layers, "image_size": 64, "patch_size": 16},
        projection_dim=16,
    )
    torch.manual_seed(0)
    Owlv2ForObjectDetection(config).save_pretrained(tmp_path / "owl")
    processor = Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer)
    processor.save_pretrained(tmp_path / "owl")

    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(8)]
    features = Features({"image": ImageFeature(), "species": ClassLabel(names=["robin", "wren"])})
    split = Dataset.from_dict({"image": images, "species": [0, 1] * 4}, features=features)
    DatasetDict(train=split).save_to_disk(tmp_path / "birds")
    (tmp_path / "concepts.txt").write_text("beak\nleg\n")
    words = ["annotate", tmp_path / "birds", "--concepts", tmp_path / "concepts.txt", "--detector", tmp_path / "owl"]
    return [*map(str, words), "--output", str(tmp_path / "out"), "--option", "columns={label: species}"]


def one_error(capsys) -> str:
    """The one error line on stderr, without progress bars."""
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: "))
    return line


def test_annotate(arguments, tmp_path, capsys):
    assert run([*arguments, "--threshold", "0.4"]) == 0
    shown = capsys.readouterr()
    (split,) = load_concept_dataset(str(tmp_path / "out")).values()
    objects = split["objects"][:]
    assert min(score for row in objects for score in row["score"]) > 0.4
    number = sum(row["category"].count(0) for row in objects)
    images = sum(0 in row["category"] for row in objects)
    assert number and f"beak: {number} boxes in {images} images" in shown.out
    assert f"Look at: {tmp_path / 'out' / 'review.png'}" in shown.out
    assert "Detecting: 100%" in shown.err
    card = DatasetCard.load(tmp_path / "out" / "README.md").content
    assert "ascent-vit annotate DIR --concepts FILE --detector DIR --output DIR --threshold 0.4" in card
    assert str(tmp_path) not in card

    assert run(arguments) == 2
    assert "not empty" in one_error(capsys)


def test_resume_goes_on_with_the_same_settings(arguments, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "ascent_vit.data.annotate.dataset.write_dataset", lambda *_, **__: (_ for _ in ()).throw(OSError("full"))
        )
        assert run(arguments) == 1
    assert "full" in one_error(capsys)
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.annotate").is_dir()
    assert run(arguments) == 2
    assert "--resume" in one_error(capsys)
    assert run([*arguments, "--resume", "--threshold", "0.5"]) == 2
    assert "another concepts" in one_error(capsys)
    assert run([*arguments, "--resume"]) == 0
    assert not (tmp_path / ".out.annotate").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--detector", "./nowhere"], "There is no detector folder nowhere"),
        (["--concepts", "nothing.txt"], "There is no file nothing.txt"),
        (["--threshold", "1.5"], "threshold must be a number from 0 to 1; got 1.5"),
        (["--iou", "-1"], "iou must be a number from 0 to 1; got -1"),
        (["--batch-size", "0"], "batch_size must be 1 or more"),
        (["--option", "columns"], "--option takes KEY=VALUE"),
        (["--option", "columns={label: x"], "--option columns is no valid YAML"),
    ],
)
def test_bad_input(change, message, arguments, tmp_path, capsys):
    assert run([*arguments, *change]) == 2
    assert message in one_error(capsys)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.annotate").exists()

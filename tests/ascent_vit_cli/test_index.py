# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit index`: a folder that finds, or one sentence."""

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image

from ascent_vit import ConceptIndex, explain
from ascent_vit_cli.app import run
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


pytest.importorskip("faiss")


@pytest.fixture
def model_and_processor(make_config, tmp_path):
    config = make_config()
    model, processor = (
        AscentViTForImageClassification(config).eval(),
        AscentViTImageProcessor.from_model_config(config),
    )
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    return model, processor


@pytest.fixture
def command(model_and_processor, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    images = [Image.new("RGB", (40, 40), color) for color in ("red", "green", "blue")]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["tern", "wren"])})
    split = Dataset.from_dict({"image": [*images, {"bytes": b"no"}], "label": [0, 1, 0, 1]}, features=features)
    DatasetDict(train=split).save_to_disk(tmp_path / "birds")

    def call(*words) -> int:
        given = ["--dataset", tmp_path / "birds", "--output", tmp_path / "model" / "index", *words]
        return run(["index", str(tmp_path / "model"), *map(str, given)])

    return call


def test_an_index_is_written_and_found_beside_the_model(command, model_and_processor, tmp_path, capsys):
    assert command("--thumbnails") == 0
    shown = capsys.readouterr()
    assert "Index of 3 images and " in shown.out and "Indexing: 100%" in shown.err
    assert "1 images could not be read and are left out. The first: The image of row 3" in shown.err
    index = ConceptIndex.load(tmp_path / "model")
    assert index.facts["dataset"]["name"] == "birds" and index.facts["dataset"]["split"] == "train"
    (case,) = index.similar(explain(*model_and_processor, Image.new("RGB", (40, 40), "blue")), k=1)
    assert case.row == 2 and case.label == "tern" and case.thumbnail.size == (40, 40)
    assert command() == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "test"], "no split test; it has train"),
        (["--concepts-per-image", "-1"], "greater than or equal to 0"),
        (["--dataset", "/nowhere/birds"], "/nowhere/birds"),
    ],
)
def test_bad_usage(command, words, message, tmp_path, capsys):
    assert command(*words) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: "))
    assert message in line
    assert not (tmp_path / "model" / "index").exists()

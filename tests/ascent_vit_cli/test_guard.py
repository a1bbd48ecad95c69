# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit guard`, and `ascent-vit explain --guard`."""

import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image

from ascent_vit import Safeguard
from ascent_vit_cli.app import USAGE_ERROR, run
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


LABELS = ["tern", "wren", "bunting"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def model(make_config, tmp_path):
    config = make_config(num_labels=3, id2label=dict(enumerate(LABELS)))
    model = AscentViTForImageClassification(config).eval()
    with torch.no_grad():
        for stream in model.streams().values():
            stream.concepts.mul_(20)
    for part in (model, AscentViTImageProcessor.from_model_config(config)):
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)) for _ in range(30)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=LABELS)})
    split = Dataset.from_dict({"image": images, "label": [i % 3 for i in range(30)]}, features=features)
    DatasetDict(train=split.select(range(3)), validation=split, test=split).save_to_disk(tmp_path / "birds")
    return tmp_path / "birds"


def test_fits_beside_the_model_and_explains_with_doubt(model, dataset, tmp_path, capsys):
    arguments = ["guard", str(model), "--dataset", str(dataset), "--output", str(model), "--alpha", "0.2"]
    assert run(arguments) == 0
    printed = capsys.readouterr()
    assert "Calibrated on 30 images of validation" in printed.out and "right class of 0.8" in printed.out
    assert "have no global concepts" in printed.err
    guard = Safeguard.from_pretrained(model)
    # A path of this machine is not told.
    assert guard.judge.facts["dataset"] == "birds"

    (tmp_path / "images").mkdir()
    Image.new("RGB", (48, 48), "red").save(tmp_path / "images" / "a.png")
    for given, name in (("auto", "one"), (str(model / "guard"), "two")):
        output = tmp_path / name
        arguments = ["explain", str(tmp_path / "images"), "--model", str(model), "--output", str(output)]
        assert run([*arguments, "--guard", given]) == 0
        told = json.loads((output / "a.json").read_text())["doubt"]
        assert told["verdict"] == guard(Image.new("RGB", (48, 48), "red")).verdict
        assert '"verdict":' in (output / "a.html").read_text()


def test_bad_input_is_one_sentence(model, dataset, tmp_path, capsys):
    def error(*arguments):
        assert run(list(map(str, arguments))) == USAGE_ERROR
        return capsys.readouterr().err

    fit = ["guard", model, "--dataset", dataset, "--output", tmp_path / "out"]
    assert "no split dev; it has" in error(*fit, "--split", "dev")
    assert "alpha 0.01 needs 99 calibration images" in error(*fit, "--alpha", 0.01)
    assert "alpha must be a share" in error(*fit, "--alpha", 7)
    assert not (tmp_path / "out").exists()
    show = ["explain", dataset, "--model", model, "--output", tmp_path / "shown", "--guard", "auto"]
    assert "--guard is for pages and JSON" in error(*show)
    assert "There is no guard in" in error(*show, "--format", "json")
    assert not (tmp_path / "shown").exists()

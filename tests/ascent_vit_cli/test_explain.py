# SPDX-License-Identifier: Apache-2.0
"""`ascent-vit explain`: files per image, tables of datasets, one process or several."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image

from ascent_vit import explain
from ascent_vit_cli.app import run
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


LABELS = ["tern", "wren", "bunting"]
NUMBER = 11


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def model_and_processor(make_config, tmp_path):
    config = make_config(num_labels=len(LABELS), id2label=dict(enumerate(LABELS)))
    model = AscentViTForImageClassification(config).eval()
    with torch.no_grad():
        for stream in model.streams().values():
            stream.concepts.mul_(20)
    processor = AscentViTImageProcessor.from_model_config(config)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    return model, processor


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)) for i in range(NUMBER)]


@pytest.fixture
def folder(images, tmp_path):
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    images[0].save(tmp_path / "pictures" / "a.png")
    images[1].save(tmp_path / "pictures" / "sub" / "b.png")
    return tmp_path / "pictures"


@pytest.fixture
def dataset(images, tmp_path):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=LABELS)})
    split = Dataset.from_dict({"image": images, "label": [i % 3 for i in range(NUMBER)]}, features=features)
    DatasetDict(train=split.select([0]), test=split).save_to_disk(tmp_path / "birds")
    return tmp_path / "birds"


@pytest.fixture
def command(model_and_processor, tmp_path):
    def call(*words) -> int:
        return run(
            ["explain", *map(str, words), "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out")]
        )

    return call


def written(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def one_error(capsys) -> str:
    """The one error line on stderr, without progress bars."""
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: "))
    return line


def test_a_picture_a_page_and_json_per_image(command, folder, model_and_processor, images, tmp_path, capsys):
    assert command(folder, "--class", "wren", "--top", "2") == 0
    shown = capsys.readouterr()
    assert "Explaining: 100%" in shown.err and f"Explanations: {tmp_path / 'out'}" in shown.out
    names = {f"{name}.{suffix}" for name in ("a", "sub/b") for suffix in ("png", "html", "json")}
    assert written(tmp_path / "out") == names
    for name, image in zip(("a", "sub/b"), images, strict=False):
        values = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        expected = explain(*model_and_processor, image, class_ids="wren")
        assert values["label"] == "wren" and "patch_attention" not in values
        np.testing.assert_allclose(values["logits"], expected.logits, atol=1e-5)
        assert Image.open(tmp_path / "out" / f"{name}.png").size[0] > 500
        assert "wren" in (tmp_path / "out" / f"{name}.html").read_text()


def test_damaged_images_are_left_out_and_listed(command, folder, tmp_path, capsys):
    (folder / "damaged.jpg").write_bytes(b"no image")
    assert command(folder, "--format", "json", "--maps") == 1
    lines = capsys.readouterr().err.splitlines()
    (line,) = (line for line in lines if line.startswith("Left out: "))
    assert "damaged.jpg cannot be read" in line
    assert written(tmp_path / "out") == {"a.json", "sub/b.json"}
    assert "patch_attention" in json.loads((tmp_path / "out" / "a.json").read_text())


def test_a_dataset_becomes_a_table(command, dataset, model_and_processor, images, tmp_path):
    assert command(dataset, "--maps", "--batch-size", "4") == 0
    assert written(tmp_path / "out") == {"explanations.parquet"}
    rows = pq.read_table(tmp_path / "out" / "explanations.parquet").to_pylist()
    expected = explain(*model_and_processor, images, batch_size=4)
    assert [row["index"] for row in rows] == list(range(NUMBER))
    assert [row["label"] for row in rows] == [LABELS[i % 3] for i in range(NUMBER)]
    for row, explanation in zip(rows, expected, strict=True):
        assert row["predicted"] == explanation.predicted_label
        np.testing.assert_allclose(row["logits"], explanation.logits, atol=1e-5)
        np.testing.assert_allclose(row["patch_contributions"], explanation.patch_contributions, atol=1e-6)


def test_other_splits_formats_and_streams(command, dataset, tmp_path):
    words = [dataset, "--split", "train", "--format", "json", "--format", "parquet"]
    assert command(*words) == 0
    assert written(tmp_path / "out") == {"000000.json", "explanations.parquet"}
    DatasetDict.load_from_disk(dataset)["test"].to_parquet(tmp_path / "parquet" / "test.parquet")
    (tmp_path / "out" / "000000.json").unlink()
    (tmp_path / "out" / "explanations.parquet").unlink()
    assert command(tmp_path / "parquet", "--streaming") == 0
    assert pq.read_metadata(tmp_path / "out" / "explanations.parquet").num_rows == NUMBER


@pytest.mark.slow
def test_two_processes_write_what_one_writes(command, dataset, tmp_path):
    words = [dataset, "--maps", "--batch-size", "2", "--format", "parquet", "--format", "json"]
    assert command(*words) == 0
    (tmp_path / "out").rename(tmp_path / "one")
    assert command(*words, "--processes", "2") == 0
    assert written(tmp_path / "out") == written(tmp_path / "one")
    one, two = (pq.read_table(tmp_path / name / "explanations.parquet").to_pydict() for name in ("one", "out"))
    assert one.keys() == two.keys()
    for name, column in one.items():
        if isinstance(column[0], str) or name in ("index", "file"):
            assert column == two[name]
        else:
            np.testing.assert_allclose(column, two[name], atol=1e-6)


@pytest.mark.slow
def test_nothing_is_written_where_no_image_can_be_read(command, folder, tmp_path, capsys):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no image")
    assert command(folder, "--processes", "2", "--batch-size", "1") == 2
    assert "no image that can be read. The first: The image" in one_error(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{folder}/nowhere.png"], "nowhere.png does not exist"),
        (["{folder}", "--class", "wrens"], "did you mean 'wren'"),
        (["{folder}", "--format", "pdf"], "--format is png, html, json, parquet; got pdf"),
        (["{dataset}", "--split", "val"], "no split val; it has train, test"),
        (["{dataset}", "{folder}"], "is a dataset, which is explained alone; got 2 inputs"),
        (["{folder}", "--top", "0"], "greater than or equal to 1"),
        (["{dataset}", "--option", "columns"], "--option takes KEY=VALUE"),
    ],
)
def test_bad_usage(command, folder, dataset, tmp_path, words, message, capsys):
    assert command(*(word.format(folder=folder, dataset=dataset) for word in words)) == 2
    assert message in one_error(capsys)
    assert not (tmp_path / "out").exists()


def test_outputs_are_not_overwritten(command, folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert command(folder) == 2
    assert "not empty" in one_error(capsys)
    assert written(tmp_path / "out") == {"mine.txt"}

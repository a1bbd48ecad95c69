# SPDX-License-Identifier: Apache-2.0
"""Dataset cards, and datasets as folders."""

import re

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, List, Value, load_dataset
from datasets import Image as ImageFeature
from huggingface_hub import DatasetCard

import ascent_vit.data.card as card_module
from ascent_vit.data import load_concept_dataset, load_digits_dataset
from ascent_vit.data.card import dataset_card, write_dataset
from ascent_vit.data.prepared import PreparedDataset
from ascent_vit.data.schema import concept_features


@pytest.fixture
def prepared():
    digits = load_digits_dataset(copies=1, canvas=16)
    return PreparedDataset(
        dataset=DatasetDict(
            {name: split.select(range(250)) for name, split in digits.items() if name != "validation"}
        ),
        title="Digits_of all* kinds",
        license="cc-by-4.0",
        description="From **scans**.",
        settings={"seed": 3, "share_of": 0.5, "unused": None},
    )


def stored(split):
    return [
        {name: value["bytes"] if isinstance(value, dict) else value for name, value in row.items()}
        for row in split.cast_column("image", ImageFeature(decode=False))
        .cast_column("mask", ImageFeature(decode=False))
        .to_list()
    ]


def test_a_folder_gives_back_the_dataset(prepared, tmp_path):
    write_dataset(prepared, tmp_path)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert [re.sub("-[0-9a-f]{16}", "-DIGEST", file) for file in files] == [
        "README.md",
        "data/test-00000-of-00001-DIGEST.parquet",
        "data/train-00000-of-00001-DIGEST.parquet",
    ]
    (tmp_path / "inspect.png").write_bytes(b"")
    (tmp_path / "inspect.json").write_text("{}")
    loaded = load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train", "test"]
    for name, split in prepared.dataset.items():
        assert loaded[name].features == split.features
        assert stored(loaded[name]) == stored(split)
    stream = load_concept_dataset(str(tmp_path), streaming=True)
    assert stream["test"].features == prepared.dataset["test"].features
    assert next(iter(stream["test"]))["concepts"] == prepared.dataset["test"][0]["concepts"]


def test_paths_are_embedded_and_large_splits_are_cut(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(card_module, "SHARD_BYTES", 1)
    images = tmp_path / "images"
    images.mkdir()
    train = prepared.dataset["train"]
    for i, row in enumerate(stored(train)):
        (images / f"{i}.png").write_bytes(row["image"])
    cells = [{"bytes": None, "path": str(images / f"{i}.png")} for i in range(len(train))]
    by_path = train.remove_columns("image").add_column("image", cells).cast_column("image", ImageFeature())
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_dataset(PreparedDataset(DatasetDict(train=by_path), "Digits", "other", "", {}), folder)
    names = sorted(path.name for path in (folder / "data").iterdir())
    assert [name[:21] for name in names] == [f"train-0000{i}-of-00003-" for i in range(3)]
    assert len({name[21:] for name in names}) == 1
    for path in images.iterdir():
        path.unlink()
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert stored(loaded) == [{name: row[name] for name in loaded.features} for row in stored(train)]
    assert np.asarray(loaded[0]["image"]).shape == (16, 16)


def test_folders_of_the_same_name_have_rows_of_their_own(prepared, tmp_path, monkeypatch):
    """`datasets` tells what it keeps of local folders apart by their name and card alone."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    train = prepared.dataset["train"]
    parts = {"a": train.select(range(10)), "b": train.select(range(10, 20)), "c": train.select(range(10))}
    for name, rows in parts.items():
        folder = tmp_path / name / "digits"
        folder.mkdir(parents=True)
        write_dataset(PreparedDataset(DatasetDict(train=rows), "Digits", "other", "Same.", {}), folder)
    for name, rows in parts.items():
        assert stored(load_dataset(str(tmp_path / name / "digits"))["train"]) == stored(rows)
    # What is the same is written the same.
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in ("a", "c")]
    assert files[0] == files[1] and len(files[0]) == 2


def test_the_card_explains_scores_and_groups():
    extra = {"objects": {"score": List(Value("float32"))}, "group_id": Value("string")}
    features = concept_features(["cat"], spatial_concepts=["ear", "paw"], extra=extra)
    row = {"image": None, "label": 0, "objects": {"bbox": [], "category": [], "score": []}, "group_id": "a"}

    def card(features):
        rows = {name: [row[name]] for name in features}
        dataset = DatasetDict(train=Dataset.from_dict(rows, features=features))
        return str(dataset_card(PreparedDataset(dataset, "Cats", "other", "", {})))

    text = card(features)
    assert "`category`; `score` is what the detector gave each box, from 0 to 1 |" in text
    assert "| `group_id` | what rows belong together: those with the same one are never in two splits |" in text
    row["objects"] = {"bbox": [], "category": []}
    text = card(concept_features(["cat"], spatial_concepts=["ear", "paw"]))
    assert "score" not in text and "group_id" not in text


def test_the_card_says_what_is_in_it(prepared, tmp_path):
    card = dataset_card(prepared, repo_id="someone/digits", command="ascent-vit prepare digits --source DIR")
    card.save(tmp_path / "README.md")
    loaded = DatasetCard.load(tmp_path / "README.md", ignore_metadata_errors=False)
    assert (loaded.data.license, loaded.data.pretty_name) == ("cc-by-4.0", "Digits_of all* kinds")
    assert loaded.data.task_categories == ["image-classification"] and "ascent-vit" in loaded.data.tags
    text = loaded.text
    for part in (
        "# Digits\\_of all\\* kinds",
        "From **scans**.",
        'load_dataset("someone/digits")',
        "| train | 250 |",
        "- 2 classes: even, odd",
        "- 10 concepts of the whole image: digit 0, digit 1",
        "- 10 concepts that have a place: digit 0",
        "| seed | 3 |",
        "| share\\_of | 0.5 |",
        "ascent-vit prepare digits --source DIR\n",
    ):
        assert part in text
    assert "unused" not in text and "{{" not in text and "spatial_concepts" not in text
    # A link would tag the dataset with a paper that is not its own.
    assert "arxiv" not in text

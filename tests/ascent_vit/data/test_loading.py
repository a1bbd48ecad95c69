# SPDX-License-Identifier: Apache-2.0
"""Concept datasets from every source."""

import json
import shutil

import numpy as np
import psutil
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from ascent_vit.data import (
    ConceptCollator,
    annotation_from_row,
    concepts_from_features,
    load_concept_dataset,
)
from ascent_vit.data.card import write_dataset
from ascent_vit.data.prepared import PreparedDataset
from ascent_vit.training import Recipe, train
from ascent_vit.training.build import make_loader
from modeling_ascent_vit import AscentViTImageProcessor


LABELS, GLOBAL, SPATIAL = ["cat", "dog"], ["indoors", "outdoors", "night"], ["ear", "tail"]


def make_image(seed: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def dataset(make_dataset) -> DatasetDict:
    return DatasetDict(train=make_dataset(6), val=make_dataset(2))


class TestLoading:
    def test_from_save_to_disk(self, dataset, tmp_path):
        dataset.save_to_disk(tmp_path / "all")
        dataset["train"].save_to_disk(tmp_path / "one")
        loaded = load_concept_dataset(str(tmp_path / "all"))
        assert list(loaded) == ["train", "validation"]
        assert loaded["train"][1]["concepts"] == [1, 2]
        assert loaded["train"].features == dataset["train"].features
        assert list(load_concept_dataset(str(tmp_path / "one"))) == ["train"]

    def test_a_folder_named_like_a_format_is_a_folder(self, dataset, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "text" / "data").mkdir(parents=True)
        for name, split in dataset.items():
            split.to_parquet(tmp_path / "text" / "data" / f"{name}-00000-of-00001.parquet")
        assert load_concept_dataset("text")["train"][1]["concepts"] == [1, 2]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_from_parquet(self, dataset, tmp_path, streaming):
        (tmp_path / "data").mkdir()
        for name, split in dataset.items():
            split.to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
        loaded = load_concept_dataset(str(tmp_path), streaming=streaming, cache_dir=str(tmp_path / "cache"))
        rows = list(loaded["train"])
        assert len(rows) == 6
        assert "points" not in annotation_from_row(rows[0]) or rows[0]["points"]["xy"] is None
        assert rows[1]["points"] == {"xy": [[20.5, 30.5]], "category": [0]}
        assert concepts_from_features(loaded["train"].features) == (LABELS, GLOBAL, SPATIAL)

    def test_from_an_imagefolder_with_names_as_text(self, tmp_path):
        rows = {
            "train": [("a.png", "dog", ["night"], [[0, 0, 8, 8]], ["tail"]), ("b.png", "cat", None, [], [])],
            "test": [("c.png", "cat", ["indoors", "night"], [[1, 1, 8, 8]], ["ear"])],
        }
        for split, items in rows.items():
            (tmp_path / "set" / split).mkdir(parents=True)
            lines = []
            for i, (name, label, concepts, boxes, categories) in enumerate(items):
                make_image(i).save(tmp_path / "set" / split / name)
                objects = {"bbox": boxes, "category": categories}
                row = {"file_name": name, "label": label, "concepts": concepts, "objects": objects}
                lines.append(json.dumps(row))
            (tmp_path / "set" / split / "metadata.jsonl").write_text("\n".join(lines))
        loaded = load_concept_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
        names = concepts_from_features(loaded["train"].features)
        assert names == (["cat", "dog"], ["indoors", "night"], ["ear", "tail"])
        assert loaded["train"]["label"] == [1, 0]
        assert loaded["train"]["concepts"] == [[1], None]
        assert loaded["test"][0]["concepts"] == [0, 1]
        assert loaded["train"][0]["objects"]["category"] == [1]
        assert loaded["test"][0]["objects"]["category"] == [0]

    @pytest.fixture
    def foreign_folder(self, tmp_path):
        """Images beside a metadata.jsonl as detection datasets have it, with names as text and keys of their own."""
        for split, number in (("train", 6), ("validation", 3)):
            (tmp_path / "set" / split).mkdir(parents=True)
            lines = []
            for i in range(number):
                make_image(i).save(tmp_path / "set" / split / f"{i}.png")
                boxes, names = [[0, 0, 8, 8.5], [20, 10, 16, 16]][: i % 3], ["tail", "ear"][: i % 3]
                annotations = {"id": list(range(len(names))), "boxes": boxes, "categories": names}
                row = {"file_name": f"{i}.png", "species": ["dog", "cat"][i % 2], "annotations": annotations}
                lines.append(json.dumps(row))
            (tmp_path / "set" / split / "metadata.jsonl").write_text("\n".join(lines))
        return tmp_path / "set"

    OPTIONS = {
        "columns": {
            "label": "species",
            "objects": "annotations",
            "objects.bbox": "boxes",
            "objects.category": "categories",
        }
    }
    NAMES = {"labels": LABELS, "spatial_concepts": SPATIAL}

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("form", ["imagefolder", "parquet"])
    def test_a_foreign_dataset_trains_by_mapping_its_columns(
        self, foreign_folder, tmp_path, make_config, form, streaming
    ):
        cache = {"cache_dir": str(tmp_path / "cache")}
        if form == "parquet":
            whole = load_dataset(str(foreign_folder), **cache)
            foreign_folder = tmp_path / "parquet"
            for name, split in whole.items():
                split.to_parquet(foreign_folder / f"{name}-00000-of-00001.parquet")
        options = self.OPTIONS | cache | (self.NAMES if streaming else {})
        loaded = load_concept_dataset(str(foreign_folder), streaming=streaming, **options)
        assert concepts_from_features(loaded["train"].features) == (LABELS, [], SPATIAL)
        rows = list(loaded["train"])
        assert [row["label"] for row in rows] == [1, 0, 1, 0, 1, 0]
        assert rows[2]["objects"] == {"id": [0, 1], "bbox": [[0, 0, 8, 8.5], [20, 10, 16, 16]], "category": [1, 0]}
        assert rows[5]["image"].tobytes() == make_image(5).tobytes()

        processor = AscentViTImageProcessor.from_model_config(make_config(spatial_concepts=SPATIAL))
        backbone = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
        backbone |= {"intermediate_size": 32, "image_size": 40, "patch_size": 8}
        recipe = Recipe(
            model={"backbone_config": backbone, "fusion_heads": 4},
            per_device_train_batch_size=2,
            max_steps=2,
            dataset=str(foreign_folder),
            dataset_options=options | {"streaming": streaming},
            augmentation={"horizontal_flip": 0.5},
        )
        assert train(recipe, tmp_path / "run").steps == 2
        targets = ConceptCollator(processor)(rows[2:3])["spatial_concept_targets"].view(6, 6, 2)
        assert targets[0, 0].tolist() == [0, 1]

    def test_a_stream_of_text_needs_names(self, foreign_folder):
        with pytest.raises(ValueError, match=r"Column label holds text or numbers, .* dataset_options: {labels: \["):
            load_concept_dataset(str(foreign_folder), streaming=True, **self.OPTIONS)
        with pytest.raises(ValueError, match=r"Column objects holds text .* {spatial_concepts: \["):
            load_concept_dataset(str(foreign_folder), streaming=True, labels=LABELS, **self.OPTIONS)
        stream = load_concept_dataset(
            str(foreign_folder), streaming=True, labels=["cat", "cow"], spatial_concepts=SPATIAL, **self.OPTIONS
        )
        with pytest.raises(ValueError, match="Column label holds 'dog', which has no name among labels"):
            list(stream["train"])

    def test_names_may_be_given(self, foreign_folder, tmp_path, dataset):
        options = self.OPTIONS | {"cache_dir": str(tmp_path / "cache")}
        names = {"labels": ["dog", "cow", "cat"], "spatial_concepts": SPATIAL[::-1]}
        loaded = load_concept_dataset(str(foreign_folder), **options, **names)
        assert concepts_from_features(loaded["train"].features) == (["dog", "cow", "cat"], [], SPATIAL[::-1])
        assert loaded["train"]["label"][:2] == [0, 2]
        assert loaded["train"][2]["objects"]["category"] == [0, 1]
        with pytest.raises(ValueError, match="Column label holds 'dog', which has no name among labels"):
            load_concept_dataset(str(foreign_folder), labels=["cat", "cow"], **options)
        with pytest.raises(ValueError, match="Column objects holds 'ear', which has no name among spatial_concepts"):
            load_concept_dataset(str(foreign_folder), spatial_concepts=["tail", "paw"], **options)
        dataset.save_to_disk(tmp_path / "named")
        with pytest.raises(ValueError, match="labels differ from the names of label in the dataset"):
            load_concept_dataset(str(tmp_path / "named"), labels=["a", "b"])

    @pytest.mark.parametrize(
        "columns, message",
        [
            ({"label": "kind"}, "columns maps label to 'kind', but the split train has image, species, annotations"),
            ({"labels": "species"}, "columns may map image, label, .*, points.category; got 'labels'"),
            ({"group_id": "patient"}, "columns maps group_id to 'patient', but the split train has image, label"),
            ({"points.xy": "xy"}, "columns maps keys of points, but the split train has no such column"),
            (
                {"objects": "annotations", "objects.bbox": "box"},
                "objects.bbox to 'box', but objects has the keys id, boxes, categories",
            ),
        ],
    )
    def test_columns_that_do_not_exist(self, foreign_folder, tmp_path, columns, message):
        with pytest.raises(ValueError, match=message):
            load_concept_dataset(
                str(foreign_folder), columns={"label": "species"} | columns, cache_dir=str(tmp_path / "cache")
            )

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("given", [None, ["tail", "ear", "paw"]])
    def test_lists_of_what_is_present_alone(self, tmp_path, given, streaming):
        """Of a class, as text, under a name of their own: the dataset has spatial concepts, and no places."""
        lists = [["ear", "tail"], [], None, ["tail"]]
        columns = {"image": [make_image(i) for i in range(4)], "label": [0, 1, 0, 1], "shows": lists}
        columns["maybe"] = [None, ["ear"], None, []]
        features = Features(
            {"image": ImageFeature(), "label": ClassLabel(names=LABELS)}
            | dict.fromkeys(("shows", "maybe"), List(Value("string")))
        )
        (tmp_path / "data").mkdir()
        Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
        options = {"columns": {"present": "shows", "unknown_present": "maybe"}, "streaming": streaming}
        options |= {"cache_dir": str(tmp_path / "cache"), "spatial_concepts": given}
        if streaming and given is None:
            with pytest.raises(ValueError, match="Column present holds text .* {spatial_concepts: "):
                load_concept_dataset(tmp_path, **options)
            return
        split = load_concept_dataset(tmp_path, **options)["train"]
        names = given or SPATIAL
        assert concepts_from_features(split.features) == (LABELS, [], names)
        ids = {name: i for i, name in enumerate(names)}
        rows = list(split)
        assert [row["present"] for row in rows] == [row and [ids[name] for name in row] for row in lists]
        processor = AscentViTImageProcessor(num_spatial_concepts=len(names))
        presence = ConceptCollator(processor)(rows)["spatial_concept_presence"]
        assert presence[:, ids["tail"]].nan_to_num(-1).tolist() == [1, 0, -1, 1]
        assert presence[:, ids["ear"]].nan_to_num(-1).tolist() == [1, -1, -1, 0]
        with pytest.raises(ValueError, match="holds 'ear', which has no name among spatial_concepts"):
            list(load_concept_dataset(tmp_path, **options | {"spatial_concepts": ["tail"]})["train"])

    def test_columns_are_renamed_and_whole_numbers_become_classes(self, tmp_path):
        columns = {"img": [make_image(i) for i in range(3)], "fine": [0, 2, 1]}
        features = Features({"img": ImageFeature(), "fine": Value("int64")})
        DatasetDict(train=Dataset.from_dict(columns, features=features)).save_to_disk(tmp_path / "d")
        with pytest.raises(ValueError, match="no column image and no label; it has img, fine"):
            load_concept_dataset(str(tmp_path / "d"))
        loaded = load_concept_dataset(str(tmp_path / "d"), columns={"image": "img", "label": "fine"})
        assert loaded["train"].features["label"].names == ["0", "1", "2"]
        assert loaded["train"]["label"] == [0, 2, 1]
        options = {"columns": {"image": "img", "label": "fine"}}
        loaded = load_concept_dataset(str(tmp_path / "d"), labels=["a", "b", "c", "d"], **options)
        assert loaded["train"].features["label"].names == ["a", "b", "c", "d"]
        with pytest.raises(ValueError, match="Column label holds 2, which has no name among labels"):
            load_concept_dataset(str(tmp_path / "d"), labels=["a", "b"], **options)

    @pytest.mark.parametrize("word", ["no", "false", 0, None])
    def test_streaming_is_no_word(self, dataset, tmp_path, word):
        """YAML 1.2's `no` is a word, and any word would count as true."""
        dataset.save_to_disk(tmp_path)
        with pytest.raises(ValueError, match=f"streaming must be true or false; got {word!r}"):
            load_concept_dataset(tmp_path, streaming=word)

    def test_digits(self):
        assert len(load_concept_dataset("digits", copies=1)["train"]) == 1257
        with pytest.raises(ValueError, match="seed, copies, canvas, held_out_copies, ink, present, placed; got sizes"):
            load_concept_dataset("digits", sizes=3)

    def test_what_does_not_exist(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no dataset folder"):
            load_concept_dataset(str(tmp_path / "nowhere"))
        with pytest.raises(FileNotFoundError, match="no dataset folder"):
            load_concept_dataset(tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match="is empty"):
            load_concept_dataset(str(tmp_path))
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "a.xyz").write_text("no data")
        with pytest.raises(FileNotFoundError, match="no data files"):
            load_concept_dataset(str(tmp_path / "notes"))


@pytest.mark.nightly
@pytest.mark.parametrize("form", ["imagefolder", "parquet"])
def test_memory_stays_flat_while_streaming(tmp_path, make_config, form):
    """Noise does not compress: 2,500 images of 48 KiB, streamed three times, are 350 MiB, decoded even more."""
    split = tmp_path / "set" / "train"
    split.mkdir(parents=True)
    lines = []
    for i in range(2500):
        make_image(i, (128, 128)).save(split / f"{i}.png", compress_level=1)
        objects = {"bbox": [[8, 8, 64, 64]], "category": ["ear"]}
        lines.append(json.dumps({"file_name": f"{i}.png", "label": "cat", "objects": objects}))
    (split / "metadata.jsonl").write_text("\n".join(lines))
    folder = tmp_path / "set"
    names = {"labels": LABELS, "spatial_concepts": SPATIAL}
    if form == "parquet":
        whole = load_concept_dataset(str(folder), cache_dir=str(tmp_path / "cache"), **names)
        folder = tmp_path / "parquet"
        whole["train"].to_parquet(folder / "train-00000-of-00001.parquet", batch_size=100)
        names = {}
    stream = load_concept_dataset(str(folder), streaming=True, **names)["train"]
    processor = AscentViTImageProcessor.from_model_config(make_config(spatial_concepts=SPATIAL))
    recipe = Recipe(augmentation={"horizontal_flip": 0.5, "crop_scale": [0.5, 1.0]})
    memory = []
    for i, batch in enumerate(make_loader(stream, processor, recipe, 50, num_shuffled=0)):
        assert batch["pixel_values"].shape == (50, 3, 48, 48)
        memory.append(psutil.Process().memory_info().rss / 2**20)
        if i == 149:
            break
    # By the 40th batch, 2,000 images, the shuffle buffer of 1,000 is full.
    assert max(memory[40:]) - memory[40] < 48, memory[::10]


def test_a_dataset_of_the_shared_folder(shared_folder):
    """MNIST as the Hub holds it: parquet, class names in its features."""
    folder = shared_folder / "data" / "mnist" / "mnist"
    splits = load_dataset(str(folder), streaming=True)
    assert concepts_from_features(splits["train"].features)[0] == [str(i) for i in range(10)]


def test_a_folder_never_gives_the_rows_of_another_one(make_dataset, tmp_path):
    """`datasets` keeps what it read by the folder's name and card, which are the same for all three here."""

    def write(folder, labels):
        rows = (
            make_dataset(4)
            .remove_columns("label")
            .add_column("label", labels)
            .cast_column("label", ClassLabel(names=LABELS))
        )
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_dataset(PreparedDataset(DatasetDict(train=rows), "Same", "other", "Same.", {}), folder, None, "same")

    first, second = tmp_path / "a" / "same", tmp_path / "b" / "same"
    write(first, [0, 0, 0, 0])
    write(second, [1, 1, 1, 1])
    assert load_concept_dataset(str(first))["train"]["label"][:] == [0, 0, 0, 0]
    assert load_concept_dataset(str(second))["train"]["label"][:] == [1, 1, 1, 1]
    write(first, [0, 1, 0, 1])
    assert load_concept_dataset(str(first))["train"]["label"][:] == [0, 1, 0, 1]

# SPDX-License-Identifier: Apache-2.0
"""Annotation as people have it: each kind of file is read as it is meant, or refused or doubted in one sentence."""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from ascent_vit.data import (
    ConceptCollator,
    check_dataset,
    check_once,
    concept_features,
    concepts_from_features,
    load_concept_dataset,
)
from ascent_vit.training import Recipe, train
from ascent_vit_cli.app import run
from modeling_ascent_vit import AscentViTImageProcessorPil


WIDTH, HEIGHT = 400, 300
BACKBONE = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BACKBONE |= {"intermediate_size": 16, "image_size": 32, "patch_size": 16}


def picture(size=(WIDTH, HEIGHT), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def cell(image, **kwargs):
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} | kwargs))
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def folder(tmp_path):
    """Writes an image folder: rows of metadata by split, and images for their file names."""

    def write(splits, name="set"):
        for split, rows in splits.items():
            (tmp_path / name / split).mkdir(parents=True)
            for i, row in enumerate(rows):
                picture(seed=i).save(tmp_path / name / split / row["file_name"])
            text = "\n".join(json.dumps(row) for row in rows)
            (tmp_path / name / split / "metadata.jsonl").write_text(text)
        return tmp_path / name

    return write


def rows_of(number=6, **columns):
    """Rows of metadata; a column is a value, or a function of the row's number."""
    return [
        {"file_name": f"{i}.png", "label": ["cat", "dog"][i % 2]}
        | {name: value(i) if callable(value) else value for name, value in columns.items()}
        for i in range(number)
    ]


def boxes(*coordinates, **keys):
    """A column objects with one box for each concept."""
    names = ["ear", "tail", "paw"][: len(coordinates)]
    return {"bbox": [list(map(float, box)) for box in coordinates], "category": names} | keys


def check(capsys, dataset, *arguments):
    """Exit code and all that the command prints, on one line."""
    code = run(["check", str(dataset), *arguments])
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("Error: ")]
    return code, " ".join([shown.out, *errors])


def pixels_of(dataset, split="train"):
    """Boxes of all rows as x, y, width, height."""
    return [[[round(n, 2) for n in box] for box in row["bbox"]] for row in dataset[split]["objects"]]


CORNERS = boxes([10, 20, 110, 220], [200, 100, 390, 290])
IN_PIXELS = [[10.0, 20.0, 100.0, 200.0], [200.0, 100.0, 190.0, 190.0]]


class TestConventions:
    @pytest.mark.parametrize(
        "box_format, first, second, suspicion",
        [
            ("xyxy", [10, 20, 110, 220], [200, 100, 390, 290], "50% of 12 boxes leave the image: are they corners?"),
            ("cxcywh", [60, 120, 100, 200], [295, 195, 190, 190], "do they give the centre? box_format=cxcywh"),
            ("xywh unit", [0.025, 20 / 300, 0.25, 2 / 3], [0.5, 1 / 3, 0.475, 190 / 300], '"xywh unit"'),
            ("cxcywh unit", [0.15, 0.4, 0.25, 2 / 3], [295 / 400, 0.65, 0.475, 190 / 300], '"cxcywh unit"'),
            ("xyxy percent", [2.5, 20 / 3, 27.5, 220 / 3], [50, 100 / 3, 97.5, 290 / 3], '"xyxy percent"'),
        ],
    )
    def test_boxes(self, folder, capsys, box_format, first, second, suspicion):
        dataset = folder({"train": rows_of(objects=boxes(first, second))})
        code, shown = check(capsys, dataset)
        assert code == 0 and suspicion in shown and "box_format" in shown
        code, shown = check(capsys, dataset, "--option", f"box_format={box_format}")
        assert code == 0 and "Nothing was found" in shown
        loaded = load_concept_dataset(dataset, box_format=box_format)
        np.testing.assert_allclose(pixels_of(loaded)[0], IN_PIXELS, atol=0.02)
        stream = load_concept_dataset(
            dataset,
            box_format=box_format,
            streaming=True,
            **{"labels": ["cat", "dog"], "spatial_concepts": ["ear", "tail"]},
        )
        np.testing.assert_allclose(next(iter(stream["train"]))["objects"]["bbox"], IN_PIXELS, atol=0.02)

    @pytest.mark.parametrize("box_format", ["xywh percent", "xyxy percent"])
    def test_per_cent_in_small_pictures(self, tmp_path, box_format):
        """In pictures of 90 x 60 pixels boxes of up to 100 per cent would leave them."""
        numbers = (
            [[10, 20, 80, 75], [30, 45, 65, 50]] if "xywh" in box_format else [[10, 20, 95, 98], [70, 80, 99, 97]]
        )
        rows = {"image": [cell(picture((90, 60)))] * 3, "label": [0, 1, 0]}
        rows |= {
            "objects": [{"bbox": numbers, "category": [0, 1]}] * 3,
            "points": [{"xy": [[95, 90]], "category": [0]}] * 3,
        }
        features = concept_features(["a", "b"], spatial_concepts=["x", "y"], columns=["objects", "points"])
        report = check_dataset(DatasetDict(train=Dataset.from_dict(rows, features=features)))
        assert f'box_format="{box_format}"' in " ".join(report.warnings)
        assert "point_format=percent" in " ".join(report.warnings)

    @pytest.mark.parametrize("form", ["items", "flat items", "lists", "flat lists"])
    @pytest.mark.parametrize(
        ("names", "numbers"),
        [
            (["xmin", "ymin", "xmax", "ymax"], [10, 20, 110, 220]),
            (["x", "y", "width", "height"], [10, 20, 100, 200]),
            (["cx", "cy", "w", "h"], [60, 120, 100, 200]),
        ],
    )
    def test_boxes_whose_numbers_have_names(self, tmp_path, form, names, numbers):
        import pyarrow as pa
        import pyarrow.parquet

        box = dict(zip(names, map(float, numbers), strict=True))
        objects = {
            "items": [{"bbox": box, "label": "ear"}],
            "flat items": [{**box, "label": "ear"}],
            "lists": {"bbox": [box], "label": ["ear"]},
            "flat lists": {name: [value] for name, value in box.items()} | {"label": ["ear"]},
        }[form]
        (tmp_path / "set").mkdir()
        rows = [{"image": cell(picture()), "label": label, "objects": objects} for label in ("cat", "dog")]
        pyarrow.parquet.write_table(
            pa.Table.from_pylist([*rows, rows[0] | {"objects": None}]), tmp_path / "set" / "a.parquet"
        )
        loaded = load_concept_dataset(tmp_path / "set")
        column = loaded["train"]["objects"]
        read = [row["bbox"] if isinstance(row, dict) else row and [item["bbox"] for item in row] for row in column]
        assert read == [[IN_PIXELS[0]]] * 2 + [None]
        assert not check_dataset(loaded).errors
        wrong = "xyxy" if names[0] != "xmin" else "cxcywh"
        with pytest.raises(ValueError, match=f"The boxes of train have names of .*, and box_format says {wrong}"):
            load_concept_dataset(tmp_path / "set", box_format=wrong)

    def test_boxes_that_mean_what_they_say(self, folder, capsys):
        dataset = folder({"train": rows_of(objects=boxes(*IN_PIXELS))})
        assert "Nothing was found" in check(capsys, dataset)[1]

    def test_points(self, folder, capsys):
        points = {"xy": [[0.5, 0.5], [0.0, 0.0]], "category": ["ear", "tail"], "visible": [2, 0]}
        dataset = folder({"train": rows_of(points=points)})
        shown = check(capsys, dataset)[1]
        assert "point_format=unit" in shown
        assert "6 of 12 points (50%) are at (0, 0)" in shown and "visibility=visible" in shown
        loaded = load_concept_dataset(dataset, point_format="unit", visibility="visible")
        assert loaded["train"][0]["points"]["xy"] == [[200.0, 150.0]]
        assert loaded["train"][0]["points"]["category"] == [0]

    def test_crowds(self, folder, capsys):
        dataset = folder({"train": rows_of(objects=boxes(*IN_PIXELS, iscrowd=[0, 1]))})
        assert "6 of 12 boxes are crowds" in check(capsys, dataset)[1]
        loaded = load_concept_dataset(dataset, crowds="drop")
        assert pixels_of(loaded)[0] == IN_PIXELS[:1]

    @pytest.mark.parametrize("key", ["categories", "category_id", "label"])
    def test_the_category_by_other_names(self, folder, key):
        objects = {"bbox": IN_PIXELS, key: ["ear", "tail"]}
        loaded = load_concept_dataset(folder({"train": rows_of(objects=objects)}))
        assert concepts_from_features(loaded["train"].features)[2] == ["ear", "tail"]

    def test_no_category(self, folder, capsys):
        dataset = folder({"train": rows_of(objects={"bbox": IN_PIXELS, "kind": ["ear", "tail"]})})
        code, shown = check(capsys, dataset)
        assert code == 2 and "Column objects has no key category; it has bbox, kind" in shown

    def test_numbers_with_gaps(self, folder, caplog):
        objects = {"bbox": [*IN_PIXELS, [5.0, 5.0, 9.0, 9.0]], "category": [90, 7, 1]}
        dataset = folder({"train": rows_of(objects=objects)})
        loaded = load_concept_dataset(dataset)
        assert concepts_from_features(loaded["train"].features)[2] == ["1", "7", "90"]
        assert loaded["train"][0]["objects"]["category"] == [2, 1, 0]
        assert "3 different numbers from 1 to 90" in caplog.text and "category_names" in caplog.text
        names = {1: "ear", 7: "tail", 90: "paw", 91: "nose"}
        loaded = load_concept_dataset(dataset, category_names=names)
        assert concepts_from_features(loaded["train"].features)[2] == list(names.values())
        assert loaded["train"][0]["objects"]["category"] == [2, 1, 0]
        with pytest.raises(ValueError, match="holds 90, which has no name among category_names"):
            load_concept_dataset(dataset, category_names={1: "ear", 7: "tail"})

    def masks(self, tmp_path, *values):
        """A parquet folder of images of which a part has each of these values in its mask."""
        array = np.zeros((HEIGHT, WIDTH), np.uint8)
        for i, value in enumerate(values):
            array[:, 100 * i : 100 * (i + 1)] = value
        rows = {"image": [cell(picture())] * 2, "label": [0, 1], "mask": [cell(Image.fromarray(array))] * 2}
        features = concept_features(["cat", "dog"], spatial_concepts=["x", "y"], columns=["mask"])
        (tmp_path / "masks").mkdir()
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "masks" / "train-00000-of-00001.parquet")
        return tmp_path / "masks"

    def test_masks_of_0_and_255(self, tmp_path, capsys):
        dataset = self.masks(tmp_path, 0, 255)
        code, shown = check(capsys, dataset, "--option", "spatial_concepts=[tumour]")
        assert code == 2 and "2 of 2 masks hold 0 and 255 alone" in shown and "mask_values={255: NAME}" in shown
        loaded = load_concept_dataset(dataset, mask_values={255: "tumour"})
        assert concepts_from_features(loaded["train"].features)[2] == ["tumour"]
        assert np.unique(loaded["train"][0]["mask"]).tolist() == [0, 1]
        assert check(capsys, dataset, "--option", "mask_values={255: tumour, 0: background}")[0] == 0

    def test_masks_beyond_the_concepts(self, tmp_path, capsys):
        dataset = self.masks(tmp_path, 0, 64, 128, 7)
        code, shown = check(capsys, dataset, "--option", "spatial_concepts=[kidney, tumour]")
        assert code == 2 and "train, row 0" in shown and "give mask_values" in shown
        values = {64: "kidney", 128: "tumour", 7: "ignore"}
        mask = load_concept_dataset(dataset, mask_values=values)["train"][0]["mask"]
        assert np.unique(mask).tolist() == [0, 1, 2, 255]
        with pytest.raises(ValueError, match="holds 7, which mask_values does not name"):
            load_concept_dataset(dataset, mask_values={64: "kidney", 128: "tumour"})

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
    def test_masks_in_colours(self, tmp_path, capsys, mode):
        colors = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        colors[:, :100], colors[:, 100:150], colors[:, 150:160] = (128, 0, 0), (0, 0, 255), (224, 224, 192)
        mask = Image.fromarray(colors).convert(mode, palette=Image.Palette.ADAPTIVE)
        rows = {"image": [cell(picture())] * 2, "label": [0, 1], "mask": [cell(mask)] * 2}
        features = concept_features(["cat", "dog"], spatial_concepts=["x", "y"], columns=["mask"])
        (tmp_path / "set").mkdir()
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
        lines = "# label:color_rgb:parts:actions\nbackground:0,0,0::\near:0,0,255::\ntail:128,0,0::\n"
        (tmp_path / "set" / "labelmap.txt").write_text(lines)
        if mode != "P":
            code, shown = check(capsys, tmp_path / "set", "--option", "spatial_concepts=[ear, tail]")
            assert code == 2 and "If its colours are concepts, give mask_colors={NAME: [255, 0, 0], ...}" in shown
        for given in ("labelmap.txt", {"ear": [0, 0, 255], "tail": [128, 0, 0]}):
            loaded = load_concept_dataset(tmp_path / "set", mask_colors=given)
            assert concepts_from_features(loaded["train"].features)[2] == ["ear", "tail"]
            made = np.asarray(loaded["train"][0]["mask"])
            assert [made[0, x] for x in (0, 120, 155, 300)] == [2, 1, 255, 0]
            assert not check_dataset(loaded).errors
        with pytest.raises(
            ValueError, match=r"holds the colour \[0, 0, 255\], and 0 others, which mask_colors does not"
        ):
            load_concept_dataset(tmp_path / "set", mask_colors={"tail": [128, 0, 0]})
        with pytest.raises(ValueError, match="mask_colors must be a labelmap.txt, or as"):
            load_concept_dataset(tmp_path / "set", mask_colors={"tail": [128, 0]})
        with pytest.raises(FileNotFoundError, match="There is no file .*other.txt"):
            load_concept_dataset(tmp_path / "set", mask_colors="other.txt")

    def test_options_that_are_none(self, folder):
        dataset = folder({"train": rows_of(objects=CORNERS)})
        for options, message in (
            ({"box_format": "yxyx"}, "box_format must be xyxy, cxcywh, xywh"),
            ({"mask_values": [1, 2]}, "mask_values must be names by numbers"),
            ({"visibility": "v"}, None),
            ({"window": [5, 1]}, "window must be a low and a high value"),
            ({"class_from": "name"}, "class_from must be folder"),
        ):
            if message:
                with pytest.raises(ValueError, match=message):
                    load_concept_dataset(dataset, **options)

    def test_a_list_of_dicts_with_other_keys_and_a_row_that_cannot_be_converted(self, tmp_path):
        items = [{"bbox": [10.0, 20.0, 110.0, 220.0], "category": "ear", "id": 3}]
        broken = [{"bbox": [10.0, 20.0], "category": "ear", "id": 3}]
        rows = {"image": [cell(picture())] * 2, "label": [0, 1], "objects": [items, broken]}
        kinds = {"bbox": List(Value("float64")), "category": Value("string"), "id": Value("int64")}
        features = Features(concept_features(["cat", "dog"]) | {"objects": List(kinds)})
        DatasetDict(train=Dataset.from_dict(rows, features=features)).save_to_disk(tmp_path / "set")
        loaded = load_concept_dataset(tmp_path / "set", box_format="xyxy")
        assert pixels_of(loaded)[0] == IN_PIXELS[:1] and loaded["train"][0]["objects"]["id"] == [3]
        report = check_dataset(loaded)
        assert report.bad_rows == {"train": [1]} and "must be a list of [x, y, width, height]" in report.errors[0]


class TestRows:
    FEATURES = concept_features(["cat", "dog"], ["red", "round"], ["ear", "tail"], ["objects"])

    def dataset(self, **changes):
        rows = {
            "image": [cell(picture())] * 4,
            "label": [0, 1, 0, 1],
            "concepts": [[0], [1], [0, 1], []],
            "objects": [boxes(*IN_PIXELS) | {"category": [0, 1]}] * 4,
        }
        return DatasetDict(train=Dataset.from_dict(rows | changes, features=self.FEATURES))

    def test_all_errors_are_collected(self, tmp_path, capsys):
        flat = {"bbox": [[10, 10, 20, 0]], "category": [0]}
        good = {"bbox": [[10, 10, 20, 20]], "category": [0]}
        dataset = self.dataset(label=[0, None, -1, 1], objects=[flat, good, good, good])
        dataset.save_to_disk(tmp_path / "set")
        code, shown = check(capsys, tmp_path / "set")
        assert code == 2 and "3 errors in 4 rows" in shown
        assert "Split train, row 0: train[0].objects.bbox must overlap the image" in shown
        assert "Split train, row 1: train[1].label must be a class from 0 to 1; got None" in shown
        assert "Split train, row 2: train[2].label must be a class from 0 to 1; got -1" in shown
        assert "Would be left out: 3 rows" in check(capsys, tmp_path / "set", "--fix")[1]
        code, shown = check(capsys, tmp_path / "set", "--fix", "--output", str(tmp_path / "fixed"))
        assert code == 0 and "Left out: 3 rows" in shown
        assert load_concept_dataset(tmp_path / "fixed")["train"]["label"] == [1]

    def test_the_first_ten_and_the_number_of_the_rest(self, folder, capsys):
        dataset = folder({"train": rows_of(13, objects=boxes([10, 10, 20, 0]))})
        code, shown = check(capsys, dataset)
        assert code == 2 and shown.count("Split train, row") == 10 and "And 3 more errors" in shown
        assert str(dataset / "train" / "9.png") in shown

    @pytest.mark.parametrize("form", ["PNG", "JPEG"])
    def test_truncated_pictures_are_found_without_decoding_all(self, form):
        whole = cell(picture(), format=form)
        cut = {"bytes": whole["bytes"][: len(whole["bytes"]) // 2], "path": "cut.img"}
        report = check_dataset(self.dataset(image=[whole, whole, whole, cut]), decode=0)
        assert report.decoded == 0 or report.bad_rows == {"train": [3]}
        assert report.bad_rows == {"train": [3]} and "row 3 (cut.img)" in report.errors[0]

    def test_concepts_and_classes_without_a_row(self):
        objects = [{"bbox": IN_PIXELS[:1], "category": [0]}] * 4
        report = check_dataset(self.dataset(label=[0] * 4, concepts=[[0]] * 4, objects=objects))
        warnings = " ".join(report.warnings)
        assert "1 of 2 classes have no row in train: 'dog'" in warnings
        assert "1 of 2 spatial concepts have no row in train, and cannot be learned: 'tail'" in warnings
        assert "1 of 2 global concepts have no row in train" in warnings
        assert "1 global concepts are in every row of train, and tell nothing: 'red'" in warnings

    def test_all_concepts_null(self):
        report = check_dataset(self.dataset(concepts=[None] * 4, objects=[None] * 4))
        assert sum("No row of train says anything of the 2" in sentence for sentence in report.warnings) == 2

    def test_train_and_evaluate_check_first(self, tmp_path, caplog):
        recipe = Recipe(
            model={"backbone_config": BACKBONE, "fusion_heads": 2}, max_steps=1, per_device_train_batch_size=2
        )
        good = self.dataset()["train"]
        bad = self.dataset(label=[0, 1, 0, -1])["train"]
        with pytest.raises(ValueError, match="Split train, row 3: .*must be a class from 0 to 1; got -1"):
            train(recipe, tmp_path / "a", DatasetDict(train=bad, validation=good))
        corners = {"bbox": CORNERS["bbox"], "category": [0, 1]}
        odd = self.dataset(objects=[corners] * 4)["train"]
        train(recipe, tmp_path / "b", DatasetDict(train=odd, validation=odd))
        assert "boxes leave the image: are they corners? box_format=xyxy" in caplog.text
        caplog.clear()
        train(recipe, tmp_path / "c", DatasetDict(train=odd, validation=odd), check=False)
        assert "corners" not in caplog.text

    def test_a_flip_that_keeps_left_left(self, tmp_path, caplog):
        features = concept_features(["cat", "dog"], spatial_concepts=["left wing", "right wing"], columns=["objects"])
        rows = {"image": [cell(picture())] * 4, "label": [0, 1, 0, 1]}
        rows["objects"] = [{"bbox": IN_PIXELS, "category": [0, 1]}] * 4
        split = Dataset.from_dict(rows, features=features)
        options = {"model": {"backbone_config": BACKBONE, "fusion_heads": 2}, "max_steps": 1}
        options |= {"per_device_train_batch_size": 2}
        for pairs, warned in (([], True), ([["left wing", "right wing"]], False)):
            caplog.clear()
            augmentation = {"horizontal_flip": 0.5} | ({"flip_pairs": pairs} if pairs else {})
            recipe = Recipe(augmentation=augmentation, **options)
            train(recipe, tmp_path / str(warned), DatasetDict(train=split, validation=split))
            assert ("augmentation.flip_pairs=[[left wing, right wing]]" in caplog.text) == warned

    def test_a_report_is_kept(self, folder, monkeypatch):
        dataset = load_concept_dataset(folder({"train": rows_of(objects=CORNERS)}))
        report = check_once(dataset)
        monkeypatch.setattr("ascent_vit.data.checks.check_dataset", None)
        again = load_concept_dataset(Path(dataset["train"][0]["image"].filename).parents[1])
        assert report.warnings and check_once(again) == report

    def test_split_folders_that_become_classes(self, tmp_path, capsys):
        for split in ("train", "test"):
            (tmp_path / "set" / split).mkdir(parents=True)
            for i in range(3):
                picture(seed=i).save(tmp_path / "set" / split / f"{i}.png")
        code, shown = check(capsys, tmp_path / "set")
        assert code == 2 and "The classes are 'test', 'train', which are names of splits" in shown

    def test_several_names_in_one_cell(self, tmp_path, capsys):
        (tmp_path / "set" / "train").mkdir(parents=True)
        for i in range(3):
            picture(seed=i).save(tmp_path / "set" / "train" / f"{i}.png")
        lines = ["file_name,label,concepts", "0.png,cat,red; round", "1.png,dog,red", "2.png,dog,"]
        (tmp_path / "set" / "train" / "metadata.csv").write_text("\n".join(lines))
        code, shown = check(capsys, tmp_path / "set")
        assert code == 2 and "several names in one text, such as 'red; round'" in shown and "separator" in shown
        loaded = load_concept_dataset(tmp_path / "set", separator=";")["train"]
        assert loaded.features["concepts"].feature.names == ["red", "round"]
        assert [row and sorted(row) for row in loaded["concepts"]] == [[0, 1], [0], None]


class TestSplits:
    def parquet(self, tmp_path, **splits):
        for name, split in splits.items():
            (tmp_path / "set").mkdir(exist_ok=True)
            split.to_parquet(tmp_path / "set" / f"{name}-00000-of-00001.parquet")
        return tmp_path / "set"

    def split(self, names, labels, **columns):
        rows = {"image": [cell(picture())] * len(labels), "label": labels}
        features = {"image": ImageFeature(), "label": ClassLabel(names=names)}
        for name, (values, feature) in columns.items():
            rows[name], features[name] = values, feature
        return Dataset.from_dict(rows, features=Features(features))

    @pytest.mark.parametrize("form", ["parquet", "saved"])
    def test_numbers_of_another_order_are_taken_by_name(self, tmp_path, form):
        concepts = {"concepts": ([[0], [1]], List(ClassLabel(names=["red", "round"])))}
        turned = {"concepts": ([[0], [1]], List(ClassLabel(names=["round", "red"])))}
        splits = {
            "train": self.split(["cat", "dog"], [0, 1], **concepts),
            "test": self.split(["dog", "cat"], [0, 1], **turned),
        }
        if form == "saved":
            (tmp_path / "set").mkdir()
            DatasetDict(splits).save_to_disk(tmp_path / "set")
        loaded = load_concept_dataset(self.parquet(tmp_path, **splits) if form == "parquet" else tmp_path / "set")
        assert loaded["train"].features == loaded["test"].features
        assert loaded["train"]["label"] == [0, 1] and loaded["test"]["label"] == [1, 0]
        assert loaded["test"]["concepts"] == [[1], [0]]

    def test_a_stream_of_names_in_another_order_is_refused(self, tmp_path):
        train = self.split(["cat", "dog"], [0, 1])
        dataset = self.parquet(tmp_path, train=train, test=self.split(["dog", "cat"], [0, 1]))
        with pytest.raises(ValueError, match="in different orders, which a stream does not tell apart"):
            load_concept_dataset(dataset, streaming=True)
        concepts = {"concepts": ([[0], [1]], List(ClassLabel(names=["red", "round"])))}
        self.parquet(tmp_path, test=self.split(["cat", "dog"], [0, 1], **concepts))
        assert set(load_concept_dataset(dataset, streaming=True)) == {"train", "test"}

    def test_names_that_differ(self, tmp_path):
        dataset = self.parquet(tmp_path, train=self.split(["cat", "dog"], [0]), test=self.split(["cat", "cow"], [1]))
        with pytest.raises(ValueError, match="names of label differ between the splits train and test: 'cow'"):
            load_concept_dataset(dataset)

    def test_columns_that_a_split_lacks(self, folder, caplog):
        dataset = folder({"train": rows_of(concepts=["red"]), "test": rows_of(2)})
        with caplog.at_level("INFO"):
            loaded = load_concept_dataset(dataset)
        assert loaded["test"]["concepts"] == [None, None] and loaded["train"]["concepts"][0] == [0]
        assert caplog.text.count("No column concepts in test: not annotated there") == 1
        assert not check_dataset(loaded).errors

    def test_null_lists(self, folder, caplog):
        empty = {"bbox": [], "category": []}
        splits = {
            "train": rows_of(concepts=["red"], objects=boxes(*IN_PIXELS), present=None),
            "test": rows_of(2, concepts=[], objects=empty, present=None),
        }
        loaded = load_concept_dataset(folder(splits))
        assert loaded["test"].features == loaded["train"].features
        assert loaded["test"]["concepts"] == [[], []] and "present" not in loaded["train"].features
        assert "Column present is null or empty in every row" in caplog.text
        assert not check_dataset(loaded).errors

    def test_a_saved_split_keeps_its_name(self, tmp_path):
        split = Dataset.from_dict(
            {"image": [cell(picture())], "label": [0]},
            features=Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])}),
            split="test",
        )
        split.save_to_disk(tmp_path / "one")
        assert list(load_concept_dataset(tmp_path / "one")) == ["test"]

    def test_lists_in_lists_are_refused(self, folder, capsys):
        code, shown = check(capsys, folder({"train": rows_of(concepts=[["red"], ["round"]])}))
        assert code == 2 and "must hold a list of names for each row; got lists in lists" in shown

    def test_labels_in_lists_in_lists_are_refused(self, folder, capsys):
        code, shown = check(capsys, folder({"train": rows_of(label=[["cat", "dog"]])}))
        assert code == 2 and "Column label of train must hold a class, a list of classes, or numbers" in shown

    @pytest.mark.parametrize("form", ["struct", "bytes", "path"])
    def test_images_of_parquet_files_of_other_tools(self, tmp_path, form):
        import pyarrow as pa
        import pyarrow.parquet

        exif = Image.Exif()
        exif[274] = 6
        (tmp_path / "set").mkdir()
        picture().save(tmp_path / "set" / "a.jpg", exif=exif)
        content = (tmp_path / "set" / "a.jpg").read_bytes()
        image = {"struct": {"bytes": content, "path": None}, "bytes": content, "path": "a.jpg"}[form]
        objects = [{"bbox": [1.0, 2.0, 30.0, 40.0], "category": "ear"}]
        table = pa.Table.from_pylist([{"image": image, "label": "cat", "objects": objects}] * 2)
        pyarrow.parquet.write_table(table, tmp_path / "set" / "train.parquet")
        loaded = load_concept_dataset(tmp_path / "set")
        assert not check_dataset(loaded).errors
        assert loaded["train"][0]["image"].size == (HEIGHT, WIDTH)
        processor = AscentViTImageProcessorPil(num_spatial_concepts=2)
        batch = ConceptCollator(processor)(list(loaded["train"]))
        assert batch["spatial_concept_targets"].shape == (2, 196, 2)

    def test_masks_by_file_name(self, folder):
        dataset = folder({"train": rows_of(2, mask_file_name=lambda i: f"m{i}.png")})
        for i in range(2):
            mask = Image.fromarray(np.full((HEIGHT, WIDTH), i + 1, np.uint8))
            mask.save(dataset / "train" / f"m{i}.png")
        loaded = load_concept_dataset(dataset, spatial_concepts=["ear", "tail"])
        assert np.asarray(loaded["train"][1]["mask"]).max() > 0

    def test_the_class_from_the_folder(self, tmp_path):
        for kind in ("cat", "dog"):
            (tmp_path / "set" / "train" / kind).mkdir(parents=True)
            picture().save(tmp_path / "set" / "train" / kind / "a.png")
        lines = [json.dumps({"file_name": f"{kind}/a.png", "concepts": ["red"]}) for kind in ("dog", "cat")]
        (tmp_path / "set" / "train" / "metadata.jsonl").write_text("\n".join(lines))
        loaded = load_concept_dataset(tmp_path / "set", class_from="folder")["train"]
        assert [loaded.features["label"].names[label] for label in loaded["label"]] == ["dog", "cat"]


class TestDeepImages:
    RAMP = np.linspace(0, 4000, 64 * 64).reshape(64, 64)

    @pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
    def test_twelve_bits_are_not_black(self, kind, tmp_path):
        from modeling_ascent_vit.image_reading_ascent_vit import read_image

        image = Image.fromarray(self.RAMP.astype(kind))
        for window, top in ((None, 4095), ([0, 2000], 2000)):
            processor = AscentViTImageProcessorPil(do_resize=False, do_normalize=False, window=window)
            pixels = processor(image, return_tensors="np")["pixel_values"][0, 0]
            np.testing.assert_allclose(pixels, np.clip(self.RAMP / top, 0, 1), atol=2 / 255)
            # The same where explanations and augmentation read it, and in a processor that was saved.
            assert (np.asarray(read_image(image, window))[..., 0] == np.round(pixels * 255)).all()
            processor.save_pretrained(tmp_path)
            again = AscentViTImageProcessorPil.from_pretrained(tmp_path)
            assert again.window == window
            assert (again(image, return_tensors="np")["pixel_values"][0, 0] == pixels).all()

    @pytest.mark.parametrize("kind", ["uint16", "int16", "big endian", "tensor", "colours"])
    def test_arrays_are_as_pictures(self, kind):
        from modeling_ascent_vit import AscentViTImageProcessor
        from modeling_ascent_vit.image_reading_ascent_vit import read_image

        array = self.RAMP.astype(np.uint16)
        for window in (None, [500, 3000]):
            settings = {"do_resize": False, "do_normalize": False, "window": window}
            expected = AscentViTImageProcessorPil(**settings)(Image.fromarray(array), return_tensors="np")[
                "pixel_values"
            ]
            given = {"uint16": array, "int16": array.astype(np.int16), "big endian": array.astype(">u2")}
            given |= {"tensor": torch.from_numpy(array), "colours": np.stack([array] * 3, axis=-1)}
            for processor in (AscentViTImageProcessorPil(**settings), AscentViTImageProcessor(**settings)):
                got = processor(given[kind], return_tensors="np")["pixel_values"]
                np.testing.assert_allclose(got, np.broadcast_to(expected, got.shape), atol=1e-6)
            shown = np.asarray(read_image(given[kind], window))
            np.testing.assert_allclose(shown / 255, np.moveaxis(expected[0], 0, -1), atol=1e-6)
        assert array.max() == 4000

    def test_arrays_of_a_range_that_the_caller_knows(self):
        array = np.full((16, 16, 3), 5000, np.uint16)
        processor = AscentViTImageProcessorPil(do_resize=False, do_normalize=False, rescale_factor=1 / 10_000)
        assert np.allclose(processor(array, return_tensors="np")["pixel_values"], 0.5)
        with pytest.raises(ValueError, match="must hold values from 0 to 255"):
            AscentViTImageProcessorPil()(array.astype(np.int64))
        with pytest.raises(ValueError, match="must have values from 0 to 65535; got -3 to 5000"):
            AscentViTImageProcessorPil()(np.array([[-3, 5000]], np.int16))
        pixels = AscentViTImageProcessorPil(do_resize=False, do_normalize=False, window=[-1000, 1000])(
            np.full((16, 16), 0.0), return_tensors="np"
        )
        assert np.allclose(pixels["pixel_values"], 128 / 255)

    def test_shares_in_floats(self):
        image = Image.fromarray((self.RAMP / 4000).astype(np.float32))
        processor = AscentViTImageProcessorPil(do_resize=False, do_normalize=False)
        pixels = processor(image, return_tensors="np")["pixel_values"][0, 0]
        np.testing.assert_allclose(pixels, self.RAMP / 4000, atol=2 / 255)

    def test_a_window_that_is_none(self):
        with pytest.raises(ValueError, match="window must be a low and a high value"):
            AscentViTImageProcessorPil(window=[3])(picture())

    def test_exported_and_backend_alike(self, tmp_path):
        from ascent_vit.export import example
        from ascent_vit.export.export import image_settings
        from modeling_ascent_vit import AscentViTImageProcessor

        Image.fromarray(self.RAMP.astype(np.uint16)).save(tmp_path / "a.tiff")
        for window in (None, [100, 3000]):
            processor = AscentViTImageProcessorPil(window=window)
            expected = processor(str(tmp_path / "a.tiff"), return_tensors="np")["pixel_values"][0]
            settings = image_settings(processor)
            got = example.prepare(example.read_image(tmp_path / "a.tiff", settings["window"]), settings)
            np.testing.assert_allclose(got, expected, atol=1e-6)
            other = AscentViTImageProcessor(window=window)(Image.open(tmp_path / "a.tiff"), return_tensors="np")
            np.testing.assert_allclose(other["pixel_values"][0], expected, atol=0.02)

    def test_training_hands_the_window_on_and_the_check_asks_for_one(self, tmp_path, capsys):
        (tmp_path / "set").mkdir()
        rows = {"image": [cell(Image.fromarray(self.RAMP.astype(np.uint16)))] * 4, "label": [0, 1, 0, 1]}
        split = Dataset.from_dict(rows, features=concept_features(["a", "b"]))
        split = split.add_column("concepts", [[0], [1]] * 2, feature=List(ClassLabel(names=["x", "y"])))
        DatasetDict(train=split, validation=split).save_to_disk(tmp_path / "set")
        shown = check(capsys, tmp_path / "set")[1]
        assert "images have more than 8 bits (I;16), with values from 0 to 4000" in shown and "window=" in shown
        recipe = Recipe(
            model={"backbone_config": BACKBONE}, max_steps=1, per_device_train_batch_size=2,
            dataset=str(tmp_path / "set"), dataset_options={"window": [0, 3000]},
        )  # fmt: skip
        train(recipe, tmp_path / "run")
        saved = json.loads((tmp_path / "run" / "model" / "preprocessor_config.json").read_text())
        assert saved["window"] == [0, 3000]

    def test_scan_and_labels_at_different_places(self, tmp_path):
        nibabel = pytest.importorskip("nibabel")
        from ascent_vit.data.adapters.kits19 import check_same_place

        volume = np.zeros((4, 8, 8), np.uint8)
        turned = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [-3, 0, 0, 0], [0, 0, 0, 1.0]])
        mirrored = turned * np.array([1, -1, 1, 1])
        for name, affine in (("scan", turned), ("same", turned), ("other", mirrored)):
            nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / f"{name}.nii.gz")
        check_same_place(tmp_path / "scan.nii.gz", tmp_path / "same.nii.gz")
        with pytest.raises(ValueError, match="have different affines"):
            check_same_place(tmp_path / "scan.nii.gz", tmp_path / "other.nii.gz")


class TestMessages:
    def test_a_bad_line(self, folder, capsys):
        dataset = folder({"train": rows_of(3)})
        path = dataset / "train" / "metadata.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], lines[1][:20], lines[2]]))
        code, shown = check(capsys, dataset)
        assert code == 2 and f"{path}, line 2: no JSON" in shown and "correct the line" in shown

    def test_a_missing_image(self, folder, capsys):
        dataset = folder({"train": rows_of(3)})
        (dataset / "train" / "2.png").unlink()
        code, shown = check(capsys, dataset)
        assert code == 2 and "metadata.jsonl, line 3: the file 2.png is missing" in shown

    def test_a_parquet_file_that_is_cut(self, tmp_path, capsys):
        path = tmp_path / "set" / "train-00000-of-00001.parquet"
        path.parent.mkdir()
        split = Dataset.from_dict({"image": [cell(picture())], "label": [0]}, features=concept_features(["a", "b"]))
        split.to_parquet(path)
        path.write_bytes(path.read_bytes()[:-40])
        code, shown = check(capsys, path.parent)
        assert code == 2 and f"{path} is cut off or no parquet file" in shown

    def test_the_commands_take_no_check(self, capsys):
        for command in ("train", "evaluate"):
            assert run([command, "--help"]) == 0
            assert "--no-check" in capsys.readouterr().out

    def test_the_options_are_those_of_a_recipe_too(self, folder):
        dataset = folder({"train": rows_of(objects=CORNERS)})
        options = yaml.safe_load("{box_format: xyxy pixels, crowds: keep}")
        assert pixels_of(load_concept_dataset(dataset, **options))[0] == IN_PIXELS


@pytest.mark.slow
def test_ten_thousand_rows_take_less_than_twenty_seconds():
    """On one core, as its own clock counts: boxes, points, lists and masks, of pictures of 224 pixels."""
    number = 10_000
    images = [cell(picture((224, 224), seed), format="JPEG") for seed in range(20)]
    array = np.zeros((224, 224), np.uint8)
    array[40:100, 50:150], array[120:200, 20:90] = 1, 2
    features = concept_features(["a", "b"], ["x", "y"], ["p", "q", "r"], ["objects", "points", "mask"])
    rows = {
        "image": [images[i % 20] for i in range(number)],
        "label": [i % 2 for i in range(number)],
        "concepts": [[i % 2] for i in range(number)],
        "objects": [{"bbox": [[5.0, 5.0, 50.0, 60.0], [120.0, 90.0, 90.0, 40.0]], "category": [0, 1]}] * number,
        "points": [{"xy": [[5.0, 5.0], [200.0, 90.0], [3.0, 4.0]], "category": [0, 1, 2]}] * number,
        "mask": [cell(Image.fromarray(array))] * number,
    }
    dataset = DatasetDict(train=Dataset.from_dict(rows, features=features))
    start = time.process_time()
    report = check_dataset(dataset)
    seconds = time.process_time() - start
    print(f"\n{number:,} rows checked in {seconds:.1f} s, {report.decoded} pictures decoded")
    assert not report.errors and not report.warnings and report.rows == number
    assert seconds < 20

# SPDX-License-Identifier: Apache-2.0
"""CUB-200-2011 from its archive."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from datasets import Image as ImageFeature

from ascent_vit.data import load_concept_dataset
from ascent_vit.data.adapters import load_adapter
from ascent_vit.data.adapters.cub import ATTRIBUTE_PARTS, CBM_112, CT_108, GLOBAL_ATTRIBUTES, prepare
from ascent_vit.data.checks import validate_dataset


def rows(prepared):
    """Every row, images as stored."""
    return {
        name: split.cast_column("image", ImageFeature(decode=False)).to_list()
        for name, split in prepared.dataset.items()
    }


def concepts_at(dataset, row):
    """Names of the spatial concepts at each place of a row."""
    names = dataset.features["points"]["category"].feature.names
    points = dataset[row]["points"]
    places: dict[tuple, list] = {}
    for place, category in zip(points["xy"], points["category"], strict=True):
        places.setdefault(tuple(place), []).append(names[category])
    return places


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_real_archive(shared_folder):
    source = shared_folder / "data" / "cub"
    prepared = prepare(source)
    validate_dataset(prepared.dataset)
    dataset = prepared.dataset
    assert {name: len(split) for name, split in dataset.items()} == {"train": 1080, "validation": 120, "test": 1090}
    features = dataset["train"].features
    assert len(features["label"].names) == 200
    assert len({label for split in dataset.values() for label in split["label"]}) == 40
    assert len(features["concepts"].feature.names) == 13
    assert len(features["points"]["category"].feature.names) == 95
    names = dict(line.split(None, 1) for line in (source / "attributes.txt").read_text().splitlines())
    found = features["concepts"].feature.names + features["points"]["category"].feature.names
    assert sorted(found) == sorted(names[str(i)] for i in CT_108)
    assert rows(prepare(source)) == rows(prepared)
    assert prepared.settings["attributes"] == "class" and prepared.settings["seed"] == 0

    root = source / "CUB_200_2011"
    official = dict(line.split() for line in (root / "train_test_split.txt").read_text().splitlines())
    assert {official[str(i)] for i in dataset["test"]["image_id"]} == {"0"}
    assert {official[str(i)] for name in ("train", "validation") for i in dataset[name]["image_id"]} == {"1"}
    assert sum(len(split) for split in dataset.values()) == len(official) == 2290

    # Every point is a visible part's official location, and every such part is inside its image.
    visible: dict[int, set] = {}
    for line in (root / "parts" / "part_locs.txt").read_text().splitlines():
        image, _, x, y, shown = line.split()
        if shown == "1":
            visible.setdefault(int(image), set()).add((np.float32(x), np.float32(y)))
    for split in dataset.values():
        plain = split.select_columns(["image_id", "points"])
        for row in plain:
            assert {(np.float32(x), np.float32(y)) for x, y in row["points"]["xy"]} <= visible[row["image_id"]]
    assert "there were 0." in prepared.description and "it was for 12 images" in prepared.description


@pytest.mark.parametrize("selection, number", [("cbm112", 112), ("threshold", 108)])
def test_selections_of_the_real_archive(shared_folder, selection, number):
    prepared = prepare(shared_folder / "data" / "cub", concepts=selection)
    features = prepared.dataset["test"].features
    found = features["concepts"].feature.names + features["points"]["category"].feature.names
    lines = (shared_folder / "data" / "cub" / "attributes.txt").read_text().splitlines()
    names = dict(line.split(None, 1) for line in lines)
    if selection == "cbm112":
        assert sorted(found) == sorted(names[str(i)] for i in CBM_112)
    assert len(found) == number
    assert {name.split("::")[0] for name in features["concepts"].feature.names} <= set(GLOBAL_ATTRIBUTES)


def test_the_selections_are_the_published_ones(shared_folder):
    text = (shared_folder / "data" / "cub" / "cbm_selected_112_zero_based.txt").read_text()
    assert [int(i) + 1 for i in text.replace(",", " ").split()] == list(CBM_112)
    assert len(set(CT_108)) == 108 and list(CT_108) == sorted(CT_108)


@pytest.mark.parametrize("per_image", [False, True])
def test_lists_of_what_is_present(write_cub, tmp_path, per_image):
    source = write_cub(tmp_path, per_image)
    # The beak of image 1 is hidden.
    replace(source / "CUB_200_2011" / "parts" / "part_locs.txt", "1 2 4.0 2.0 1", "1 2 0.0 0.0 0")
    plain = prepare(source, validation_share=0)
    assert not {"present", "unknown_present"} & set(plain.dataset["train"].features)
    prepared = prepare(source, validation_share=0, present=True)
    validate_dataset(prepared.dataset)
    train = prepared.dataset["train"]
    assert rows(plain)["train"] == [
        {name: row[name] for name in plain.dataset["train"].features} for row in rows(prepared)["train"]
    ]
    names = train.features["present"].feature.names
    assert names == train.features["points"]["category"].feature.names
    present, unknown = ([{names[i] for i in row} for row in train[name]] for name in ("present", "unknown_present"))
    if per_image:
        # Of image 1 the beak's shape is stated, the head's pattern only guessed.
        assert present == [{"has_bill_shape::4"}, set()]
        assert unknown == [{"has_bill_shape::4", "has_head_pattern::7"}, set()]
    else:
        assert present == [
            {"has_bill_shape::4", "has_head_pattern::7"},
            {"has_bill_shape::1", "has_breast_pattern::2"},
        ]
        assert unknown == [{"has_bill_shape::4"}, set()]
    assert "`present` lists" in prepared.description and "`present`" not in plain.description
    assert prepared.settings["present"] is True and plain.settings["present"] is None


def test_attributes_by_class(write_cub, tmp_path):
    prepared = load_adapter("cub")(write_cub(tmp_path), validation_share=0)
    validate_dataset(prepared.dataset)
    assert list(prepared.dataset) == ["train", "test"]
    train, test = prepared.dataset["train"], prepared.dataset["test"]
    assert (train["image_id"][:], test["image_id"][:]) == ([1, 3], [2, 4])
    assert train.features["label"].names == ["Black footed Albatross", "Laysan Albatross"]
    # Beak, crown and eyes; a pattern of the head is not one of the forehead, which is part 6 at (12, 6).
    beak, crown, left_eye, right_eye = (4.0, 2.0), (10.0, 5.0), (14.0, 7.0), (22.0, 11.0)
    head = ["has_head_pattern::7"]
    assert concepts_at(train, 0) == {beak: ["has_bill_shape::4"], crown: head, left_eye: head, right_eye: head}
    assert concepts_at(train, 1) == {beak: ["has_bill_shape::1"], (8.0, 4.0): ["has_breast_pattern::2"]}
    assert train[0]["concepts"] == [0] and train.features["concepts"].feature.names[0] == "has_size::1"
    assert test[1]["bbox"] == [30.0, 5.0, 10.0, 20.0]
    assert "unknown_concepts" not in train.features


def test_attributes_of_parts_as_global_concepts_too(write_cub, tmp_path):
    """The global stream gets every attribute, the places stay as they were."""
    source = write_cub(tmp_path, True)
    whole, every = (prepare(source, validation_share=0, global_concepts=name) for name in ("whole", "all"))
    validate_dataset(every.dataset)
    before, train = whole.dataset["train"], every.dataset["train"]
    spatial = before.features["points"]["category"].feature.names
    names = train.features["concepts"].feature.names
    assert set(names) == {*before.features["concepts"].feature.names, *spatial}
    assert train.features["points"] == before.features["points"] and train["points"] == before["points"]
    # A part's attribute is present in the image where a part shows it, and known to be.
    for row in train:
        shown, unknown = ({names[i] for i in row[column]} for column in ("concepts", "unknown_concepts"))
        assert {spatial[i] for i in row["points"]["category"]} <= shown and not shown & unknown
    assert "All attributes, of the whole bird and of parts, are global concepts." in every.description
    assert "Attributes of the whole bird are global concepts." in whole.description
    assert every.settings["global_concepts"] == "all"


def test_images_are_the_files_themselves(write_cub, tmp_path):
    prepared = prepare(write_cub(tmp_path))
    files = sorted((tmp_path / "CUB_200_2011" / "images").rglob("*.jpg"))
    stored = [row["image"]["bytes"] for split in rows(prepared).values() for row in split]
    assert sorted(stored) == sorted(path.read_bytes() for path in files)


def test_attributes_by_image(write_cub, tmp_path):
    source = write_cub(tmp_path, per_image=True)
    certain = prepare(source, validation_share=0).dataset["train"]
    names = certain.features["concepts"].feature.names
    # Of image 1, the bill is certain enough, the head's pattern is not, and the size is not known.
    assert concepts_at(certain, 0) == {(4.0, 2.0): ["has_bill_shape::4"]}
    assert certain[0]["concepts"] == [] and [names[i] for i in certain[0]["unknown_concepts"]] == ["has_size::1"]
    assert certain[1]["unknown_concepts"] == [] and certain[1]["points"] == {"xy": [], "category": []}
    guessed = prepare(source, validation_share=0, min_certainty=2).dataset["train"]
    assert set(concepts_at(guessed, 0)) == {(4.0, 2.0), (10.0, 5.0), (14.0, 7.0), (22.0, 11.0)}
    assert [names[i] for i in guessed[0]["concepts"]] == ["has_size::1"] and guessed[0]["unknown_concepts"] == []
    by_class = prepare(source, validation_share=0, attributes="class")
    assert by_class.settings["attributes"] == "class"
    assert concepts_at(by_class.dataset["train"], 1).keys() == {(4.0, 2.0), (8.0, 4.0)}


def test_threshold(write_cub, tmp_path):
    source = write_cub(tmp_path)
    prepared = prepare(source, concepts="threshold", min_classes=1)
    features = prepared.dataset["train"].features
    assert features["concepts"].feature.names == ["has_size::1", "has_size::3"]
    assert len(features["points"]["category"].feature.names) == 4
    assert prepared.settings["min_classes"] == 1 and prepared.settings["majority"] == 50.0
    with pytest.raises(ValueError, match="No attribute is that of 2 classes"):
        prepare(source, concepts="threshold", min_classes=2)


def test_parts_are_named_exactly():
    assert ATTRIBUTE_PARTS["has_head_pattern"] == ("crown", "left eye", "right eye")
    assert ATTRIBUTE_PARTS["has_forehead_color"] == ("forehead",)
    assert not set(ATTRIBUTE_PARTS) & set(GLOBAL_ATTRIBUTES)


def test_validation_is_cut_from_train_by_the_seed(shared_folder):
    def ids(seed):
        dataset = prepare(shared_folder / "data" / "cub", seed=seed, validation_share=0.2).dataset
        return {name: set(split["image_id"]) for name, split in dataset.items()}

    first, second = ids(0), ids(1)
    assert first["test"] == second["test"] and first["validation"] != second["validation"]
    assert len(first["validation"]) == len(second["validation"]) == 240
    assert not first["validation"] & (first["train"] | first["test"])


ROOT = "CUB_200_2011"


@pytest.mark.parametrize(
    "damage, error, message",
    [
        (lambda f: (f / ROOT / "images.txt").unlink(), FileNotFoundError, "images.txt is missing"),
        (lambda f: (f / "attributes.txt").unlink(), FileNotFoundError, "attributes.txt is missing"),
        (lambda f: (f / ROOT / "parts" / "part_locs.txt").unlink(), FileNotFoundError, "part_locs.txt is missing"),
        (
            lambda f: (f / ROOT / "images" / "001.Bird" / "Bird_1.jpg").unlink(),
            FileNotFoundError,
            "Bird_1.jpg is missing",
        ),
        (
            lambda f: (f / ROOT / "images" / "001.Bird" / "Bird_1.jpg").write_bytes(
                (f / ROOT / "images" / "001.Bird" / "Bird_1.jpg").read_bytes()[:900]
            ),
            ValueError,
            "Bird_1.jpg cannot be read",
        ),
        (lambda f: replace(f / ROOT / "images.txt", "2 001", "1 001"), ValueError, "line 2: the id 1 is there twice"),
        (
            lambda f: replace(f / ROOT / "bounding_boxes.txt", "4 30.0", "4 40.0"),
            ValueError,
            "image 4: the box .* lies outside its image of width 40 and height 30",
        ),
        (
            lambda f: replace(f / ROOT / "bounding_boxes.txt", "\n2 0.0 0.0 40.0 30.0", ""),
            ValueError,
            "bounding_boxes.txt lacks the image 2",
        ),
        (lambda f: replace(f / ROOT / "bounding_boxes.txt", "30.0 20.0", "30.0"), ValueError, "expected 5 fields"),
        (lambda f: replace(f / ROOT / "bounding_boxes.txt", "30.0 20.0", "30.0 x"), ValueError, "expected a number"),
        (lambda f: replace(f / ROOT / "image_class_labels.txt", "3 2", "3 9"), ValueError, "from 1 to 2; got '9'"),
        (
            lambda f: replace(f / ROOT / "parts" / "part_locs.txt", "2 3 6.0 3.0 1\n", ""),
            ValueError,
            "has 14 of the 15 parts of image 2",
        ),
        (
            lambda f: replace(f / ROOT / "parts" / "part_locs.txt", "1 3 6.0", "1 3 60.0"),
            ValueError,
            "1 of 59 visible part locations lie outside",
        ),
        (lambda f: replace(f / ROOT / "parts" / "parts.txt", "2 beak", "2 bill"), ValueError, "lacks the parts beak"),
        (
            lambda f: (f / ROOT / "classes.txt").write_bytes("1 001.Möwe\n2 002.Star\n".encode("latin-1")),
            ValueError,
            "classes.txt is not UTF-8",
        ),
        (
            lambda f: replace(f / ROOT / "attributes" / "class_attribute_labels_continuous.txt", "12.5 ", ""),
            ValueError,
            "must have 2 lines of 312 numbers",
        ),
        (
            lambda f: replace(f / ROOT / "attributes" / "image_attribute_labels.txt", "4 2 0 4 1.5\n", ""),
            ValueError,
            "lacks attribute 2 of image 4",
        ),
        (
            lambda f: replace(f / ROOT / "attributes" / "image_attribute_labels.txt", "4 2 0 4", "4 5 0 4"),
            ValueError,
            "image 4 has attribute 5 twice",
        ),
        (
            lambda f: replace(f / ROOT / "attributes" / "image_attribute_labels.txt", "4 2 0 4", "4 2 0 5"),
            ValueError,
            "a certainty from 1 to 4",
        ),
    ],
)
def test_bad_archives(write_cub, tmp_path, damage, error, message):
    source = write_cub(tmp_path, per_image=True)
    damage(source)
    with pytest.raises(error, match=message):
        prepare(source)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"concepts": "108"}, "concepts must be ct108, cbm112, threshold"),
        ({"global_concepts": "bird"}, "global_concepts must be whole, all; got 'bird'"),
        ({"attributes": "bird"}, "attributes must be auto, image, class"),
        ({"min_certainty": 0}, "min_certainty must be from 1 to 4"),
        ({"majority": 0.0}, "majority must be"),
        ({"validation_share": 1.0}, "validation_share"),
    ],
)
def test_bad_options(write_cub, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(write_cub(tmp_path), **options)


def test_image_attributes_must_exist_where_they_are_asked_for(write_cub, tmp_path):
    with pytest.raises(FileNotFoundError, match="image_attribute_labels.txt is missing.*attributes=class"):
        prepare(write_cub(tmp_path), attributes="image")


@pytest.mark.nightly
def test_a_run_that_is_killed_is_not_in_the_way_of_the_next(shared_folder, tmp_path):
    output = tmp_path / "out" / "cub"
    command = [sys.executable, "-m", "ascent_vit_cli", "prepare", "cub", "--output", str(output)]
    command += ["--source", str(shared_folder / "data" / "cub")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(output.parent.glob(".*/data/train*.partial")):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not output.exists()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    splits = load_concept_dataset(str(output))
    assert {name: len(split) for name, split in splits.items()} == {"train": 1080, "validation": 120, "test": 1090}


def test_an_unknown_adapter():
    with pytest.raises(ValueError, match="There is no adapter 'birds'; there are cub, apy, awa2, kits19, mnist"):
        load_adapter("birds")

# SPDX-License-Identifier: Apache-2.0
"""Animals with Attributes 2: its text files, its images in the archive's layout, both kinds of split."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from ascent_vit.data import concepts_from_features
from ascent_vit.data.adapters import load_adapter
from ascent_vit.data.adapters.awa2 import (
    PROPOSED_TEST_CLASSES,
    STANDARD_TEST_CLASSES,
    read_names,
    read_predicates,
    read_proposed_split,
)
from ascent_vit.data.checks import validate_dataset


CLASSES = ["antelope", "grizzly+bear", "killer+whale", "seal"]
PREDICATES = ["black", "furry", "swims"]
MATRIX = [[0, 1, 0], [1, 1, 0], [1, 0, 1], [0, 0, 1]]
IMAGES_PER_CLASS = 10

prepare = load_adapter("awa2")


def write_archive(folder, numbered=True, classes=CLASSES, matrix=MATRIX):
    folder.mkdir(parents=True, exist_ok=True)
    for name, entries in (("classes.txt", classes), ("predicates.txt", PREDICATES)):
        lines = [f"{i:5d}\t{entry}" if numbered else f"{entry}  " for i, entry in enumerate(entries, start=1)]
        (folder / name).write_text("\n".join(lines))
    (folder / "predicate-matrix-binary.txt").write_text("\n".join(" ".join(map(str, row)) for row in matrix))
    for label, name in enumerate(classes):
        (folder / "JPEGImages" / name).mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            image = Image.new("RGB", (20 + number, 16), (60 * label, 20 * number, 0))
            image.save(folder / "JPEGImages" / name / f"{name}_{10001 + number}.jpg")
    return folder


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path / "archive")


def rows_of(prepared):
    return {
        name: [(row["image_name"], row["label"], row["concepts"], np.asarray(row["image"]).tobytes()) for row in split]
        for name, split in prepared.dataset.items()
    }


def test_the_real_files_are_50_classes_of_85_predicates(shared_folder):
    folder = shared_folder / "data" / "awa2"
    if not folder.is_dir():
        pytest.skip("no AwA2 files")
    classes, predicates = read_names(folder / "classes.txt"), read_names(folder / "predicates.txt")
    matrix = read_predicates(folder / "predicate-matrix-binary.txt", 50, 85)
    assert (len(classes), len(predicates), len(matrix)) == (50, 85, 50)
    assert classes[:2] == ["antelope", "grizzly+bear"] and classes[-1] == "dolphin"
    of = {name: {predicates[i] for i in present} for name, present in zip(classes, matrix, strict=True)}
    assert {"stripes", "hooves", "quadrapedal"} <= of["zebra"] and "flies" not in of["zebra"]
    assert {"swims", "ocean", "hairless"} <= of["blue+whale"] and "furry" not in of["blue+whale"]
    assert classes == read_names(folder / "classes.txt")
    assert set(classes) > PROPOSED_TEST_CLASSES and set(classes) > STANDARD_TEST_CLASSES
    numbers = np.array([line.split() for line in (folder / "predicate-matrix-binary.txt").read_text().splitlines()])
    assert sum(map(len, matrix)) == (numbers == "1").sum()


@pytest.mark.parametrize("numbered", [True, False])
def test_rows_bear_their_class_and_its_attributes(tmp_path, numbered):
    prepared = prepare(write_archive(tmp_path / "Animals_with_Attributes2", numbered).parent)
    validate_dataset(prepared.dataset)
    assert concepts_from_features(prepared.dataset["train"].features) == (CLASSES, PREDICATES, [])
    assert {name: len(split) for name, split in prepared.dataset.items()} == {"train": 28, "validation": 4, "test": 8}
    names = []
    for split in prepared.dataset.values():
        assert np.bincount(split["label"]).std() == 0
        for row in split:
            names.append(row["image_name"])
            name, number = row["image_name"].split("/")[0], int(row["image_name"][-6:-4]) - 1
            assert CLASSES[row["label"]] == name and row["image"].size == (20 + number, 16)
            assert row["concepts"] == [i for i, value in enumerate(MATRIX[row["label"]]) if value]
    assert len(set(names)) == len(names) == 40


def test_attributes_with_a_place_are_listed(archive):
    prepared = prepare(archive, spatial=["swims", "black"])
    validate_dataset(prepared.dataset)
    features = prepared.dataset["train"].features
    assert list(features) == ["image", "label", "concepts", "present", "image_name"]
    assert concepts_from_features(features) == (CLASSES, ["furry"], ["swims", "black"])
    for split in prepared.dataset.values():
        for row in split.select_columns(["label", "concepts", "present"]):
            black, furry, swims = MATRIX[row["label"]]
            assert row["concepts"] == [0] * furry and row["present"] == [0] * swims + [1] * black
    assert "but for swims, black, which are spatial ones" in prepared.description
    for wrong in (["swims", "horns"], ["swims", "swims"]):
        with pytest.raises(ValueError, match="spatial must list attributes of predicates.txt, each once"):
            prepare(archive, spatial=wrong)
    every = prepare(archive, spatial=PREDICATES).dataset["test"]
    assert concepts_from_features(every.features) == (CLASSES, [], PREDICATES) and "concepts" not in every.features


def test_images_are_the_files_bytes(archive):
    from datasets import Image as ImageFeature

    split = prepare(archive).dataset["test"].cast_column("image", ImageFeature(decode=False))
    for row in split:
        assert row["image"]["bytes"] == (archive / "JPEGImages" / row["image_name"]).read_bytes()


def test_the_seed_decides_the_split(archive):
    first = prepare(archive, seed=1)
    assert rows_of(first) == rows_of(prepare(archive, seed=1))
    other = prepare(archive, seed=2)
    assert rows_of(first)["test"] != rows_of(other)["test"]
    assert first.settings["seed"] == 1 and "seed 1" in first.description


def test_the_proposed_split_keeps_classes_apart(archive, tmp_path):
    folder = tmp_path / "xlsa17"
    folder.mkdir()
    (folder / "testclasses.txt").write_text("seal\nantelope\n")
    (folder / "trainvalclasses.txt").write_text("grizzly+bear\nkiller+whale\n")
    prepared = prepare(archive, split="proposed", split_folder=str(folder))
    labels = {name: {CLASSES[label] for label in split["label"]} for name, split in prepared.dataset.items()}
    assert labels["test"] == {"seal", "antelope"} and len(prepared.dataset["test"]) == 20
    assert labels["train"] == labels["validation"] == {"grizzly+bear", "killer+whale"}
    validate_dataset(prepared.dataset)

    (folder / "trainvalclasses.txt").write_text("grizzly+bear\nseal\n")
    with pytest.raises(ValueError, match="every class once; they do not for killer\\+whale, seal"):
        prepare(archive, split="proposed", split_folder=str(folder))
    (folder / "testclasses.txt").write_text("unicorn\n")
    with pytest.raises(ValueError, match="unicorn"):
        prepare(archive, split="proposed", split_folder=str(folder))
    with pytest.raises(FileNotFoundError, match="testclasses.txt is missing.*split=instance"):
        prepare(archive, split="proposed")


def column(values, dtype=object):
    """A column, as MATLAB stores lists; of objects, a cell array."""
    cells = np.empty((len(values), 1), dtype=dtype)
    cells[:, 0] = values
    return cells


# In xlsa17.zip, images are in another order than their names.
ORDER = [f"{name}/{name}_{10001 + i}.jpg" for i in (3, 1, 0, 2, *range(4, 10)) for name in CLASSES[::-1]]
UNSEEN, SEEN = {"seal"}, ["antelope", "grizzly+bear", "killer+whale"]


def write_xlsa17(folder, order=ORDER, **changes):
    """Files of the proposed split: the seal is unseen; of the other classes the first image of `ORDER` is for test."""
    folder.mkdir(exist_ok=True)
    classes = [file.split("/")[0] for file in ORDER]
    first = [classes.index(name) for name in SEEN]
    places = {
        "trainval_loc": [i + 1 for i, name in enumerate(classes) if name in SEEN and i not in first],
        "test_seen_loc": [i + 1 for i in first],
        "test_unseen_loc": [i + 1 for i, name in enumerate(classes) if name in UNSEEN],
    }
    variables = {name: column(values, np.uint16) for name, values in places.items()}
    variables |= {"allclasses_names": column(CLASSES), "att": np.zeros((3, 4))}
    savemat(folder / "att_splits.mat", variables | changes)
    files = column([f"/BS/work/Animals_with_Attributes2//JPEGImages/{file}" for file in order])
    savemat(folder / "res101.mat", {"image_files": files, "features": np.zeros((2, len(order)))})
    return folder


def test_the_proposed_split_is_that_of_its_files(archive, tmp_path):
    folder = write_xlsa17(tmp_path / "AWA2")
    options = {"split": "proposed", "split_folder": str(folder)}
    prepared = prepare(archive, **options)
    validate_dataset(prepared.dataset)
    names = {name: set(split["image_name"]) for name, split in prepared.dataset.items()}
    assert names["test"] == {file for file in ORDER if file.startswith("seal")}
    assert names["test_seen"] == {f"{name}/{name}_10004.jpg" for name in SEEN}
    assert {name: len(found) for name, found in names.items()} == {
        "train": 24,
        "validation": 3,
        "test": 10,
        "test_seen": 3,
    }
    assert set.union(*names.values()) == set(ORDER) and "test_seen holds the others" in prepared.description
    assert rows_of(prepared) == rows_of(prepare(archive, **options))
    expected = [(CLASSES.index(name), f"{name}/{name}_10004.jpg") for name in reversed(SEEN)]
    assert read_proposed_split(folder, CLASSES)["test_seen"] == expected


def test_bad_files_of_the_proposed_split(archive, tmp_path):
    folder = tmp_path / "AWA2"

    def check(error, message, order=ORDER, **changes):
        write_xlsa17(folder, order, **changes)
        with pytest.raises(error, match=message):
            prepare(archive, split="proposed", split_folder=str(folder))

    check(ValueError, "once in trainval_loc", test_seen_loc=column([1, 2], np.uint16))
    check(ValueError, "once in trainval_loc", order=ORDER[:-1])
    check(ValueError, "once in trainval_loc", order=[*ORDER[:-1], ORDER[0]])
    check(ValueError, "must have the same classes; they differ in bat", allclasses_names=column([*CLASSES, "bat"]))
    check(ValueError, "no class of classes.txt, as bat/1.jpg", order=["bat/1.jpg", *ORDER[1:]])
    check(ValueError, "they differ in 2, as antelope/a.jpg", order=[*ORDER[:-1], "antelope/a.jpg"])
    whole, seal = range(1, len(ORDER) + 1), ORDER.index("seal/seal_10001.jpg") + 1
    rest, unseen = column([i for i in whole if i != seal], np.uint16), column([seal], np.uint16)
    empty = np.zeros((0, 1), np.uint16)
    check(ValueError, "not so for seal", trainval_loc=rest, test_unseen_loc=unseen, test_seen_loc=empty)
    write_xlsa17(folder)
    savemat(folder / "att_splits.mat", {"allclasses_names": column(CLASSES)})
    with pytest.raises(ValueError, match="has no trainval_loc and no test_unseen_loc"):
        prepare(archive, split="proposed", split_folder=str(folder))
    for content in (b"", b"no MATLAB file" * 20, (folder / "res101.mat").read_bytes()[:200]):
        write_xlsa17(folder)
        (folder / "res101.mat").write_bytes(content)
        with pytest.raises(ValueError, match="res101.mat cannot be read as a MATLAB file"):
            prepare(archive, split="proposed", split_folder=str(folder))
    (folder / "res101.mat").unlink()
    with pytest.raises(FileNotFoundError, match="res101.mat is missing.*the order of its image_files, which nothing"):
        prepare(archive, split="proposed", split_folder=str(folder))


def test_the_standard_split_is_not_taken_for_the_proposed_one(tmp_path):
    classes = sorted(STANDARD_TEST_CLASSES) + ["zebra"]
    archive = write_archive(tmp_path / "archive", classes=classes, matrix=[[1, 0, 0]] * 11)
    (archive / "testclasses.txt").write_text("\n".join(sorted(STANDARD_TEST_CLASSES)))
    (archive / "trainclasses.txt").write_text("zebra\n")
    with pytest.warns(UserWarning, match="standard split"):
        prepared = prepare(archive, split="proposed")
    assert "the standard split" in prepared.description


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("classes.txt", b"1 antelope\n3 seal\n", "line 2: expected the number 2"),
        ("classes.txt", b"antelope\nantelope\n", "antelope twice"),
        ("classes.txt", b"", "empty"),
        ("classes.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("classes.txt", b"antelope\n", "row for each of the 1 classes; got 4"),
        ("predicates.txt", b"black\n", "each of the 1 predicates; got 3"),
        ("predicate-matrix-binary.txt", b"0 1 0\n1 1 0\n1 0 2\n0 0 1", "line 3"),
        ("predicate-matrix-binary.txt", b"0 1 0\n1 1 0\n1 0", "4 classes; got 3"),
        ("JPEGImages/seal/seal_10002.jpg", b"no image", "seal_10002.jpg cannot be read"),
    ],
)
def test_bad_files_are_one_clear_error(archive, file, content, message):
    (archive / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepare(archive)


def test_an_image_that_is_cut_off_is_an_error(archive):
    path = archive / "JPEGImages" / "antelope" / "antelope_10003.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="antelope_10003.jpg cannot be read"):
        prepare(archive)


def test_missing_files_are_one_clear_error(archive):
    for path in (archive / "JPEGImages" / "seal").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no images of seal. Unpack the whole archive"):
        prepare(archive)
    (archive / "JPEGImages" / "seal").rename(archive / "JPEGImages" / "sea lion")
    with pytest.raises(ValueError, match="sea lion"):
        prepare(archive)
    (archive / "predicates.txt").unlink()
    with pytest.raises(FileNotFoundError, match="predicates.txt is missing"):
        prepare(archive)


@pytest.mark.parametrize("options", [{"split": "other"}, {"test_share": 1.0}, {"validation_share": -0.1}])
def test_bad_options_are_refused(archive, options):
    with pytest.raises(ValueError, match="must be"):
        prepare(archive, **options)

# SPDX-License-Identifier: Apache-2.0
"""aPascal and aYahoo: annotation lines, and objects of generated images in the archive's layout."""

import numpy as np
import pytest
from PIL import Image

from ascent_vit.data import concepts_from_features
from ascent_vit.data.adapters import load_adapter
from ascent_vit.data.adapters.apy import PASCAL_CLASSES, YAHOO_CLASSES, crop_object, read_objects
from ascent_vit.data.checks import validate_dataset
from modeling_ascent_vit import AscentViTImageProcessorPil


NAMES = [f"attribute {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(64)]
WIDTH, HEIGHT = 120, 80

prepare = load_adapter("apy")


def line(image, label, box, attributes):
    return " ".join([image, label, *map(str, box), *("1" if i in attributes else "0" for i in range(64))])


def write_archive(folder):
    """Six images of a red object on black in train, two objects in one image in test, one in yahoo."""
    rng = np.random.default_rng(0)
    (folder / "attribute_data").mkdir(parents=True)
    (folder / "attribute_data" / "attribute_names.txt").write_text("\n".join(NAMES) + "\n")
    lines = {"apascal_train.txt": [], "apascal_test.txt": [], "ayahoo_test.txt": []}
    places = [("apascal_train.txt", f"2008_{i:06d}.jpg", 1) for i in range(20)]
    places += [("apascal_test.txt", "2008_000100.jpg", 2), ("ayahoo_test.txt", "zebra_1.jpg", 1)]
    for file, name, number in places:
        pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        for i in range(number):
            left, top = int(rng.integers(0, 70)), int(rng.integers(0, 40))
            width, height = (int(side) for side in rng.integers(8, 40, size=2))
            pixels[top : top + height, left : left + width, i] = 255
            label = "zebra" if file.startswith("ayahoo") else ["dog", "person"][i]
            box = (left + 1, top + 1, left + width, top + height)
            lines[file].append(line(name, label, box, {i, 10, 63}))
        images = folder / ("ayahoo_test_images" if label == "zebra" else "VOCdevkit/VOC2008/JPEGImages")
        images.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(images / name, quality=100, subsampling=0)
    for file, content in lines.items():
        (folder / "attribute_data" / file).write_text("\n".join(content) + "\n")
    return folder


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path / "archive")


def rows_of(prepared):
    return {
        name: [
            (row["group_id"], row["line"], row["label"], row["objects"], np.asarray(row["image"]).tobytes())
            for row in split
        ]
        for name, split in prepared.dataset.items()
    }


def test_the_real_test_file_has_6355_objects(shared_folder):
    path = shared_folder / "data" / "apy" / "apascal_test.txt"
    if not path.is_file():
        pytest.skip("no aPY files")
    objects = read_objects(path)
    assert len(objects) == 6355 and len({item.image for item in objects}) == 2227
    assert {item.label for item in objects} == set(PASCAL_CLASSES)
    assert sum(item.label == "person" for item in objects) == 2571
    first = objects[0]
    assert (first.image, first.label, first.box) == ("2008_000002.jpg", "tvmonitor", (33, 11, 447, 292))
    assert first.attributes == (0, 50, 52, 53, 57, 61)
    ones = sum(text.split()[6:].count("1") for text in path.read_text().splitlines())
    assert sum(len(item.attributes) for item in objects) == ones
    assert all(0 <= item.box[0] < item.box[2] <= 500 and 0 <= item.box[1] < item.box[3] <= 500 for item in objects)
    assert objects == read_objects(path)


@pytest.mark.nightly
def test_every_object_of_the_real_test_file_becomes_a_row(shared_folder, tmp_path):
    path = shared_folder / "data" / "apy" / "apascal_test.txt"
    if not path.is_file():
        pytest.skip("no aPY files")
    objects = read_objects(path)
    (tmp_path / "images").mkdir()
    for name in {item.image for item in objects}:
        Image.new("RGB", (500, 500)).save(tmp_path / "images" / name)
    (tmp_path / "attribute_names.txt").write_text("\n".join(NAMES))
    (tmp_path / "apascal_test.txt").write_bytes(path.read_bytes())
    prepared = prepare(tmp_path, splits="test", context=0)
    validate_dataset(prepared.dataset)
    test = prepared.dataset["test"]
    assert len(test) == 6355 and test["line"][:] == list(range(1, 6356))
    assert (
        "598 objects without any attribute" in prepared.description and "0 boxes were clipped" in prepared.description
    )
    for item, row in zip(objects, test.remove_columns("image"), strict=True):
        size = [item.box[2] - item.box[0], item.box[3] - item.box[1]]
        assert row["objects"]["category"] == list(item.attributes)
        assert row["objects"]["bbox"] == [[0, 0, *size]] * len(item.attributes)


def test_a_row_is_an_object_with_its_box_in_the_crop(archive):
    prepared = prepare(archive, splits="train,test,yahoo")
    validate_dataset(prepared.dataset)
    features = prepared.dataset["train"].features
    assert concepts_from_features(features) == (PASCAL_CLASSES + YAHOO_CLASSES, [], NAMES)
    assert {name: len(split) for name, split in prepared.dataset.items()} == {
        "train": 18,
        "validation": 2,
        "test": 2,
        "yahoo": 1,
    }
    processor = AscentViTImageProcessorPil(
        size={"height": 64, "width": 64}, patch_size=8, num_spatial_concepts=64, do_normalize=False
    )
    for split in prepared.dataset.values():
        for row in split:
            channel = int(features["label"].int2str(row["label"]) == "person")
            assert row["objects"]["category"] == [channel, 10, 63]
            pixels = np.asarray(row["image"])[..., channel] > 127
            ys, xs = np.nonzero(pixels)
            x, y, width, height = row["objects"]["bbox"][0]
            edges = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert np.abs(np.array([x, y, x + width, y + height]) - edges).max() <= 1
            assert row["objects"]["bbox"] == [[x, y, width, height]] * 3
            annotation = {"objects": row["objects"]}
            batch = processor(row["image"], annotation, return_tensors="np")
            marked = ~np.isnan(batch["spatial_concept_targets"][0, :, 0])
            shown = batch["pixel_values"][0, channel].reshape(8, 8, 8, 8).mean(axis=(1, 3)).ravel()
            assert (shown[marked] > 0.4).all() and (shown[~marked] < 0.6).all()


def test_no_image_is_in_two_splits_and_the_seed_decides(archive):
    first = prepare(archive, seed=3, validation_share=0.3)
    names = {name: set(split["group_id"]) for name, split in first.dataset.items()}
    assert len(names["validation"]) == 6
    assert not names["train"] & names["validation"] and not names["train"] & names["test"]
    assert rows_of(first) == rows_of(prepare(archive, seed=3, validation_share=0.3))
    assert rows_of(first)["validation"] != rows_of(prepare(archive, seed=4, validation_share=0.3))["validation"]


@pytest.mark.parametrize(
    "box, context, size, expected",
    [
        ((20, 10, 60, 30), 0.0, (40, 20), [0, 0, 40, 20]),
        ((20, 10, 60, 30), 0.25, (60, 30), [10, 5, 40, 20]),
        ((-5, 70, 30, 95), 0.5, (45, 15), [0, 5, 30, 10]),
        ((0, 0, 120, 80), 0.25, (120, 80), [0, 0, 120, 80]),
    ],
)
def test_crops_are_cut_off_at_the_images_edge(box, context, size, expected):
    crop, inner = crop_object(Image.new("RGB", (WIDTH, HEIGHT)), box, context)
    assert crop.size == size and inner == expected


def test_objects_without_attributes_are_kept(archive):
    file = archive / "attribute_data" / "apascal_test.txt"
    file.write_text(file.read_text() + line("2008_000100.jpg", "car", (1, 1, 500, 9), set()))
    prepared = prepare(archive)
    validate_dataset(prepared.dataset)
    assert prepared.dataset["test"][2]["objects"] == {"bbox": [], "category": []}
    assert prepared.dataset["test"][2]["image"].size == (WIDTH, 11)
    assert "1 objects without any attribute" in prepared.description and "1 boxes were clipped" in prepared.description


@pytest.mark.parametrize(
    "text, message",
    [
        (line("2008_000100.jpg", "unicorn", (1, 1, 9, 9), {1}), "line 3: 'unicorn'"),
        (line("2008_000100.jpg", "zebra", (1, 1, 9, 9), {1}), "line 3: 'zebra' is no class of aPascal"),
        (line("2008_000100.jpg", "dog", (9, 1, 2, 9), {1}), "line 3: a box must be xmin"),
        (line("2008_000100.jpg", "dog", ("x", 1, 2, 9), {1}), "line 3: a box must be four numbers"),
        (line("2008_000100.jpg", "dog", (1, 1, 9, "inf"), {1}), "line 3: a box must be four numbers"),
        (line("2008_000100.jpg", "dog", (121, 1, 130, 9), {1}), "line 3.*outside the image of 120x80"),
        (line("2008_000100.jpg", "dog", (1, 1, 9, 9), {1})[:-20], "line 3: expected image.*got 60"),
        (line("2008_000100.jpg", "dog", (1, 1, 9, 9), {1}).replace(" 0 ", " 2 ", 1), "line 3: attributes must be"),
        (line("2008_000001.jpg", "dog", (1, 1, 9, 9), {1}), "2008_000001.jpg is in .*apascal_train.txt and in"),
        ("first line again", "line 3: the object of line 1 is there again"),
    ],
)
def test_bad_lines_are_named(archive, text, message):
    file = archive / "attribute_data" / "apascal_test.txt"
    old = file.read_text()
    file.write_text(old + (old.splitlines()[0] if text == "first line again" else text))
    with pytest.raises(ValueError, match=message):
        prepare(archive)


def test_missing_files_are_one_clear_error(archive, tmp_path):
    data = archive / "attribute_data"
    image = archive / "VOCdevkit" / "VOC2008" / "JPEGImages" / "2008_000005.jpg"
    image.rename(tmp_path / "elsewhere.jpg")
    with pytest.raises(FileNotFoundError, match="1 of 21 images are missing, the first being 2008_000005.jpg"):
        prepare(archive)
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        prepare(archive, images=str(tmp_path / "nowhere"))
    (data / "apascal_train.txt").unlink()
    with pytest.raises(FileNotFoundError, match="apascal_train.txt is missing.*leave train out of the option"):
        prepare(archive)
    assert set(prepare(archive, splits="test").dataset) == {"test"}
    (data / "attribute_names.txt").rename(tmp_path / "names.txt")
    with pytest.raises(FileNotFoundError, match="attribute_names.txt is missing"):
        prepare(archive, splits="test")
    assert len(prepare(archive, splits="test", attribute_names=str(tmp_path / "names.txt")).dataset["test"]) == 2
    (tmp_path / "names.txt").write_text("\n".join(NAMES[:63]))
    with pytest.raises(ValueError, match="64 different names, one a line; got 63"):
        prepare(archive, splits="test", attribute_names=str(tmp_path / "names.txt"))


def test_unreadable_files_are_one_clear_error(archive):
    image = archive / "VOCdevkit" / "VOC2008" / "JPEGImages" / "2008_000100.jpg"
    image.write_bytes(image.read_bytes()[:400])
    with pytest.raises(ValueError, match="2008_000100.jpg cannot be read"):
        prepare(archive)
    (archive / "attribute_data" / "apascal_test.txt").write_bytes("2008_000100.jpg caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        prepare(archive)


@pytest.mark.parametrize("options", [{"splits": "train,val"}, {"context": -1}, {"validation_share": 1.0}])
def test_bad_options_are_refused(archive, options):
    with pytest.raises(ValueError, match="must be"):
        prepare(archive, **options)

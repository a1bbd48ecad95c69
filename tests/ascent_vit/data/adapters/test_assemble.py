# SPDX-License-Identifier: Apache-2.0
"""From what tools say to datasets: turned pictures, classes, splits, groups, and the command."""

import json

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image, ImageOps

from ascent_vit_cli.app import run


pytestmark = pytest.mark.as_people_have_it


def write_coco(folder, write_json, images, annotations, name="labels.json"):
    categories = [{"id": 3, "name": "spot"}]
    return write_json(folder / name, {"images": images, "annotations": annotations, "categories": categories})


def entry(number, name, size):
    return {"id": number, "file_name": name, "width": size[0], "height": size[1]}


def spot(number, box, **kwargs):
    return {"id": number, "image_id": number, "category_id": 3, "bbox": list(box), "iscrowd": 0, **kwargs}


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("stored", [True, False])
def test_turned_pictures(orientation, stored, tmp_path, make, write_json):
    """A dark block in the upright picture is where the box, the point and the mask say, whatever the tool saw."""
    upright = np.full((40, 60, 3), 255, dtype=np.uint8)
    upright[4:10, 6:20] = 0
    size = (60, 40)
    # The stored picture is the one that its tag turns upright.
    exif = Image.Exif()
    exif[274] = {6: 8, 8: 6}.get(orientation, orientation)
    turned = Image.fromarray(upright)
    turned.info["exif"] = exif.tobytes()
    turned.getexif()[274] = exif[274]
    raw = ImageOps.exif_transpose(turned)
    exif[274] = orientation
    for folder in "ab":
        (tmp_path / folder).mkdir()
        raw.save(tmp_path / folder / f"{folder}.png", exif=exif)
    seen = np.asarray(raw)[..., 0] if stored else upright[..., 0]
    y, x = np.nonzero(seen < 128)
    box = (int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1)
    left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    outline = [[left, top, right, top, right, bottom, left, bottom]]
    shown = (seen.shape[1], seen.shape[0])
    images = [entry(i, f"{name}.png", shown) for i, name in enumerate("ab")]
    write_coco(tmp_path, write_json, images, [spot(i, box, segmentation=outline) for i in range(2)])
    options = {"class_from": "folder", "orientation": "stored" if stored else "upright"}
    made = make("coco", tmp_path, **options)
    assert made.rows["a/a.png"]["objects"] == [("spot", [6, 4, 14, 6])]
    made = make("coco", tmp_path, places="mask", **options)
    row = made.rows["a/a.png"]
    assert row["image"].size == size == row["mask"].size
    np.testing.assert_array_equal(np.asarray(row["mask"]) == 1, upright[..., 0] == 0)
    assert any(line.startswith("images turned by EXIF") for line in made.lines)


def test_points_of_turned_pictures(tmp_path, make, picture, write_json):
    for name in "ab":
        picture(tmp_path / name / f"{name}.jpg", size=(60, 40), orientation=6)
    shape = {"label": "eye", "points": [[10, 5]], "shape_type": "point"}
    for name in "ab":
        content = {"shapes": [shape], "imagePath": f"{name}.jpg", "imageWidth": 60, "imageHeight": 40}
        write_json(tmp_path / name / f"{name}.json", content)
    made = make("labelme", tmp_path, class_from="folder")
    assert made.rows["a/a.jpg"]["points"] == [("eye", [35, 10])]
    assert made.lines["images turned by EXIF, annotated as stored, whose places were turned"] == "2"


@pytest.fixture
def folder(tmp_path, picture, write_json):
    """Twelve pictures of two classes, three a patient; the first six have a spot."""
    images, spots = [], []
    for i in range(12):
        name = f"{'ill' if i < 6 else 'well'}/p{i // 3}_{i}.jpg"
        picture(tmp_path / name)
        images.append(entry(i, name, (60, 40)) | {"patient": f"p{i // 3}"})
        outline = [[10, 10, 30, 10, 30, 30, 10, 30]]
        spots += [spot(i, (10, 10, 20, 20), segmentation=outline)] * (i < 6)
    write_coco(tmp_path, write_json, images, spots)
    return tmp_path


def test_splits_are_drawn_by_groups(folder, make):
    made = make("coco", folder, class_from="folder", group="patient", seed=3)
    patients = {
        split: {row["group_id"] for n, row in made.rows.items() if made.splits[n] == split}
        for split in ("train", "validation", "test")
    }
    assert {split: len(found) for split, found in patients.items()} == {"train": 2, "validation": 1, "test": 1}
    assert not patients["train"] & (patients["validation"] | patients["test"])
    assert made.splits == make("coco", folder, class_from="folder", group="patient", seed=3).splits
    assert made.splits != make("coco", folder, class_from="folder", group="patient", seed=4).splits
    assert made.lines["splits"].startswith("drawn from 4 groups by seed 3, shares 0.1 (validation)")
    with pytest.raises(ValueError, match="group=patients: no image has it; did you mean 'patient'"):
        make("coco", folder, class_from="folder", group="patients")
    with pytest.raises(ValueError, match="leave none of 12 images for train"):
        make("coco", folder, class_from="folder", validation_share=0.9, test_share=0.05)


def test_own_splits_without_train(folder, make):
    (folder / "labels.json").rename(folder / "instances_val.json")
    with pytest.raises(ValueError, match="The images are all of validation, .*--option splits=draw"):
        make("coco", folder, class_from="folder")
    made = make("coco", folder, class_from="folder", splits="draw", test_share=0.25)
    assert made.lines["splits"].startswith("drawn from 12 images")
    assert [len(split) for split in made.prepared.dataset.values()] == [8, 1, 3]


def test_a_class_must_be_told(folder, make):
    with pytest.raises(ValueError) as error:
        make("coco", folder)
    assert str(error.value) == (
        "Annotations have no class of the image: say where it is, by --option class_from=folder (folders: ill, well), "
        "class_from=tag (tags: none), class_from=tag:QUESTION (questions: none), class_from=category:NAME or "
        "category:NAME,NAME (categories: spot), class_from=field:NAME (fields: file_name, height, id, patient, width)"
        ", or class_from=csv:FILE with columns file_name and class."
    )
    for wrong in ("folders", "category:", "csv:", "field:age", "tag"):
        with pytest.raises(ValueError, match="class_from=.* (is unknown|finds no class)"):
            make("coco", folder, class_from=wrong)
    for options, message in (
        ({"classes": ["ill", "wel"]}, "classes: nothing is called 'wel'; did you mean 'well'"),
        ({"leave_out": ["crowds"]}, "leave_out may hold crowd, difficult, truncated, occluded; got 'crowds'"),
        ({"concepts_from": ["ag"]}, "concepts_from: no image has the column 'ag'; known are"),
    ):
        with pytest.raises(ValueError, match=message):
            make("coco", folder, class_from="folder", **options)
    made = make("coco", folder, class_from="category:spot")
    assert made.lines["boxes"] == "6"
    assert "the class was told by spot, which is a concept too" in made.prepared.summary


def test_missing_images(folder, make):
    (folder / "ill" / "p0_0.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 12 annotated images are not in .*the first being ill/p0_0.jpg"):
        make("coco", folder, class_from="folder")
    made = make("coco", folder, class_from="folder", missing="skip")
    assert len(made.rows) == 11 and made.lines["missing images, left out"] == "1, the first being ill/p0_0.jpg"


def test_a_damaged_picture(folder, make):
    path = folder / "ill" / "p0_0.jpg"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match="p0_0.jpg cannot be read"):
        make("coco", folder, class_from="folder")


def test_the_command(folder, tmp_path, capsys):
    output = tmp_path / "out"
    labels = str(folder / "labels.json")
    arguments = ["prepare", "coco", "--source", labels, "--images", str(folder), "--output", str(output), "--inspect"]
    assert run(arguments) == 2
    assert "Annotations have no class of the image" in capsys.readouterr().err
    assert not output.exists()
    rows = [f"p{i // 3}_{i},{'ill' if i < 6 else 'well'}" for i in range(12)]
    (folder / "classes.csv").write_text("\n".join(["file,class", *rows]))
    table = f"class_from=csv:{folder / 'classes.csv'}"
    assert run([*arguments, "--option", table, "--option", "group=patient"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "images: 12 of 2 classes (ill, well)" and "concepts with a place: spot 6" in shown
    card = (output / "README.md").read_text()
    assert "- boxes: 6" in card and str(tmp_path) not in card
    assert "ascent-vit prepare coco --source DIR --images DIR --output DIR --option class_from=csv:classes.csv" in card
    loaded = load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].features["objects"]["category"].feature.names == ["spot"]
    for wrong, message in (
        (["coco", "--source", "nowhere"], "There is no folder nowhere: give the one with the tool's files."),
        (["cub", "--source", str(folder), "--images", "x"], "cub has no option images"),
        (["coco", "--source", labels, "--images", "nowhere"], "There is no folder of images nowhere."),
        (
            ["coco", "--source", labels, "--option", "places=masks"],
            "places of coco takes objects or mask; got 'masks'",
        ),
    ):
        assert run(["prepare", *wrong, "--output", str(tmp_path / "other")]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_of_coco_is_a_model_after_two_commands(folder, tiny_recipe, tmp_path):
    dataset, output = tmp_path / "dataset", tmp_path / "run"
    options = ["--option", "class_from=folder", "--option", "group=patient", "--option", "places=mask"]
    assert run(["prepare", "coco", "--source", str(folder), "--output", str(dataset), *options]) == 0
    assert run(["train", "--recipe", str(tiny_recipe), "--dataset", str(dataset), "--output", str(output)]) == 0
    config = json.loads((output / "model" / "config.json").read_text())
    assert config["spatial_concepts"] == ["spot"] and set(config["id2label"].values()) == {"ill", "well"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["box_format=cxcywh"], "The option box_format of coco takes xywh or xyxy or null; got 'cxcywh'."),
        (["names=names.txt"], "coco has no use for the option names: leave it out."),
    ],
)
def test_options_that_a_tool_does_not_take_are_not_ignored(options, message, tmp_path, write_json, capsys):
    write_coco(tmp_path, write_json, [entry(1, "a.png", (20, 10))], [spot(1, (2, 2, 4, 4))])
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    given = [word for option in ["class_from=category:spot", *options] for word in ("--option", option)]
    assert run(["prepare", "coco", "--source", str(tmp_path), "--output", str(tmp_path / "out"), *given]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()

# SPDX-License-Identifier: Apache-2.0
"""Images of folders and datasets, in order, under names of their own."""

import io

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from ascent_vit.explanation.sources import DatasetImages, ImageFiles, distinct


def make_image(shade: int) -> Image.Image:
    return Image.new("L", (4, 3), shade)


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(["b.png", "a.jpg", "sub/b.png", "a.png", ".hidden.png", ".git/x.png"]):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(20 * i).save(path)
    (tmp_path / "pictures" / "notes.txt").write_text("no image")
    return tmp_path / "pictures"


def test_names_are_told_apart():
    assert distinct(["a.png", "b.png", "b.jpg", "a/b.png"]) == ["a", "b.png", "b.jpg", "a/b"]
    assert distinct(["a.png", "a.png", "a.png"]) == ["a.png", "a.png-2", "a.png-3"]


def test_folders_are_read_with_their_subfolders(folder):
    source = ImageFiles([str(folder)])
    assert [item.name for item in source.items()] == ["a.jpg", "a.png", "b", "sub/b"]
    assert [np.asarray(item.read())[0, 0, 0] for item in source.items(1, 3)] == [60, 0]
    assert [item.index for item in source.items(1, 3)] == [1, 2]
    assert len(source) == 4


def test_files_and_folders_together(folder):
    source = ImageFiles([str(folder / "b.png"), str(folder / "sub"), "https://example.org/x%20y/c.png?size=3"])
    assert [item.name for item in source.items()] == ["b.png", "b.png-2", "c"]
    assert source.files[2].startswith("https://")


def test_missing_inputs(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.png does not exist"):
        ImageFiles([str(folder / "nowhere.png")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in the folder"):
        ImageFiles([str(tmp_path / "empty")])


@pytest.fixture
def split():
    cut = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(cut, "png")
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    make_image(7).save(turned, "png", exif=exif)
    cells = [{"bytes": data} for data in (turned.getvalue(), cut.getvalue()[:500])]
    cells = [{"path": None, **cell} for cell in cells] + [None]
    features = Features({"image": ImageFeature(decode=False), "label": ClassLabel(names=["wren", "tern"])})
    split = Dataset.from_dict({"image": cells, "label": [1, 0, None]}, features=features)
    return split.cast_column("image", ImageFeature())


@pytest.mark.parametrize("streams", [False, True])
def test_rows_of_a_dataset(split, streams):
    source = DatasetImages(split.to_iterable_dataset() if streams else split)
    assert source.streams == streams
    good, cut, empty = source.items()
    assert [item.label for item in (good, cut, empty)] == ["tern", "wren", None]
    assert [item.name for item in (good, cut, empty)] == ["000000", "000001", "000002"]
    assert good.read().size == (3, 4)
    with pytest.raises(ValueError, match="image of row 1 cannot be read"):
        cut.read()
    with pytest.raises(ValueError, match="image of row 2 cannot be read .it is null"):
        empty.read()


def test_a_share_of_a_dataset(split):
    assert [item.index for item in DatasetImages(split).items(1, 3)] == [1, 2]
    assert len(DatasetImages(split)) == 3

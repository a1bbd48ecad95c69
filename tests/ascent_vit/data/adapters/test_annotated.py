# SPDX-License-Identifier: Apache-2.0
"""What readers of tools share: geometry, files by the names that tools give them, XML without entities."""

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from ascent_vit.data.adapters.annotated import ImageFiles, fill, numbers, rectangle, rotated, split_in_name


pytestmark = pytest.mark.as_people_have_it


def test_a_polygon_has_the_pixels_whose_centres_it_encloses():
    filled = fill(np.array([[5.0, 6], [15, 6], [15, 14], [5, 14]]), (60, 40))
    assert filled.sum() == 80 and filled[6:14, 5:15].all()
    rng = np.random.default_rng(0)
    for _ in range(50):
        width, height = rng.integers(5, 60, 2).tolist()
        outline = rng.random((3, 2)) * [width + 20, height + 20] - 10
        y, x = np.mgrid[:height, :width] + 0.5
        inside = Outline(outline).contains_points(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(height, width)
        np.testing.assert_array_equal(fill(outline, (width, height)), inside)


def test_turning():
    turned = rotated(rectangle(10, 0, 4, 2), (10, 0), 90)
    np.testing.assert_allclose(turned, [[10, 0], [10, 4], [8, 4], [8, 0]], atol=1e-12)


def test_files_are_found_by_what_tools_call_them(tmp_path, picture):
    for name in ("train/a/1.jpg", "val/a/1.jpg", "val/b/2.jpg", "SegmentationClass/2.png", ".cache/3.jpg"):
        picture(tmp_path / name)
    picture(tmp_path.parent / "secret.jpg")
    files = ImageFiles(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in files.paths] == ["train/a/1.jpg", "val/a/1.jpg", "val/b/2.jpg"]
    assert files.find("./val\\a/1.jpg") == tmp_path / "val/a/1.jpg"
    assert files.find("1.jpg", near=tmp_path / "train/a") == tmp_path / "train/a/1.jpg"
    assert files.find("/data/upload/2.jpg") == tmp_path / "val/b/2.jpg"
    for name in ("../secret.jpg", "3.jpg", "", "/", "2.png"):
        assert files.find(name) is None
    with pytest.raises(ValueError, match="1.jpg may be .*train/a/1.jpg or .*val/a/1.jpg: give the one folder"):
        files.find("1.jpg")
    assert [files.split_of(path) for path in files.paths] == ["train", "validation", "validation"]
    assert [files.class_folder(path) for path in files.paths] == ["a", "a", "b"]


@pytest.mark.parametrize(
    "name, split",
    [
        ("instances_train2017", "train"),
        ("instances_val2017", "validation"),
        ("image_info_test-dev2017", None),
        ("Validation", "validation"),
        ("instances_default", None),
        ("trainstation", None),
    ],
)
def test_splits_in_names(name, split):
    assert split_in_name(name) == split


@pytest.mark.parametrize("values", [[1, "x"], [1, None], 5, [1, float("inf")], [[1, 2]], [1, 2, 3]])
def test_numbers(values):
    with pytest.raises(ValueError, match="x and y must be"):
        numbers(values, "x and y", 2)

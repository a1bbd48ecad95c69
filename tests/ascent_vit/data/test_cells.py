# SPDX-License-Identifier: Apache-2.0
"""Cells of Image columns."""

import numpy as np
import pytest
from PIL import Image

from ascent_vit.data.cells import image_cell, read_image_file, stored_annotation


def test_image_files(tmp_path):
    path = tmp_path / "bird.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    assert read_image_file(path) == ({"bytes": path.read_bytes(), "path": "bird.jpg"}, (30, 40))

    with pytest.raises(FileNotFoundError, match="crow.jpg is missing"):
        read_image_file(tmp_path / "crow.jpg")
    content = path.read_bytes()
    for cut in (content[: len(content) // 2], content[:10], b""):
        path.write_bytes(cut)
        with pytest.raises(ValueError, match="bird.jpg cannot be read"):
            read_image_file(path)
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(pixels).save(path, exif=exif)
    with pytest.raises(ValueError, match="EXIF orientation 3"):
        read_image_file(path)


@pytest.mark.parametrize(("orientation", "mode"), [(6, "L"), (1, "L"), (8, "RGB"), (None, "L")])
def test_a_png_is_turned_as_it_says(orientation, mode, monkeypatch):
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    cell = image_cell(Image.new(mode, (40, 30)), **({"exif": exif} if orientation else {}))
    row = {"image": cell, "mask": cell}
    if orientation is None:
        monkeypatch.setattr(Image.Image, "getexif", None)
    annotation, size = stored_annotation(row, "row")
    expected = (40, 30) if orientation in (6, 8) else (30, 40)
    assert size == expected == (annotation["mask"].height, annotation["mask"].width)

# SPDX-License-Identifier: Apache-2.0
"""Images of every kind become upright RGB."""

import numpy as np
import pytest
from PIL import Image

from modeling_ascent_vit.image_reading_ascent_vit import array_to_image, is_single, read_image


def test_grey_images_and_single_channels():
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for array in (grey, grey[..., None], grey[None]):
        assert np.asarray(array_to_image(array)).tolist() == grey.tolist()
    assert read_image(Image.fromarray(grey)).mode == "RGB"


def test_sixteen_bit_images_keep_their_shades(tmp_path):
    shades = (np.arange(64, dtype=np.uint16) * 1024).reshape(8, 8)
    Image.fromarray(shades).save(tmp_path / "deep.png")
    assert np.asarray(read_image(tmp_path / "deep.png"))[..., 0].tolist() == (shades >> 8).tolist()


def test_images_are_turned_upright(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png").size == (60, 90)


@pytest.mark.parametrize("array", [np.zeros((5, 5, 7)), np.full((4, 4), 2.0), np.full((4, 4), -1), np.zeros((0, 3))])
def test_arrays_that_are_no_images(array):
    with pytest.raises(ValueError, match="An image array must"):
        array_to_image(array)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_every_mode_becomes_rgb(mode):
    image = Image.new("L", (7, 5), 255).convert(mode) if mode != "I;16" else Image.new(mode, (7, 5), 65535)
    read = read_image(image)
    assert read.mode == "RGB" and read.size == (7, 5)
    if mode != "HSV":
        assert np.asarray(read).min() >= 254


def test_values_beyond_sixteen_bits_are_refused():
    with pytest.raises(ValueError, match='mode "F" must have values from 0 to 65535; got 0.0 to 100000.0'):
        read_image(Image.fromarray(np.array([[0, 100000]], dtype=np.float32)))


def test_what_is_one_image():
    assert is_single("a.png") and is_single(Image.new("L", (2, 2)))
    assert is_single(np.zeros((2, 2, 3))) and not is_single(np.zeros((1, 2, 2, 3)))
    assert not is_single(["a.png"]) and not is_single(iter([]))

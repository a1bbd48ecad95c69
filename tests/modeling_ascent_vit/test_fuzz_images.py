# SPDX-License-Identifier: Apache-2.0
"""Odd images through both image processors: the pixels that Pillow alone gives, or one sentence that refuses them."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image


SIZE = {"height": 48, "width": 40}
EXAMPLES = [60, pytest.param(500, marks=pytest.mark.nightly)]


@pytest.fixture
def processor(processor_class):
    return processor_class(size=SIZE)


def check(fuzz, processor, odd):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = fuzz.outcome(lambda: processor(odd.value, return_tensors="pt")["pixel_values"])
    if isinstance(got, fuzz.Refused):
        assert odd.pixels is None or odd.pixels is fuzz.REFUSED, f"{odd} was refused: {got}"
        return
    assert odd.pixels is not fuzz.REFUSED, f"{odd} was taken for an image"
    assert got.shape[1:] == (3, 48, 40) and got.dtype == torch.float32
    assert got.isfinite().all() and got.abs().max() <= 1 + 1e-5
    if odd.pixels is not None:
        # torchvision resizes with weights of 15 bits, and rounds transparency down.
        fuzz.close_to(got[0].numpy(), odd.pixels, 1.01 if processor.backend == "pil" else 2.01)


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize(
    "kind", ["pil_images", "image_files", "base64_images", "damaged_images", "integer_arrays", "float_arrays"]
)
def test_odd_images(fuzz, processor, kind, examples):
    fuzz.run(f"images, {processor.backend}", examples, getattr(fuzz, kind)(), lambda odd: check(fuzz, processor, odd))


def test_junk(fuzz, processor):
    fuzz.each(f"images, {processor.backend}", fuzz.junk(), lambda odd: check(fuzz, processor, odd))


def test_bombs_are_refused_before_they_are_decoded(fuzz, processor):
    processor(np.zeros((60, 60, 3), np.uint8))
    before = fuzz.peak_mebibytes()
    fuzz.each(f"images, {processor.backend}", fuzz.bombs(), lambda odd: check(fuzz, processor, odd))
    assert fuzz.peak_mebibytes() < before + 64
    for bomb in fuzz.bombs():
        with warnings.catch_warnings(), pytest.raises(ValueError, match="has more than .* pixels, as a decompression"):
            warnings.simplefilter("ignore")
            processor(bomb.value)


def test_the_limit_can_be_raised(processor, monkeypatch):
    image = Image.new("RGB", (20, 30))
    with monkeypatch.context() as context:
        context.setattr(Image, "MAX_IMAGE_PIXELS", 599)
        with pytest.raises(ValueError, match="size must be at most 599 pixels"):
            processor(image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert processor(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 48, 40)


@pytest.mark.parametrize("shape", [(1, 9000), (9000, 1), (1, 100_000)])
def test_a_long_and_narrow_image_is_not_blown_up(fuzz, processor, shape):
    image, before = Image.new("RGB", shape), fuzz.peak_mebibytes()
    with pytest.raises(ValueError, match="would be resized to .*: crop it to a shape that is less long and narrow"):
        processor(image, size={"shortest_edge": 224})
    assert fuzz.peak_mebibytes() < before + 64


@pytest.mark.parametrize("examples", EXAMPLES)
def test_lists_of_odd_images(fuzz, processor, examples):
    """One that is refused refuses the list; else each comes out as it does alone."""

    def check_list(images):
        values = [odd.value for odd in images]
        got = fuzz.outcome(lambda: processor(values, return_tensors="pt")["pixel_values"])
        if isinstance(got, fuzz.Refused):
            assert any(odd.pixels is fuzz.REFUSED or odd.pixels is None for odd in images), got
            return
        assert len(got) == len(images)
        for odd, pixels in zip(images, got, strict=True):
            assert odd.pixels is not fuzz.REFUSED
            alone = processor(odd.value, return_tensors="pt")["pixel_values"][0]
            torch.testing.assert_close(pixels, alone, rtol=0, atol=2e-2)

    images = st.one_of(fuzz.pil_images(), fuzz.image_files(), fuzz.integer_arrays())
    fuzz.run(f"lists, {processor.backend}", examples // 4, st.lists(images, min_size=1, max_size=4), check_list)


def test_scaled_floats_are_warned_of(processor, caplog, monkeypatch):
    warned = []
    monkeypatch.setattr("modeling_ascent_vit.image_inputs_ascent_vit.logger.warning_once", warned.append)
    processor(np.full((9, 9, 3), 0.5))
    assert len(warned) == 1 and "pass do_rescale=False if they are scaled already" in warned[0]
    processor(np.full((9, 9, 3), 0.5), do_rescale=False)
    processor(np.full((9, 9, 3), 100.0))
    assert len(warned) == 1

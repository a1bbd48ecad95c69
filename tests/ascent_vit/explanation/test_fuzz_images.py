# SPDX-License-Identifier: Apache-2.0
"""Odd images through `explain` and both pipelines: what the model says of the right pixels, or one sentence."""

import warnings

import httpx
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from transformers import pipeline

from ascent_vit import explain


EXAMPLES = [15, pytest.param(100, marks=pytest.mark.nightly)]
KINDS = ["pil_images", "image_files", "damaged_images", "integer_arrays", "float_arrays"]

# Of transformers' own pipeline, which opens files before the image processor sees them.
FOREIGN = (TypeError, OSError, Image.DecompressionBombError, httpx.HTTPError, httpx.InvalidURL, SyntaxError)


@pytest.fixture
def small_model(make_model):
    return make_model(num_spatial_concepts=4, num_global_concepts=2, fusion_levels=0)


def logits_of(model_and_processor, pixels: np.ndarray) -> np.ndarray:
    model, processor = model_and_processor
    inputs = processor(Image.fromarray(np.ascontiguousarray(pixels)), return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits[0].numpy()


def quietly(call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


def check(fuzz, model_and_processor, call, odd):
    """`call` gives finite logits: those of the upright pixels, up to the rounding of transparency."""
    got = fuzz.outcome(lambda: quietly(lambda: call(odd.value)))
    if isinstance(got, fuzz.Refused):
        # Floats are from 0 to 1 here, and from 0 to 255 for the image processor.
        is_float = "float" in odd.kind
        assert not isinstance(odd.pixels, np.ndarray) or is_float, f"{odd} was refused: {got}"
        return
    if isinstance(got, list):
        assert got == [] and not len(odd.value)
        return
    assert odd.pixels is not fuzz.REFUSED, f"{odd} was taken for an image"
    assert np.isfinite(got).all()
    if isinstance(odd.pixels, np.ndarray) and "float" not in odd.kind:
        expected = logits_of(model_and_processor, odd.pixels if odd.upright is None else odd.upright)
        np.testing.assert_allclose(got, expected, atol=0.05)


def explain_logits(model_and_processor):
    def call(value):
        explained = explain(*model_and_processor, value)
        return explained if isinstance(explained, list) else explained.logits

    return call


def pipeline_logits(model_and_processor):
    model, processor = model_and_processor
    classifier = pipeline("concept-image-classification", model=model, image_processor=processor)
    ids = model.config.label2id

    def call(value):
        entries = classifier(value, top_k=None)
        logits = np.empty(len(ids))
        for entry in entries:
            logits[ids[entry["label"]]] = entry["logit"]
        return logits if entries else []

    return call


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [explain_logits, pipeline_logits], ids=["explain", "pipeline"])
def test_odd_images(fuzz, small_model, way, kind, examples):
    call = way(small_model)
    fuzz.run("images, explain", examples, getattr(fuzz, kind)(), lambda odd: check(fuzz, small_model, call, odd))


@pytest.mark.parametrize("way", [explain_logits, pipeline_logits], ids=["explain", "pipeline"])
def test_junk_and_bombs(fuzz, small_model, way):
    call, before = way(small_model), fuzz.peak_mebibytes()
    cases = [*fuzz.junk(), *fuzz.bombs()]
    fuzz.each("images, explain", cases, lambda odd: check(fuzz, small_model, call, odd))
    assert fuzz.peak_mebibytes() < before + 128


@pytest.mark.parametrize("examples", EXAMPLES)
def test_the_pipeline_of_transformers(fuzz, small_model, examples):
    """Its own errors are not ours to word, but there are scores that are probabilities, or an error."""
    model, processor = small_model
    classifier = pipeline("image-classification", model=model, image_processor=processor)

    def check_scores(odd):
        got = fuzz.outcome(lambda: quietly(lambda: classifier(odd.value, top_k=5)), *FOREIGN, IndexError, ValueError)
        if isinstance(got, fuzz.Refused):
            return
        assert np.isfinite([entry["score"] for entry in got]).all()
        assert sum(entry["score"] for entry in got) == pytest.approx(1, abs=1e-4)

    strategy = st.one_of(*(getattr(fuzz, kind)() for kind in KINDS))
    fuzz.run("images, image-classification", examples, strategy, check_scores)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_seen_as_the_model_sees_it(fuzz, small_model, mode):
    """White, as in training: not the colour that lies hidden beneath."""
    image, pixels = fuzz.in_mode(mode, (48, 48), 3, transparent=True)
    explanation = explain(*small_model, image)
    assert np.abs(np.asarray(explanation.image).astype(int) - pixels).max() <= 1
    np.testing.assert_allclose(explanation.logits, logits_of(small_model, pixels), atol=0.05)

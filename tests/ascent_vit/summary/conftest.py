# SPDX-License-Identifier: Apache-2.0
"""Small models of digits, and a split of them."""

import numpy as np
import pytest
import torch

from ascent_vit.data import load_digits_dataset
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor


DIGITS = [f"digit {digit}" for digit in range(10)]


@pytest.fixture(scope="package")
def digits():
    return load_digits_dataset(copies=1, canvas=32)["test"].select(range(30))


@pytest.fixture
def build(make_config):
    """A model with random weights that are large enough for its predictions to differ, and its image processor."""

    def build(labels=("even", "odd"), **kwargs):
        streams = {"global_concepts": DIGITS, "spatial_concepts": DIGITS} | kwargs
        config = make_config(
            id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)},
            num_labels=len(labels), backbone_kwargs={"image_size": 32, "num_hidden_layers": 1}, **streams,
        )  # fmt: skip
        torch.manual_seed(0)
        model = AscentViTForImageClassification(config).eval()
        with torch.no_grad():
            for stream in model.streams().values():
                for parameter in stream.parameters():
                    parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5 * 2)
        return model, AscentViTImageProcessor.from_model_config(config)

    return build


@pytest.fixture
def balanced(build, digits):
    """A model whose two classes are predicted for about half of the images each."""

    def balanced(**kwargs):
        model, processor = build(**kwargs)
        pixels = processor(digits["image"][:], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = model(pixels).logits
            bias = next(iter(model.streams().values())).projection.bias
            bias[0] -= torch.quantile(logits[:, 0] - logits[:, 1], 0.5)
        assert 5 < (model(pixels).logits.argmax(-1) == 0).sum() < 25
        return model, processor

    return balanced


@pytest.fixture
def close():
    def close(left, right, **kwargs):
        np.testing.assert_allclose(
            np.array(left, dtype=float), np.array(right, dtype=float), **{"rtol": 1e-5, "atol": 1e-6} | kwargs
        )

    return close

# SPDX-License-Identifier: Apache-2.0
"""The published model of the digits, judged by other libraries' own measures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline

from ascent_vit.data import load_digits_dataset
from ascent_vit.explanation import LogitsModel
from ascent_vit.inference import load_model


HUB = Path(__file__).parents[3] / "hub"


@pytest.fixture(scope="module")
def digits():
    """The model, its image processor and 16 images of the test split."""
    model, processor = load_model(str(HUB / "digits"))
    return model.eval(), processor, load_digits_dataset(copies=1)["test"].select(range(16))


def class_maps(model, pixels, classes):
    """What all spatial concepts contribute to a class, as attributions of pixels with the same sums."""
    with torch.no_grad():
        maps = model.contribution_maps(pixels, classes[:, None])[:, 0].sum(1)
    height, width = (side // count for side, count in zip(pixels.shape[-2:], maps.shape[-2:], strict=True))
    spread = maps.repeat_interleave(height, -2).repeat_interleave(width, -1)[:, None]
    return (spread / (3 * height * width)).expand(-1, 3, -1, -1).contiguous()


@pytest.fixture(scope="module")
def inputs(digits):
    model, processor, split = digits
    pixels = processor(list(split["image"]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return pixels, model(pixels).logits.argmax(-1)


def test_evaluates_image_classification_evaluator(digits):
    """
    Its metric would come from the Hub: here scikit-learn's accuracy under its interface. It takes a model's folder;
    of a pipeline it asks for a class that transformers 5 has no longer.
    """
    evaluate = pytest.importorskip("evaluate")
    datasets = pytest.importorskip("datasets")
    from sklearn.metrics import accuracy_score

    class Accuracy(evaluate.Metric):
        def _info(self):
            features = {"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}
            return evaluate.MetricInfo(
                description="", citation="", inputs_description="", features=datasets.Features(features)
            )

        def _compute(self, predictions, references):
            return {"accuracy": accuracy_score(references, predictions)}

    model, processor, split = digits
    classifier = pipeline("image-classification", model=model, image_processor=processor)
    found = evaluate.evaluator("image-classification").compute(
        model_or_pipeline=str(HUB / "digits"), data=split, metric=Accuracy(), label_mapping=model.config.label2id
    )
    own = [classifier(image, top_k=1)[0]["label"] for image in split["image"]]
    assert found["accuracy"] == np.mean(
        [model.config.label2id[a] == b for a, b in zip(own, split["label"], strict=True)]
    )
    assert found["accuracy"] > 0.9


def test_captums_infidelity_prefers_our_maps_to_mirrored_ones(digits, inputs):
    captum = pytest.importorskip("captum")
    model, (pixels, classes) = LogitsModel(digits[0]), (values[:8] for values in inputs)
    maps = class_maps(digits[0], pixels, classes)

    def infidelity(attributions):
        generator = torch.Generator().manual_seed(0)

        def hide(values):
            # A square becomes background.
            mask = torch.zeros_like(values)
            for row in mask:
                top, left = torch.randint(0, values.shape[-1] - 12, (2,), generator=generator)
                row[:, top : top + 12, left : left + 12] = 1
            return mask, torch.where(mask > 0, values.amin((-2, -1), keepdim=True), values)

        with torch.no_grad():
            return captum.metrics.infidelity(
                model, hide, pixels, attributions, target=classes, n_perturb_samples=10, normalize=True
            ).mean()

    assert infidelity(maps) < infidelity(maps.flip(-1))


def test_captums_sensitivity_of_our_maps(digits, inputs):
    captum = pytest.importorskip("captum")
    pixels, classes = inputs
    torch.manual_seed(0)
    found = captum.metrics.sensitivity_max(
        lambda values, target: (class_maps(digits[0], values[0], target),),
        pixels[:4],
        perturb_radius=0.001,
        n_perturb_samples=3,
        target=classes[:4],
    )
    assert found.shape == (4,) and (found < 0.1).all() and (found > 0).all()


def test_quantus_metrics_of_our_maps(digits, inputs):
    """Its relevance mass and pointing game, with the ink as the mask, against what they say of mirrored maps."""
    quantus = pytest.importorskip("quantus")
    pixels, classes = inputs
    ink = np.stack([np.asarray(mask.resize(pixels.shape[-2:][::-1], 0)) > 0 for mask in digits[2]["mask"]])
    maps = class_maps(digits[0], pixels, classes).sum(1, keepdim=True)

    def score(metric, values):
        options = {"disable_warnings": True, "display_progressbar": False}
        return np.mean(
            getattr(quantus, metric)(abs=True, **options)(
                model=LogitsModel(digits[0]),
                x_batch=pixels.numpy(),
                y_batch=classes.numpy(),
                a_batch=values.numpy().copy(),
                s_batch=ink[:, None].astype(float),
                device="cpu",
            )
        )

    for metric in ("RelevanceMassAccuracy", "PointingGame"):
        assert score(metric, maps) > score(metric, maps.flip(-1))

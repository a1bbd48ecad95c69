# SPDX-License-Identifier: Apache-2.0
"""Scores by problem type, as transformers' own pipeline has them; losses and contributions of each kind of label."""

import pytest
import torch
from transformers.pipelines.image_classification import ImageClassificationPipeline

from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessorPil
from modeling_ascent_vit.class_scores_ascent_vit import chosen_classes, class_scores, score_function


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
KINDS = [(None, 3), (None, 1), (SINGLE, 3), (MULTI, 3), (MULTI, 1), (REGRESSION, 1), (REGRESSION, 2)]
PIXELS = torch.rand(2, 3, 48, 48)


@pytest.mark.parametrize("problem, number", KINDS)
def test_scores_are_those_of_transformers_pipeline(make_config, problem, number):
    config = make_config(num_labels=number, problem_type=problem)
    model = AscentViTForImageClassification(config).eval()
    pipeline = ImageClassificationPipeline(model, image_processor=AscentViTImageProcessorPil.from_model_config(config))
    logits = torch.randn(1, number)
    expected = {item["label"]: item["score"] for item in pipeline.postprocess({"logits": logits}, top_k=number)}
    got = class_scores(logits, score_function(config))[0].tolist()
    assert dict(zip(config.id2label.values(), got, strict=True)) == pytest.approx(expected, abs=1e-6)


def test_the_class_that_stands_for_a_prediction():
    logits = torch.tensor([[0.1, 2.0, 1.0], [3.0, 0.0, -1.0]])
    assert chosen_classes(logits, "softmax").tolist() == chosen_classes(logits, "sigmoid").tolist() == [1, 0]
    assert chosen_classes(logits, "none").tolist() == [0, 0]


@pytest.mark.parametrize(
    "problem, number, labels, loss",
    [
        (MULTI, 3, torch.tensor([[1, 0, 1], [0, 0, 0]]), torch.nn.BCEWithLogitsLoss()),
        (MULTI, 3, torch.tensor([[1.0, 0, 1], [0, 0, 0]]), torch.nn.BCEWithLogitsLoss()),
        (None, 3, torch.tensor([[1.0, 0, 1], [0, 0, 0]]), torch.nn.BCEWithLogitsLoss()),
        (REGRESSION, 1, torch.tensor([3, 70]), torch.nn.MSELoss()),
        (REGRESSION, 1, torch.tensor([[3.0], [70.0]]), torch.nn.MSELoss()),
        (None, 1, torch.tensor([3.0, 70.0]), torch.nn.MSELoss()),
        (REGRESSION, 2, torch.tensor([[0.5, 1.5], [2.5, 3.5]]), torch.nn.MSELoss()),
    ],
)
def test_losses(make_config, problem, number, labels, loss):
    model = AscentViTForImageClassification(make_config(num_labels=number, problem_type=problem)).eval()
    outputs = model(PIXELS, labels=labels)
    torch.testing.assert_close(outputs.class_loss, loss(outputs.logits, labels.float().view(2, number)).detach())
    outputs.loss.backward()
    # One image alone has the loss of its own labels.
    alone = model(PIXELS[:1], labels=labels[:1])
    torch.testing.assert_close(alone.class_loss, loss(alone.logits, labels[:1].float().view(1, number)).detach())


@pytest.mark.parametrize(
    "problem, number, labels, message",
    [
        (MULTI, 3, torch.tensor([0, 1]), r"multi_label_classification must have the shape \(2, 3\).*got \(2,\)"),
        (MULTI, 3, torch.tensor([[0.0, 2, 0]] * 2), "from 0 to 1, 1 for classes of the image; got 0.0 to 2.0"),
        (REGRESSION, 2, torch.tensor([0.5, 1.5]), r"regression must have the shape \(2, 2\)"),
        (REGRESSION, 1, torch.tensor([[0.5, 1.5]] * 2), r"regression must have the shape \(2, 1\)"),
        (REGRESSION, 1, torch.tensor([0.5, torch.nan]), "labels must be finite"),
    ],
)
def test_labels_of_another_kind_are_refused(make_config, problem, number, labels, message):
    model = AscentViTForImageClassification(make_config(num_labels=number, problem_type=problem)).eval()
    with pytest.raises(ValueError, match=message):
        model(PIXELS, labels=labels)


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"class_weights": [1.0, 1.0, 2.0]}])
def test_settings_of_one_class_an_image_are_refused(make_config, options):
    model = AscentViTForImageClassification(make_config(num_labels=3, problem_type=MULTI, **options))
    with pytest.raises(ValueError, match="need one class an image"):
        model(PIXELS, labels=torch.tensor([[1, 0, 1], [0, 0, 0]]))
    assert model.config.problem_type == MULTI


@pytest.mark.parametrize("problem, number", [(MULTI, 3), (REGRESSION, 1), (REGRESSION, 2)])
def test_contributions_add_up_to_the_logits(make_config, problem, number):
    model = AscentViTForImageClassification(make_config(num_labels=number, problem_type=problem)).double().eval()
    with torch.no_grad():
        for stream in model.streams().values():
            stream.projection.bias.normal_()
        outputs = model(PIXELS.double(), output_contributions=True)
        explained = outputs.concept_contributions.sum(1) + model.class_bias()
    torch.testing.assert_close(explained, outputs.logits, atol=1e-13, rtol=0)

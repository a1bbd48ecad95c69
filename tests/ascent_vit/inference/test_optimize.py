# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from ascent_vit import AscentViTForImageClassification, AscentViTImageProcessor, explain, optimize_for_inference


@pytest.fixture
def model(make_config):
    model = AscentViTForImageClassification(make_config()).eval()
    nn.init.normal_(model.ascent_vit.fusion.gamma)
    return model


@pytest.mark.slow
def test_optimized_model_gives_the_same(model):
    fast = optimize_for_inference(model)
    assert type(fast) is type(model) and not any(parameter.requires_grad for parameter in fast.parameters())
    for batch_size in (2, 3):
        pixels = torch.randn(batch_size, 3, 48, 48)
        with torch.no_grad():
            expected, outputs = model(pixels), fast(pixels)
        for name in ("logits", "global_concept_attention", "spatial_concept_attention"):
            torch.testing.assert_close(outputs[name], expected[name], rtol=1e-4, atol=1e-5)
    assert next(model.parameters()).requires_grad
    processor = AscentViTImageProcessor.from_model_config(model.config)
    image = torch.randint(0, 256, (3, 60, 50), dtype=torch.uint8).numpy()
    expected, explanation = explain(model, processor, image), explain(fast, processor, image)
    assert explanation.predicted_label == expected.predicted_label
    for ours, theirs in zip(explanation.top(5), expected.top(5), strict=True):
        assert ours.name == theirs.name and ours.contribution == pytest.approx(theirs.contribution, abs=1e-4)


@pytest.mark.slow
def test_optimized_in_bfloat16_stays_near(model):
    fast = optimize_for_inference(model, torch.bfloat16)
    pixels = torch.randn(4, 3, 48, 48)
    with torch.no_grad():
        expected, outputs = model(pixels), fast(pixels.to(fast.dtype))
    error = (outputs.logits.float() - expected.logits).norm() / expected.logits.norm()
    assert fast.dtype == torch.bfloat16 and 0 < error < 3e-2
    assert model.dtype == torch.float32


def test_wrong_dtype_slow_dtype_and_missing_compiler(model, monkeypatch, caplog):
    with pytest.raises(ValueError, match=r"floating point.*torch.int8"):
        optimize_for_inference(model, torch.int8)
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="needs a C\\+\\+ compiler: install"):
        optimize_for_inference(model)
    assert not caplog.messages
    monkeypatch.setattr("ascent_vit.utils.hardware.slowdown", lambda dtype: 25.0)
    with pytest.raises(RuntimeError):
        optimize_for_inference(model, torch.bfloat16)
    assert caplog.messages == ["This CPU has no bfloat16 units: inference in float32 is faster."]

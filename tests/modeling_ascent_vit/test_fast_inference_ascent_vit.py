# SPDX-License-Identifier: Apache-2.0
"""What is only faster at inference against the formula: batches in parts, folded normalisation, queries and keys."""

import pytest
import torch
from torch import nn

from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification, fast_inference_ascent_vit
from modeling_ascent_vit.fast_inference_ascent_vit import folds_query
from modeling_ascent_vit.modeling_ascent_vit import AscentViTBatchNorm, AscentViTConceptStream, AscentViTConvLayer


def build(config: AscentViTConfig) -> AscentViTForImageClassification:
    """A model whose fusion has an effect, as after some training."""
    model = AscentViTForImageClassification(config).eval()
    fusion = model.ascent_vit.fusion
    nn.init.normal_(fusion.gamma)
    for layer in (fusion.sampling_offsets, fusion.sampling_weights):
        nn.init.normal_(layer.weight, std=0.1)
    return model


def build_stream(make_config, none_concept: bool = False) -> AscentViTConceptStream:
    stream = AscentViTConceptStream(make_config(), 5, none_concept).eval()
    for parameter in stream.parameters():
        nn.init.normal_(parameter, std=0.5)
    return stream


# The pyramid ---------------------------------------------------------------------------------------------------------


def test_normalisation_is_folded_into_the_convolution(make_config):
    layer = AscentViTConvLayer(make_config(), 3, 8, stride=2).double()
    nn.init.normal_(layer.normalization.weight)
    nn.init.normal_(layer.normalization.bias)
    for _ in range(3):
        layer(torch.randn(4, 3, 9, 12, dtype=torch.float64) * 3 + 1)
    layer.eval()
    image = torch.randn(2, 3, 9, 12, dtype=torch.float64)
    expected = nn.functional.relu(layer.normalization(layer.convolution(image)))
    with torch.no_grad():
        torch.testing.assert_close(layer(image), expected.detach())
        layer.normalization.running_mean += 1
        moved = nn.functional.relu(layer.normalization(layer.convolution(image)))
        torch.testing.assert_close(layer(image), moved)


class ShiftedBatchNorm(AscentViTBatchNorm):
    """A normalisation in place of another, with more to it than its statistics."""

    def forward(self, features):
        return super().forward(features) + 1


def test_another_normalisation_is_not_folded(make_config):
    layer = AscentViTConvLayer(make_config(), 3, 8, stride=2).eval()
    layer.normalization = ShiftedBatchNorm(8).eval()
    image = torch.randn(2, 3, 9, 12)
    expected = nn.functional.relu(layer.normalization(layer.convolution(image)))
    with torch.no_grad():
        torch.testing.assert_close(layer(image), expected.detach())


def test_a_layer_that_trains_is_not_folded(make_config):
    """Its statistics are those of the batch, also where the result has a place."""
    layer = AscentViTConvLayer(make_config(), 3, 8, stride=2)
    image, place = torch.randn(2, 3, 9, 12), torch.empty(2, 8, 5, 6)
    with torch.no_grad():
        expected = layer(image)
        assert layer(image, out=place) is place
    torch.testing.assert_close(place, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "settings", [{}, {"pyramid_norm": "group"}, {"pyramid_stem": "patch"}, {"fusion_hidden_size": 24}]
)
def test_a_few_images_at_a_time_give_what_all_at_once_give(make_config, monkeypatch, settings, dtype):
    """The pyramid at inference, cut and with folded normalisation, against the plain form that gradients take."""
    model = build(make_config(**settings)).to(dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    pixels = torch.randn(5, 3, 48, 48, dtype=dtype)
    plain = model(pixels, output_contributions=True, output_fusion=True)
    assert plain.logits.requires_grad
    monkeypatch.setattr(fast_inference_ascent_vit, "STEM_BYTES_AT_ONCE", 2 * 24 * 24 * 64 * 4)
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-5}
    for count in (1, 2, 5):
        monkeypatch.setattr(fast_inference_ascent_vit, "PIXELS_AT_ONCE", count * 48 * 48)
        with torch.no_grad():
            parts = model(pixels, output_contributions=True, output_fusion=True)
        for name in ("logits", "spatial_concept_attention", "concept_contributions", "fusion_locations"):
            torch.testing.assert_close(parts[name], plain[name], **tolerance)


def test_a_few_images_at_a_time_under_autocast(make_config, monkeypatch):
    model = build(make_config())
    pixels = torch.randn(5, 3, 48, 48)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = model.ascent_vit.encoding(pixels)[0]
        monkeypatch.setattr(fast_inference_ascent_vit, "STEM_BYTES_AT_ONCE", 2 * 24 * 24 * 64 * 2)
        parts = model.ascent_vit.encoding(pixels)[0]
    assert parts.dtype == whole.dtype == torch.bfloat16
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("pyramid_stem", ["conv", "patch"])
def test_adapters_of_the_pyramid_count_at_inference(make_config, pyramid_stem):
    """A convolution that an adapter has taken over is not folded by its weight alone."""
    peft = pytest.importorskip("peft")
    model = build(make_config(pyramid_stem=pyramid_stem))
    pixels = torch.randn(2, 3, 48, 48)
    before = model.ascent_vit.encoding(pixels)[0]
    adapter = peft.LoraConfig(r=2, target_modules=r".*\.convolution", init_lora_weights=False)
    adapted = peft.get_peft_model(model, adapter)
    encoding = adapted.get_submodule("base_model.model.ascent_vit.encoding")
    with_gradients = encoding(pixels)[0]
    assert with_gradients.requires_grad and not torch.allclose(with_gradients, before, atol=0.01)
    with torch.no_grad():
        torch.testing.assert_close(encoding(pixels)[0], with_gradients, rtol=2e-4, atol=2e-5)
        merged = adapted.merge_and_unload().ascent_vit.encoding
        torch.testing.assert_close(merged(pixels)[0], with_gradients, rtol=2e-4, atol=2e-5)


# The concept head ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("none_concept", [False, True])
def test_folded_equals_unfolded(make_config, none_concept):
    stream = build_stream(make_config, none_concept)
    tokens = torch.randn(3, 7, 32)
    attention, scores = stream(tokens)
    with torch.no_grad():
        assert folds_query(stream.query, tokens, torch.empty(2, 5, 16))
        folded_attention, folded_scores = stream(tokens)
    assert not torch.equal(attention, folded_attention), "the folded form was not used"
    torch.testing.assert_close(folded_attention, attention, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(folded_scores, scores, rtol=1e-5, atol=1e-6)


class LowRankAdapter(nn.Linear):
    """A layer in place of another, with more to it than its weight, as adapters are."""

    def forward(self, x):
        return super().forward(x) + x.flip(-1)


def edit_in_place(stream):
    with torch.no_grad():
        stream.query.weight.add_(0.3)


def edit_behind_autograd(stream):
    # What merging an adapter does; it does not raise the parameter's version counter.
    stream.key.weight.data += 0.3


def load_other_weights(stream):
    stream.load_state_dict({k: v + 0.1 for k, v in stream.state_dict().items()})


def convert(stream):
    stream.double()


def replace_layer(stream):
    adapter = LowRankAdapter(32, 32, bias=False)
    adapter.load_state_dict(stream.query.state_dict())
    stream.query = adapter


@pytest.mark.parametrize(
    "change",
    [edit_in_place, edit_behind_autograd, load_other_weights, convert, replace_layer],
    ids=lambda f: f.__name__,
)
def test_folded_form_is_never_stale(make_config, change):
    stream = build_stream(make_config)
    tokens = torch.randn(2, 6, 32)
    with torch.no_grad():
        before = stream(tokens)[0]
        change(stream)
        tokens = tokens.to(stream.query.weight.dtype)
        folded = stream(tokens)[0]
    unfolded = stream(tokens)[0]
    torch.testing.assert_close(folded, unfolded.detach(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(folded.double(), before.double(), atol=1e-4) or change is convert

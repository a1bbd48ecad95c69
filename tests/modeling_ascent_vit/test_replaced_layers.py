# SPDX-License-Identifier: Apache-2.0
"""Layers that others watch, replace or keep elsewhere: they are called, and explained by what they compute."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

from ascent_vit import explain
from modeling_ascent_vit import AscentViTForImageClassification, AscentViTImageProcessorPil, fast_inference_ascent_vit


@pytest.fixture
def model(make_config) -> AscentViTForImageClassification:
    """Every stream, and a fusion and gates that have an effect, as after some training."""
    model = AscentViTForImageClassification(make_config(none_concept=True)).eval()
    fusion = model.ascent_vit.fusion
    nn.init.normal_(fusion.gamma)
    gates = [stream.gate for stream in model.streams().values() if stream.gate is not None]
    for layer in (fusion.sampling_offsets, fusion.sampling_weights, *gates):
        nn.init.normal_(layer.weight, std=0.1)
    for stream in model.streams().values():
        nn.init.normal_(stream.projection.weight)
        nn.init.normal_(stream.projection.bias)
    return model


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 48, 48)


def new_layers(model: nn.Module) -> list[nn.Module]:
    """Linear layers and convolutions beside the backbone."""
    modules = model.named_modules()
    return [m for name, m in modules if ".backbone." not in name and isinstance(m, nn.Linear | nn.Conv2d)]


def check_explanation(model: nn.Module, pixels: torch.Tensor, tolerance: float = 1e-5):
    """Contributions, maps and what `explain` says add up to the logits."""
    with torch.no_grad():
        outputs = model(pixels, output_contributions=True)
        maps = model.contribution_maps(pixels, [0, 3])
        bias = model.class_bias()
    by_sum = outputs.concept_contributions.sum(1) + bias
    torch.testing.assert_close(by_sum, outputs.logits, rtol=0, atol=tolerance)
    spatial = outputs.concept_contributions[:, 3:7, [0, 3]].transpose(1, 2)
    torch.testing.assert_close(maps.sum((-1, -2)), spatial, rtol=0, atol=tolerance)
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8))
    processor = AscentViTImageProcessorPil.from_model_config(model.config)
    explanation = explain(model, processor, image)
    assert explanation.additivity_error <= tolerance
    with torch.no_grad():
        expected = model(**processor(image, return_tensors="pt")).logits[0]
    np.testing.assert_allclose(explanation.logits, expected.numpy(), rtol=0, atol=1e-5)


# Watched -------------------------------------------------------------------------------------------------------------


def count_calls(model: nn.Module, pixels: torch.Tensor, kind: str) -> Counter:
    """How often hooks fire by the name of their module, in a forward."""
    calls: Counter[str] = Counter()
    names = {module: name for name, module in model.named_modules()}

    def count(module, *_):
        calls[names[module]] += 1

    if kind == "all modules":
        handles = [register_module_forward_pre_hook(count)]
    elif kind == "all modules, after":
        handles = [register_module_forward_hook(count)]
    else:
        handles = [getattr(module, kind)(count) for module in names]
    model(pixels)
    for handle in handles:
        handle.remove()
    return calls


@pytest.mark.parametrize(
    "kind", ["register_forward_hook", "register_forward_pre_hook", "all modules", "all modules, after"]
)
def test_hooks_fire_once_without_gradients(model, monkeypatch, kind):
    """As in training, also where a batch would go in parts."""
    monkeypatch.setattr(fast_inference_ascent_vit, "STEM_BYTES_AT_ONCE", 1)
    monkeypatch.setattr(fast_inference_ascent_vit, "PIXELS_AT_ONCE", 1)
    pixels = torch.randn(3, 3, 48, 48)
    with torch.no_grad():
        calls = count_calls(model, pixels, kind)
    assert calls == count_calls(model.train(), pixels, kind)
    # The backbone's own layers share a dropout.
    names = {name for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)}
    assert calls.keys() == names
    assert {number for name, number in calls.items() if ".backbone." not in name} == {1}


def test_operations_are_all_counted(model, pixels):
    """By a counter that hooks into modules and tells their operations apart."""
    totals = []
    for needs_gradient in (True, False):
        with torch.set_grad_enabled(needs_gradient), FlopCounterMode(display=False) as counter:
            model(pixels)
        totals.append({name: sum(of_kind.values()) for name, of_kind in counter.get_flop_counts().items()})
    assert totals[0] == totals[1]
    assert totals[1]["AscentViTForImageClassification.spatial_stream.query"] == 2 * (2 * 36) * 32 * 32


@pytest.mark.parametrize("name", ["spatial_stream.query", "spatial_stream.projection", "ascent_vit.encoding.stem.0"])
def test_a_hook_that_changes_a_layer_counts(model, pixels, name):
    """As an ablation: what the hook puts in the output's place is what the model goes on with, and explains."""
    layer = model.get_submodule(name)
    with torch.no_grad():
        before = model(pixels).logits
        handle = layer.register_forward_hook(lambda module, inputs, output: output * 0.5)
        changed = model(pixels).logits
    torch.testing.assert_close(changed, model(pixels).logits.detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed, before, rtol=1e-4, atol=1e-5)
    check_explanation(model, pixels)
    handle.remove()
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, before)


# Replaced ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization:DeprecationWarning", "ignore:.*quantize_per_tensor")
def test_dynamic_quantisation(model, pixels):
    """It rounds inputs and weights of linear layers to 8 bits: contributions add up to within that."""
    from torch.ao.quantization import quantize_dynamic

    quantized = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not isinstance(quantized.spatial_stream.projection, nn.Linear)
    assert callable(quantized.spatial_stream.projection.weight)
    with torch.no_grad():
        expected, logits = model(pixels).logits, quantized(pixels).logits
    step = (expected.max() - expected.min()) / 255
    torch.testing.assert_close(logits, expected, rtol=0, atol=10 * step.item())
    check_explanation(quantized, pixels, tolerance=5 * step.item())


def prune_layers(model):
    for layer in new_layers(model):
        prune.l1_unstructured(layer, "weight", 0.3)


def normalise_weights(model):
    for layer in new_layers(model):
        parametrizations.weight_norm(layer)
    # What a parametrisation adds: its inputs are not the weight.
    with torch.no_grad():
        for layer in new_layers(model):
            layer.parametrizations.weight.original0.mul_(1.5)


def normalise_spectra(model):
    for layer in new_layers(model):
        parametrizations.spectral_norm(layer)


@pytest.mark.parametrize("change", [prune_layers, normalise_weights, normalise_spectra], ids=lambda f: f.__name__)
def test_parametrised_layers(model, pixels, change):
    with torch.no_grad():
        before = model(pixels).logits
    change(model)
    model.eval()
    expected = model(pixels, output_contributions=True)
    with torch.no_grad():
        outputs = model(pixels, output_contributions=True)
    assert not torch.allclose(outputs.logits, before, atol=1e-3)
    torch.testing.assert_close(outputs.logits, expected.logits.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        outputs.concept_contributions, expected.concept_contributions.detach(), rtol=1e-4, atol=1e-5
    )
    check_explanation(model, pixels)


def test_adapters_everywhere(model, pixels):
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = peft.get_peft_model(model, adapter).eval().base_model.model
    assert type(adapted.spatial_stream.projection) is not nn.Linear
    with torch.no_grad():
        logits = adapted(pixels).logits
    torch.testing.assert_close(logits, adapted(pixels).logits.detach(), rtol=1e-4, atol=1e-5)
    check_explanation(adapted, pixels, tolerance=1e-4)


# Kept elsewhere ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["cpu", "disk", "device_map"])
def test_offloaded_weights(model, pixels, tmp_path, place):
    """Their layers hold no numbers until they are called."""
    accelerate = pytest.importorskip("accelerate")
    model.save_pretrained(tmp_path / "model")
    loaded = AscentViTForImageClassification.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        expected = loaded(pixels, output_contributions=True)
        expected_bias = loaded.class_bias()
    if place == "cpu":
        accelerate.cpu_offload(loaded, torch.device("cpu"))
    elif place == "disk":
        accelerate.disk_offload(loaded, tmp_path / "weights", torch.device("cpu"))
    else:
        device_map = {
            "ascent_vit.backbone": "cpu",
            "ascent_vit.encoding": "disk",
            "ascent_vit.fusion": "disk",
            "global_stream": "disk",
            "spatial_stream": "disk",
            "unsupervised_stream": "cpu",
        }
        loaded = AscentViTForImageClassification.from_pretrained(
            tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "weights"
        )
    assert loaded.spatial_stream.concepts.is_meta and loaded.ascent_vit.encoding.stem[0].convolution.weight.is_meta
    with torch.no_grad():
        outputs = loaded(pixels, output_contributions=True)
        torch.testing.assert_close(loaded.class_bias(), expected_bias)
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.concept_contributions, expected.concept_contributions, rtol=1e-4, atol=1e-5)
    check_explanation(loaded, pixels)


# Plain ---------------------------------------------------------------------------------------------------------------


def test_plain_layers_are_not_called(model, pixels, monkeypatch):
    """Where nobody watches, the shortcuts stay: queries are folded, and normalisations."""
    called = []
    for kind in (nn.Linear, nn.Conv2d, nn.BatchNorm2d):
        forward = kind.forward
        monkeypatch.setattr(kind, "forward", lambda self, x, f=forward: called.append(self) or f(self, x))
    with torch.no_grad():
        model(pixels, output_contributions=True)
    skipped = set(new_layers(model)) - set(called)
    assert model.spatial_stream.query in skipped
    assert {layer.convolution for layer in model.ascent_vit.encoding.stem} <= skipped
    assert called.count(model.spatial_stream.projection) == 1

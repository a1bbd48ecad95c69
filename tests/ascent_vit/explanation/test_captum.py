# SPDX-License-Identifier: Apache-2.0
"""captum's methods on the model as it is, against differences of logits and the exact contributions."""

import pytest
import torch
from torch.func import functional_call

from ascent_vit.explanation import LogitsModel


CLASS_ID = 1

captum = pytest.importorskip("captum", reason="captum is not installed")


@pytest.fixture(params=[True])
def model(make_model, request):
    """With a gate, unless a test asks for more."""
    model, _ = make_model(none_concept=request.param)
    with torch.no_grad():
        # A new model's pyramid counts for nothing.
        model.ascent_vit.fusion.gamma.normal_(std=0.3)
    return model


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))


def logits_of(model):
    return lambda pixel_values: model(pixel_values).logits


@torch.no_grad()
def gained(model, pixel_values):
    """What the class score of images is above that of a black one, `(B,)`."""
    return (model(pixel_values).logits - model(torch.zeros_like(pixel_values)).logits)[:, CLASS_ID]


def assert_complete(attributions, difference):
    assert torch.isfinite(attributions).all() and attributions.std() > 0
    total = attributions.flatten(1).sum(1)
    torch.testing.assert_close(total, difference, rtol=0.03, atol=0.03 * float(difference.abs().max()))


def test_integrated_gradients_are_complete(model, pixel_values):
    method = captum.attr.IntegratedGradients(logits_of(model))
    attributions = method.attribute(pixel_values, target=CLASS_ID, n_steps=50)
    assert attributions.shape == pixel_values.shape
    assert_complete(attributions, gained(model, pixel_values))


@pytest.mark.parametrize("place", ["backbone.embeddings", "backbone.layers.1", "tokens"])
def test_layer_integrated_gradients_of_tokens_are_complete(model, pixel_values, place):
    """Of a black image's other tokens; those of the backbone leave the pyramid as the image has it."""
    layer = model.ascent_vit.get_submodule(place)
    seen = {}
    with layer.register_forward_hook(lambda module, args, output: seen.update(tokens=output)):
        model(torch.zeros_like(pixel_values))
    with torch.no_grad(), layer.register_forward_hook(lambda module, args, output: seen["tokens"]):
        without = model(pixel_values).logits
    difference = (model(pixel_values).logits - without).detach()[:, CLASS_ID]
    method = captum.attr.LayerIntegratedGradients(logits_of(model), layer)
    attributions = method.attribute(pixel_values, target=CLASS_ID, n_steps=50)
    assert attributions.shape == (2, 37, 32)
    assert_complete(attributions, difference)


@pytest.mark.parametrize("place", ["stem", "stages.2", "stages.1.normalization", "projections.0"])
def test_layer_integrated_gradients_of_the_pyramid(model, pixel_values, place):
    """Also where a ReLU follows, which must leave alone what captum puts in place of a layer's output."""
    method = captum.attr.LayerIntegratedGradients(logits_of(model), model.ascent_vit.encoding.get_submodule(place))
    attributions = method.attribute(pixel_values, target=CLASS_ID, n_steps=50)
    seen = {}
    layer = model.ascent_vit.encoding.get_submodule(place)
    with layer.register_forward_hook(lambda module, args, output: seen.update(features=output.clone())):
        model(torch.zeros_like(pixel_values))
    with layer.register_forward_hook(lambda module, args, output: seen["features"].clone()):
        without = model(pixel_values).logits
    assert attributions.ndim == 4
    assert_complete(attributions, (model(pixel_values).logits - without).detach()[:, CLASS_ID])


@pytest.mark.parametrize("stream", ["global", "spatial", "unsupervised"])
def test_layer_integrated_gradients_of_the_head(model, pixel_values, stream):
    """Of the projection's input, of which the class scores of a stream are a linear function."""
    projection = model.streams()[stream].projection
    seen = []
    with torch.no_grad(), projection.register_forward_hook(lambda module, args, output: seen.append(output)):
        model(pixel_values), model(torch.zeros_like(pixel_values))
    method = captum.attr.LayerIntegratedGradients(logits_of(model), projection)
    attributions = method.attribute(pixel_values, target=CLASS_ID, n_steps=2, attribute_to_layer_input=True)
    assert attributions.shape == (2, 32)
    torch.testing.assert_close(attributions.sum(1), (seen[0] - seen[1])[:, CLASS_ID], rtol=1e-4, atol=1e-5)


def test_integrated_gradients_of_concept_embeddings_are_complete(model, pixel_values):
    """By way of keys and values; embeddings do not depend on the image, so they are an input of their own."""
    concepts, image = model.spatial_stream.concepts.detach(), pixel_values[:1]

    def logits_with(concepts):
        return functional_call(model, {"spatial_stream.concepts": concepts[0]}, (image,)).logits

    attributions = captum.attr.IntegratedGradients(logits_with).attribute(
        concepts[None], target=CLASS_ID, n_steps=50, internal_batch_size=1
    )
    assert attributions.shape == (1, 4, 32)
    with torch.no_grad():
        difference = (logits_with(concepts[None]) - logits_with(torch.zeros_like(concepts)[None]))[:, CLASS_ID]
    assert_complete(attributions, difference)


@pytest.mark.parametrize("model", [True, False], ids=["gate", "no gate"], indirect=True)
def test_values_of_concepts_give_the_contributions(model, pixel_values):
    """The logits are linear in the concepts' values: there, gradient times activation and its integral are exact."""
    image = pixel_values[:1]
    contributions = model(image, output_contributions=True).concept_contributions[0, :, CLASS_ID].detach()
    gradients, integrals = [], []
    for stream in model.streams().values():
        method = captum.attr.LayerGradientXActivation(logits_of(model), stream.value)
        gradients.append(method.attribute(image, target=CLASS_ID).sum(1).detach())

        def logits_with(values, layer=stream.value):
            with layer.register_forward_hook(lambda module, args, output: values[0]):
                return model(image).logits

        values = stream.value(stream.concepts).detach()[None]
        method = captum.attr.IntegratedGradients(logits_with)
        attributions = method.attribute(values, target=CLASS_ID, n_steps=2, internal_batch_size=1)
        integrals.append(attributions[0].sum(1).float())
    assert contributions.abs().max() > 0.01
    torch.testing.assert_close(torch.cat(gradients), contributions, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat(integrals), contributions, rtol=1e-4, atol=1e-5)


def test_layer_grad_cam_of_the_pyramid(model, pixel_values):
    layer, seen = model.ascent_vit.encoding.stages[1], []
    cam = captum.attr.LayerGradCam(logits_of(model), layer).attribute(pixel_values, target=CLASS_ID)
    with layer.register_forward_hook(lambda module, args, output: seen.append(output)):
        logits = model(pixel_values).logits
    (slopes,) = torch.autograd.grad(logits[:, CLASS_ID].sum(), seen)
    expected = (seen[0] * slopes.mean((2, 3), keepdim=True)).sum(1, keepdim=True)
    assert cam.shape == (2, 1, 3, 3) and cam.abs().max() > 0
    torch.testing.assert_close(cam, expected, rtol=1e-4, atol=1e-7)
    assert captum.attr.LayerAttribution.interpolate(cam, (48, 48)).shape == (2, 1, 48, 48)


@pytest.mark.parametrize("name", ["FeatureAblation", "Occlusion"])
def test_hidden_patches_move_the_logit_by_as_much(model, pixel_values, name):
    method = getattr(captum.attr, name)(logits_of(model))
    if name == "Occlusion":
        options = {"sliding_window_shapes": (3, 8, 8), "strides": (3, 8, 8)}
    else:
        patches = torch.arange(36).view(6, 6).repeat_interleave(8, 0).repeat_interleave(8, 1)
        options = {"feature_mask": patches.expand(1, 1, 48, 48)}
    with torch.no_grad():
        attributions = method.attribute(pixel_values, target=CLASS_ID, **options)
        hidden = pixel_values.clone()
        hidden[:, :, 16:24, 40:48] = 0
        moved = (model(pixel_values).logits - model(hidden).logits)[:, CLASS_ID]
    assert moved.abs().min() > 1e-5
    torch.testing.assert_close(attributions[:, 0, 20, 44].float(), moved, rtol=1e-3, atol=1e-5)


def test_concept_vectors_by_tcav(make_model, tmp_path):
    """Kim et al., ICML 2018, on the tokens that the head reads: dark or light, told apart by their mean."""
    concept = captum.concept
    model, _ = make_model()

    def examples(name, number, mean):
        images = mean + torch.randn(12, 3, 48, 48)
        return concept.Concept(number, name, torch.utils.data.DataLoader(images, batch_size=12))

    sets = [[examples("light", 0, 2.0), examples("dark", 1, -2.0)]]
    tcav = concept.TCAV(LogitsModel(model), ["model.ascent_vit.tokens"], save_path=str(tmp_path))
    scores = tcav.interpret(torch.randn(3, 3, 48, 48), experimental_sets=sets, target=CLASS_ID)
    (values,) = scores["0-1"].values()
    assert set(values) == {"sign_count", "magnitude"}
    torch.testing.assert_close(values["sign_count"].sum(), torch.tensor(1.0))
    (vectors,) = tcav.cavs["0-1"].values()
    light, dark = vectors.stats["weights"]
    with torch.no_grad():
        new = torch.tensor([2.0, -2.0]).view(2, 1, 1, 1).expand(2, 3, 48, 48)
        tokens = model.ascent_vit(new).last_hidden_state.flatten(1)
    difference = tokens[0] - tokens[1]
    assert difference @ light > 0 > difference @ dark


def test_how_far_a_little_noise_moves_the_contribution_maps(model, pixel_values):
    """Yeh et al., NeurIPS 2019: the exact maps are an attribution like any other for captum's metrics."""
    from captum.metrics import sensitivity_max

    moved = sensitivity_max(
        lambda inputs: (model.contribution_maps(inputs[0], [CLASS_ID]).detach(),),
        pixel_values,
        perturb_radius=0.01,
        n_perturb_samples=4,
    )
    assert moved.shape == (2,) and (moved > 0).all() and (moved < 1).all()

# SPDX-License-Identifier: Apache-2.0
"""pytorch-grad-cam on the model as it is, by the reshape_transform that knows its tokens."""

import numpy as np
import pytest
import torch

from ascent_vit.explanation import LogitsModel, reshape_transform
from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification


GRIDS = {"square": (48, 48), "wide": (32, 64), "tall": (64, 24)}
CAMS = ["GradCAM", "HiResCAM", "EigenCAM", "ScoreCAM", "AblationCAM"]


@pytest.fixture(scope="module")
def grad_cam():
    return pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")


@pytest.fixture
def model_of(make_model):
    def make(size, backbone="vit"):
        image_size = size[0] if size[0] == size[1] else list(size)
        model, _ = make_model(backbone=backbone, backbone_kwargs={"image_size": image_size}, none_concept=True)
        with torch.no_grad():
            model.ascent_vit.fusion.gamma.normal_()
        return model

    return make


def cam_of(grad_cam, name, model, layers, pixel_values, class_ids, **kwargs):
    from pytorch_grad_cam.ablation_layer import AblationLayerVit
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    if name == "AblationCAM":
        kwargs["ablation_layer"] = AblationLayerVit()
    with getattr(grad_cam, name)(LogitsModel(model), layers, **kwargs) as cam:
        return cam(pixel_values, [ClassifierOutputTarget(class_id) for class_id in class_ids])


@pytest.mark.parametrize("name", CAMS)
def test_fused_patches(grad_cam, model_of, name):
    size = GRIDS["wide"]
    model, pixel_values = model_of(size), torch.randn(2, 3, *size)
    maps = cam_of(
        grad_cam,
        name,
        model,
        [model.ascent_vit.tokens],
        pixel_values,
        [1, 2],
        reshape_transform=reshape_transform(model),
    )
    assert maps.shape == (2, *size)
    assert np.isfinite(maps).all() and maps.max() > 0.99 and maps.std() > 0.01


@pytest.mark.parametrize("backbone", ["deit", "dinov2_with_registers", "siglip_vision_model"])
def test_a_layer_of_the_backbone(grad_cam, model_of, backbone):
    """With 2, 5 and no prefix tokens."""
    model, pixel_values = model_of((48, 48), backbone), torch.randn(1, 3, 48, 48)
    layers = [module for name, module in model.named_modules() if name.endswith((".norm1", ".layernorm_before"))]
    layers = layers or [module for name, module in model.named_modules() if name.endswith(".layer_norm1")]
    maps = cam_of(
        grad_cam, "GradCAM", model, layers[-1:], pixel_values, [0], reshape_transform=reshape_transform(model)
    )
    assert maps.shape == (1, 48, 48) and maps.max() > 0.99


@pytest.mark.parametrize("size", GRIDS.values(), ids=GRIDS)
def test_grad_cam_is_its_formula_on_the_fused_patches(grad_cam, model_of, size):
    """Selvaraju et al.: channels weighted by their mean gradient over places, below 0 cut off."""
    model, pixel_values = model_of(size), torch.randn(1, 3, *size)
    maps = cam_of(
        grad_cam,
        "GradCAM",
        model,
        [model.ascent_vit.tokens],
        pixel_values,
        [3],
        reshape_transform=reshape_transform(model),
    )
    tokens = []
    with model.ascent_vit.tokens.register_forward_hook(lambda module, args, output: tokens.append(output)):
        outputs = model(pixel_values)
    (gradient,) = torch.autograd.grad(outputs.logits[0, 3], tokens)
    height, width = outputs.patch_grid[0].tolist()
    patches, slopes = (values[0, -height * width :].detach() for values in (tokens[0], gradient))
    expected = (patches @ slopes.mean(0)).clamp_min(0).view(height, width)
    # The map is that of the grid, resized, and so nearly it at the centres of the patches.
    assert (height, width) == (size[0] // 8, size[1] // 8)
    centres = maps[0].reshape(height, 8, width, 8)[:, 3:5, :, 3:5].mean((1, 3))
    assert np.corrcoef(centres.flatten(), expected.flatten())[0, 1] > 0.98


def test_tokens_are_laid_out_row_by_row(make_config):
    config = make_config(backbone_kwargs={"image_size": [16, 24]})
    model = AscentViTForImageClassification(config).eval()
    tokens = torch.arange(7.0).view(1, 7, 1).expand(2, 7, 4)
    grid = reshape_transform(model)(tokens)
    assert grid.shape == (2, 4, 2, 3)
    assert grid[1, 2].tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    # The pyramid's maps have a grid of their own.
    assert reshape_transform(model)(torch.zeros(1, 8, 5, 7)).shape == (1, 8, 5, 7)
    assert reshape_transform(model, image_size=(32, 48))(torch.zeros(1, 25, 4)).shape == (1, 4, 4, 6)
    for wrong in (torch.zeros(1, 5, 4), torch.zeros(6, 4)):
        with pytest.raises(ValueError, match="2 x 3 patches, for images of 16 x 24 pixels; got"):
            reshape_transform(model)(wrong)


def test_stages_of_a_hierarchical_backbone_have_finer_grids():
    swin = {"model_type": "swin", "image_size": 64, "patch_size": 4, "embed_dim": 12, "window_size": 2}
    swin |= {"depths": [1, 1, 1], "num_heads": [1, 1, 2]}
    config = AscentViTConfig(backbone_config=swin, fusion_heads=4, num_spatial_concepts=4)
    transform = reshape_transform(AscentViTForImageClassification(config))
    assert transform(torch.zeros(1, 16, 48)).shape == (1, 48, 4, 4)
    assert transform(torch.zeros(1, 64, 24)).shape == (1, 24, 8, 8)
    with pytest.raises(ValueError, match="4 x 4 patches"):
        transform(torch.zeros(1, 65, 24))


def test_images_of_another_size(grad_cam, make_model):
    model, _ = make_model()
    pixel_values = torch.randn(1, 3, 64, 64)
    transform = reshape_transform(model, image_size=(64, 64))
    with grad_cam.GradCAM(
        LogitsModel(model, interpolate_pos_encoding=True), [model.ascent_vit.tokens], reshape_transform=transform
    ) as cam:
        assert cam(pixel_values, None).shape == (1, 64, 64)


def test_logits_alone(make_model):
    model, _ = make_model()
    pixel_values = torch.randn(2, 3, 48, 48)
    wrapped = LogitsModel(model)
    assert not wrapped.training and LogitsModel(model.train()).training
    model.eval()
    assert torch.equal(wrapped(pixel_values), model(pixel_values).logits)
    model.config.return_dict = False
    assert torch.equal(wrapped(pixel_values), model(pixel_values, return_dict=True).logits)

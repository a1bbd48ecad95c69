# SPDX-License-Identifier: Apache-2.0
"""Image processor: both backends against each other, targets against pixels, maps against their geometry."""

import base64
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F
from transformers.utils import is_torchvision_available

from modeling_ascent_vit import AscentViTForImageClassification
from modeling_ascent_vit.image_processing_ascent_vit import AscentViTImageProcessor
from modeling_ascent_vit.image_processing_pil_ascent_vit import AscentViTImageProcessorPil


needs_torchvision = pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
BACKENDS = [
    pytest.param(AscentViTImageProcessorPil, id="pil"),
    pytest.param(AscentViTImageProcessor, id="torchvision", marks=needs_torchvision),
]
GEOMETRIES = {
    "resize": {"size": {"height": 48, "width": 64}, "patch_size": 16},
    "rim": {"size": {"height": 53, "width": 47}, "patch_size": (12, 16)},
    "crop": {
        "size": {"shortest_edge": 70},
        "do_center_crop": True,
        "crop_size": {"height": 48, "width": 51},
        "patch_size": 16,
    },
    "crop_with_margin": {
        "do_resize": False,
        "do_center_crop": True,
        "crop_size": {"height": 98, "width": 64},
        "patch_size": (8, 16),
    },
    "longest_edge": {
        "size": {"shortest_edge": 60, "longest_edge": 80},
        "do_pad": True,
        # transformers leaves an edge of 81 as it is where the other would stay 20.
        "pad_size": {"height": 96, "width": 88},
        "patch_size": 8,
    },
    "bounds": {"size": {"max_height": 70, "max_width": 90}, "patch_size": 10},
    "stored": {"do_resize": False, "patch_size": 7},
}


@pytest.fixture(params=BACKENDS)
def processor_class(request):
    return request.param


@pytest.fixture(params=GEOMETRIES.values(), ids=GEOMETRIES.keys())
def geometry(request):
    return request.param


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def in_mode(mode, height=61, width=90):
    image = Image.fromarray(noise(height, width, 4))
    if mode == "1":
        return image.convert("L").convert("1")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def test_defaults(processor_class):
    processor = processor_class()
    inputs = processor(Image.fromarray(noise(300, 200)), return_tensors="pt")
    assert set(inputs) == {"pixel_values"}
    assert inputs["pixel_values"].shape == (1, 3, 224, 224) and inputs["pixel_values"].dtype == torch.float32
    assert dict(processor.size) == {"height": 224, "width": 224} and not processor.do_center_crop
    assert (processor.patch_size, processor.num_global_concepts, processor.num_spatial_concepts) == (16, 0, 0)
    assert (processor.annotation_coverage, processor.unannotated) == (0.5, "ignore")
    extremes = np.zeros((224, 224, 3), np.uint8)
    extremes[:112] = 255
    pixels = processor(Image.fromarray(extremes), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels[0, :, :112], torch.ones(3, 112, 224))
    torch.testing.assert_close(pixels[0, :, 112:], -torch.ones(3, 112, 224))


def test_from_model_config(processor_class, make_config):
    config = make_config()
    processor = processor_class.from_model_config(config)
    assert dict(processor.size) == {"height": 48, "width": 48} and processor.patch_size == (8, 8)
    assert (processor.num_global_concepts, processor.num_spatial_concepts) == (3, 4)
    processor = processor_class.from_model_config(
        config, size={"shortest_edge": 56}, do_center_crop=True, num_global_concepts=0, unannotated="none"
    )
    assert dict(processor.size) == {"shortest_edge": 56}
    assert dict(processor.crop_size) == {"height": 48, "width": 48}
    assert (processor.num_global_concepts, processor.unannotated) == (0, "none")
    inputs = processor(Image.fromarray(noise(70, 99)), {"points": {"xy": [[50, 35]], "category": [3]}})
    assert np.shape(inputs["pixel_values"][0]) == (3, 48, 48)
    assert np.shape(inputs["spatial_concept_targets"][0]) == (36, 4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(processor_class, mode):
    pixels = processor_class(do_resize=False, do_normalize=False)(in_mode(mode), return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, 61, 90)
    if mode == "RGB":
        np.testing.assert_allclose(pixels[0], np.moveaxis(noise(61, 90, 4)[..., :3], -1, 0) / 255, atol=1e-6)
    if mode in ("L", "I", "F", "1", "I;16"):
        assert (pixels[:, 0] == pixels[:, 1]).all() and (pixels[:, 0] == pixels[:, 2]).all()
    if mode == "RGBA":
        rgba = np.moveaxis(noise(61, 90, 4), -1, 0).astype(np.float64)
        white = (rgba[:3] * rgba[3] + 255 * (255 - rgba[3])) / 255**2
        np.testing.assert_allclose(pixels[0], white, atol=1.01 / 255)


def test_sixteen_bits_keep_their_range(processor_class):
    grey = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    processor = processor_class(do_resize=False, do_normalize=False)
    pixels = processor(Image.fromarray(grey), return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(pixels[0, 0], grey / 65535, atol=1 / 255)
    same = processor(Image.fromarray(grey.astype(np.int32)), return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(same, pixels)
    with pytest.raises(
        ValueError, match=r'mode "I" must have values from 0 to 65535; got 0 to 131070\. Give the range'
    ):
        processor(Image.fromarray(grey.astype(np.int32) * 2))


def test_arrays_and_tensors_channels_first_or_last(processor_class):
    array = noise(61, 90)
    processor = processor_class(num_spatial_concepts=2, size={"height": 32, "width": 48})
    annotation = {"points": {"xy": [[89.5, 2.0]], "category": [1]}}
    expected = processor(Image.fromarray(array), annotation, return_tensors="pt")
    first = np.ascontiguousarray(np.moveaxis(array, -1, 0))
    for image in (array, first, torch.from_numpy(array), torch.from_numpy(first), array[None], [array]):
        inputs = processor(image, annotation, return_tensors="pt")
        torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"])
        assert torch.equal(inputs["spatial_concept_targets"][0, 2], torch.tensor([0.0, 1.0]))


@pytest.fixture
def sideways(tmp_path):
    """A JPEG of 40x24 stored pixels, bright on the left, whose EXIF says that it is to be turned by 90 degrees."""
    array = np.zeros((24, 40, 3), np.uint8)
    array[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "sideways.jpg"
    Image.fromarray(array).save(path, exif=exif, quality=95)
    return path


def test_exif_orientation_is_not_applied(processor_class, sideways):
    processor = processor_class(num_spatial_concepts=2, do_resize=False, patch_size=8)
    annotation = {"points": {"xy": [[39.0, 3.0]], "category": [0]}}
    for image in (str(sideways), Image.open(sideways)):
        inputs = processor(image, annotation, return_tensors="pt")
        assert inputs["pixel_values"].shape == (1, 3, 24, 40)
        assert inputs["pixel_values"][..., :16].min() > 0.9 and inputs["pixel_values"][..., 24:].max() < -0.9
        assert inputs["spatial_concept_targets"][0, 4].tolist() == [1, 0]


def test_addresses_take_no_annotations(processor_class, sideways):
    text = "data:image/jpeg;base64," + base64.b64encode(sideways.read_bytes()).decode()
    processor = processor_class(num_spatial_concepts=2)
    assert np.shape(processor(text)["pixel_values"][0]) == (3, 224, 224)
    with pytest.raises(ValueError, match="must be given as images, arrays or paths of files"):
        processor([Image.open(sideways), text], [None, None])


@needs_torchvision
@pytest.mark.parametrize("size", [(37, 50), (61, 90), (130, 44), (97, 97)])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_backends_agree_in_pixels(mode, size, geometry):
    image = in_mode(mode, *size)
    pil, torchvision = (
        backend(**geometry)(image, return_tensors="pt")["pixel_values"]
        for backend in (AscentViTImageProcessorPil, AscentViTImageProcessor)
    )
    assert pil.shape == torchvision.shape and pil.dtype == torchvision.dtype == torch.float32
    # The two resizes round 8-bit values differently, by one level at most.
    limit = 1.01 / 127.5 if geometry.get("do_resize", True) else 1e-6
    assert (pil - torchvision).abs().max() <= limit


@st.composite
def annotated_images(draw):
    height, width = draw(st.integers(20, 90)), draw(st.integers(20, 90))
    number = draw(st.integers(0, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    corners = rng.uniform([-5, -5], [width - 0.01, height - 0.01], (number, 2))
    sizes = rng.uniform(np.maximum(0.01 - corners, 0.01), [width, height], (number, 2))
    annotation = {
        "concepts": draw(st.sampled_from([None, [], [0], [1, 2]])),
        "unknown_concepts": draw(st.sampled_from([None, [0]])),
        "objects": {
            "bbox": np.hstack([corners, sizes]).astype(np.float32).tolist(),
            "category": rng.integers(0, 4, number).tolist(),
        },
        "points": {
            "xy": rng.uniform(0, [width, height], (number, 2)).tolist(),
            "category": rng.integers(0, 4, number).tolist(),
        },
        "mask": Image.fromarray(
            np.kron(rng.choice([0, 0, 0, 1, 2, 3, 4, 255], (9, 9)), np.ones((10, 10), int))[:height, :width].astype(
                np.uint8
            )
        ),
    }
    return Image.fromarray(noise(height, width)), annotation


@needs_torchvision
@settings(max_examples=60, deadline=None)
@given(
    st.lists(annotated_images(), min_size=1, max_size=3),
    st.sampled_from(list(GEOMETRIES)),
    st.sampled_from([0.1, 0.5, 1.0]),
    st.sampled_from(["ignore", "none"]),
)
def test_backends_agree_in_targets(pairs, name, coverage, unannotated):
    images, annotations = map(list, zip(*pairs, strict=True))
    pil, torchvision = (
        backend(
            num_global_concepts=3,
            num_spatial_concepts=4,
            annotation_coverage=coverage,
            unannotated=unannotated,
            **GEOMETRIES[name],
        )(images, annotations)
        for backend in (AscentViTImageProcessorPil, AscentViTImageProcessor)
    )
    for key in ("concept_targets", "spatial_concept_targets"):
        for a, b in zip(pil[key], torchvision[key], strict=True):
            assert isinstance(b, torch.Tensor) and a.dtype == np.float32 and b.dtype == torch.float32
            np.testing.assert_array_equal(a, b.numpy())
    patch_area = np.broadcast_to(GEOMETRIES[name]["patch_size"], 2)
    for pixels, target in zip(pil["pixel_values"], pil["spatial_concept_targets"], strict=True):
        assert target.shape == (np.prod(np.array(pixels.shape[1:]) // patch_area), 4)


@pytest.mark.parametrize("size", [(61, 90), (130, 44), (97, 97)])
def test_targets_lie_where_the_pixels_are(processor_class, geometry, size):
    """A white box on black: a patch is marked where it became mostly white."""
    height, width = size
    processor = processor_class(num_spatial_concepts=2, do_normalize=False, **geometry)
    patch_height, patch_width = np.broadcast_to(geometry["patch_size"], 2)
    decided = 0
    for left, top, right, bottom in (
        (width // 5, height // 4, width // 5 + 31, height // 4 + 29),
        (0, 0, width // 2, height),
        (width // 3, height // 2, width, height),
    ):
        array = np.zeros((height, width, 3), np.uint8)
        array[top:bottom, left:right] = 255
        mask = array[..., 0] // 255
        for annotation in (
            {"objects": {"bbox": [[left, top, right - left, bottom - top]], "category": [0]}},
            {"mask": mask},
        ):
            inputs = processor(Image.fromarray(array), annotation, return_tensors="pt")
            pixels = inputs["pixel_values"][:, :1]
            white = F.avg_pool2d(pixels, (patch_height, patch_width)).flatten()
            clear = (white - 0.5).abs() > 0.15
            target = inputs["spatial_concept_targets"][0, :, 0].nan_to_num(0) == 1
            assert torch.equal(target[clear], (white > 0.5)[clear])
            decided += int(target[clear].sum())
    assert decided >= 10


@pytest.mark.parametrize("crop", [(9, 11), (8, 12), (15, 8), (14, 17), (13, 16)])
@pytest.mark.parametrize("size", [(9, 12), (12, 9)])
def test_crop_is_exact_to_the_pixel(processor_class, size, crop):
    """Every pixel with its own colour: where it ends up, a point on it is marked, and nowhere else."""
    number = size[0] * size[1]
    colours = np.arange(1, number + 1, dtype=np.uint8).reshape(*size, 1).repeat(3, axis=2)
    points = [[x + 0.5, y + 0.5] for y in range(size[0]) for x in range(size[1])]
    processor = processor_class(
        num_spatial_concepts=number,
        do_resize=False,
        do_center_crop=True,
        crop_size={"height": crop[0], "width": crop[1]},
        do_rescale=False,
        do_normalize=False,
        patch_size=1,
        unannotated="none",
    )
    annotation = {"points": {"xy": points, "category": list(range(number))}}
    inputs = processor(Image.fromarray(colours), annotation, return_tensors="pt")
    targets = inputs["spatial_concept_targets"][0]
    expected = F.one_hot(inputs["pixel_values"][0, 0].flatten().long(), number + 1)[:, 1:]
    assert torch.equal(targets, expected.float())


def test_targets_of_a_batch(processor_class):
    processor = processor_class(num_global_concepts=3, num_spatial_concepts=2, size={"height": 32, "width": 32})
    images = [Image.fromarray(noise(64, 64)), Image.fromarray(noise(20, 40)), Image.fromarray(noise(32, 32))]
    annotations = [
        {"concepts": [1], "unknown_concepts": [], "points": {"xy": [[63, 0]], "category": [0]}},
        None,
        {"concepts": [], "objects": [{"bbox": [0, 16, 16, 16], "category": 1, "id": 7}]},
    ]
    inputs = processor(images, annotations, return_tensors="pt")
    nan = float("nan")
    torch.testing.assert_close(
        inputs["concept_targets"], torch.tensor([[0, 1, 0], [nan, nan, nan], [0, 0, 0]]), equal_nan=True
    )
    expected = torch.full((3, 4, 2), nan)
    expected[0, 1] = torch.tensor([1.0, 0.0])
    expected[2, 2] = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(inputs["spatial_concept_targets"], expected, equal_nan=True)
    only_global = processor(images[0], {"concepts": [1]}, num_spatial_concepts=0, return_tensors="np")
    assert set(only_global) == {"pixel_values", "concept_targets"}
    assert only_global["concept_targets"].dtype == np.float32


def test_rows_of_a_dataset(processor_class):
    """Rows as `datasets` gives them: nulls, structs of lists and lists of structs, images as masks."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    wings, days = datasets.ClassLabel(names=["beak", "wing"]), datasets.ClassLabel(names=["day", "night", "dusk"])
    box, place = datasets.List(datasets.Value("float32"), length=4), datasets.List(datasets.Value("float32"), length=2)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "concepts": datasets.List(days),
            "unknown_concepts": datasets.List(days),
            "objects": {"bbox": datasets.List(box), "category": datasets.List(wings)},
            "points": datasets.List({"xy": place, "category": wings}),
            "mask": datasets.Image(),
        }
    )
    full = {
        "image": Image.fromarray(noise(32, 48)),
        "concepts": ["night"],
        "unknown_concepts": ["dusk"],
        "objects": {"bbox": [[0.0, 0.0, 16.0, 16.0]], "category": ["wing"]},
        "points": [{"xy": [20.0, 20.0], "category": "beak"}],
        "mask": Image.fromarray(np.pad(np.full((16, 16), 2, np.uint8), [(0, 16), (32, 0)])),
    }
    null = dict.fromkeys(full) | {"image": Image.fromarray(noise(40, 40, seed=1))}
    empty = null | {"concepts": [], "objects": {"bbox": [], "category": []}}
    rows = list(datasets.Dataset.from_list([full, null, empty], features=features))
    images = [row.pop("image") for row in rows]
    processor = processor_class(num_global_concepts=3, num_spatial_concepts=2, size={"height": 32, "width": 48})
    inputs = processor(images, rows, unannotated="none", return_tensors="pt")
    nan = float("nan")
    targets = torch.tensor([[0, 1, nan], [nan, nan, nan], [0, 0, 0]])
    torch.testing.assert_close(inputs["concept_targets"], targets, equal_nan=True)
    spatial = torch.zeros(3, 6, 2)
    spatial[0, 0, 1] = spatial[0, 4, 0] = spatial[0, 2, 1] = 1
    spatial[1] = nan
    torch.testing.assert_close(inputs["spatial_concept_targets"], spatial, equal_nan=True)


def test_annotations_outside_the_crop_are_dropped(processor_class):
    processor = processor_class(
        num_spatial_concepts=2,
        do_resize=False,
        do_center_crop=True,
        crop_size={"height": 32, "width": 32},
        unannotated="none",
    )
    image = Image.fromarray(noise(32, 64))
    for annotation in (
        {"points": {"xy": [[15.9, 5], [48, 5]], "category": [0, 1]}},
        {"objects": {"bbox": [[0, 0, 16, 32]], "category": [0]}},
        {"mask": np.pad(np.ones((32, 16), np.uint8), [(0, 0), (0, 48)])},
    ):
        targets = processor(image, annotation, return_tensors="pt")["spatial_concept_targets"]
        assert torch.equal(targets, torch.zeros(1, 4, 2))
    targets = processor(image, {"points": {"xy": [[16, 5], [47.9, 31]], "category": [0, 1]}}, return_tensors="pt")
    assert targets["spatial_concept_targets"][0].argwhere().tolist() == [[0, 0], [3, 1]]


def test_presence_of_a_batch(processor_class):
    processor = processor_class(num_spatial_concepts=3, size={"height": 32, "width": 32})
    images = [Image.fromarray(noise(64, 64)), Image.fromarray(noise(20, 40)), Image.fromarray(noise(32, 32))]
    place = {"xy": [[5, 5]], "category": [1]}
    annotations = [{"present": [1, 2], "unknown_present": [0]}, {"points": place}, {"present": [1], "points": place}]
    inputs = processor(images, annotations, return_tensors="pt")
    nan = float("nan")
    expected = torch.tensor([[nan, 1, 1], [nan, nan, nan], [0, 1, 0]])
    torch.testing.assert_close(inputs["spatial_concept_presence"], expected, rtol=0, atol=0, equal_nan=True)
    assert inputs["spatial_concept_targets"][0].isnan().all()
    without = processor(images, [{"present": None, "unknown_present": [0]}, None, {"points": place}])
    assert set(without) == {"pixel_values", "spatial_concept_targets"}
    with pytest.raises(ValueError, match=r"annotations\[2\] marks a place of spatial concept 1, but annotations\[2\]"):
        processor(images, [None, None, {"present": [0], "points": place}])


def test_presence_in_a_crop(processor_class):
    """What the list names may have been cut away, unless it is marked inside the crop."""
    image = Image.fromarray(noise(32, 64))
    places = {"xy": [[15.9, 5], [20, 5]], "category": [0, 1]}
    annotation = {"present": [0, 1, 2], "points": places}
    for crop, known in (((32, 32), False), ((32, 64), True), ((48, 80), True)):
        processor = processor_class(
            num_spatial_concepts=4,
            do_resize=False,
            do_center_crop=True,
            crop_size={"height": crop[0], "width": crop[1]},
        )
        presence = processor(image, annotation, return_tensors="pt")["spatial_concept_presence"][0]
        assert presence[1] == 1 and presence[3] == 0
        assert (presence[[0, 2]] == 1).all() if known else presence[[0, 2]].isnan().all()


def test_padding_has_no_annotation_where_a_crop_cut_it_off(processor_class):
    processor = processor_class(
        num_spatial_concepts=2,
        do_resize=False,
        do_center_crop=True,
        crop_size={"height": 16, "width": 16},
        do_pad=True,
        pad_size={"height": 16, "width": 32},
    )
    annotation = {
        "objects": {"bbox": [[30, 0, 34, 16]], "category": [0]},
        "points": {"xy": [[40, 3]], "category": [1]},
    }
    inputs = processor(Image.fromarray(noise(16, 64)), annotation, return_tensors="pt")
    assert inputs["pixel_values"].shape[-2:] == (16, 32)
    assert inputs["spatial_concept_targets"][0, 0].tolist() == [1, 0]
    assert inputs["spatial_concept_targets"][0, 1].isnan().all()


@pytest.mark.parametrize("target_size", [(61, 90), (20, 31), (224, 224)])
def test_maps_are_bilinear_between_patch_centres(processor_class, target_size):
    processor = processor_class(size={"height": 48, "width": 64}, num_spatial_concepts=5)
    maps = torch.randn(2, 5, 3, 4)
    drawn = processor.resize_concept_maps(maps, target_size)
    torch.testing.assert_close(drawn, F.interpolate(maps, target_size, mode="bilinear", align_corners=False))
    torch.testing.assert_close(
        processor.resize_concept_maps(maps.double()[0, 0]),
        F.interpolate(maps, (48, 64), mode="bilinear", align_corners=False)[0, 0],
    )


def test_maps_repeat_the_last_patch_in_the_rim(processor_class):
    processor = processor_class(size={"height": 40, "width": 47}, patch_size=16)
    maps = torch.randn(3, 2, 2)
    drawn = processor.resize_concept_maps(maps, (40, 47))
    inner = F.interpolate(maps[None], (32, 32), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(drawn[:, :32, :32], inner)
    torch.testing.assert_close(drawn, F.pad(inner[None], (0, 15, 0, 8), mode="replicate")[0])
    torch.testing.assert_close(drawn, processor.resize_concept_maps(maps))


def test_maps_are_zero_outside_the_crop(processor_class):
    crop = {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    processor = processor_class(do_resize=False, **crop)
    maps = torch.rand(4, 2, 2) + 1
    drawn = processor.resize_concept_maps(maps, (40, 64))
    inner = F.interpolate(maps[None], (32, 32), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(drawn, F.pad(inner, (16, 16, 4, 4)))
    # With a resize to half the size, the crop shows twice as much of the original.
    processor = processor_class(size={"shortest_edge": 40}, **crop)
    drawn = processor.resize_concept_maps(maps, (80, 128))
    inner = F.interpolate(maps[None], (64, 64), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(drawn, F.pad(inner, (32, 32, 8, 8)))
    torch.testing.assert_close(
        processor.resize_concept_maps(maps), F.interpolate(maps[None], (32, 32), mode="bilinear")[0]
    )
    # An image smaller than the crop shows no margin.
    drawn = processor_class(do_resize=False, **crop).resize_concept_maps(maps, (31, 32))
    torch.testing.assert_close(drawn, F.interpolate(maps[None], (32, 32), mode="bilinear")[0, :, :31])


def test_maps_come_back_to_where_the_annotation_is(processor_class, geometry):
    height, width = 97, 80
    processor = processor_class(num_spatial_concepts=2, unannotated="none", **geometry)
    image = Image.fromarray(noise(height, width))
    patch_height, patch_width = np.broadcast_to(geometry["patch_size"], 2)
    for x, y in ((40, 48), (22, 60), (50, 33)):
        inputs = processor(image, {"points": {"xy": [[x, y]], "category": [1]}}, return_tensors="pt")
        grid = (inputs["pixel_values"].shape[-2] // patch_height, inputs["pixel_values"].shape[-1] // patch_width)
        maps = inputs["spatial_concept_targets"][0].T.unflatten(-1, grid)
        drawn = processor.resize_concept_maps(maps, (height, width))
        assert drawn.shape == (2, height, width)
        assert (drawn[0] == 0).all() and drawn[1].max() > 0.8
        # The map is highest in the patch that was marked.
        row, column = divmod(int(drawn[1].argmax()), width)
        there = processor(image, {"points": {"xy": [[column + 0.5, row + 0.5]], "category": [1]}}, return_tensors="pt")
        assert torch.equal(there["spatial_concept_targets"], inputs["spatial_concept_targets"])


def test_patch_axes_are_those_of_the_processors_own_settings(processor_class):
    crop = {"do_center_crop": True, "crop_size": {"height": 48, "width": 32}}
    vertical, horizontal = processor_class(size={"shortest_edge": 64}, patch_size=(8, 16), **crop).patch_axes((32, 50))
    assert (vertical.original, vertical.resized, vertical.crop_start, vertical.cropped) == (32, 64, 8, 48)
    assert (horizontal.original, horizontal.resized, horizontal.crop_start, horizontal.cropped) == (50, 100, 34, 32)
    assert (vertical.num_patches, horizontal.num_patches) == (6, 2)
    with pytest.raises(ValueError, match="has no patch"):
        processor_class(do_resize=False).patch_axes((15, 40))


def test_post_process_concepts(processor_class, make_config):
    config = make_config()
    model = AscentViTForImageClassification(config).eval()
    processor = processor_class.from_model_config(config)
    images = [Image.fromarray(noise(70, 50)), Image.fromarray(noise(33, 99))]
    with torch.no_grad():
        outputs = model(**processor(images, return_tensors="pt"))
    sizes = [(image.height, image.width) for image in images]
    for target_sizes in (sizes, torch.tensor(sizes)):
        results = processor.post_process_concepts(outputs, target_sizes)
        for i, (result, size) in enumerate(zip(results, sizes, strict=True)):
            maps = outputs.spatial_concept_attention[i].T.reshape(1, 4, 6, 6)
            assert result["spatial_concept_maps"].shape == (4, *size)
            torch.testing.assert_close(
                result["spatial_concept_maps"], F.interpolate(maps, size, mode="bilinear", align_corners=False)[0]
            )
            assert torch.equal(result["global_concept_attention"], outputs.global_concept_attention[i])
    assert processor.post_process_concepts(outputs)[1]["spatial_concept_maps"].shape == (4, 48, 48)
    with pytest.raises(ValueError, match="target_sizes must have .* expected 2, got 1"):
        processor.post_process_concepts(outputs, sizes[:1])
    with pytest.raises(ValueError, match="image of 70x50 pixels, 3x3; got 6x6. Use the image processor that made"):
        processor_class.from_model_config(config, patch_size=16).post_process_concepts(outputs, sizes)
    contributions = model.contribution_maps(processor(images, return_tensors="pt")["pixel_values"], [0, 3])
    assert processor.resize_concept_maps(contributions, (70, 50)).shape == (2, 2, 4, 70, 50)


@pytest.mark.parametrize("streams", [{"num_global_concepts": 3}, {"num_spatial_concepts": 3}])
def test_post_process_without_a_stream(processor_class, make_config, streams):
    config = make_config(**streams)
    model = AscentViTForImageClassification(config).eval()
    processor = processor_class.from_model_config(config)
    result = processor.post_process_concepts(model(**processor(Image.fromarray(noise(48, 48)), return_tensors="pt")))[
        0
    ]
    has_global = "num_global_concepts" in streams
    assert (result["global_concept_attention"] is not None) == has_global
    assert (result["spatial_concept_maps"] is None) == has_global


def test_targets_train_the_model(processor_class, make_config):
    config = make_config()
    processor = processor_class.from_model_config(config)
    annotation = {"concepts": [1], "objects": {"bbox": [[3, 3, 30, 30]], "category": [2]}}
    inputs = processor([Image.fromarray(noise(70, 50))] * 2, [annotation, None], return_tensors="pt")
    outputs = AscentViTForImageClassification(config)(**inputs, labels=torch.tensor([0, 1]))
    assert outputs.alignment_loss > 0 and torch.isfinite(outputs.loss)


def test_saved_and_loaded(processor_class, tmp_path):
    settings_given = {
        "size": {"shortest_edge": 60},
        "do_center_crop": True,
        "crop_size": {"height": 48, "width": 36},
        "patch_size": (12, 18),
        "num_global_concepts": 3,
        "num_spatial_concepts": 2,
        "annotation_coverage": 0.3,
        "unannotated": "none",
        "image_mean": [0.1, 0.2, 0.3],
    }
    processor = processor_class(**settings_given)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "AscentViTImageProcessor"
    loaded = processor_class.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict() and loaded.patch_size == (12, 18)
    annotation = {"concepts": [1], "objects": {"bbox": [[20, 20, 30, 30]], "category": [1]}}
    a, b = (p(Image.fromarray(noise(70, 99)), annotation, return_tensors="pt") for p in (processor, loaded))
    assert set(a) == {"pixel_values", "concept_targets", "spatial_concept_targets"}
    assert all(torch.equal(a[key].nan_to_num(-1), b[key].nan_to_num(-1)) for key in a)
    assert processor_class.from_pretrained(tmp_path, unannotated="ignore", patch_size=9).patch_size == 9


@pytest.fixture
def saved_with_code(processor_class, tmp_path, monkeypatch):
    monkeypatch.setattr(processor_class, "_auto_class", "AutoImageProcessor")
    folder = tmp_path / "repository"
    processor_class(num_spatial_concepts=2, patch_size=8).save_pretrained(folder)
    return folder


def test_saved_with_code_names_both_backends(processor_class, saved_with_code, monkeypatch, tmp_path):
    expected = {
        "AutoImageProcessor": {
            "torchvision": "image_processing_ascent_vit.AscentViTImageProcessor",
            "pil": "image_processing_pil_ascent_vit.AscentViTImageProcessorPil",
        }
    }
    assert json.loads((saved_with_code / "preprocessor_config.json").read_text())["auto_map"] == expected
    assert {path.name for path in saved_with_code.glob("*.py")} == {
        "backbone_images_ascent_vit.py",
        "backbones_ascent_vit.py",
        "concept_targets_ascent_vit.py",
        "image_inputs_ascent_vit.py",
        "image_processing_ascent_vit.py",
        "image_processing_pil_ascent_vit.py",
        "image_settings_ascent_vit.py",
    }
    loaded = processor_class.from_pretrained(saved_with_code)
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())["auto_map"] == expected
    # Saved without its code, the processor must not point to code that is not there.
    monkeypatch.setattr(processor_class, "_auto_class", None)
    loaded.save_pretrained(tmp_path / "bare")
    assert "auto_map" not in json.loads((tmp_path / "bare" / "preprocessor_config.json").read_text())


REMOTE = """
import sys
import numpy as np
from transformers import AutoImageProcessor
for backend, name in ((None, sys.argv[2]), ("pil", "AscentViTImageProcessorPil")):
    processor = AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True, backend=backend)
    assert type(processor).__name__ == name, type(processor)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor).__module__
    annotation = {"points": {"xy": [[1.0, 1.0]], "category": [1]}}
    inputs = processor(np.zeros((30, 40, 3), np.uint8), annotation, return_tensors="pt")
    assert inputs["spatial_concept_targets"][0, 0].tolist() == [0, 1]
    processor.save_pretrained(sys.argv[3])
again = AutoImageProcessor.from_pretrained(sys.argv[3], trust_remote_code=True)
assert type(again).__name__ == sys.argv[2], type(again)
assert "modeling_ascent_vit" not in sys.modules
"""


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_without_torchvision_the_error_names_it():
    with pytest.raises(ImportError, match="Torchvision library"):
        AscentViTImageProcessor()(Image.new("RGB", (64, 48)))


@pytest.mark.slow
def test_remote_code_loads_either_backend(saved_with_code, tmp_path):
    expected = "AscentViTImageProcessor" + ("" if is_torchvision_available() else "Pil")
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, str(saved_with_code), expected, str(tmp_path / "again")],
        env={"PATH": "", "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"patch_size": 0}, "patch_size must be a positive int or a pair of them, height first; got 0"),
        ({"patch_size": [16, 16, 16]}, r"height first; got \(16, 16, 16\)"),
        ({"patch_size": "16"}, "height first; got '16'"),
        ({"num_global_concepts": -1}, "num_global_concepts must be a number of concepts, .* 0 or more; got -1"),
        ({"num_spatial_concepts": 2.5}, "num_spatial_concepts must be a number of concepts, .* 0 or more; got 2.5"),
        ({"annotation_coverage": 0}, "annotation_coverage must be above 0 and at most 1; got 0"),
        ({"annotation_coverage": 1.2}, "annotation_coverage must be above 0 and at most 1; got 1.2"),
        ({"unannotated": "zero"}, 'unannotated must be "ignore" or "none"; got \'zero\''),
    ],
)
def test_wrong_parameters(processor_class, parameters, message):
    with pytest.raises(ValueError, match=message):
        processor_class(**parameters)


def test_wrong_annotations_name_the_image(processor_class):
    processor = processor_class(num_global_concepts=2, num_spatial_concepts=3)
    images = [Image.fromarray(noise(40, 60)), Image.fromarray(noise(50, 70))]
    for annotation, message in (
        ({"concepts": [2]}, r"annotations\[1\]\.concepts must hold ids from 0 to 1, as there are 2 concepts; got 2"),
        (
            {"objects": {"bbox": [[70, 3, 4, 4]], "category": [0]}},
            r"annotations\[1\]\.objects\.bbox must overlap the image, width 70 and height 50; "
            r"got \[x, y, width, height\] = \[70\.0, 3\.0, 4\.0, 4\.0\]",
        ),
        ({"points": {"xy": [[3, 50]], "category": [0]}}, r"annotations\[1\]\.points\.xy must lie in the image"),
        ({"mask": np.zeros((40, 60), np.uint8)}, r"annotations\[1\]\.mask .* height 50 and width 70; got height 40"),
        ({"boxes": []}, r"annotations\[1\] may have the keys .*; got 'boxes'"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(images, [None, annotation])
    with pytest.raises(ValueError, match="annotations must have one dict .* expected 2, got 1"):
        processor(images, {"concepts": [0]})
    with pytest.raises(ValueError, match="both 0: set them, or build the image processor with from_model_config"):
        processor_class()(images[0], {"concepts": [0]})
    with pytest.raises(ValueError, match=r"annotations\[0\] has concepts, but num_global_concepts is 0"):
        processor_class(num_spatial_concepts=2)(images[0], {"concepts": [0]})

# SPDX-License-Identifier: Apache-2.0
"""Augmentation: annotated pixels are looked for in the augmented image, and must lie where the annotations say."""

import re

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ascent_vit.data import (
    Augmentation,
    AugmentedConceptDataset,
    ConceptAugmenter,
    ConceptCollator,
    EpochSampler,
)
from ascent_vit.data.augmentation import _adjust_contrast
from modeling_ascent_vit import AscentViTImageProcessor, AscentViTImageProcessorPil


pytest.importorskip("torchvision")

GLOBAL, SPATIAL = ["perched", "faces left", "faces right"], ["left wing", "right wing", "beak"]
PAIRS = [["left wing", "right wing"], ["faces left", "faces right"]]
PROCESSORS = [AscentViTImageProcessor, AscentViTImageProcessorPil]
PATCH = 8


def make_row(height: int, width: int, x: int, y: int, side: int = 1, mode: str = "RGB") -> dict:
    """A black image with one white square, pixels x to x + side - 1 and likewise y, annotated in all three ways."""
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[y : y + side, x : x + side] = 255
    centre = [x + side // 2 + 0.25, y + side // 2 + 0.75]
    return {
        "image": Image.fromarray(pixels).convert(mode),
        "label": 0,
        "objects": {"bbox": [[x, y, side, side]], "category": [0]},
        "points": {"xy": [centre], "category": [1]},
        "mask": Image.fromarray((pixels > 0).astype(np.uint8) * 3),
    }


def augment(row: dict, seed: int = 0, **options) -> dict:
    return ConceptAugmenter(Augmentation(**options), GLOBAL, SPATIAL)(row, np.random.default_rng(seed))


def centroid(brightness: np.ndarray) -> np.ndarray:
    """Centre of mass as x, y; pixel i spans [i, i + 1)."""
    y, x = np.mgrid[: brightness.shape[0], : brightness.shape[1]] + 0.5
    return np.array([(x * brightness).sum(), (y * brightness).sum()]) / brightness.sum()


@st.composite
def squares(draw, side: int) -> dict:
    height, width = draw(st.integers(30, 90)), draw(st.integers(30, 90))
    x, y = draw(st.integers(0, width - side)), draw(st.integers(0, height - side))
    return make_row(height, width, x, y, side)


flips = st.sampled_from([0.0, 1.0])
crops = st.none() | st.floats(0.3, 1).map(lambda least: (least, 1.0))
seeds = st.integers(0, 2**31)


class TestGeometry:
    @settings(max_examples=200, deadline=None)
    @given(row=squares(side=1), flip=flips, crop=crops, seed=seeds)
    def test_flip_and_crop_are_exact(self, row, flip, crop, seed):
        result = augment(row, seed, horizontal_flip=flip, crop_scale=crop)
        bright = np.argwhere(result["image"][0].numpy() == 255)
        if not len(bright):
            assert result["points"] == {"xy": [], "category": []}
            assert result["objects"] == {"bbox": [], "category": []}
            assert not result["mask"].any()
            return
        [[y, x]] = bright.tolist()
        assert result["points"] == {"xy": [[x + 0.5, y + 0.5]], "category": [1]}
        assert result["objects"] == {"bbox": [[x, y, 1, 1]], "category": [0]}
        assert np.argwhere(result["mask"]).tolist() == [[y, x]] and result["mask"][y, x] == 3
        assert result["mask"].shape == result["image"].shape[1:]

    @settings(max_examples=200, deadline=None)
    @given(row=squares(side=5), flip=flips, crop=crops, rotation=st.floats(0, 180), seed=seeds)
    def test_rotation_moves_pixels_and_annotations_alike(self, row, flip, crop, rotation, seed):
        result = augment(row, seed, horizontal_flip=flip, crop_scale=crop, rotation=rotation)
        image = result["image"][0].numpy().astype(float) / 255
        height, width = image.shape
        if not image.any():
            assert not result["points"]["xy"] and not result["mask"].any()
            return
        found = centroid(image)
        if image.sum() < 24.5:  # cut off in part: what is annotated is at least where something is seen
            assert all(0 <= x < width and 0 <= y < height for x, y in result["points"]["xy"])
            return
        [point], [box] = result["points"]["xy"], result["objects"]["bbox"]
        np.testing.assert_allclose(point, found, atol=0.2)
        np.testing.assert_allclose([box[0] + box[2] / 2, box[1] + box[3] / 2], found, atol=0.6)
        np.testing.assert_allclose(centroid((result["mask"] == 3).astype(float)), found, atol=0.6)
        # The hull holds every bright pixel, and is no larger than that of a square turned by 45 degrees.
        y, x = np.nonzero(image > 0.5)
        assert box[0] <= x.min() + 0.5 and x.max() + 0.5 <= box[0] + box[2]
        assert box[1] <= y.min() + 0.5 and y.max() + 0.5 <= box[1] + box[3]
        assert max(box[2:]) <= 5 * np.sqrt(2) + 1e-4

    @pytest.mark.parametrize("processor_class", PROCESSORS)
    @settings(max_examples=120, deadline=None)
    @given(
        row=squares(side=5),
        flip=flips,
        crop=crops,
        rotation=st.just(0.0) | st.floats(0, 180),
        size=st.sampled_from([(48, 48), (40, 64)]),
        seed=seeds,
    )
    def test_marked_pixels_land_in_marked_patches(self, processor_class, row, flip, crop, rotation, size, seed):
        options = {"horizontal_flip": flip, "crop_scale": crop, "rotation": rotation}
        result = augment(row, seed, **options)
        if result["image"][0].sum() < 24.5 * 255:
            return
        processor = processor_class(
            size={"height": size[0], "width": size[1]}, patch_size=PATCH, num_spatial_concepts=3, do_normalize=False
        )
        batch = ConceptCollator(processor)([result])
        found = centroid(batch["pixel_values"][0, 0].numpy().astype(float))
        targets = batch["spatial_concept_targets"][0].nan_to_num().view(size[0] // PATCH, size[1] // PATCH, 3)
        # Resampling blurs over about a pixel of the source.
        blur = 0.3 + 0.4 * max(np.array(size) / result["image"].shape[1:])
        for concept, name in enumerate(("box", "point", "mask")):
            marked = np.argwhere(targets[..., concept].numpy() == 1)[:, ::-1] * PATCH
            outside = np.maximum(np.maximum(marked - found, found - marked - PATCH), 0).max(axis=1)
            assert outside.min() <= blur, name
        assert targets[..., 1].sum() == 1

    def test_rotation_keeps_the_size_and_fills_with_nothing(self):
        row = make_row(40, 60, 0, 0, 5) | {"mask": np.full((40, 60), 2, dtype=np.uint8)}
        result = augment(row | {"image": Image.new("RGB", (60, 40), "white")}, seed=1, rotation=90)
        image, mask = result["image"].numpy(), result["mask"]
        assert image.shape == (3, 40, 60) and (image[:, 0, 0] == 0).all() and mask[0, 0] == 0
        assert (mask[(image[0] == 255)] == 2).all() and mask[20, 30] == 2

    def test_a_crop_has_the_area_and_the_ratio_that_were_asked_for(self):
        row = make_row(60, 90, 3, 3)
        sizes = np.array(
            [augment(row, seed, crop_scale=(0.2, 0.5), crop_ratio=(0.5, 2))["mask"].shape for seed in range(200)]
        )
        areas, ratios = sizes.prod(axis=1) / 5400, sizes[:, 1] / sizes[:, 0]
        assert 0.19 < areas.min() < 0.22 and 0.47 < areas.max() < 0.51
        assert 0.48 < ratios.min() < 0.6 and 1.7 < ratios.max() < 2.1
        # No square of nearly the whole area fits: the largest square in the middle.
        result = augment(row, crop_scale=(0.99, 1), crop_ratio=(1, 1))
        assert result["mask"].shape == (60, 60)

    def test_boxes_may_reach_over_the_edge_and_values_may_be_null(self):
        row = make_row(40, 40, 0, 0, 4)
        row["objects"] = [{"bbox": [-5, -5, 10, 10], "category": 2, "area": 100}]
        row |= {"points": None, "mask": None, "concepts": None}
        result = augment(row, horizontal_flip=1)
        assert result["objects"] == {"bbox": [[35, 0, 5, 5]], "category": [2]}
        assert result["points"] is None and result["mask"] is None and result["concepts"] is None

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"objects": {"bbox": [[50, 0, 5, 5]], "category": [0]}}, "objects.bbox must lie in the image, width 40"),
            (
                {"points": {"xy": [[40, 0]], "category": [0]}},
                "points.xy must lie in the image, width 40",
            ),
            ({"points": {"xy": [[1, 1]], "category": [3]}}, "points.category must hold ids from 0 to 2"),
            ({"mask": np.zeros((40, 41), dtype=np.uint8)}, "mask must have the stored image's size"),
            ({"concepts": [7]}, "concepts must hold ids from 0 to 2"),
        ],
    )
    def test_annotations_that_the_processor_would_refuse(self, change, message):
        with pytest.raises(ValueError, match=message):
            augment(make_row(40, 40, 3, 3) | change, horizontal_flip=1)


class TestPresence:
    @pytest.mark.parametrize("processor_class", PROCESSORS)
    @settings(max_examples=100, deadline=None)
    @given(
        row=squares(side=1),
        placed=st.booleans(),
        flip=flips,
        crop=crops,
        rotation=st.sampled_from([0.0, 30.0]),
        seed=seeds,
    )
    def test_a_cut_leaves_the_absent_and_what_is_marked(
        self, processor_class, row, placed, flip, crop, rotation, seed
    ):
        """Three concepts of which two are listed, the square's own one with or without its place."""
        size = row["image"].size
        row |= {"points": None, "mask": None, "present": [0, 1], "unknown_present": None}
        row["objects"] = row["objects"] if placed else None
        options = {"horizontal_flip": flip, "crop_scale": crop, "rotation": rotation, "flip_pairs": PAIRS}
        result = augment(row, seed, **options)
        cut = bool(rotation) or result["image"].shape[:0:-1] != size
        own = int(flip)  # The pair has changed places.
        processor = processor_class(size={"height": 48, "width": 48}, patch_size=PATCH, num_spatial_concepts=3)
        presence = ConceptCollator(processor)([result])["spatial_concept_presence"][0]
        assert presence[2] == 0
        seen = placed and bool(result["objects"]["category"])
        assert presence[own] == 1 if seen or not cut else presence[own].isnan()
        assert presence[1 - own] == 1 if not cut else presence[1 - own].isnan()

    def test_stays_without_a_cut(self):
        row = make_row(40, 40, 3, 3) | {"present": [0, 1, 2], "unknown_present": [2]}
        result = augment(row, horizontal_flip=1, brightness=0.5, crop_scale=[1, 1], crop_ratio=[1, 1])
        assert (result["present"], result["unknown_present"]) == ([0, 1, 2], [2])
        assert "unknown_present" not in augment(make_row(40, 40, 3, 3) | {"present": [0, 1, 2]}, horizontal_flip=1)
        row["present"] = None
        assert augment(row, crop_scale=[0.5, 0.5])["unknown_present"] == [2]


class TestPairs:
    row = make_row(40, 40, 3, 3) | {"concepts": [0, 1], "unknown_concepts": [2], "present": [0, 1]}

    def test_change_places_in_a_mirror_image(self):
        row = self.row | {"present": [0, 2], "objects": None, "points": None}
        assert augment(row, horizontal_flip=1, flip_pairs=PAIRS)["present"] == [1, 2]
        row = self.row | {"mask": np.array([[0, 1, 2, 3, 255]] * 40, dtype=np.uint8).repeat(8, axis=1)}
        result = augment(row, horizontal_flip=1, flip_pairs=PAIRS)
        assert result["objects"]["category"] == [1] and result["points"]["category"] == [0]
        assert result["concepts"] == [0, 2] and result["unknown_concepts"] == [1]
        assert result["mask"][0, ::8].tolist() == [255, 3, 1, 2, 0]

    def test_stay_otherwise(self):
        result = augment(self.row, rotation=5, flip_pairs=PAIRS)
        assert result["objects"]["category"] == [0] and result["points"]["category"] == [1]
        assert result["concepts"] == [0, 1] and result["unknown_concepts"] == [2]
        result = augment(self.row, horizontal_flip=1)
        assert result["objects"]["category"] == [0] and result["concepts"] == [0, 1]

    def test_a_mask_of_more_concepts_than_a_byte_holds(self):
        names = [f"concept {i}" for i in range(300)]
        augmenter = ConceptAugmenter(Augmentation(1.0, flip_pairs=[["concept 0", "concept 299"]]), [], names)
        mask = np.array([[0, 1, 255, 300]] * 4, dtype=np.uint16)
        result = augmenter({"image": Image.new("RGB", (4, 4)), "mask": mask}, np.random.default_rng(0))
        assert result["mask"][0].tolist() == [1, 255, 300, 0]

    @pytest.mark.parametrize(
        "pairs, message",
        [
            ([["left wing", "right leg"]], "'right leg' is no concept of the dataset"),
            ([["left wing", "faces right"]], "or not of the same kind (global or spatial)"),
            ([["a", "b"]], "names 'a' and 'b', but the dataset has no such concepts"),
        ],
    )
    def test_must_be_concepts_of_the_dataset(self, pairs, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            augment(self.row, flip_pairs=pairs)


class TestColour:
    @pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
    def test_changes_pixels_and_nothing_else(self, name):
        row = make_row(40, 40, 3, 3, 4)
        pixels = np.random.default_rng(0).integers(40, 200, (40, 40, 3), dtype=np.uint8)
        row["image"] = Image.fromarray(pixels)
        results = [augment(row, seed, **{name: 0.4}) for seed in range(2)]
        for result in results:
            assert result["objects"] == row["objects"] and result["image"].dtype == torch.uint8
            assert np.abs(result["image"].numpy() - pixels.transpose(2, 0, 1).astype(int)).max() > 5
        assert not torch.equal(results[0]["image"], results[1]["image"])

    def test_contrast_is_torchvisions_on_any_number_of_threads(self):
        from torchvision.transforms.v2 import functional

        image = torch.randint(0, 256, (3, 375, 500), dtype=torch.uint8)
        threads = torch.get_num_threads()
        try:
            results = []
            for number in (1, 2):
                torch.set_num_threads(number)
                results.append(_adjust_contrast(image, 1.37))
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(*results)
        assert (results[0].int() - functional.adjust_contrast(image, 1.37).int()).abs().max() <= 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"horizontal_flip": 1.5}, "augmentation.horizontal_flip must be a number from 0 to 1; got 1.5."),
        ({"rotation": -3}, "augmentation.rotation must be a number from 0 to 180; got -3."),
        ({"rotation": [0, 3]}, "augmentation.rotation must be a number from 0 to 180; got [0, 3]."),
        ({"hue": True}, "augmentation.hue must be a number from 0 to 0.5; got True."),
        ({"contrast": float("nan")}, "augmentation.contrast must be a number from 0 on; got nan."),
        ({"crop_scale": 0.5}, "augmentation.crop_scale must be [least, greatest], above 0 and at most 1; got 0.5."),
        ({"crop_scale": [0.5, 1.2]}, "augmentation.crop_scale must be [least, greatest], above 0 and at most 1"),
        ({"crop_ratio": [2, 1]}, "augmentation.crop_ratio must be [least, greatest], above 0; got [2, 1]."),
        ({"flip_pairs": ["ab"]}, "augmentation.flip_pairs must be a list of pairs of concept names"),
        ({"flip_pairs": [["a", "b"], ["b", "c"]]}, "may name a concept once; 'b' is there twice."),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Augmentation(**options)


ALL = Augmentation(0.5, 30, (0.4, 1.0), (0.7, 1.5), 0.3, 0.3, 0.3, 0.1, PAIRS)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    names = ClassLabel(names=SPATIAL)
    features = Features(
        {
            "image": ImageFeature(),
            "label": ClassLabel(names=["a", "b"]),
            "concepts": List(ClassLabel(names=GLOBAL)),
            "objects": {"bbox": List(List(Value("float32"), length=4)), "category": List(names)},
            "points": {"xy": List(List(Value("float32"), length=2)), "category": List(names)},
            "mask": ImageFeature(),
        }
    )
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        row = make_row(40 + i, 60 - i, 10 + i, 9, 6) | {"label": i % 2, "concepts": [i % 3]}
        row["points"]["xy"] = [[13.5 + i, 12.5]]
        noise = rng.integers(0, 256, (40 + i, 60 - i, 3), dtype=np.uint8)
        rows.append(row | {"image": Image.fromarray(noise)})
    return Dataset.from_list(rows, features=features)


@pytest.fixture
def processor(make_config):
    return AscentViTImageProcessor.from_model_config(make_config(global_concepts=GLOBAL, spatial_concepts=SPATIAL))


def batches(dataset, processor, epoch: int = 0, workers: int = 0, memory: int = 0, number: int = 12) -> list[dict]:
    augmenter = ConceptAugmenter(ALL, GLOBAL, SPATIAL)
    sampler = EpochSampler(len(dataset), number, seed=3)
    sampler.set_epoch(epoch)
    loader = torch.utils.data.DataLoader(
        AugmentedConceptDataset(dataset, augmenter, 3, memory),
        batch_size=4,
        sampler=sampler,
        num_workers=workers,
        collate_fn=ConceptCollator(processor),
    )
    return list(loader)


def equal(first: list[dict], second: list[dict]) -> bool:
    return all(
        left.keys() == right.keys()
        and all(torch.equal(left[name].nan_to_num(-1), right[name].nan_to_num(-1)) for name in left)
        for left, right in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("processor_class", PROCESSORS)
def test_without_chance_rows_are_those_of_the_dataset(dataset, make_config, processor_class):
    config = make_config(global_concepts=GLOBAL, spatial_concepts=SPATIAL)
    collate = ConceptCollator(processor_class.from_model_config(config))
    for row in dataset:
        assert equal([collate([augment(row)])], [collate([row])])


def test_views_depend_on_seed_epoch_and_place_alone(dataset, processor):
    first = batches(dataset, processor)
    # Two batches' worth of memory: some rows are kept, some read each time.
    for options in ({"workers": 2}, {"memory": 60_000}, {"memory": 2**20}, {"workers": 2, "memory": 2**20}):
        assert equal(first, batches(dataset, processor, **options))
    assert not equal(first, batches(dataset, processor, epoch=1))
    again = AugmentedConceptDataset(dataset, ConceptAugmenter(ALL, GLOBAL, SPATIAL), 3)
    assert torch.equal(again[0, 5]["image"], again[0, 5]["image"])
    assert not torch.equal(again[0, 5]["image"], again[1, 5]["image"])
    twins = AugmentedConceptDataset(dataset.select([5, 5]), again.augmenter, 3)
    assert not torch.equal(twins[0, 0]["image"], twins[0, 1]["image"])
    assert not torch.equal(
        twins[0, 0]["image"], AugmentedConceptDataset(twins.dataset, again.augmenter, 4)[0, 0]["image"]
    )
    assert len(AugmentedConceptDataset(dataset, again.augmenter, 3, 60_000).decoded) not in (0, len(dataset))


def test_the_sampler_draws_each_place_once(dataset):
    sampler = EpochSampler(12, 9, seed=3)
    first = list(sampler)
    assert len(sampler) == 9 and len({index for _, index in first}) == 9 and first == list(sampler)
    sampler.set_epoch(2)
    second = list(sampler)
    assert {epoch for epoch, _ in second} == {2} and [i for _, i in first] != [i for _, i in second]

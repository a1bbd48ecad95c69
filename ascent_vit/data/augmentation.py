# SPDX-License-Identifier: Apache-2.0
"""
Random augmentation of images together with their annotations.

Image, points, boxes and mask go through the same geometry, so that the image processor marks the patches in which the
annotated pixels end up. What is drawn for a sample depends on seed, epoch and the sample's place in the dataset alone:
not on the number of workers, nor on where a run was interrupted.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from modeling_ascent_vit.concept_targets_ascent_vit import MASK_IGNORE, read_ids, read_mask
from modeling_ascent_vit.image_inputs_ascent_vit import rgb_array

from .batches import FEATURE_ROWS
from .schema import COORDINATES, GLOBAL_COLUMNS, PRESENCE_COLUMNS, placed_concepts


# Boxes narrower than this, in pixels, count as empty: rounding leaves slivers along the edges of a crop.
SMALLEST_SIDE = 0.01

CROP_ATTEMPTS = 10


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Augmentation:
    """
    Random changes to each training image, in this order: flip, rotation, crop, colour. None by default.

    Args:
        horizontal_flip: probability of a mirror image.
        rotation: largest angle in degrees, from 0 to 180; the angle is drawn from [-rotation, rotation]. The image
            keeps its size, and corners that come from outside are black and not annotated. A box becomes the upright
            hull of its turned corners, so it may cover more than the object; points and masks turn exactly.
        crop_scale: least and greatest share of the image's area in a crop, above 0 and at most 1; None for no crop.
            What is cropped is resized by the image processor.
        crop_ratio: least and greatest width / height of a crop.
        brightness: strength, 0 or more; a factor is drawn from [1 - brightness, 1 + brightness], not below 0.
        contrast: strength, as for brightness.
        saturation: strength, as for brightness.
        hue: strength from 0 to 0.5; the shift is drawn from [-hue, hue] turns of the colour circle.
        flip_pairs: pairs of concept names that change places in a mirror image, as left and right wing do.

    Raises:
        ValueError: for values of a wrong type or out of range, or a name in two pairs.
    """

    horizontal_flip: float = 0.0
    rotation: float = 0.0
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    flip_pairs: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        for name, most in (
            ("horizontal_flip", 1),
            ("rotation", 180),
            ("brightness", None),
            ("contrast", None),
            ("saturation", None),
            ("hue", 0.5),
        ):
            value = getattr(self, name)
            if not _is_number(value) or value < 0 or (most is not None and value > most):
                limits = "a number from 0 on" if most is None else f"a number from 0 to {most}"
                raise ValueError(f"augmentation.{name} must be {limits}; got {value!r}.")
        for name, most in (("crop_scale", 1), ("crop_ratio", math.inf)):
            value = getattr(self, name)
            if value is None and name == "crop_scale":
                continue
            pair = isinstance(value, list | tuple) and len(value) == 2 and all(_is_number(item) for item in value)
            if not pair or not 0 < value[0] <= value[1] <= most:
                limits = "above 0" if most == math.inf else "above 0 and at most 1"
                raise ValueError(f"augmentation.{name} must be [least, greatest], {limits}; got {value!r}.")
        pairs = self.flip_pairs
        if not isinstance(pairs, list | tuple) or not all(
            isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(name, str) for name in pair)
            for pair in pairs
        ):
            raise ValueError(
                "augmentation.flip_pairs must be a list of pairs of concept names, as [[left wing, right wing]]; "
                f"got {pairs!r}."
            )
        names = [name for pair in pairs for name in pair]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"augmentation.flip_pairs may name a concept once; {repeated[0]!r} is there twice.")

    def swap(self, concepts: list[str]) -> np.ndarray:
        """Ids of a stream's concepts in a mirror image, `(len(concepts),)` int64."""
        ids = {name: i for i, name in enumerate(concepts)}
        swap = np.arange(len(concepts))
        for first, second in self.flip_pairs:
            if first in ids and second in ids:
                swap[ids[first]], swap[ids[second]] = ids[second], ids[first]
        return swap

    def check_names(self, global_concepts: list[str], spatial_concepts: list[str]) -> None:
        """Raises ValueError for a pair that no stream has, or of which a stream has one name alone."""
        for first, second in self.flip_pairs:
            streams = [names for names in (global_concepts, spatial_concepts) if first in names or second in names]
            if not streams:
                raise ValueError(
                    f"augmentation.flip_pairs names {first!r} and {second!r}, but the dataset has no such concepts."
                )
            for names in streams:
                for name in (first, second):
                    if name not in names:
                        raise ValueError(
                            f"augmentation.flip_pairs names {first!r} and {second!r}, but {name!r} is no concept of "
                            "the dataset, or not of the same kind (global or spatial) as the other."
                        )


def rgb_pixels(image: Image.Image, window: Sequence[float] | None = None) -> np.ndarray:
    """Pixels of a PIL image of any mode as the image processor sees them, `(3, height, width)` uint8."""
    return np.ascontiguousarray(rgb_array(image, window).transpose(2, 0, 1))


def _adjust_contrast(image: torch.Tensor, factor: float) -> torch.Tensor:
    """
    Adjusts contrast as torchvision does, but sums the mean grey in integers: a sum of floats depends on the number of
    threads, which differs between workers and the main process.
    """
    from torchvision.transforms.v2 import functional

    grey = functional.rgb_to_grayscale(image)
    mean = int(grey.sum(dtype=torch.int64)) / grey.numel()
    return image.float().mul_(factor).add_((1 - factor) * mean).clamp_(0, 255).to(torch.uint8)


class ConceptAugmenter:
    """
    Augments rows of a concept dataset.

    Args:
        options: changes to draw.
        global_concepts: names of the dataset's global concepts.
        spatial_concepts: names of the dataset's spatial concepts.
        window: range of the image processor for images of more than 8 bits.

    Raises:
        ImportError: without torchvision.
        ValueError: for pairs of names that the dataset does not have.
    """

    def __init__(
        self,
        options: Augmentation,
        global_concepts: list[str],
        spatial_concepts: list[str],
        window: Sequence[float] | None = None,
    ):
        try:
            import torchvision  # noqa: F401
        except ImportError as error:
            raise ImportError("Augmentation needs torchvision: pip install 'ascent-vit[train]'.") from error
        options.check_names(global_concepts, spatial_concepts)
        self.options, self.window = options, window
        self.num_spatial_concepts = len(spatial_concepts)
        self.global_swap, self.spatial_swap = options.swap(global_concepts), options.swap(spatial_concepts)

    def __call__(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """
        Draws a random view of a row.

        A point stands for the pixel it lies in and becomes its centre. Points that leave the image are dropped; boxes
        are clipped to it and dropped when nothing is left. Global concepts stay as they are, but for `flip_pairs`.
        Rotation and crop may cut away what `present` lists: `unknown_present` then names all of it, and the image
        processor takes for present what a place in the view marks. Concepts that are absent stay absent.

        Args:
            row: row with an image, PIL or `(3, height, width)` uint8, and any of the schema's annotation columns.
            rng: random generator of the view.

        Returns:
            The row with image `(3, height, width)` uint8, mask `(height, width)`, `objects` and `points` as dicts of
            lists, and `unknown_present` where a part of the image is cut away.

        Raises:
            ValueError: for annotations that the image processor would refuse.
        """
        parts, ids = self._parts(row)
        parts, flipped, cut = self._move(parts, rng)
        height, width = parts["image"].shape[-2:]
        image = self._colour(parts["image"], rng).as_subclass(torch.Tensor).contiguous()
        augmented = dict(row) | {"image": image}
        if cut and row.get("present") is not None:
            augmented["unknown_present"] = [*row["present"], *(row.get("unknown_present") or ())]
        for column in GLOBAL_COLUMNS + PRESENCE_COLUMNS:
            if flipped and augmented.get(column) is not None:
                swap = self.global_swap if column in GLOBAL_COLUMNS else self.spatial_swap
                augmented[column] = swap[read_ids(augmented[column], len(swap), column)].tolist()
        start = 0
        for column, of_column in ids.items():
            moved = parts["boxes"][start : start + len(of_column)].as_subclass(torch.Tensor).numpy()
            start += len(of_column)
            concepts = self.spatial_swap[of_column] if flipped else of_column
            augmented[column] = self._place(column, moved, concepts, height, width)
        if "mask" in parts:
            mask = parts["mask"].as_subclass(torch.Tensor).numpy()
            augmented["mask"] = self._swap_mask(mask) if flipped else np.ascontiguousarray(mask)
        return augmented

    def _parts(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Image, boxes and mask as torchvision's tensors, which move together; and the boxes' ids by column."""
        from torchvision import tv_tensors

        pixels = rgb_pixels(row["image"], self.window) if isinstance(row["image"], Image.Image) else row["image"]
        image = tv_tensors.Image(torch.from_numpy(pixels))
        height, width = image.shape[-2:]
        parts: dict[str, Any] = {"image": image}
        placed = placed_concepts(row, self.num_spatial_concepts)
        if placed:
            # Points are the boxes of their pixels: torchvision's KeyPoints count from pixel centres in a flip and from
            # edges elsewhere, which is off by one.
            boxes = [self._boxes(column, values, height, width) for column, (values, _) in placed.items()]
            parts["boxes"] = tv_tensors.BoundingBoxes(
                torch.from_numpy(np.concatenate(boxes)),
                format="XYXY",
                canvas_size=(height, width),
                clamping_mode=None,
            )
        if row.get("mask") is not None:
            mask, _ = read_mask(row["mask"], (height, width), self.num_spatial_concepts, "mask")
            kind = np.uint8 if mask.dtype == np.uint8 else np.int32
            parts["mask"] = tv_tensors.Mask(torch.from_numpy(mask.astype(kind)))
        return parts, {column: ids for column, (_, ids) in placed.items()}

    def _move(self, parts: dict[str, Any], rng: np.random.Generator) -> tuple[dict[str, Any], bool, bool]:
        """Flips, turns and crops the parts at random; tells whether they were flipped, and whether they were cut."""
        from torchvision.transforms.v2 import InterpolationMode, functional

        options = self.options
        # The image keeps its size, so a turned one lacks its corners.
        cut = bool(options.rotation)
        flipped = rng.random() < options.horizontal_flip
        if flipped:
            parts = {name: functional.horizontal_flip(part) for name, part in parts.items()}
        if options.rotation:
            angle = rng.uniform(-options.rotation, options.rotation)
            modes = {"image": InterpolationMode.BILINEAR}
            parts = {
                name: functional.rotate(part, angle, interpolation=modes.get(name, InterpolationMode.NEAREST))
                for name, part in parts.items()
            }
        if options.crop_scale is not None:
            height, width = parts["image"].shape[-2:]
            crop = self._draw_crop(height, width, rng)
            parts = {name: functional.crop(part, *crop) for name, part in parts.items()}
            cut |= crop[2:] != (height, width)
        return parts, flipped, cut

    @staticmethod
    def _boxes(column: str, values: np.ndarray, height: int, width: int) -> np.ndarray:
        """Boxes `(n, 4)` as left, top, right, bottom, clipped to the image; those of points are their pixels."""
        if column == "points":
            boxes = np.concatenate([np.floor(values), np.floor(values) + 1], axis=1)
        else:
            boxes = np.concatenate([values[:, :2], values[:, :2] + values[:, 2:]], axis=1)
        boxes = boxes.clip(0, [width, height] * 2)
        empty = (boxes[:, :2] >= boxes[:, 2:]).any(axis=1)
        if empty.any():
            key, names = COORDINATES[column]
            raise ValueError(
                f"{column}.{key} must lie in the image, width {width} and height {height}; "
                f"got [{names}] = {values[empty][0].tolist()}."
            )
        return boxes

    def _draw_crop(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draws a crop: top, left, height, width in pixels. Where none fits, the largest one with an allowed ratio."""
        assert self.options.crop_scale is not None
        low, high = self.options.crop_ratio
        for _ in range(CROP_ATTEMPTS):
            area = height * width * rng.uniform(*self.options.crop_scale)
            ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
            crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < crop_height <= height and 0 < crop_width <= width:
                top, left = rng.integers(0, [height - crop_height + 1, width - crop_width + 1]).tolist()
                return top, left, crop_height, crop_width
        crop_height = min(height, max(1, round(width / low)))
        crop_width = min(width, max(1, round(height * high)))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width

    def _colour(self, image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        from torchvision.transforms.v2 import functional

        for name, adjust in (
            ("brightness", functional.adjust_brightness),
            ("contrast", _adjust_contrast),
            ("saturation", functional.adjust_saturation),
        ):
            strength = getattr(self.options, name)
            if strength:
                image = adjust(image, rng.uniform(max(0.0, 1 - strength), 1 + strength))
        if self.options.hue:
            image = functional.adjust_hue(image, rng.uniform(-self.options.hue, self.options.hue))
        return image

    @staticmethod
    def _place(column: str, boxes: np.ndarray, ids: np.ndarray, height: int, width: int) -> dict[str, list]:
        """Turns boxes, which may lie outside the image, back into a column of the schema."""
        if column == "points":
            points = (boxes[:, :2] + boxes[:, 2:]) / 2
            inside = ((points >= 0) & (points < [width, height])).all(axis=1)
            return {"xy": points[inside].tolist(), "category": ids[inside].tolist()}
        boxes = boxes.clip(0, [width, height] * 2)
        sides = boxes[:, 2:] - boxes[:, :2]
        inside = (sides >= SMALLEST_SIDE).all(axis=1)
        boxes = np.concatenate([boxes[:, :2], sides], axis=1)
        return {"bbox": boxes[inside].tolist(), "category": ids[inside].tolist()}

    def _swap_mask(self, mask: np.ndarray) -> np.ndarray:
        codes = np.arange(max(MASK_IGNORE, self.num_spatial_concepts) + 1, dtype=mask.dtype)
        codes[1 : self.num_spatial_concepts + 1] = self.spatial_swap + 1
        codes[MASK_IGNORE] = MASK_IGNORE
        return codes[mask]


class AugmentedConceptDataset(torch.utils.data.Dataset):
    """
    A split with random access whose rows are augmented, to be indexed by [`EpochSampler`].

    Args:
        dataset: split of a concept dataset, with random access.
        augmenter: augmenter that draws the views.
        seed: random seed of the views.
        memory: size in bytes of the store of decoded images and masks; as many rows as fit, from the first on, are
            decoded once and kept. Worker processes share them where the system forks processes.
        progress: whether to show a progress bar while rows are decoded.
    """

    def __init__(self, dataset: Any, augmenter: ConceptAugmenter, seed: int, memory: int = 0, progress: bool = False):
        self.dataset, self.augmenter, self.seed = dataset, augmenter, seed
        self.decoded: list[dict[str, Any]] = []
        left = memory
        indices = range(len(dataset) if memory else 0)
        for index in tqdm(indices, desc="Reading images", unit="image", leave=False, disable=not progress):
            row = dict(dataset[index])
            row["image"] = rgb_pixels(row["image"], augmenter.window)
            if row.get("mask") is not None:
                row["mask"] = np.array(row["mask"])
            left -= row["image"].nbytes + (row["mask"].nbytes if row.get("mask") is not None else 0)
            if left < 0:
                break
            self.decoded.append(row)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        row = self.decoded[index] if index < len(self.decoded) else self.dataset[index]
        return self.augmenter(row, np.random.default_rng([self.seed, epoch, index]))


class EpochSampler(torch.utils.data.Sampler):
    """
    Draws random places of a dataset, each with the epoch it is drawn in.

    The epoch travels with the place, so that it reaches every worker of every process. Accelerate passes on
    `set_epoch`.

    Args:
        length: number of rows of the dataset.
        num_samples: number of places per epoch, each different; at most `length`.
        seed: random seed of the order.
    """

    def __init__(self, length: int, num_samples: int, seed: int):
        self.length, self.num_samples, self.seed, self.epoch = length, num_samples, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        return iter([(self.epoch, index) for index in order[: self.num_samples].tolist()])


class AugmentedViews(torch.utils.data.Dataset):
    """
    Several augmented views of each row of a split, the same whenever they are asked for: all rows in a first view,
    then all in a second. Rows have the view's own number in the column `feature_rows`.

    Args:
        dataset: split of a concept dataset, with random access.
        augmenter: augmenter that draws the views.
        seed: random seed of the views.
        num_views: number of views of each row.
    """

    def __init__(self, dataset: Any, augmenter: ConceptAugmenter, seed: int, num_views: int):
        self.dataset, self.augmenter, self.seed, self.num_views = dataset, augmenter, seed, num_views

    def __len__(self) -> int:
        return self.num_views * len(self.dataset)

    def __getitem__(self, key: int | slice) -> dict[str, Any]:
        if isinstance(key, slice):
            rows = [self[number] for number in range(*key.indices(len(self)))]
            return {name: [row[name] for row in rows] for name in rows[0]}
        view, index = divmod(key, len(self.dataset))
        row = self.augmenter(self.dataset[index], np.random.default_rng([self.seed, view, index]))
        return row | {FEATURE_ROWS: key}


class ViewSampler(EpochSampler):
    """
    Draws random places of a dataset, and one of the views of each, for [`AugmentedViews`].

    Args:
        length: number of rows of the dataset.
        num_views: number of views of each row.
        num_samples: number of places per epoch, each different; at most `length`.
        seed: random seed of order and views.
    """

    def __init__(self, length: int, num_views: int, num_samples: int, seed: int):
        super().__init__(length, num_samples, seed)
        self.num_views = num_views

    def __iter__(self) -> Iterator[Any]:
        generator = np.random.default_rng([self.seed, self.epoch])
        places = generator.permutation(self.length)[: self.num_samples]
        return iter((places + self.length * generator.integers(self.num_views, size=len(places))).tolist())


__all__ = [
    "Augmentation",
    "AugmentedConceptDataset",
    "AugmentedViews",
    "ConceptAugmenter",
    "EpochSampler",
    "ViewSampler",
]

# SPDX-License-Identifier: Apache-2.0
"""Rows of concept datasets as batches for the model: image by image, or held in memory for a whole run."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from .schema import GLOBAL_COLUMNS, SPATIAL_COLUMNS, annotation_from_row


if TYPE_CHECKING:
    from ascent_vit.inference.protocols import ConceptImageProcessor
    from modeling_ascent_vit import AscentViTImageProcessorPil

# Column of a row's number in the file of its backbone's tokens, where these are cached.
FEATURE_ROWS = "feature_rows"

# Stands for NaN among targets held as bytes, beside 0 and 1.
UNKNOWN_CODE = 255


def batch_labels(labels: list[Any], num_labels: int | None = None) -> torch.Tensor:
    """
    Makes a tensor of the labels of rows: classes `(B,)` int64; lists of classes `(B, num_labels)` float32, 1 for those
    listed; values `(B,)` or `(B, K)` float32.

    Raises:
        ValueError: for lists of classes without their number, or of others than these.
    """
    if not isinstance(labels[0], list):
        return torch.tensor(labels)
    items = [item for label in labels for item in label]
    if any(isinstance(item, float) for item in items):
        return torch.tensor(labels)
    if num_labels is None:
        raise ValueError("Rows have lists of classes: give their number, ConceptCollator(processor, num_labels=...).")
    if items and not 0 <= min(items) <= max(items) < num_labels:
        raise ValueError(f"Rows have classes from {min(items)} to {max(items)}, of {num_labels}: they start at 0.")
    present = torch.zeros(len(labels), num_labels)
    for row, classes in zip(present, labels, strict=True):
        row[classes] = 1
    return present


class ConceptCollator:
    """
    Turns rows of a concept dataset into a batch for the model.

    Args:
        processor: the model's image processor. Annotations of a stream in which it has no concepts are left out.
        num_labels: number of classes, needed where a row's label is a list of them.
        kwargs: further arguments of the image processor.

    Returns:
        When called with a list of rows, a dict of `pixel_values` (B, C, H, W) float32, `labels` and, where
        the processor has such concepts, `concept_targets` (B, G) and `spatial_concept_targets` (B, N, S) float32; of
        rows with the column `present` also `spatial_concept_presence` (B, S), NaN where it is null, unless the
        processor is remote code of a model that does not know it. Rows with the column `feature_rows` give that too,
        (B,) int64. `labels` are (B,) int64 of one class, (B, K) float32 of several, 1 for those of the image, and (B,)
        or (B, K) float32 of values.
    """

    def __init__(self, processor: "ConceptImageProcessor", num_labels: int | None = None, **kwargs: Any):
        self.processor = processor
        self.num_labels = num_labels
        self.kwargs = kwargs
        # An image processor that does not know `present`, as older remote code, does not say what it knows.
        known = getattr(processor, "annotation_keys", GLOBAL_COLUMNS + SPATIAL_COLUMNS)
        num_global, num_spatial = processor.num_global_concepts, processor.num_spatial_concepts
        self.used = [name for name in known if (num_global if name in GLOBAL_COLUMNS else num_spatial)]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images = [row["image"] for row in rows]
        arguments = dict(self.kwargs)
        if self.used:
            annotations = [annotation_from_row(row) for row in rows]
            arguments["annotations"] = [
                {name: value for name, value in annotation.items() if name in self.used} for annotation in annotations
            ]
        batch = dict(self.processor(images, return_tensors="pt", **arguments))
        if "present" in self.used and "present" in rows[0]:
            unknown = torch.full_like(batch["spatial_concept_targets"][:, 0], torch.nan)
            # All batches of a dataset have the same keys, also those of rows that all have null.
            batch.setdefault("spatial_concept_presence", unknown)
        batch["labels"] = batch_labels([row["label"] for row in rows], self.num_labels)
        if FEATURE_ROWS in rows[0]:
            batch[FEATURE_ROWS] = torch.tensor([row[FEATURE_ROWS] for row in rows])
        return batch


def _rows(dataset: Any, start: int, stop: int) -> list[dict[str, Any]]:
    columns = dataset[start:stop]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class NumberedRows(torch.utils.data.Dataset):
    """
    A split whose rows have a number, from `start` on, in the column `feature_rows`.

    Args:
        dataset: split with random access.
        start: number of the first row.
    """

    def __init__(self, dataset: Any, start: int):
        self.dataset, self.numbers = dataset, range(start, start + len(dataset))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | slice) -> dict[str, Any]:
        return self.dataset[key] | {
            FEATURE_ROWS: list(self.numbers[key]) if isinstance(key, slice) else self.numbers[key]
        }


class CachedConceptDataset(torch.utils.data.Dataset):
    """
    Holds a split in memory as bytes, after one pass of the image processor.

    Pixels are kept as the processor leaves them before it rescales and normalises, which is done batch by batch, so
    that batches are equal to those of [`ConceptCollator`] up to float32 rounding. It gives whole batches: pass
    `collate_fn=lambda batch: batch` to the DataLoader.

    Args:
        dataset: split with random access, of one image or more.
        processor: the model's image processor, with whole-number pixels until it rescales and one size for all images.
        batch_size: number of images per call of the image processor.
        num_labels: number of classes, needed where a row's label is a list of them.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for a processor that gives something other than bytes before rescaling, or targets other than 0, 1
            and NaN.
    """

    def __init__(
        self,
        dataset: Any,
        processor: "AscentViTImageProcessorPil",
        batch_size: int = 256,
        progress: bool = False,
        num_labels: int | None = None,
    ):
        collate = ConceptCollator(processor, num_labels, do_rescale=False, do_normalize=False)
        self.scale, self.mean, self.std = 1.0, torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        if processor.do_rescale:
            self.scale = 1 / processor.rescale_factor
        if processor.do_normalize:
            self.mean = torch.tensor(processor.image_mean).view(-1, 1, 1)
            self.std = torch.tensor(processor.image_std).view(-1, 1, 1)
        self.columns: dict[str, torch.Tensor] = {}
        starts = range(0, len(dataset), batch_size)
        for start in tqdm(starts, desc="Reading images", unit="batch", leave=False, disable=not progress):
            stop = min(start + batch_size, len(dataset))
            encoded = {
                name: self._encode(name, values) for name, values in collate(_rows(dataset, start, stop)).items()
            }
            for name, values in encoded.items():
                if name not in self.columns:
                    self.columns[name] = torch.empty((len(dataset), *values.shape[1:]), dtype=values.dtype)
                self.columns[name][start:stop] = values

    @staticmethod
    def _encode(name: str, values: torch.Tensor) -> torch.Tensor:
        if name in ("labels", FEATURE_ROWS):
            return values
        if name == "pixel_values":
            fits = values.dtype == torch.uint8
        else:
            unknown = values.isnan()
            fits = bool(((values == 0) | (values == 1) | unknown).all())
            values = values.masked_fill(unknown, UNKNOWN_CODE).to(torch.uint8)
        if not fits:
            raise ValueError(f"{name} cannot be kept as bytes: set cache_mebibytes: 0 in the recipe.")
        return values

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Iterable[int]) -> dict[str, torch.Tensor]:
        chosen = torch.as_tensor(list(indices))
        batch = {name: values[chosen] for name, values in self.columns.items()}
        # In the order of the processor's own arithmetic: (pixel - mean / factor) / (std / factor).
        pixels = batch["pixel_values"].float()
        batch["pixel_values"] = pixels.sub_(self.mean * self.scale).div_(self.std * self.scale)
        for name in batch.keys() - {"pixel_values", "labels", FEATURE_ROWS}:
            codes = batch[name]
            batch[name] = codes.float().masked_fill_(codes == UNKNOWN_CODE, torch.nan)
        return batch


def cached_bytes(dataset: Any, processor: "AscentViTImageProcessorPil", num_labels: int | None = None) -> int:
    """Estimates the memory in bytes that [`CachedConceptDataset`] takes for a split, from its first row."""
    batch = ConceptCollator(processor, num_labels, do_rescale=False, do_normalize=False)(_rows(dataset, 0, 1))
    return len(dataset) * sum(values.numel() for values in batch.values())


__all__ = ["FEATURE_ROWS", "CachedConceptDataset", "ConceptCollator", "NumberedRows", "cached_bytes"]

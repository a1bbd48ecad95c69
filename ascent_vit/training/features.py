# SPDX-License-Identifier: Apache-2.0
"""
The tokens of a frozen backbone, computed once for each image and kept in a file.

A row of the file has a key beside it, the digest of the backbone's weights and of the image as the image processor
made it. What is interrupted goes on where it was, and a row whose weights, settings or image have changed is computed
anew.
"""

import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.modeling_outputs import BaseModelOutput

from ascent_vit.data.batches import FEATURE_ROWS, ConceptCollator, NumberedRows
from ascent_vit.data.schema import PRESENCE_COLUMNS
from ascent_vit.inference.mode import evaluation_mode
from modeling_ascent_vit.checks_ascent_vit import checked_pixel_values

from .errors import TrainingError


if TYPE_CHECKING:
    from datasets import DatasetDict

logger = logging.getLogger(__name__)

KEY_BYTES = 16
# Images that are computed once more and compared, and the largest difference: float16 rounds to 5e-4 of a value.
NUM_CHECKED, TOLERANCE = 4, 5e-3


def without_lists(train: Any) -> Any:
    """
    Gives a train split without lists of what is present: places are learned from them by earlier tokens.

    Raises:
        ValueError: for a stream, whose images have no numbers, and for an image that has a list and no places, of
            which nothing would be left to learn.
    """
    if not hasattr(train, "__len__"):
        raise ValueError("cache_features numbers the images, and a stream has no numbers: load the dataset whole.")
    if "present" not in train.features:
        return train
    placed = [name for name in ("objects", "points", "mask") if name in train.features]
    rows = train.select_columns(["present", *placed])
    if "mask" in placed:
        rows = rows.cast_column("mask", Image(decode=False))
    if any(row["present"] is not None and all(row[name] is None for name in placed) for row in rows):
        raise ValueError(
            "cache_features keeps the backbone's last tokens alone, and lists of what is present need earlier ones "
            "where there are no places: leave cache_features out, and set freeze_backbone: true."
        )
    logger.info(
        "Lists of what is present are left out of training, as cached features do not serve them: all have places."
    )
    return train.remove_columns([name for name in PRESENCE_COLUMNS if name in train.features])


def weights_digest(module: torch.nn.Module) -> bytes:
    """Digest of a module's weights and buffers, with their names."""
    digest = blake2b()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()


def row_keys(weights: bytes, pixel_values: torch.Tensor) -> np.ndarray:
    """Keys of a batch of images, `(B, 16)` uint8."""
    images = pixel_values.float().contiguous().numpy()
    start = weights + repr(images.shape[1:]).encode()
    keys = [blake2b(start + image.tobytes(), digest_size=KEY_BYTES).digest() for image in images]
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)


class CachedTokens:
    """
    Gives a model its frozen backbone's tokens from a file, in batches that say which rows they are of.

    The model's forward takes one more argument, `feature_rows` (B,). With it, the tokens of these rows take the place
    of the backbone's forward; without it, the backbone computes. Weights, and what is saved, stay as they are.

    Args:
        model: concept classifier in training, whose backbone is frozen by this.
    """

    def __init__(self, model: Any):
        self.model, self.backbone = model.ascent_vit, model.ascent_vit.backbone
        self.backbone.requires_grad_(False)
        self.compute = self.backbone.forward
        self.tokens: np.ndarray | None = None
        self.rows: torch.Tensor | None = None
        self.backbone.forward = self.give_tokens
        model.register_forward_pre_hook(self.take_rows, with_kwargs=True)

    def __deepcopy__(self, memo: dict) -> "CachedTokens":
        # A moving average of the model has the same backbone.
        return self

    def take_rows(self, model: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        self.rows = kwargs.pop(FEATURE_ROWS, None)
        return args, kwargs

    def give_tokens(self, pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.rows is None or self.tokens is None:
            return self.compute(pixel_values, *args, **kwargs)
        tokens = torch.from_numpy(self.tokens[self.rows.cpu().numpy()])
        return BaseModelOutput(last_hidden_state=tokens.to(pixel_values.device, self.backbone.dtype))

    def compute_tokens(self, pixel_values: torch.Tensor) -> np.ndarray:
        """Tokens of images as they are kept, `(B, ...)` float16; TrainingError for values beyond float16."""
        pixel_values = pixel_values.to(self.backbone.device, self.backbone.dtype)
        checked_pixel_values(self.model.config, pixel_values, self.model.takes_interpolation, None)
        with evaluation_mode(self.backbone):
            tokens = self.compute(pixel_values, return_dict=True).last_hidden_state.half()
        if not tokens.isfinite().all():
            raise TrainingError("The backbone's tokens are too large for float16: set cache_features: false.")
        return tokens.cpu().numpy()

    def fill(
        self,
        datasets: Sequence[tuple[Any, Any]],
        folder: Path,
        batch_size: int,
        process_index: int = 0,
        num_processes: int = 1,
        wait: Any = lambda: None,
        progress: bool = False,
    ) -> None:
        """
        Computes the tokens of all rows that are not in the file yet, and uses the file from here on.

        Args:
            datasets: datasets of numbered rows, in the order of their numbers, each with its collator.
            folder: folder of the file.
            batch_size: number of images to compute at a time.
            process_index: index of this process, which takes its share of the images.
            num_processes: number of processes that share them.
            wait: function that waits for all processes.
            progress: whether to show a progress bar.

        Raises:
            TrainingError: for a full disk, or tokens that are not what the backbone computes.
        """
        loaders = [DataLoader(dataset, batch_size, collate_fn=collate) for dataset, collate in datasets]
        num_rows, num_batches = sum(len(dataset) for dataset, _ in datasets), sum(map(len, loaders))
        first = next(iter(loaders[0]))["pixel_values"][:1]
        shape = (num_rows, *self.compute_tokens(first).shape[1:])
        if process_index == 0:
            make_file(folder / "tokens.npy", np.float16, shape)
            make_file(folder / "keys.npy", np.uint8, (num_rows, KEY_BYTES))
        wait()
        tokens, keys = (np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("tokens", "keys"))
        weights = weights_digest(self.backbone)
        checked: list[tuple[np.ndarray, torch.Tensor]] = []
        with tqdm(total=num_rows, desc="Computing features", unit="image", leave=False, disable=not progress) as bar:
            for number, batch in enumerate(chain.from_iterable(loaders)):
                bar.update(len(batch["pixel_values"]))
                if number % num_processes != process_index:
                    continue
                rows, found = batch[FEATURE_ROWS].numpy(), row_keys(weights, batch["pixel_values"])
                missing = (keys[rows] != found).any(1)
                if missing.any():
                    tokens[rows[missing]] = self.compute_tokens(batch["pixel_values"][torch.from_numpy(missing)])
                    # The key is written last: what has one is whole.
                    tokens.flush()
                    keys[rows[missing]] = found[missing]
                if number % max(1, num_batches // NUM_CHECKED) == 0:
                    checked.append((rows[:1], batch["pixel_values"][:1]))
        keys.flush()
        wait()
        self.tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        self.check(checked, folder)

    def check(self, images: Iterable[tuple[np.ndarray, torch.Tensor]], folder: Path) -> None:
        """Compares rows of the file with what the backbone computes; TrainingError where they differ."""
        assert self.tokens is not None
        for rows, pixel_values in images:
            fresh = self.compute_tokens(pixel_values).astype(np.float32)
            difference = np.abs(self.tokens[rows] - fresh).max()
            if not difference <= TOLERANCE * np.abs(fresh).max():
                raise TrainingError(
                    f"Features in {folder} are not what the backbone computes, row {rows[0]} by {difference:.2g}: "
                    "remove the folder, and resume the run."
                )


def make_file(path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    """Makes a file of numbers, unless there is one of that shape; TrainingError where it does not fit the disk."""
    if path.is_file():
        try:
            found = np.load(path, mmap_mode="r")
            if found.shape == shape and found.dtype == dtype:
                return
        except ValueError:
            pass  # cut short as it was made
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file that is mapped into memory ends the program where the disk takes no more.
    size, free = int(np.prod(shape)) * np.dtype(dtype).itemsize, shutil.disk_usage(path.parent).free
    if size > free:
        raise TrainingError(
            f"The features take {size:,} bytes, and {path.parent} has {free:,}: lower feature_views, set "
            "cache_features: false, or give another --output."
        )
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()


def cache_features(
    model: Any, processor: Any, dataset: "DatasetDict", folder: str | os.PathLike, batch_size: int = 32
) -> dict[str, NumberedRows]:
    """
    Freezes a model's backbone and computes its tokens of all images once, to train pyramid and head by `Trainer`.

    Args:
        model: model to train.
        processor: the model's image processor, which must act on an image in the same way each time.
        dataset: splits "train", and others to evaluate on, which are not augmented.
        folder: folder of the file of tokens; what is in it already is not computed again.
        batch_size: number of images to compute at a time.

    Returns:
        The splits by name, with numbers by which the model looks its tokens up: pass them to `Trainer` with
        [`~ascent_vit.data.ConceptCollator`] and `remove_unused_columns=False`.

    Raises:
        ValueError: for a stream, or images to train on with lists of what is present and no places.
        TrainingError: for a full disk, or tokens that are not what the backbone computes.
    """
    tokens, numbered, start = CachedTokens(model), {}, 0
    for name, split in dataset.items():
        numbered[name] = NumberedRows(without_lists(split) if name == "train" else split, start)
        start += len(split)
    collate = ConceptCollator(processor, model.config.num_labels)
    tokens.fill([(split, collate) for split in numbered.values()], Path(folder), batch_size, progress=True)
    return numbered


__all__ = ["CachedTokens", "cache_features", "without_lists"]

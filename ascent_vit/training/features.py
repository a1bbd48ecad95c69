# SPDX-License-Identifier: Apache-2.0
"""
The tokens of a backbone that is frozen, whole or up to a block, computed once for each image and kept in a file.

A row of the file has a key beside it, the digest of the frozen weights and of the image as the image processor made
it. What is interrupted goes on where it was, and a row whose weights, settings or image have changed is computed anew.
"""

import os
import shutil
from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.modeling_outputs import BaseModelOutput

from ascent_vit.data.batches import FEATURE_ROWS, ConceptCollator, NumberedRows
from ascent_vit.inference.mode import evaluation_mode
from modeling_ascent_vit.checks_ascent_vit import checked_pixel_values
from modeling_ascent_vit.presence_ascent_vit import local_layers

from .blocks import first_blocks, freeze
from .errors import TrainingError


if TYPE_CHECKING:
    from datasets import DatasetDict

KEY_BYTES = 16
# Images that are computed once more and compared, and the largest difference: float16 rounds to 5e-4 of a value.
NUM_CHECKED, TOLERANCE = 4, 5e-3


def check_numbered(train: Any) -> None:
    """Checks that the images to train on can be numbered; ValueError for a stream."""
    if not hasattr(train, "__len__"):
        raise ValueError("cache_features numbers the images, and a stream has no numbers: load the dataset whole.")


def weights_digest(module: torch.nn.Module, trained: Collection[str], start: bytes = b"") -> bytes:
    """Digest of a module's weights and buffers, with their names, but not of those that are trained."""
    digest = blake2b(start)
    for name, tensor in module.state_dict().items():
        if name not in trained:
            data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            digest.update(name.encode() + data)
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
    of what is frozen; without it, the backbone computes. Blocks that are not frozen, and what is behind them, run as
    the backbone runs them. Weights, and what is saved, stay as they are.

    Args:
        model: concept classifier in training, whose backbone is frozen by this.
        frozen_layers: number of the backbone's first blocks that are frozen; None for the whole of it.
        has_lists: whether the earlier tokens are kept too, from which places are learned by lists of what is present.
    """

    def __init__(self, model: Any, frozen_layers: int | None = None, has_lists: bool = False):
        self.model, self.backbone = model.ascent_vit, model.ascent_vit.backbone
        self.frozen_layers, self.has_lists = frozen_layers, has_lists
        freeze(model, frozen_layers)
        self.trained = {name for name, parameter in self.backbone.named_parameters() if parameter.requires_grad}
        self.tokens: np.ndarray | None = None
        # What the file has for a batch: tokens, then the hidden states of the layers in `early`, of all `num_states`.
        self.given: tuple[torch.Tensor, ...] | None = None
        self.early: tuple[int, ...] = ()
        self.num_states = 0
        # The output of the last frozen block that was computed.
        self.left: Any = None
        self.compute = self.backbone.forward
        if frozen_layers is None:
            self.backbone.forward = self.give_tokens
        else:
            embeddings = getattr(self.backbone, "embeddings", None)
            for module in (embeddings, *first_blocks(self.backbone, frozen_layers)):
                if module is not None:
                    self.replace(module)
        model.register_forward_pre_hook(self.take_rows, with_kwargs=True)
        model.register_forward_hook(self.forget_rows)
        self.backbone.register_forward_hook(self.give_early)

    def __deepcopy__(self, memo: dict) -> "CachedTokens":
        # A moving average of the model has the same frozen weights.
        return self

    def take_rows(self, model: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        rows, self.given = kwargs.pop(FEATURE_ROWS, None), None
        if rows is not None and self.tokens is not None:
            tokens = torch.from_numpy(self.tokens[rows.cpu().numpy()])
            self.given = tokens.to(self.backbone.device, self.backbone.dtype).unbind(1)
        return args, kwargs

    def forget_rows(self, model: Any, args: tuple, output: Any) -> None:
        # Or the backbone, called by itself, would give tokens of this batch.
        self.given = None

    def give_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """The forward of a backbone that is frozen as a whole."""
        if self.given is None:
            return self.compute(*args, **kwargs)
        # Places among the hidden states, those that are not in the file have a shape that nothing reads.
        num_states = self.num_states if kwargs.get("output_hidden_states") else 0
        states = (self.given[0].new_empty(0, 0),) * num_states
        return BaseModelOutput(last_hidden_state=self.given[0], hidden_states=states or None)

    def replace(self, module: torch.nn.Module) -> None:
        """Lets the embeddings, or a frozen block, give what leaves the last frozen block."""
        compute, rest = module.forward, None

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal rest
            if self.given is not None:
                return self.given[0] if rest is None else (self.given[0], *rest)
            output = compute(*args, **kwargs)
            self.left, *others = output if isinstance(output, tuple) else (output,)
            # What some families give beside the tokens is the patch grid, the same for all images.
            rest = others if isinstance(output, tuple) else None
            return output

        module.forward = forward

    def give_early(self, backbone: Any, args: tuple, output: Any) -> Any:
        """Puts hidden states from the file among those of the backbone's output."""
        if self.given is not None and output.hidden_states is not None:
            known = dict(zip(self.early, self.given[1:], strict=True))
            output.hidden_states = tuple(known.get(i, states) for i, states in enumerate(output.hidden_states))
        return output

    def compute_tokens(self, pixel_values: torch.Tensor) -> np.ndarray:
        """Tokens of images as they are kept, `(B, 1 + early, ...)` float16; TrainingError for those too large."""
        self.given = None
        pixel_values = pixel_values.to(self.backbone.device, self.backbone.dtype)
        checked_pixel_values(self.model.config, pixel_values, self.model.takes_interpolation, None)
        with evaluation_mode(self.backbone):
            outputs = self.compute(pixel_values, output_hidden_states=self.has_lists, return_dict=True)
        last, states = outputs.last_hidden_state, outputs.hidden_states if self.has_lists else ()
        self.num_states = len(states)
        tokens, end = (last, len(states)) if self.frozen_layers is None else (self.left, self.frozen_layers)
        chosen = dict.fromkeys(local_layers(len(states) - 1)) if states else ()
        # Hidden states of another shape are not read, see `local_tokens`; those behind the last frozen block are new.
        self.early = tuple(i for i in chosen if i < end and states[i].shape == last.shape)
        kept = torch.stack([tokens, *(states[i] for i in self.early)], dim=1).half()
        if not kept.isfinite().all():
            raise TrainingError("The backbone's tokens are too large for float16: set cache_features: false.")
        return kept.cpu().numpy()

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
        weights = weights_digest(self.backbone, self.trained, repr((self.frozen_layers, self.early)).encode())
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
    model: Any,
    processor: Any,
    dataset: "DatasetDict",
    folder: str | os.PathLike,
    batch_size: int = 32,
    frozen_layers: int | None = None,
) -> dict[str, NumberedRows]:
    """
    Freezes a model's backbone and computes its tokens of all images once, to train the rest by `Trainer`.

    Args:
        model: model to train.
        processor: the model's image processor, which must act on an image in the same way each time.
        dataset: splits "train", and others to evaluate on, which are not augmented.
        folder: folder of the file of tokens; what is in it already is not computed again.
        batch_size: number of images to compute at a time.
        frozen_layers: number of the backbone's first blocks that are frozen; None for the whole backbone.

    Returns:
        The splits by name, with numbers by which the model looks its tokens up: pass them to `Trainer` with
        [`~ascent_vit.data.ConceptCollator`] and `remove_unused_columns=False`.

    Raises:
        ValueError: for a stream, or more `frozen_layers` than the backbone has.
        TrainingError: for a full disk, or tokens that are not what the backbone computes.
    """
    check_numbered(dataset["train"])
    tokens = CachedTokens(model, frozen_layers, "present" in dataset["train"].features)
    numbered, start = {}, 0
    for name, split in dataset.items():
        numbered[name] = NumberedRows(split, start)
        start += len(split)
    collate = ConceptCollator(processor, model.config.num_labels)
    tokens.fill([(split, collate) for split in numbered.values()], Path(folder), batch_size, progress=True)
    return numbered


__all__ = ["CachedTokens", "cache_features", "check_numbered"]

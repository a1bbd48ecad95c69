# SPDX-License-Identifier: Apache-2.0
"""Shards of a pass over a split, from which it is put together, by whatever processes and in how many attempts."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import datasets
import torch

from ascent_vit.utils.files import write_bytes

from .rows import Rows
from .tally import Tally


# Images of a shard, at most; a split of few batches is cut into as many shards as this all the same.
SHARD_IMAGES, FEWEST_SHARDS = 256, 16
DIGEST_IMAGES = 64


def cut_into_shards(number: int, batch_size: int) -> list[range]:
    """Cuts images into shards, between batches, so that the batches are those of a pass in one go."""
    most = -(-SHARD_IMAGES // batch_size)
    size = batch_size * max(1, min(most, -(-number // batch_size) // FEWEST_SHARDS))
    return [range(start, min(start + size, number)) for start in range(0, number, size)]


def split_digest(split: datasets.Dataset) -> str:
    """SHA-256 of the rows of a split without their images, and of the stored images of 64 rows spread evenly."""
    stored = split
    for name, feature in split.features.items():
        if isinstance(feature, datasets.Image):
            stored = stored.cast_column(name, datasets.Image(decode=False))
    digest = hashlib.sha256(str(split.features).encode())
    for rows in stored.remove_columns("image").iter(1000):
        digest.update(json.dumps(rows, default=str).encode())
    for index in range(0, len(stored), max(1, len(stored) // DIGEST_IMAGES)):
        image = stored[index]["image"] or {}
        content, path = image.get("bytes"), image.get("path")
        if content is None and path and Path(path).is_file():
            content = Path(path).read_bytes()
        digest.update(hashlib.sha256(content or b"").digest())
    return digest.hexdigest()


def sums_path(folder: Path, index: int) -> Path:
    """File of a shard's sums. It is written after that of its rows, so that a shard is there when its sums are."""
    return folder / f"{index:05d}.pt"


def rows_path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.parquet"


def save_shard(folder: Path, index: int, tally: Tally, rows: Rows) -> None:
    """Keeps what was found in a shard, whole or not at all."""
    write_bytes(rows_path(folder, index), rows.path.read_bytes())
    values = {item.name: getattr(tally, item.name) for item in dataclasses.fields(tally)}
    buffer = io.BytesIO()
    torch.save(values | {"grids": sorted(tally.grids)}, buffer)
    write_bytes(sums_path(folder, index), buffer.getvalue())


def join_shards(folder: Path, number: int, whole: Rows) -> Tally:
    """Joins all shards in the order of their images: returns the sums, and writes the rows to `whole`."""
    joined = Tally()
    for index in range(number):
        values = torch.load(sums_path(folder, index), weights_only=True)
        joined.merge(Tally(**values | {"grids": {tuple(grid) for grid in values["grids"]}}))
        whole.append(rows_path(folder, index))
    whole.close()
    return joined


__all__ = ["cut_into_shards", "join_shards", "save_shard", "split_digest", "sums_path"]

# SPDX-License-Identifier: Apache-2.0
"""Detections of a split, kept on disk shard by shard, so that an interrupted run goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ascent_vit.utils.files import read_json, write_json


if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

    Detect = Callable[[Iterator[tuple[Image, list[int] | None]]], Iterator[dict[str, list]]]


def open_work(work: Path, settings: dict[str, Any], resume: bool) -> None:
    """Makes the folder of finished shards, or checks that the one that is there belongs to the same settings."""
    path = work / "settings.json"
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        if not resume:
            raise FileExistsError(f"{work} holds an unfinished run: go on with --resume, or remove it to start anew.")
        earlier = read_json(path)
        different = [key for key in settings if earlier.get(key) != settings[key]]
        if different:
            raise ValueError(
                f"The unfinished run in {work} had another {' and another '.join(different)}: repeat it with the "
                "same, or remove that folder to start anew."
            )
        return
    write_json(path, settings)


def _images_digest(cells: Iterable[Mapping[str, Any]]) -> str:
    """A digest of the stored images, by which a run that goes on knows that they are still the same."""
    digest = hashlib.sha256()
    for cell in cells:
        content = Path(cell["path"]).read_bytes() if cell["bytes"] is None else cell["bytes"]
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def listed_concepts(row: Mapping[str, Any]) -> list[int] | None:
    """Numbers of the spatial concepts that a row's `present` and `unknown_present` leave possible; None for all."""
    if row.get("present") is None:
        return None
    return sorted({*row["present"], *(row.get("unknown_present") or ())} - {None})


def _read_images(split: "Dataset", start: int, stop: int, name: str) -> Iterator[tuple["Image", list[int] | None]]:
    for i in range(start, stop):
        try:
            row = split[i]
            image = row["image"]
            if image is None:
                raise ValueError("there is none.")
            image = image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"The image of row {i} of the split {name} cannot be read: {error}") from error
        yield image, listed_concepts(row)


def _detect_rows(
    split: "Dataset", start: int, stop: int, name: str, detect: "Detect", bar: tqdm
) -> list[dict[str, list]]:
    found = []
    for objects in detect(_read_images(split, start, stop, name)):
        found.append(objects)
        bar.update()
    return found


def detect_split(
    split: "Dataset", name: str, detect: "Detect", work: Path, rows_per_shard: int, bar: tqdm
) -> list[dict[str, list]]:
    """
    Detects concepts in a split, row by row; the annotations of finished shards are read from their files.

    Args:
        split: split whose images are looked at.
        name: name of the split, for files and errors.
        detect: function that gives the annotation of each image in turn, from it and its [`listed_concepts`].
        work: folder of finished shards, see [`open_work`].
        rows_per_shard: number of images after which what was found is kept.
        bar: progress bar, counted in images.

    Raises:
        ValueError: for a row without an image, an image that cannot be read, or images that are no longer those of a
            finished shard.
    """
    from datasets import Image as ImageFeature

    stored = split.cast_column("image", ImageFeature(decode=False))
    objects: list[dict[str, list]] = []
    for start in range(0, len(split), rows_per_shard):
        stop = min(start + rows_per_shard, len(split))
        path = work / f"{name}-{start:08d}.json"
        cells = stored[start:stop]["image"]
        empty = [start + i for i, cell in enumerate(cells) if cell is None]
        if empty:
            raise ValueError(f"Row {empty[0]} of the split {name} has no image: leave it out.")
        digest = _images_digest(cells)
        if path.is_file():
            shard = read_json(path)
            if shard["images"] != digest:
                raise ValueError(
                    f"The images of rows {start} to {stop - 1} of the split {name} have changed since {path} was "
                    f"written: remove the folder {work} to start anew."
                )
            bar.update(stop - start)
        else:
            shard = {"images": digest, "objects": _detect_rows(split, start, stop, name, detect, bar)}
            write_json(path, shard)
        objects += shard["objects"]
    return objects


__all__ = ["detect_split", "listed_concepts", "open_work"]

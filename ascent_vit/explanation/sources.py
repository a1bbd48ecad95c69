# SPDX-License-Identifier: Apache-2.0
"""Many images to explain: files, or a split of a dataset; each is read when its turn comes."""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from modeling_ascent_vit.image_inputs_ascent_vit import opened_image
from modeling_ascent_vit.image_reading_ascent_vit import read_image


URL_STARTS = ("http://", "https://")
DIGEST_IMAGES = 64


@dataclass(frozen=True)
class Item:
    """
    One image of a source.

    Args:
        index (`int`): Index of the image in the source, from 0.
        name (`str`): Path of the files to write, relative and without suffix; no two images of a source share it.
        file (`str`, *optional*): File of the image, as it was found.
        label (`str`, *optional*): Name of the true class, of all of them, or the true values.
        read (`Callable`): Function that returns the image; ValueError or FileNotFoundError if it cannot be read.
    """

    index: int
    name: str
    file: str | None
    label: str | None
    read: Callable[[], Image.Image]


def is_image_name(name: str) -> bool:
    """Whether Pillow reads files of this name's suffix."""
    suffix = PurePosixPath(name).suffix.lower()
    return Image.registered_extensions().get(suffix) in Image.OPEN


def distinct(names: Sequence[str]) -> list[str]:
    """Takes the suffix from names unless that makes them equal, and numbers those that were equal before."""
    stems = [str(PurePosixPath(name).with_suffix("")) for name in names]
    counts = Counter(stems)
    chosen: list[str] = []
    taken: set[str] = set()
    for name, stem in zip(names, stems, strict=True):
        wanted = stem if counts[stem] == 1 else name
        number, free = 1, wanted
        while free in taken:
            number += 1
            free = f"{wanted}-{number}"
        taken.add(free)
        chosen.append(free)
    return chosen


class ImageFiles:
    """
    Image files, folders of them with their subfolders, and URLs.

    Args:
        inputs (`Iterable[str]`):
            Paths and URLs of the images. A folder stands for its files that Pillow can read by their suffix, sorted.

    Raises:
        FileNotFoundError: for a path that does not exist.
        ValueError: for a folder without images.
    """

    streams, split_name = False, None
    # Range of images of more than 8 bits: that of the image processor they are read for.
    window: Any = None

    def __init__(self, inputs: Iterable[str]):
        self.files: list[str] = []
        names: list[str] = []
        for given in inputs:
            path = Path(given).expanduser()
            if given.startswith(URL_STARTS):
                self.files.append(given)
                names.append(PurePosixPath(unquote(urlsplit(given).path)).name or "image")
            elif path.is_dir():
                inside = [found.relative_to(path) for found in path.rglob("*") if found.is_file()]
                hidden = [any(part.startswith(".") for part in file.parts) for file in inside]
                inside = sorted(
                    file for file, skip in zip(inside, hidden, strict=True) if is_image_name(file.name) and not skip
                )
                if not inside:
                    raise ValueError(f"There is no image in the folder {given}.")
                self.files += [str(path / file) for file in inside]
                names += [file.as_posix() for file in inside]
            elif path.is_file():
                self.files.append(str(path))
                names.append(path.name)
            else:
                raise FileNotFoundError(f"Image {given} does not exist: give the path of an image file or a folder.")
        self.names = distinct(names)

    def __len__(self) -> int:
        return len(self.files)

    def digest(self) -> str:
        """SHA-256 of the names of the images."""
        return hashlib.sha256(json.dumps(self.names).encode()).hexdigest()

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        """The images from `start` to before `stop`."""
        for index in range(len(self.files))[start:stop]:
            file = self.files[index]
            yield Item(index, self.names[index], file, None, partial(read_image, file, self.window))


class DatasetImages:
    """
    The images of one split of a concept dataset, also of a stream.

    Args:
        split (`datasets.Dataset` or `datasets.IterableDataset`): Split with the columns `image` and `label`.
        split_name (`str`, *optional*, defaults to what the split says, which may be nothing): Name of the split.
    """

    window: Any = None

    def __init__(self, split: Any, split_name: str | None = None):
        self.feature = split.features["image"]
        self.label_feature = split.features["label"]
        # `_read` decodes them one by one: an error of `datasets` while iterating would end the whole split.
        undecoded = type(self.feature)(decode=False)
        self.split = split.select_columns(["image", "label"]).cast_column("image", undecoded)
        self.streams = not hasattr(split, "__len__")
        self.split_name = split_name or (str(split.split) if getattr(split, "split", None) else None)

    def __len__(self) -> int:
        if self.streams:
            raise TypeError("A stream has no length.")
        return len(self.split)

    def digest(self) -> str:
        """SHA-256 of the number of rows, their labels, and the stored bytes of 64 images spread evenly."""
        from ascent_vit.data.schema import innermost

        rows = len(self)
        names = getattr(innermost(self.label_feature), "names", None)
        digest = hashlib.sha256(json.dumps([rows, names, self.split["label"][:]], default=str).encode())
        for index in range(0, rows, max(1, rows // DIGEST_IMAGES)):
            image = self.split[index]["image"] or {}
            content, path = image.get("bytes"), image.get("path")
            if content is None and path and os.path.isfile(path):
                content = Path(path).read_bytes()
            digest.update(hashlib.sha256(content or b"").digest())
        return digest.hexdigest()

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        """The images from `start` to before `stop`; of a stream, all."""
        # Where files alone are explained, as in a Space, that room is not there.
        from ascent_vit.data.schema import label_text

        rows = self.split if self.streams else self.split.select(range(len(self.split))[start:stop])
        for index, row in enumerate(rows, start):
            label = None if row["label"] is None else label_text(self.label_feature, row["label"])
            file = (row["image"] or {}).get("path")
            yield Item(index, f"{index:06d}", file, label, partial(self._read, row, index))

    def _read(self, row: dict[str, Any], index: int) -> Image.Image:
        try:
            if row["image"] is None:
                raise ValueError("it is null")
            content, path = row["image"].get("bytes"), row["image"].get("path")
            if content is not None or (path and os.path.isfile(path)):
                # `datasets` decodes images of any size: those above Pillow's limit are refused before it does.
                with opened_image(path if content is None else io.BytesIO(content), "it"):
                    pass
            return read_image(self.feature.decode_example(row["image"]), self.window)
        except Exception as error:  # Pillow's readers raise many kinds of errors on damaged files.
            raise ValueError(f"The image of row {index} cannot be read ({error}).") from error


__all__ = ["DatasetImages", "ImageFiles", "Item", "is_image_name"]

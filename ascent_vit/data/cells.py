# SPDX-License-Identifier: Apache-2.0
"""Cells of Image columns: made of files and pixels, and read without decoding more than their size."""

import io
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from modeling_ascent_vit.image_inputs_ascent_vit import opened_image

from .schema import COLUMNS, annotation_from_row


if TYPE_CHECKING:
    from datasets import Dataset

EXIF_ORIENTATION = 274
# What a PNG that says how it is to be turned holds somewhere, maybe after its pixels.
EXIF_MARKS = b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp"

# What stands among the last bytes of a whole file.
FILE_ENDINGS, LENGTH_OF_ENDING = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}, 64


def image_cell(image: Image.Image, **kwargs: Any) -> dict[str, Any]:
    """Encodes an image as a cell of an Image column, as PNG by default; `kwargs` go to `Image.save`."""
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} | kwargs))
    return {"bytes": buffer.getvalue(), "path": None}


def read_image_file(path: Path, placed: bool = True) -> tuple[dict[str, Any], tuple[int, int]]:
    """
    Reads an image file as a cell of an Image column with the file's own bytes, and checks that it can be decoded.

    Args:
        path: image file.
        placed: whether annotations have a place in the image, whose stored pixels must then be upright.

    Returns:
        The cell, and the stored image's height and width in pixels.

    Raises:
        FileNotFoundError: for a file that is missing.
        ValueError: for a file that is no image or is cut off; and, if `placed`, for one that its EXIF tag turns or
            mirrors, so that annotations in stored pixels would not fit what `datasets` decodes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"The image {path} is missing: unpack the whole archive.")
    content = path.read_bytes()
    with opened_image(io.BytesIO(content), f"The image {path}", "unpack the archive again.") as image:
        size = image.height, image.width
        orientation = image.getexif().get(EXIF_ORIENTATION, 1) if placed else 1
        # JPEGs are then decoded at an eighth of their size, which still reads the file to its end.
        image.draft("L", (1, 1))
        image.load()
    if orientation != 1:
        raise ValueError(
            f"The image {path} has the EXIF orientation {orientation}, so its annotations in stored pixels would be "
            "misplaced: store it upright, without the tag."
        )
    return {"bytes": content, "path": path.name}, size


def opened_cell(cell: Any, where: str) -> AbstractContextManager[Image.Image]:
    """Opens the image of a cell of an Image column without decoding it."""
    if cell is None or (cell.get("bytes") is None and not cell.get("path")):
        raise ValueError(f"{where} is empty; every row needs an image.")
    return opened_image(cell["path"] if cell.get("bytes") is None else io.BytesIO(cell["bytes"]), where)


def has_exif(cell: Mapping[str, Any], image: Image.Image) -> bool:
    """Whether an image may have an EXIF orientation; of a PNG, Pillow reads all pixels to tell."""
    content = cell.get("bytes")
    return image.format != "PNG" or content is None or any(mark in content for mark in EXIF_MARKS)


def upright_size(cell: Mapping[str, Any], image: Image.Image) -> tuple[int, int]:
    """Height and width of an image of a cell as `datasets` decodes it, which is upright."""
    turned = has_exif(cell, image) and image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    return (image.width, image.height) if turned else (image.height, image.width)


def is_cut_off(cell: Mapping[str, Any], image: Image.Image) -> bool:
    """Whether the file of a cell lacks the bytes that end a JPEG or PNG, and so may be cut off; no pixel is read."""
    ending = FILE_ENDINGS.get(image.format or "")
    if ending is None:
        return False
    if cell.get("bytes") is not None:
        return ending not in cell["bytes"][-LENGTH_OF_ENDING:]
    with open(cell["path"], "rb") as file:
        file.seek(max(file.seek(0, io.SEEK_END) - LENGTH_OF_ENDING, 0))
        return ending not in file.read()


def stored_columns(split: "Dataset") -> "Dataset":
    """Selects the schema's columns of a split, with images and masks as they are stored, not decoded."""
    from datasets import Image as ImageFeature

    columns = [name for name in COLUMNS if name in split.features]
    stored = split.select_columns(columns)
    for column in {"image", "mask"} & set(columns):
        stored = stored.cast_column(column, ImageFeature(decode=False))
    return stored


def stored_annotation(row: Mapping[str, Any], where: str) -> tuple[dict[str, Any], tuple[int, int]]:
    """
    Reads the annotations of a row of [`stored_columns`], and its image's height and width without decoding a pixel.

    Raises:
        ValueError: for an image or a mask that cannot be read; `where` is the row's name in errors.
    """
    with opened_cell(row["image"], f"{where}.image") as image:
        size = upright_size(row["image"], image)
    return stored_mask(row, where), size


def stored_mask(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Reads the annotations of a row of [`stored_columns`] with its mask; ValueError for one that cannot be read."""
    annotation = annotation_from_row(row)
    if "mask" in annotation:
        cell = annotation["mask"]
        with opened_cell(cell, f"{where}.mask") as mask:
            annotation["mask"] = ImageOps.exif_transpose(mask) if has_exif(cell, mask) else mask.copy()
    return annotation


__all__ = [
    "image_cell",
    "is_cut_off",
    "opened_cell",
    "read_image_file",
    "stored_annotation",
    "stored_columns",
    "stored_mask",
    "upright_size",
]

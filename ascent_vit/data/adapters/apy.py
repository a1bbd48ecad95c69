# SPDX-License-Identifier: Apache-2.0
"""
aPascal and aYahoo: objects of 20 and of 12 further classes, each with a box and 64 attributes.

Farhadi, Endres, Hoiem, Forsyth: "Describing Objects by their Attributes", CVPR 2009. The archive's layout:
attribute_data/ with apascal_train.txt, apascal_test.txt, ayahoo_test.txt and attribute_names.txt. The images are those
of PASCAL VOC 2008 (VOCdevkit/VOC2008/JPEGImages) and of ayahoo_test_images.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from modeling_ascent_vit.image_inputs_ascent_vit import opened_image

from ..cells import image_cell
from ..prepared import PreparedDataset
from ..schema import concept_features
from .archive import check_shares, dataset_from_splits, draw, file_in, find_file, read_lines, sizes_in_words


NUM_ATTRIBUTES = 64

# fmt: off
PASCAL_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]
YAHOO_CLASSES = [
    "bag", "building", "carriage", "centaur", "donkey", "goat", "jetski", "monkey", "mug", "statue", "wolf", "zebra",
]
# fmt: on

FILES = {"train": "apascal_train.txt", "test": "apascal_test.txt", "yahoo": "ayahoo_test.txt"}

IMAGE_FOLDERS = (
    "JPEGImages",
    "images",
    "VOCdevkit/VOC2008/JPEGImages",
    "VOC2008/JPEGImages",
    "ayahoo_test_images",
    ".",
)

# A crop has no file of its own; at this quality, without chroma subsampling, a second JPEG costs nothing visible.
JPEG_QUALITY = 95

CITATION = """```bibtex
@inproceedings{farhadi2009describing,
  title={Describing Objects by their Attributes},
  author={Farhadi, Ali and Endres, Ian and Hoiem, Derek and Forsyth, David},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition},
  year={2009}
}
```"""


@dataclass(frozen=True)
class AnnotatedObject:
    """
    One line of an annotation file.

    Args:
        image: name of the image file.
        label: name of the class.
        box: left, top, right, bottom in pixels, from 0, right and bottom not included.
        attributes: ids of the attributes that are present.
        line: number of the line, from 1.
    """

    image: str
    label: str
    box: tuple[int, int, int, int]
    attributes: tuple[int, ...]
    line: int


def read_objects(path: Path) -> list[AnnotatedObject]:
    """
    Reads the objects of an annotation file, in its order.

    A line is image, class, xmin, ymin, xmax, ymax (pixels from 1, inclusive, as in PASCAL VOC) and 64 times 0 or 1.

    Raises:
        ValueError: naming the line, for one that is cut off or has other fields, for an unknown class, a box without
            area, or an object that is there twice.
    """
    objects: list[AnnotatedObject] = []
    seen: dict[tuple, int] = {}
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        fields = line.split()
        if len(fields) != 6 + NUM_ATTRIBUTES:
            raise ValueError(
                f"{where}: expected image, class, four coordinates and {NUM_ATTRIBUTES} attributes, which are "
                f"{6 + NUM_ATTRIBUTES} fields; got {len(fields)}. Unpack the archive again."
            )
        image, label, coordinates, flags = fields[0], fields[1], fields[2:6], fields[6:]
        if label not in PASCAL_CLASSES and label not in YAHOO_CLASSES:
            raise ValueError(f"{where}: {label!r} is none of the classes of aPascal and aYahoo.")
        if not set(flags) <= {"0", "1"}:
            raise ValueError(f"{where}: attributes must be 0 or 1; got {', '.join(sorted(set(flags) - {'0', '1'}))}.")
        try:
            xmin, ymin, xmax, ymax = (round(float(value)) for value in coordinates)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{where}: a box must be four numbers; got {' '.join(coordinates)}.") from error
        if xmax < xmin or ymax < ymin:
            raise ValueError(f"{where}: a box must be xmin ymin xmax ymax; got {' '.join(coordinates)}.")
        key = (image, label, xmin, ymin, xmax, ymax)
        if key in seen:
            raise ValueError(f"{where}: the object of line {seen[key]} is there again; remove one of the two lines.")
        seen[key] = number
        present = tuple(i for i, flag in enumerate(flags) if flag == "1")
        objects.append(AnnotatedObject(image, label, (xmin - 1, ymin - 1, xmax, ymax), present, number))
    return objects


def read_attribute_names(path: Path) -> list[str]:
    """
    Reads the names of the attributes, one per line.

    Raises:
        ValueError: for a number of names other than 64, or a repeated name.
    """
    names = [line for _, line in read_lines(path)]
    if len(names) != NUM_ATTRIBUTES or len(set(names)) != len(names):
        raise ValueError(f"{path} must have {NUM_ATTRIBUTES} different names, one a line; got {len(set(names))}.")
    return names


def _find_images(source: Path, images: str | None, objects: list[AnnotatedObject]) -> dict[str, Path]:
    if images is not None:
        folders = [Path(folder.strip()).expanduser() for folder in images.split(",")]
        for folder in folders:
            if not folder.is_dir():
                raise FileNotFoundError(f"The folder of images {folder} is missing.")
    else:
        folders = [folder for folder in (source / name for name in IMAGE_FOLDERS) if folder.is_dir()]
    found: dict[str, Path] = {}
    missing = []
    for name in sorted({item.image for item in objects}):
        places = [file_in(folder, name, "The annotations") for folder in folders]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            missing.append(name)
        else:
            found[name] = path
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(missing) + len(found)} images are missing, the first being {missing[0]}; looked "
            f"in {', '.join(map(str, folders))}. The images of aPascal are those of PASCAL VOC 2008 (JPEGImages), "
            "those of aYahoo in ayahoo_test_images: give the folders as images=FOLDER or images=FOLDER,FOLDER."
        )
    return found


def _clip(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    return max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1])


def crop_object(image: Image.Image, box: tuple[int, int, int, int], context: float) -> tuple[Image.Image, list[float]]:
    """
    Cuts out the part of an image around an object.

    Args:
        image: the whole image, its pixels as stored.
        box: left, top, right, bottom in pixels; partly inside the image.
        context: margin on each side, as a share of the box's width and height; cut off at the image's edge.

    Returns:
        The crop, and the box in it as x, y, width, height, clipped to the image.

    Raises:
        ValueError: for a box wholly outside the image.
    """
    left, top, right, bottom = clipped = _clip(box, image.size)
    if right <= left or bottom <= top:
        raise ValueError(f"the box {box} lies outside the image of {image.width}x{image.height} pixels")
    dx, dy = round(context * (right - left)), round(context * (bottom - top))
    window = _clip((left - dx, top - dy, right + dx, bottom + dy), image.size)
    x, y = clipped[0] - window[0], clipped[1] - window[1]
    return image.crop(window), [float(x), float(y), float(right - left), float(bottom - top)]


def _open(path: Path) -> Image.Image:
    # Not turned by its EXIF tag: boxes are in stored pixels, and a crop is stored without the tag.
    with opened_image(path, f"The image {path}", "unpack the archive again.") as image:
        return image.convert("RGB")


def _rows(
    split: str,
    file: Path,
    objects: list[AnnotatedObject],
    images: dict[str, Path],
    classes: list[str],
    context: float,
    counts: Counter,
) -> Iterator[dict[str, Any]]:
    opened, image = None, None
    for item in tqdm(objects, desc=f"Reading {split}", unit="object", leave=False):
        if image is None or opened != item.image:
            opened, image = item.image, _open(images[item.image])
        try:
            crop, box = crop_object(image, item.box, context)
        except ValueError as error:
            raise ValueError(f"{file}, line {item.line}, image {item.image}: {error}; correct the line.") from error
        counts["clipped"] += _clip(item.box, image.size) != item.box
        counts["without attributes"] += not item.attributes
        yield {
            "image": image_cell(crop, format="JPEG", quality=JPEG_QUALITY, subsampling=0),
            "label": classes.index(item.label),
            "objects": {"bbox": [box] * len(item.attributes), "category": list(item.attributes)},
            "group_id": item.image,
            "line": item.line,
        }


def _find_files(source: Path, splits: str, attribute_names: str | None) -> tuple[dict[str, Path], Path]:
    """Finds the annotation files by split, and the file of the attributes' names."""
    chosen = [name.strip() for name in splits.split(",")]
    if not set(chosen) <= set(FILES) or len(set(chosen)) != len(chosen):
        raise ValueError(f"splits must be some of {', '.join(FILES)}, with commas between; got {splits!r}.")
    folders = [source, source / "attribute_data"]
    files = {
        name: find_file(
            folders, FILES[name], f"Unpack the whole archive, or leave {name} out of the option splits={splits}."
        )
        for name in FILES
        if name in chosen
    }
    if attribute_names is None:
        hint = "It is part of the archive's attribute_data; give it as attribute_names=FILE where it lies elsewhere."
        return files, find_file(folders, "attribute_names.txt", hint)
    path = Path(attribute_names).expanduser()
    return files, find_file([path.parent], path.name, "Give the file of the attributes' names.")


def _check_objects(objects: dict[str, list[AnnotatedObject]], files: dict[str, Path], classes: list[str]) -> None:
    """Raises ValueError for an image in two files, or a class that is none of `classes`."""
    home: dict[str, str] = {}
    for name, items in objects.items():
        for item in items:
            if home.setdefault(item.image, name) != name:
                raise ValueError(
                    f"{item.image} is in {files[home[item.image]]} and in {files[name]} (line {item.line}): an image "
                    "may be in one split alone. Unpack the archive again."
                )
    for name, items in objects.items():
        for item in items:
            if item.label not in classes:
                raise ValueError(f"{files[name]}, line {item.line}: {item.label!r} is no class of aPascal.")


def _cut_validation(
    objects: dict[str, list[AnnotatedObject]], share: float, seed: int
) -> dict[str, list[AnnotatedObject]]:
    """Moves the objects of a share of train's images into a validation split."""
    if "train" not in objects:
        return objects
    images = sorted({item.image for item in objects["train"]})
    held_out = set(draw(images, {"validation": round(share * len(images))}, seed)["validation"])
    return {
        "train": [item for item in objects["train"] if item.image not in held_out],
        "validation": [item for item in objects["train"] if item.image in held_out],
        **{name: items for name, items in objects.items() if name != "train"},
    }


def prepare(
    source: Path,
    *,
    images: str | None = None,
    attribute_names: str | None = None,
    splits: str = "train,test",
    context: float = 0.25,
    validation_share: float = 0.1,
    seed: int = 0,
) -> PreparedDataset:
    """
    Prepares aPascal (and aYahoo) with 64 attributes as spatial concepts, one row for each object.

    The benchmark classifies objects, and an image with a person on a horse is no example of either class: so a row is
    the part of the image around one object, its label the object's class. Each attribute that is present is an entry
    of `objects` with the object's box; the margin around the box is not annotated.

    Args:
        source: the unpacked archive, or its attribute_data.
        images: folder of the images, or several separated by commas; by default the usual places in `source`.
        attribute_names: file of the attributes' names; by default attribute_names.txt in `source`.
        splits: annotation files to read, out of train, test and yahoo. With yahoo there are its 12 classes too, which
            train does not have.
        context: margin around an object on each side, as a share of its box's width and height.
        validation_share: share of train's images whose objects become the validation split.
        seed: random seed of the validation split.

    Raises:
        FileNotFoundError: for files or images that are missing.
        ValueError: for malformed lines, boxes wholly outside their image, images that cannot be read or are in two
            files, or options out of range.
    """
    from datasets import Value

    if not 0 <= context <= 10:
        raise ValueError(f"context must be from 0 to 10 times the box; got {context}.")
    check_shares(validation_share)
    files, names_file = _find_files(source, splits, attribute_names)
    names = read_attribute_names(names_file)
    objects = {name: read_objects(file) for name, file in files.items()}
    classes = PASCAL_CLASSES + (YAHOO_CLASSES if "yahoo" in objects else [])
    _check_objects(objects, files, classes)
    found = _find_images(source, images, [item for items in objects.values() for item in items])
    parts = _cut_validation(objects, validation_share, seed)
    counts: Counter = Counter()
    features = concept_features(
        classes,
        spatial_concepts=names,
        columns=("objects",),
        extra={"group_id": Value("string"), "line": Value("int32")},
    )
    rows = {
        name: _rows(name, files.get(name, files.get("train", Path())), items, found, classes, context, counts)
        for name, items in parts.items()
    }
    dataset = dataset_from_splits(rows, features)
    yahoo = " The split yahoo has 12 classes that train does not have." if "yahoo" in objects else ""
    description = (
        "[Describing Objects by their Attributes](https://vision.cs.uiuc.edu/attributes/): "
        f"{sum(map(len, parts.values()))} objects ({sizes_in_words(dataset)}) in {len(found)} images, of "
        f"{len(classes)} classes.{yahoo}"
        "\n\nOne row for each object: the image around its box, with a margin of "
        f"{context:g} of the box on each side, stored as JPEG of quality {JPEG_QUALITY}. Whole images would show "
        "several classes, and the same pixels with different labels.\n\n"
        f"Concepts: the {NUM_ATTRIBUTES} attributes, as spatial concepts. Each that is present has the object's box; "
        "its place within the box was not annotated. The margin is not annotated either. "
        f"{counts['without attributes']} objects without any attribute are there without annotation; "
        f"{counts['clipped']} boxes were clipped to their image. Nothing was left out.\n\n"
        f"Split: the official one; validation is {validation_share:g} of the images of apascal_train.txt, by seed "
        f"{seed}. Objects of one image (`group_id`) are in one split.\n\n{CITATION}"
    )
    settings = {
        "splits": splits,
        "context": context,
        "validation_share": validation_share,
        "seed": seed,
    }
    title = f"{'aPascal and aYahoo' if 'yahoo' in objects else 'aPascal'} with {NUM_ATTRIBUTES} attributes"
    return PreparedDataset(dataset, title, "other", description, settings)


__all__ = ["AnnotatedObject", "crop_object", "prepare", "read_attribute_names", "read_objects"]

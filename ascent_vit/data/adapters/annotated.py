# SPDX-License-Identifier: Apache-2.0
"""What annotation tools say about images, before it becomes a dataset: shapes, points, tags, and image files."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from modeling_ascent_vit.image_inputs_ascent_vit import opened_image

from ..cells import EXIF_ORIENTATION


IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}

SPLITS = dict.fromkeys(("train", "training", "trainval"), "train") | dict.fromkeys(("test", "testing"), "test")
SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "validation")

# Folders whose names say nothing about the images in them, and folders whose pictures are annotations.
CONTAINERS = {"images", "image", "imgs", "img", "jpegimages", "data", "obj_train_data", "default"}
NO_IMAGES = {"labels", "annotations", "masks", "segmentationclass", "segmentationobject", "imagesets"}


@dataclass
class Shape:
    """
    A thing that someone marked, in pixels of the image as the annotator saw it.

    Args:
        name: name of the concept.
        box: left, top, right, bottom; by default the bounds of outlines or mask.
        outlines: polygons `(n, 2)` as x, y, whose union is the shape.
        mask: function that makes the shape as `(height, width)` bool, called when it is needed.
        flags: what the tool says of it, such as crowd, difficult, truncated, occluded.
        attributes: pairs of an attribute's name and value.
    """

    name: str
    box: np.ndarray | None = None
    outlines: list[np.ndarray] = field(default_factory=list)
    mask: Callable[[], np.ndarray] | None = None
    flags: set[str] = field(default_factory=set)
    attributes: list[tuple[str, str]] = field(default_factory=list)

    def bounds(self) -> np.ndarray:
        """Left, top, right, bottom; all 0 for an empty mask."""
        if self.box is not None:
            return self.box
        if self.outlines:
            corners = np.concatenate(self.outlines)
            return np.concatenate([corners.min(axis=0), corners.max(axis=0)])
        y, x = np.nonzero(self.mask()) if self.mask is not None else (np.zeros(0), np.zeros(0))
        return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0] * 4, dtype=float)

    def pixels(self, size: tuple[int, int]) -> np.ndarray:
        """The pixels, of an image of this width and height, whose centres are inside: `(height, width)` bool."""
        if self.mask is not None:
            mask = self.mask()
            if mask.shape != size[::-1]:
                raise ValueError(f"a mask has {mask.shape[1]}x{mask.shape[0]} pixels, its image {size[0]}x{size[1]}")
            return mask
        outlines = self.outlines
        if not outlines:
            left, top, right, bottom = self.bounds()
            outlines = [np.array([[left, top], [right, top], [right, bottom], [left, bottom]])]
        filled = np.zeros(size[::-1], dtype=bool)
        for outline in outlines:
            filled |= fill(outline, size)
        return filled


@dataclass
class Point:
    """A point of a concept, x and y in pixels, with flags as those of a [`Shape`]."""

    name: str
    x: float
    y: float
    flags: set[str] = field(default_factory=set)


@dataclass
class AnnotatedImage:
    """
    An image file with what a tool says about it.

    Args:
        path: image file.
        where: annotation file, and the place in it, for errors.
        size: width and height as the tool says, None where it does not.
        split: train, validation or test, where the tool says so.
        looked_at: whether someone looked at the image, so that what is not marked is not there.
        shapes, points: things that have a place.
        tags: pairs of a question, such as "weather", and an answer, for the whole image; the question is "" for plain
            tags, of which those that are not given are not there.
        fields: other facts by name, such as patient: for groups and classes.
        unread: number of things that have a place and were not taken, as their kind or place is none of the above.
    """

    path: Path
    where: str
    size: tuple[int, int] | None = None
    split: str | None = None
    looked_at: bool = True
    shapes: list[Shape] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    tags: list[tuple[str, str]] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)
    unread: int = 0

    @property
    def things(self) -> list[Shape | Point]:
        """All that has a place."""
        return [*self.shapes, *self.points]


def fill(outline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels `(height, width)` bool of an image of this width and height whose centres a polygon `(n, 2)` encloses."""
    width, height = size
    filled = np.zeros((height, width), dtype=bool)
    x, y = outline[:, 0], outline[:, 1]
    rows = np.arange(max(0, int(np.floor(y.min() - 0.5))), min(height, int(np.ceil(y.max() + 0.5))))
    # The number of edges that cross a row to the left of a pixel's centre is odd inside.
    changes = np.zeros((len(rows), width + 1), dtype=np.int32)
    for x0, y0, x1, y1 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
        crossed = (rows + 0.5 >= min(y0, y1)) & (rows + 0.5 < max(y0, y1))
        if crossed.any():
            crossings = x0 + (rows[crossed] + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            np.add.at(changes, (np.flatnonzero(crossed), np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)), 1)
    filled[rows] = changes.cumsum(axis=1)[:, :width] % 2 == 1
    return filled


def rotated(points: np.ndarray, centre: Iterable[float], degrees: float) -> np.ndarray:
    """Points `(n, 2)` turned about a centre, clockwise as one sees them."""
    angle, centre = np.deg2rad(degrees), np.array(list(centre))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (points - centre) @ turn + centre


def rectangle(left: float, top: float, width: float, height: float) -> np.ndarray:
    """The corners `(4, 2)` of a rectangle, from its left upper one clockwise."""
    return np.array([[left, top], [left + width, top], [left + width, top + height], [left, top + height]])


def ellipse(centre: Iterable[float], radii: Iterable[float]) -> np.ndarray:
    """An ellipse as a polygon of 64 corners."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return np.array(list(centre)) + np.array(list(radii)) * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def run_lengths(counts: Any, pixels: int) -> np.ndarray:
    """
    Pixels (bool) of lengths of runs, which are outside and inside by turns.

    Raises:
        ValueError: for lengths that are negative, or do not add up to the number of pixels.
    """
    lengths = numbers(counts, "the lengths of a mask's runs").astype(int)
    if (lengths < 0).any() or lengths.sum() != pixels:
        raise ValueError(f"the runs of a mask are of {lengths.sum()} pixels, its image of {pixels}")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)


def numbers(values: Any, what: str, count: int | None = None) -> np.ndarray:
    """
    Finite numbers `(n,)` float64, of numbers or text.

    Raises:
        ValueError: for anything else, or another number of them than `count`.
    """
    try:
        array = np.array(list(values), dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be numbers; got {values!r:.80}") from error
    if array.ndim != 1 or not np.isfinite(array).all() or (count is not None and len(array) != count):
        raise ValueError(f"{what} must be {f'{count} ' if count else ''}finite numbers; got {values!r:.80}")
    return array


def corners(values: Any, what: str) -> np.ndarray:
    """Points `(n, 2)` of the flat list x, y, x, y, ..."""
    flat = numbers(values, what)
    if len(flat) % 2 or not len(flat):
        raise ValueError(f"{what} must be pairs of x and y; got {len(flat)} numbers")
    return flat.reshape(-1, 2)


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Names the place of an error, also where something has another form than the tool writes."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        missing = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{where} is not as the tool writes it ({missing}): export it again.") from error
    except ValueError as error:
        raise ValueError(str(error) if where in str(error) else f"{where}: {error}.") from error


def read_xml(path: Path) -> ElementTree.Element:
    """
    Reads an XML file without a document type, whose entities could stand for other files or fill the memory.

    Raises:
        ValueError: for a file that has one, or is no XML.
    """

    def refuse(*_: Any) -> None:
        raise ValueError(f"{path} declares a document type, which no annotation tool writes: remove the DOCTYPE.")

    content = path.read_bytes()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
        return ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"{path} is no XML file: {error}.") from error


def read_header(path: Path) -> tuple[tuple[int, int], int]:
    """Width and height of an image file as it is stored, and its EXIF orientation, without decoding a pixel."""
    with opened_image(path, f"The image {path}") as image:
        return image.size, int(image.getexif().get(EXIF_ORIENTATION, 1))


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file, upright."""
    size, orientation = read_header(path)
    return size[::-1] if orientation >= 5 else size


def private_form(text: str) -> str:
    """The words of a text, whatever parts them and in whatever order: those of a patient's name."""
    return " ".join(sorted(word for word in re.split(r"[\W_]+", text.casefold()) if word))


def split_in_name(name: str) -> str | None:
    """The split that the name of a file tells, as in instances_train2017."""
    found = {SPLITS[word] for word in re.split("[^a-z]+", name.lower()) if word in SPLITS}
    return found.pop() if len(found) == 1 else None


class ImageFiles:
    """
    The image files of a folder, found by the names that tools give them, and nothing outside of it.

    Args:
        root: folder of the images, at any depth.
        paths: its image files; by default those with an image file's ending.
    """

    # Further names of a table's column, in small letters, whose cells [`named`] understands.
    key_columns: tuple[str, ...] = ()

    def __init__(self, root: Path, paths: Iterable[Path] | None = None):
        self.root = root
        self.paths: list[Path] = []
        self.by_name: dict[str, list[Path]] = {}
        self.folders: dict[Path, set[str]] = {}
        for path in sorted(self._search() if paths is None else paths):
            self.paths.append(path)
            self.by_name.setdefault(path.name, []).append(path)
            for parent in list(path.relative_to(root).parents)[:-1]:
                self.folders.setdefault(parent.parent, set()).add(parent.name)
        self.known = set(self.paths)
        self._splits: dict[Path, str | None] = {}

    def _search(self) -> Iterator[Path]:
        for path in self.root.rglob("*"):
            parts = path.relative_to(self.root).parts
            if any(part.startswith(".") for part in parts) or not path.is_file():
                continue
            if path.suffix.lower() in IMAGE_ENDINGS and not {part.lower() for part in parts[:-1]} & NO_IMAGES:
                yield path

    def find(self, name: str, near: Path | None = None) -> Path | None:
        """
        Finds the file of a name: in the folder `near`, else the one whose path ends most like it.

        Raises:
            ValueError: for a name that fits several files alike.
        """
        name = unquote(urlsplit(name).path) if re.match(r"\w{2,}://", name) else name
        parts = [part for part in re.split(r"[/\\]+", name) if part not in ("", ".")]
        if not parts:
            return None
        for folder in (near, self.root):
            if folder is not None and folder.joinpath(*parts) in self.known:
                return folder.joinpath(*parts)

        def alike(path: Path) -> int:
            pairs = zip(reversed(path.relative_to(self.root).parts), reversed(parts), strict=False)
            return next((i for i, (left, right) in enumerate(pairs) if left != right), len(parts))

        found = self.by_name.get(parts[-1], [])
        best = [path for path in found if alike(path) == max(map(alike, found))]
        if len(best) > 1:
            raise ValueError(f"{name} may be {best[0]} or {best[1]}: give the one folder with --images")
        return best[0] if best else None

    def named(self, name: str) -> list[Path]:
        """The files that a table's row is about: the one of this name, which may lack its ending."""
        file = self.find(name)
        stems = [path for path in self.paths if path.stem == name] if file is None else []
        return [file] if file is not None else stems if len(stems) == 1 else []

    def split_named(self, folder: Path) -> str | None:
        """The split that a folder's name says, unless it stands among class folders, one of which may be trains'."""
        if folder not in self._splits:
            own, *others = (
                SPLITS.get(re.sub(r"[\d_-]+$", "", name.lower()))
                for name in (folder.name, *(self.folders[folder.parent] - {folder.name} - CONTAINERS))
            )
            self._splits[folder] = own if not others or any(others) else None
        return self._splits[folder]

    def split_of(self, path: Path) -> str | None:
        """The split of the innermost folder that is named as one, such as train or val2017."""
        found = [self.split_named(parent) for parent in list(path.relative_to(self.root).parents)[:-1]]
        return next((split for split in found if split), None)

    def class_folder(self, path: Path) -> str | None:
        """The name of the innermost folder that is no split and no mere container of images."""
        for parent in list(path.relative_to(self.root).parents)[:-1]:
            if parent.name.lower() not in CONTAINERS and not self.split_named(parent):
                return parent.name
        return None


class Reading:
    """
    What a tool's files say: images by file, names of images that are missing, and counts of what was not taken.

    Args:
        files: image files.

    `private` are names and numbers of patients, in their [`private_form`], which no class or concept may bear.
    """

    def __init__(self, files: ImageFiles):
        self.files = files
        self.private: set[str] = set()
        self.images: dict[Path, AnnotatedImage] = {}
        self.missing: list[str] = []
        self.counts: Counter[str] = Counter()

    def image(
        self,
        name: str,
        where: str,
        size: tuple[Any, Any] | None = None,
        split: str | None = None,
        near: Path | None = None,
        again: bool = False,
    ) -> AnnotatedImage:
        """
        Adds an image by the name that the tool gives it; one that is missing is noted, and its annotations are lost.

        Args:
            name: name of the file, with folders or without.
            where: place of the image's annotation, for errors.
            size: width and height as the tool says.
            split: its split, by default that of its folder.
            near: folder to look in first.
            again: whether an image that is there already is the same one, told of by another file.

        Raises:
            ValueError: for an image that is there twice, or in two splits.
        """
        if not isinstance(name, str):
            raise ValueError(f"{where}: the name of an image must be text; got {name!r}.")
        path = self.files.find(name, near)
        if size is not None:
            width, height = numbers(size, "width and height", 2)
            size = (int(width), int(height)) if width > 0 and height > 0 else None
        if path is None:
            self.missing.append(name)
            return AnnotatedImage(Path(name), where, size)
        split = split or self.files.split_of(path)
        old = self.images.get(path)
        if old is None:
            self.images[path] = AnnotatedImage(path, where, size, split)
        elif not again or old.split != split:
            raise ValueError(f"{where}: {name} is {path}, which {old.where} annotates too: remove one of the two.")
        return self.images[path]


__all__ = [
    "CONTAINERS",
    "AnnotatedImage",
    "ImageFiles",
    "Point",
    "Reading",
    "Shape",
    "corners",
    "ellipse",
    "fill",
    "numbers",
    "private_form",
    "read_header",
    "read_xml",
    "reading",
    "rectangle",
    "rotated",
    "run_lengths",
    "split_in_name",
    "upright_size",
]

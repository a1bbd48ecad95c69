# SPDX-License-Identifier: Apache-2.0
"""
CUB-200-2011: 200 species of birds with attributes and 15 part locations (Wah et al., 2011), as concepts with a place.

An attribute of the whole bird (size, shape, primary colour) is a global concept. Every other attribute is a spatial
concept: where an image shows it, each visible part that bears it, by `ATTRIBUTE_PARTS`, gets a point.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm.auto import tqdm

from ..cells import read_image_file
from ..prepared import PreparedDataset
from ..schema import concept_features
from .archive import check_shares, dataset_from_splits, file_in, find_file, read_lines


if TYPE_CHECKING:
    from datasets import DatasetDict

# Attributes by the text before "::", compared whole. The parts are those of parts.txt; "upperparts" and "underparts"
# are the regions of ornithology as far as they have a part. There is no part "head": its patterns (cap, eyebrow,
# eyering, mask, ...) are seen at the crown and the eyes.
ATTRIBUTE_PARTS: dict[str, tuple[str, ...]] = {
    "has_back_color": ("back",),
    "has_back_pattern": ("back",),
    "has_belly_color": ("belly",),
    "has_belly_pattern": ("belly",),
    "has_bill_color": ("beak",),
    "has_bill_length": ("beak",),
    "has_bill_shape": ("beak",),
    "has_breast_color": ("breast",),
    "has_breast_pattern": ("breast",),
    "has_crown_color": ("crown",),
    "has_eye_color": ("left eye", "right eye"),
    "has_forehead_color": ("forehead",),
    "has_head_pattern": ("crown", "left eye", "right eye"),
    "has_leg_color": ("left leg", "right leg"),
    "has_nape_color": ("nape",),
    "has_tail_pattern": ("tail",),
    "has_tail_shape": ("tail",),
    "has_throat_color": ("throat",),
    "has_under_tail_color": ("tail",),
    "has_underparts_color": ("belly", "breast", "throat"),
    "has_upper_tail_color": ("tail",),
    "has_upperparts_color": ("back", "crown", "left wing", "nape", "right wing"),
    "has_wing_color": ("left wing", "right wing"),
    "has_wing_pattern": ("left wing", "right wing"),
    "has_wing_shape": ("left wing", "right wing"),
}
GLOBAL_ATTRIBUTES = ("has_primary_color", "has_shape", "has_size")

# Numbers of attributes.txt. The 108 concepts of the Concept Transformer (Rigotti et al., ICLR 2022).
# fmt: off
CT_108 = (
    2, 5, 7, 8, 11, 15, 16, 21, 22, 24, 25, 26, 30, 31, 36, 37, 39, 41, 45, 46, 51, 52, 54, 55, 57, 58, 60, 64, 70, 71,
    73, 76, 81, 91, 92, 102, 105, 107, 111, 112, 117, 118, 120, 126, 127, 132, 133, 135, 146, 150, 152, 153, 154, 158,
    159, 164, 165, 166, 169, 173, 179, 180, 183, 184, 188, 189, 194, 195, 197, 203, 204, 209, 210, 212, 219, 221, 222,
    226, 228, 236, 237, 239, 241, 244, 245, 249, 250, 254, 255, 260, 261, 263, 269, 275, 278, 284, 290, 293, 294, 295,
    299, 300, 305, 306, 307, 309, 311, 312,
)
# The 112 of the Concept Bottleneck Models (Koh et al., ICML 2020).
CBM_112 = (
    2, 5, 7, 8, 11, 15, 16, 21, 22, 24, 26, 30, 31, 36, 37, 39, 41, 45, 46, 51, 52, 54, 55, 57, 58, 60, 64, 65, 70, 71,
    73, 76, 81, 85, 91, 92, 94, 100, 102, 107, 111, 112, 117, 118, 120, 126, 127, 132, 133, 135, 146, 150, 152, 153,
    154, 158, 159, 164, 165, 169, 173, 179, 180, 182, 184, 188, 189, 194, 195, 197, 199, 203, 204, 209, 210, 212, 213,
    214, 219, 221, 222, 226, 236, 237, 239, 240, 241, 243, 244, 245, 250, 254, 255, 260, 261, 263, 269, 275, 278, 284,
    290, 293, 294, 295, 299, 300, 305, 306, 309, 310, 311, 312,
)
# fmt: on

LISTS = """\
`present` lists the spatial concepts of each image. Not known (`unknown_present`) are those whose parts are all hidden,
as the bird may show them at another place or not at all, and those that were not known. The others are absent.
"""

# A location may miss its image by a click's width. More than this share of them outside means other images.
MAX_OUTSIDE = 0.01

HINT = "Give the folder into which CUB_200_2011.tgz was unpacked, whole."

DESCRIPTION = """\
[CUB-200-2011](https://www.vision.caltech.edu/datasets/cub_200_2011/) (Wah, Branson, Welinder, Perona and Belongie,
"The Caltech-UCSD Birds-200-2011 Dataset", Technical Report CNS-TR-2011-001, California Institute of Technology, 2011),
for non-commercial research and education. Images are the archive's own files; the test split is the official one.

{selection}
{whole} are global concepts. Those of parts are spatial concepts: where an image shows one, each
visible part that bears it gets a point (`points`), so that a part with several attributes has several points at one
place. {origin}
{lists}
`bbox` is the bird's box as x, y, width, height, clipped to the image (it was for {clipped} images), `image_id` the
number in images.txt. Visible part locations that lie outside their image were left out; there were {outside}. Images
without a spatial concept at a visible part: {unplaced}. Classes that have images here: {present} of {classes}.

| attributes | parts |
|---|---|
{table}
"""
WHOLE = {"whole": "Attributes of the whole bird", "all": "All attributes, of the whole bird and of parts,"}
SELECTIONS = {
    "ct108": "The concepts are the 108 attributes of the Concept Transformer (Rigotti et al., ICLR 2022).",
    "cbm112": "The concepts are the 112 attributes of the Concept Bottleneck Models (Koh et al., ICML 2020).",
    "threshold": "The concepts are the {number} attributes that at least {majority:g} % of the images show in "
    "{min_classes} classes or more.",
}
ORIGINS = {
    "image": "Which attributes an image shows is its own annotation; what is less certain than {min_certainty} (1 not "
    "visible,\n2 guessing, 3 probably, 4 definitely) is not known.",
    "class": "Which attributes an image shows is told from its class: those that at least {majority:g} % of the "
    "annotations of\nthe class's images state. These percentages come with the archive and include the test images.",
}


@dataclass(frozen=True)
class Archive:
    """
    What the archive's text files say.

    Args:
        root: the folder CUB_200_2011.
        attributes: names of the attributes, number 1 first.
        classes: names of the classes, number 1 first.
        images: files of the images by their id, in the order of the ids.
        labels: class of each image, 0 for class 1.
        train: whether each image is in the official train split.
        boxes: x, y, width, height of each image's bird.
        places: x and y of each image's visible parts, by the part's name.
        class_shares: percentage of a class's images that show an attribute, (classes, attributes).
    """

    root: Path
    attributes: list[str]
    classes: list[str]
    images: dict[int, Path]
    labels: np.ndarray
    train: np.ndarray
    boxes: list[list[float]]
    places: list[dict[str, tuple[float, float]]]
    class_shares: np.ndarray

    @property
    def image_attributes(self) -> Path:
        return self.root / "attributes" / "image_attribute_labels.txt"


def _fields(path: Path, count: int) -> Iterator[tuple[str, list[str]]]:
    """Gives the place of each line, for errors, and its fields, of which the last takes the rest of the line."""
    for number, line in read_lines(path):
        fields = line.split(None, count - 1)
        where = f"{path}, line {number}"
        if len(fields) < count:
            raise ValueError(f"{where}: expected {count} fields; got {line!r}.")
        yield where, fields


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"{where}: expected a number; got {text!r}.")
    return value


def _integer(text: str, where: str, low: int, high: int) -> int:
    value = _number(text, where)
    if value != int(value) or not low <= value <= high:
        raise ValueError(f"{where}: expected a whole number from {low} to {high}; got {text!r}.")
    return int(value)


def _by_id(path: Path, count: int, ids: list[int] | None = None) -> dict[int, tuple[str, list[str]]]:
    """Reads lines by their id: the place, for errors, and the fields after the id. `ids` are those there must be."""
    table: dict[int, tuple[str, list[str]]] = {}
    for where, (key, *fields) in _fields(find_file([path.parent], path.name, HINT), count):
        number = _integer(key, where, 1, 10**9)
        if number in table:
            raise ValueError(f"{where}: the id {number} is there twice.")
        table[number] = where, fields
    different = sorted(set(table) ^ set(ids)) if ids is not None else []
    if different:
        place = "lacks" if different[0] not in table else "has, but images.txt lacks,"
        raise ValueError(f"{path} {place} the image {different[0]}. {HINT}")
    return table


def _names(path: Path) -> list[str]:
    """Reads names in the order of their numbers, which start at 1 and have no gap."""
    table = _by_id(path, 2)
    if sorted(table) != list(range(1, len(table) + 1)):
        raise ValueError(f"{path} must number its lines from 1 without a gap. {HINT}")
    return [table[number][1][0] for number in sorted(table)]


def _read_places(path: Path, parts: list[str], ids: list[int]) -> list[dict[str, tuple[float, float]]]:
    rows = {image: row for row, image in enumerate(ids)}
    places: list[dict[str, tuple[float, float]]] = [{} for _ in ids]
    seen: set[tuple[int, int]] = set()
    for where, fields in _fields(find_file([path.parent], path.name, HINT), 5):
        image, part = _integer(fields[0], where, 1, 10**9), _integer(fields[1], where, 1, len(parts))
        if image not in rows:
            raise ValueError(f"{where}: images.txt has no image {image}. {HINT}")
        if (image, part) in seen:
            raise ValueError(f"{where}: image {image} has the part {part} twice.")
        seen.add((image, part))
        if _integer(fields[4], where, 0, 1):
            places[rows[image]][parts[part - 1]] = _number(fields[2], where), _number(fields[3], where)
    if len(seen) < len(ids) * len(parts):
        counts = Counter(image for image, _ in seen)
        image = next(image for image in ids if counts[image] < len(parts))
        raise ValueError(f"{path} has {counts[image]} of the {len(parts)} parts of image {image}. {HINT}")
    return places


def read_archive(source: Path) -> Archive:
    """
    Reads and checks the archive's text files.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for a file that is cut off or does not fit the others.
    """
    root = source / "CUB_200_2011" if (source / "CUB_200_2011").is_dir() else source
    # The archive itself unpacks attributes.txt beside CUB_200_2011, not into it.
    attributes_path = find_file([root.parent, root, root / "attributes"], "attributes.txt", HINT)
    attributes = _names(attributes_path)
    groups = {name.split("::")[0] for name in attributes}
    if groups != set(ATTRIBUTE_PARTS) | set(GLOBAL_ATTRIBUTES):
        odd = sorted(groups ^ (set(ATTRIBUTE_PARTS) | set(GLOBAL_ATTRIBUTES)))
        raise ValueError(f"{attributes_path} must list CUB's attributes; it differs in {', '.join(odd)}. {HINT}")
    parts = _names(root / "parts" / "parts.txt")
    absent = sorted({part for names in ATTRIBUTE_PARTS.values() for part in names} - set(parts))
    if absent:
        raise ValueError(f"{root / 'parts' / 'parts.txt'} lacks the parts {', '.join(absent)}. {HINT}")
    classes = [name.split(".", 1)[-1].replace("_", " ") for name in _names(root / "classes.txt")]

    files = _by_id(root / "images.txt", 2)
    ids = sorted(files)
    labels = _by_id(root / "image_class_labels.txt", 2, ids)
    train = _by_id(root / "train_test_split.txt", 2, ids)
    boxes = _by_id(root / "bounding_boxes.txt", 5, ids)
    shares_path = find_file([root / "attributes"], "class_attribute_labels_continuous.txt", HINT)
    shares = [
        [_number(text, f"{shares_path}, line {number}") for text in line.split()]
        for number, line in read_lines(shares_path)
    ]
    if len(shares) != len(classes) or any(len(row) != len(attributes) for row in shares):
        raise ValueError(f"{shares_path} must have {len(classes)} lines of {len(attributes)} numbers. {HINT}")
    return Archive(
        root=root,
        attributes=attributes,
        classes=classes,
        images={image: file_in(root / "images", files[image][1][0], files[image][0]) for image in ids},
        labels=np.array([_integer(labels[i][1][0], labels[i][0], 1, len(classes)) - 1 for i in ids]),
        train=np.array([_integer(train[i][1][0], train[i][0], 0, 1) == 1 for i in ids]),
        boxes=[[_number(text, boxes[i][0]) for text in " ".join(boxes[i][1]).split()[:4]] for i in ids],
        places=_read_places(root / "parts" / "part_locs.txt", parts, ids),
        class_shares=np.array(shares),
    )


def read_image_attributes(
    archive: Archive, attributes: list[int], min_certainty: int
) -> tuple[np.ndarray, np.ndarray]:
    """
    Reads from `image_attribute_labels.txt` which images show some attributes.

    Args:
        archive: archive with the images; lines of other images are skipped.
        attributes: numbers of the attributes in attributes.txt.
        min_certainty: least certainty that counts as known, from 1, not visible, to 4, definitely.

    Returns:
        Whether an image shows an attribute, and whether that is known, with at least this certainty; each of shape
        (images, attributes), bool.

    Raises:
        ValueError: for a line that cannot be read, or an attribute of an image that is repeated or missing.
    """
    path = archive.image_attributes
    rows = {str(image): row for row, image in enumerate(archive.images)}
    columns = {str(attribute): column for column, attribute in enumerate(attributes)}
    shown, certainty = np.zeros((2, len(rows), len(columns)), dtype=np.int8)
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(tqdm(lines, desc="Reading attributes", unit="line", leave=False), start=1):
                # Some lines of the official file have more fields after the fourth.
                fields = line.split(None, 4)
                if not fields:
                    continue
                if len(fields) < 4:
                    raise ValueError(f"{path}, line {number}: expected 4 fields or more; got {line.strip()!r}.")
                row, column = rows.get(fields[0]), columns.get(fields[1])
                if row is None or column is None:
                    continue
                if fields[2] not in ("0", "1") or fields[3] not in ("1", "2", "3", "4"):
                    raise ValueError(
                        f"{path}, line {number}: expected 0 or 1, then a certainty from 1 to 4; got {line.strip()!r}."
                    )
                if certainty[row, column]:
                    raise ValueError(f"{path}, line {number}: image {fields[0]} has attribute {fields[1]} twice.")
                shown[row, column], certainty[row, column] = int(fields[2]), int(fields[3])
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}). {HINT}") from error
    lacking = np.argwhere(certainty == 0)
    if len(lacking):
        image, attribute = list(archive.images)[lacking[0][0]], attributes[lacking[0][1]]
        raise ValueError(f"{path} lacks attribute {attribute} of image {image}. {HINT}")
    known = certainty >= min_certainty
    return (shown == 1) & known, known


def clip_box(box: list[float], size: tuple[int, int], where: str) -> list[float]:
    """Clips a box x, y, width, height to an image of height and width `size`; ValueError where nothing is left."""
    x, y, width, height = box
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, float(size[1])), min(y + height, float(size[0]))
    if not (right > left and bottom > top):
        raise ValueError(f"{where}: the box {box} lies outside its image of width {size[1]} and height {size[0]}.")
    return [left, top, right - left, bottom - top]


def split_rows(archive: Archive, validation_share: float, seed: int) -> dict[str, np.ndarray]:
    """Draws the rows of each split: official test, and validation as the same share of each class's train images."""
    rng = np.random.default_rng(seed)
    validation = np.zeros_like(archive.train)
    for label in np.unique(archive.labels):
        members = rng.permutation(np.flatnonzero((archive.labels == label) & archive.train))
        validation[members[: round(len(members) * validation_share)]] = True
    return {
        "train": np.flatnonzero(archive.train & ~validation),
        "validation": np.flatnonzero(validation),
        "test": np.flatnonzero(~archive.train),
    }


@dataclass(frozen=True)
class Attributes:
    """
    The attributes that become concepts, in the order of their numbers.

    Args:
        numbers: their numbers in attributes.txt.
        names: their names, such as "has_size::small_(5_-_9_in)".
        shown: whether an image shows an attribute, (images, attributes) bool.
        known: whether that is known, (images, attributes) bool.
        all_global: whether those of parts are global concepts too.
    """

    numbers: list[int]
    names: list[str]
    shown: np.ndarray
    known: np.ndarray
    all_global: bool = False

    @property
    def groups(self) -> list[str]:
        """What stands before "::" in each name, by which an attribute belongs to parts or to the whole bird."""
        return [name.split("::")[0] for name in self.names]

    @property
    def whole(self) -> np.ndarray:
        """Whether each belongs to the whole bird, (attributes,) bool."""
        return np.array([group in GLOBAL_ATTRIBUTES for group in self.groups])

    @property
    def in_global(self) -> np.ndarray:
        """Whether each is a global concept, (attributes,) bool. The spatial ones are those that are not `whole`."""
        return self.whole | self.all_global


def select_attributes(archive: Archive, concepts: str, min_classes: int, majority: float) -> list[int]:
    """Selects the numbers of the attributes that become concepts, see [`prepare`]; ValueError where there is none."""
    if concepts != "threshold":
        return list(CT_108 if concepts == "ct108" else CBM_112)
    classes_with = (archive.class_shares >= majority).sum(axis=0)
    chosen = (np.flatnonzero(classes_with >= min_classes) + 1).tolist()
    if not chosen:
        raise ValueError(f"No attribute is that of {min_classes} classes: lower min_classes or majority.")
    return chosen


def read_attributes(
    archive: Archive, numbers: list[int], by_image: bool, min_certainty: int, majority: float, all_global: bool
) -> Attributes:
    """Reads which images show the attributes of these numbers, by their own annotations or those of their class."""
    if by_image:
        shown, known = read_image_attributes(archive, numbers, min_certainty)
    else:
        shown = archive.class_shares[archive.labels][:, np.array(numbers) - 1] >= majority
        known = np.ones_like(shown)
    names = [archive.attributes[number - 1] for number in numbers]
    return Attributes(numbers, names, shown, known, all_global)


def _rows(
    rows: np.ndarray, archive: Archive, attributes: Attributes, features: Iterable[str], counts: Counter, bar: tqdm
) -> Iterator[dict[str, Any]]:
    """Reads rows with the columns `features`; what the card tells of them is added to `counts`."""
    ids, whole, groups = list(archive.images), attributes.whole, attributes.groups
    in_global = attributes.in_global
    for row in rows.tolist():
        image, (height, width) = read_image_file(archive.images[ids[row]])
        visible = archive.places[row]
        inside = {part: (x, y) for part, (x, y) in visible.items() if 0 <= x < width and 0 <= y < height}
        marks = [
            (list(inside[part]), concept)
            for concept, column in enumerate(np.flatnonzero(~whole).tolist())
            if attributes.shown[row, column]
            for part in ATTRIBUTE_PARTS[groups[column]]
            if part in inside
        ]
        box = clip_box(archive.boxes[row], (height, width), f"bounding_boxes.txt, image {ids[row]}")
        counts["visible"] += len(visible)
        counts["outside"] += len(visible) - len(inside)
        counts["unplaced"] += not marks
        counts["clipped"] += box != archive.boxes[row]
        bar.update()
        cells = {
            "image": image,
            "label": int(archive.labels[row]),
            "concepts": np.flatnonzero(attributes.shown[row, in_global]).tolist(),
            "unknown_concepts": np.flatnonzero(~attributes.known[row, in_global]).tolist(),
            "points": {"xy": [place for place, _ in marks], "category": [concept for _, concept in marks]},
            "bbox": box,
            "image_id": ids[row],
        }
        placed = np.isin(np.arange((~whole).sum()), cells["points"]["category"])
        shown, known = attributes.shown[row, ~whole], attributes.known[row, ~whole]
        cells["present"] = np.flatnonzero(shown).tolist()
        cells["unknown_present"] = np.flatnonzero(~known | (shown & ~placed)).tolist()
        yield {name: cells[name] for name in features}


def _read_rows(
    archive: Archive, attributes: Attributes, splits: dict[str, np.ndarray], by_image: bool, present: bool
) -> tuple["DatasetDict", Counter]:
    """Reads the dataset, and counts what its card tells."""
    from datasets import List, Value

    names = np.array(attributes.names)
    global_names, spatial_names = names[attributes.in_global].tolist(), names[~attributes.whole].tolist()
    features = concept_features(
        archive.classes,
        global_names,
        spatial_names,
        columns=["points"]
        + ["unknown_concepts"] * (by_image and bool(global_names))
        + ["present", "unknown_present"] * present,
        extra={"bbox": List(Value("float32"), length=4), "image_id": Value("int64")},
    )
    counts: Counter[str] = Counter()
    with tqdm(total=len(archive.images), desc="Reading images", unit="image", leave=False) as bar:
        dataset = dataset_from_splits(
            {name: _rows(rows, archive, attributes, features, counts, bar) for name, rows in splits.items()}, features
        )
    if counts["outside"] > MAX_OUTSIDE * counts["visible"]:
        raise ValueError(
            f"{counts['outside']} of {counts['visible']} visible part locations lie outside their image, so these "
            "images have another size than the archive's: use its own."
        )
    return dataset, counts


def _description(
    archive: Archive, attributes: Attributes, counts: Counter, selection: str, origin: str, present: bool
) -> str:
    groups = attributes.groups
    table = [f"| {', '.join(GLOBAL_ATTRIBUTES)} | whole image |"]
    table += [f"| {group} | {', '.join(parts)} |" for group, parts in ATTRIBUTE_PARTS.items() if group in groups]
    return DESCRIPTION.format(
        selection=selection,
        whole=WHOLE["all" if attributes.all_global else "whole"],
        origin=origin,
        lists=LISTS if present else "",
        clipped=counts["clipped"],
        outside=counts["outside"],
        unplaced=counts["unplaced"],
        present=len(np.unique(archive.labels)),
        classes=len(archive.classes),
        table="\n".join(table),
    )


def prepare(
    source: Path,
    *,
    concepts: Literal["ct108", "cbm112", "threshold"] = "ct108",
    global_concepts: Literal["whole", "all"] = "whole",
    min_classes: int = 10,
    attributes: Literal["auto", "image", "class"] = "auto",
    min_certainty: int = 3,
    majority: float = 50.0,
    present: bool = False,
    validation_share: float = 0.1,
    seed: int = 0,
) -> PreparedDataset:
    """
    Prepares CUB-200-2011: global concepts, and points of spatial concepts at visible parts.

    Args:
        source: folder into which CUB_200_2011.tgz was unpacked, or the folder CUB_200_2011 in it.
        concepts: ct108 (13 global, 95 spatial; Rigotti et al., ICLR 2022), cbm112 (Koh et al., ICML 2020), or
            threshold: attributes that the majority of a class's images shows, in at least `min_classes` classes.
        global_concepts: attributes that are global concepts: those of the whole bird, or all, where those of parts are
            spatial concepts too. More of them tell more classes apart.
        min_classes: least number of classes with an attribute, for threshold.
        attributes: source of whether an image shows an attribute: its own annotation (image), the majority of its
            class (class), or the image's where image_attribute_labels.txt exists, else the class's (auto).
        min_certainty: least certainty of an image's annotation that counts as known: 1 not visible, 2 guessing, 3
            probably, 4 definitely.
        majority: percentage of a class's images that must show an attribute for the class to have it.
        present: whether to list the spatial concepts of each image too, absent ones being known then; not known is a
            concept whose parts are all hidden.
        validation_share: share of each class's official train images that becomes the validation split, 0 for none.
        seed: random seed of the validation split.

    Returns:
        Splits train, validation and official test, each in the order of the ids in images.txt.

    Raises:
        FileNotFoundError: for a missing file or image.
        ValueError: for a file that cannot be read or is cut off, a repeated id, files that do not fit each other, a
            box wholly outside its image, or an option out of range.
    """
    if concepts not in SELECTIONS:
        raise ValueError(f"concepts must be {', '.join(SELECTIONS)}; got {concepts!r}.")
    if global_concepts not in WHOLE:
        raise ValueError(f"global_concepts must be {', '.join(WHOLE)}; got {global_concepts!r}.")
    if attributes not in ("auto", *ORIGINS):
        raise ValueError(f"attributes must be auto, {', '.join(ORIGINS)}; got {attributes!r}.")
    if not 1 <= min_certainty <= 4:
        raise ValueError(f"min_certainty must be from 1 to 4; got {min_certainty}.")
    if not 0 < majority <= 100:
        raise ValueError(f"majority must be a percentage above 0; got {majority}.")
    check_shares(validation_share)
    archive = read_archive(Path(source))
    by_image = attributes == "image" or (attributes == "auto" and archive.image_attributes.is_file())
    if by_image:
        find_file([archive.image_attributes.parent], archive.image_attributes.name, f"{HINT} Or set attributes=class.")
    numbers = select_attributes(archive, concepts, min_classes, majority)
    chosen = read_attributes(archive, numbers, by_image, min_certainty, majority, global_concepts == "all")
    dataset, counts = _read_rows(archive, chosen, split_rows(archive, validation_share, seed), by_image, present)
    origin = "image" if by_image else "class"
    options = {"majority": majority, "min_classes": min_classes, "min_certainty": min_certainty}
    selection = SELECTIONS[concepts].format(number=len(numbers), **options)
    origin_text = ORIGINS[origin].format(**options)
    return PreparedDataset(
        dataset=dataset,
        title=f"CUB-200-2011 with {len(numbers)} concepts",
        license="other",
        description=_description(archive, chosen, counts, selection, origin_text, present),
        settings={
            "concepts": concepts,
            "global_concepts": global_concepts,
            "min_classes": min_classes if concepts == "threshold" else None,
            "attributes": origin,
            "min_certainty": min_certainty if by_image else None,
            "majority": majority if concepts == "threshold" or not by_image else None,
            "present": present or None,
            "validation_share": validation_share,
            "seed": seed,
        },
    )


__all__ = ["ATTRIBUTE_PARTS", "CBM_112", "CT_108", "GLOBAL_ATTRIBUTES", "prepare"]

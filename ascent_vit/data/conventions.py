# SPDX-License-Identifier: Apache-2.0
"""Options that say what a dataset's annotations mean, and their conversion to the schema."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from modeling_ascent_vit.concept_targets_ascent_vit import MASK_IGNORE
from modeling_ascent_vit.image_inputs_ascent_vit import check_window

from .cells import image_cell, opened_cell, upright_size
from .mask_colors import VOID, packed, read_colors, unpacked
from .schema import COORDINATES, GLOBAL_COLUMNS, PRESENCE_COLUMNS, category_feature, innermost
from .suspicions import BOX_FORMATS, CROWD_KEYS, SEPARATORS, as_corners


logger = logging.getLogger(__name__)

# What 1 stands for in a coordinate: a pixel, the side of the image, a hundredth of it.
UNITS = ("pixels", "unit", "percent")

IGNORE, BACKGROUND = "ignore", "background"

# Names under which other tools have the keys of `objects` and `points`.
OTHER_KEYS = {
    "category": ("categories", "category_id", "category_ids", "category_name", "label", "labels", "class", "name"),
    "bbox": ("bboxes", "boxes", "box"),
    "xy": ("coordinates", "keypoints", "points"),
}


@dataclass(frozen=True)
class Conventions:
    """
    What the annotations of a dataset mean, where it is not what the schema says. Arguments are options of
    [`load_concept_dataset`].

    Args:
        box_format: numbers of a box and their unit, as in "xyxy" or "cxcywh unit": "xywh" (left, top, width, height),
            "xyxy" (left, top, right, bottom) or "cxcywh" (centre, width, height); "pixels", "unit" (shares of the
            image's sides) or "percent".
        point_format: unit of points: "pixels", "unit" or "percent".
        mask_values: name of the concept by number in the masks; "ignore" for pixels to leave out, "background" for
            those that are not annotated. 0 is background and 255 ignored unless they are named.
        mask_colors: red, green and blue by name of the concept, "ignore" or "background", or a labelmap.txt as CVAT
            writes it, for masks in colours. Black is background, and VOC's border ignored, unless they are named.
        category_names: name of the concept by number in `objects`, `points` and `present`.
        visibility: key of `points` that is 0 for a point that is not labelled; these points are left out.
        crowds: "drop" leaves out boxes with a key iscrowd, is_crowd or crowd that is not 0; "keep" does not.
        separator: text that parts names of concepts within one text, as ";" in "red; round".
        class_from: "folder" takes the class from the name of the folder that the image is in.
        window: low and high value, shown black and white, of images of more than 8 bits. Training gives it to the
            image processor, as whose parameter it goes with the model; images stay as they are stored.

    Raises:
        ValueError: for a value that is none of these.
    """

    box_format: str = "xywh"
    point_format: str = "pixels"
    mask_values: Mapping[int, str] | None = None
    mask_colors: Any = None
    category_names: Mapping[int, str] | None = None
    visibility: str | None = None
    crowds: str = "keep"
    separator: str | None = None
    class_from: str | None = None
    window: Any = None

    def __post_init__(self):
        box, unit = self.box
        if box not in BOX_FORMATS or unit not in UNITS:
            raise ValueError(
                f"box_format must be {', '.join(BOX_FORMATS)}, alone or with {', '.join(UNITS)}, as in 'xyxy percent';"
                f" got {self.box_format!r}."
            )
        for name, known in (
            ("point_format", UNITS),
            ("crowds", ("keep", "drop")),
            ("class_from", (None, "folder")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(filter(None, known))}; got {getattr(self, name)!r}.")
        for name in ("mask_values", "category_names"):
            value = getattr(self, name)
            texts = isinstance(value, Mapping) and all(
                isinstance(number, int) and isinstance(text, str) and text.strip() for number, text in value.items()
            )
            if value is not None and not (texts and value):
                raise ValueError(f"{name} must be names by numbers, as in {{1: beak, 2: wing}}; got {value!r}.")
        for name in ("visibility", "separator"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ValueError(f"{name} must be a text; got {value!r}.")
        check_window(self.window)
        if self.mask_colors is not None:
            if self.mask_values is not None:
                raise ValueError("mask_values are of masks of numbers, mask_colors of masks in colours: give one.")
            read_colors(self.mask_colors)

    @property
    def box(self) -> tuple[str, str]:
        """Format and unit of the boxes."""
        parts = str(self.box_format).split()
        return (parts[0], "pixels") if len(parts) == 1 else (parts[0], parts[1]) if len(parts) == 2 else ("", "")

    @property
    def mask_names(self) -> list[str]:
        """Names of the concepts in masks, in the order of their numbers or colours as given."""
        values = list(read_colors(self.mask_colors).items()) if self.mask_colors is not None else []
        values = values or sorted((self.mask_values or {}).items())
        return list(dict.fromkeys(name for _, name in values if name not in (IGNORE, BACKGROUND)))

    @classmethod
    def pop(cls, options: dict[str, Any]) -> "Conventions":
        """Takes the arguments of this class out of options."""
        return cls(**{item.name: options.pop(item.name) for item in fields(cls) if item.name in options})


def rewrite_column(
    dataset: Any, column: str, function: Callable[..., Any], feature: Any, of_image: bool = False
) -> Any:
    """
    Computes a column of a dataset or stream anew, and leaves the others as they are.

    Args:
        dataset: split, or stream of one.
        column: name of the column, or of one to add, whose values are then made of the image alone.
        function: makes the new value of the old one and, with `of_image`, of the image, which is a cell or decoded.
        feature: feature of the new column.
        of_image: whether the function takes the image too.
    """
    from datasets import Dataset, Features, concatenate_datasets
    from datasets import Image as ImageFeature

    inputs = list(dict.fromkeys([column, "image"] if of_image else [column]))
    inputs = [name for name in inputs if name in dataset.features]

    def rewrite(*values: Any) -> dict[str, Any]:
        return {column: function(*values)}

    if not isinstance(dataset, Dataset):
        features = dataset.features.copy()
        features[column] = feature
        return dataset.map(rewrite, input_columns=inputs, features=features)
    # The column alone: mapping the whole dataset would write its images again.
    part = dataset.select_columns(inputs)
    for name in inputs:
        if isinstance(part.features[name], ImageFeature):
            part = part.cast_column(name, ImageFeature(decode=False))
    part = part.map(rewrite, input_columns=inputs, remove_columns=inputs, features=Features({column: feature}))
    others = dataset.remove_columns(column) if column in dataset.features else dataset
    return concatenate_datasets([others, part], axis=1)


def other_keys(split: Any) -> dict[str, dict[str, str]]:
    """
    Finds the keys of `objects` and `points` that other tools call otherwise, as {"objects": {"category": "label"}}.

    Raises:
        ValueError: for a column without a key, or with more than one that may be meant.
    """
    found: dict[str, dict[str, str]] = {}
    for column, (coordinates, _) in COORDINATES.items():
        known = innermost(split.features[column]) if column in split.features else None
        if known is None or getattr(known, "dtype", None) == "null":
            continue
        if not isinstance(known, Mapping):
            raise ValueError(
                f"Column {column} must hold {{{coordinates}: [...], category: [...]}} or a list of such; got {known}."
            )
        for key in (coordinates, "category"):
            others = [name for name in OTHER_KEYS[key] if name in known]
            if key in known:
                continue
            if len(others) != 1:
                raise ValueError(
                    f"Column {column} has no key {key}; it has {', '.join(known)}. Name the key by columns="
                    f"{{{column}.{key}: ...}}."
                )
            found.setdefault(column, {})[key] = others[0]
            logger.info("Column %s: the key %s is taken for %s.", column, others[0], key)
        leaf = innermost(known[found.get(column, {}).get(coordinates, coordinates)])
        if isinstance(leaf, Mapping):
            raise ValueError(f"Column {column} must have its {coordinates} as lists of numbers; got {leaf}.")
    return found


def part_names(dataset: Any, separator: str | None) -> Any:
    """
    Makes lists of columns of concepts that hold one text or number for each row, and parts texts at the separator.

    Raises:
        ValueError: for texts of several names without a separator, and for lists in lists.
    """
    from datasets import Dataset, List, Value

    for column in (*GLOBAL_COLUMNS, *PRESENCE_COLUMNS):
        for name, split in dataset.items():
            if column not in split.features:
                continue
            feature, leaf = split.features[column], innermost(split.features[column])
            if hasattr(feature, "feature") and hasattr(feature.feature, "feature"):
                raise ValueError(
                    f"Column {column} of {name} must hold a list of names for each row; got lists in lists, {feature}."
                )
            is_text = isinstance(leaf, Value) and "string" in leaf.dtype
            if isinstance(leaf, Mapping) or (hasattr(feature, "feature") and not (is_text and separator)):
                continue
            if is_text and not separator and not hasattr(feature, "feature"):
                texts = split.unique(column) if isinstance(split, Dataset) else ["; as a stream may hold"]
                several = next((text for text in texts if text and SEPARATORS.search(text)), None)
                if several is not None:
                    raise ValueError(
                        f"Column {column} of {name} holds several names in one text, such as {several!r}: part them "
                        'by the option separator=";", or give lists.'
                    )

            def parted(value: Any) -> Any:
                items = value if isinstance(value, list) else None if value is None else [value]
                if items is None or not separator:
                    return items
                return [part.strip() for item in items if item for part in item.split(separator) if part.strip()]

            dataset[name] = rewrite_column(split, column, parted, List(leaf))
    return dataset


def _image_size(image: Any) -> np.ndarray:
    """Width and height of a cell of an Image column, or of a decoded image."""
    if isinstance(image, Image.Image):
        return np.array(image.size, dtype=np.float64)
    with opened_cell(image, "image") as opened:
        return np.array(upright_size(image, opened)[::-1], dtype=np.float64)


def _as_boxes(boxes: list[Any], conventions: Conventions, scale: np.ndarray) -> list[list[float]]:
    """Boxes in the conventions as x, y, width, height in pixels."""
    corners = as_corners(np.asarray(boxes, dtype=np.float64).reshape(-1, 4), conventions.box[0]) * np.tile(scale, 2)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()


def convert_places(split: Any, column: str, conventions: Conventions) -> Any:
    """Converts the objects or points of a split or stream to dicts of lists, in pixels, without those to leave out."""
    from datasets import List, Value

    key, _ = COORDINATES[column]
    unit = conventions.box[1] if column == "objects" else conventions.point_format
    known = innermost(split.features[column])
    of_lists = not hasattr(split.features[column], "feature")
    feature = {name: item if of_lists else List(item) for name, item in known.items()}
    feature[key] = List(List(Value("float32")))
    shown, drops_crowds = conventions.visibility, conventions.crowds == "drop"

    def stays(item: Mapping[str, Any]) -> bool:
        if column == "objects":
            return not (drops_crowds and any(item.get(name) for name in CROWD_KEYS))
        return not shown or bool(item.get(shown))

    def in_lists(value: Any) -> dict[str, Any]:
        return dict(value) if isinstance(value, Mapping) else {k: [item.get(k) for item in value] for k in known}

    def convert(value: Any, image: Any = None) -> Any:
        if value is None or (isinstance(value, Mapping) and value.get(key) is None):
            return None
        made = in_lists(value)
        number = len(made[key])
        lists = [name for name, item in made.items() if isinstance(item, list) and len(item) == number]
        kept = [i for i in range(number) if stays({name: made[name][i] for name in lists})]
        made |= {name: [made[name][i] for i in kept] for name in lists}
        scale = np.ones(2)
        if unit != "pixels":
            scale = _image_size(image) / (100 if unit == "percent" else 1)
        if column == "objects":
            made[key] = _as_boxes(made[key], conventions, scale)
        else:
            made[key] = (np.asarray(made[key], dtype=np.float64).reshape(-1, 2) * scale).tolist()
        return made

    def convert_or_leave(value: Any, image: Any = None) -> Any:
        try:
            return convert(value, image)
        except (TypeError, ValueError):
            # The check of rows tells which row it is, and what is wrong in it.
            return in_lists(value)

    if shown and column == "points" and shown not in known:
        raise ValueError(f"visibility names the key {shown!r} of points, which has {', '.join(known)}.")
    return rewrite_column(split, column, convert_or_leave, feature, of_image=unit != "pixels")


def convert_masks(split: Any, values: Mapping[int, str], names: list[str], of_colors: bool = False) -> Any:
    """Writes the masks of a split or stream anew with the schema's numbers: i + 1 of name i, 0 and 255."""
    from datasets import Image as ImageFeature

    void = VOID[0] << 16 | VOID[1] << 8 | VOID[2] if of_colors else MASK_IGNORE
    numbers = {0: 0, void: MASK_IGNORE}
    known = {name: i + 1 for i, name in enumerate(names)} | {IGNORE: MASK_IGNORE, BACKGROUND: 0}
    numbers |= {number: known[name] for number, name in values.items()}

    def convert(cell: Any) -> Any:
        if cell is None:
            return None
        where = f"The mask {cell.get('path') or ''}".strip() if isinstance(cell, Mapping) else "A mask"
        if isinstance(cell, Image.Image):
            array = packed(cell) if of_colors else np.asarray(cell)
        else:
            with opened_cell(cell, where) as mask:
                array = packed(mask) if of_colors else np.asarray(mask)
        if array.ndim != 2:
            return cell
        found, places = np.unique(array.astype(np.int64), return_inverse=True)
        unnamed = [number for number in found.tolist() if number not in numbers]
        if unnamed and of_colors:
            raise ValueError(
                f"{where} holds the colour {list(unpacked(unnamed[0]))}, and {len(unnamed) - 1} others, which "
                f"mask_colors does not name: add it, as {IGNORE} or {BACKGROUND} where it is no concept. JPEG files "
                "change colours."
            )
        if unnamed:
            raise ValueError(
                f"{where} holds {unnamed[0]}, which mask_values does not name: add it, as {IGNORE} or {BACKGROUND} "
                "where it is no concept."
            )
        made = np.array([numbers[number] for number in found.tolist()], dtype=np.uint8)[places]
        return image_cell(Image.fromarray(made.reshape(array.shape)))

    return rewrite_column(split, "mask", convert, ImageFeature())


def apply_conventions(dataset: Any, conventions: Conventions, spatial_concepts: list[str] | None) -> Any:
    """
    Converts the annotations of all splits to the schema by what the options say, once, and logs what was understood.

    Args:
        dataset: dict of all splits, or of their streams, with columns, keys and names of the schema.
        conventions: meaning of the annotations.
        spatial_concepts: names that were given, for a dataset with masks alone.
    """
    from datasets import ClassLabel, Dataset, List, Value

    for column in COORDINATES:
        form = " ".join(conventions.box) if column == "objects" else conventions.point_format
        same = form in ("xywh pixels", "pixels")
        extra = conventions.crowds == "drop" if column == "objects" else bool(conventions.visibility)
        for name, split in dataset.items():
            if column in split.features and (extra or not same):
                dataset[name] = convert_places(split, column, conventions)
                logger.info("%s of %s: read as %s%s.", column, name, form, ", not all kept" if extra else "")
    of_colors = conventions.mask_colors is not None
    values = read_colors(conventions.mask_colors) if of_colors else conventions.mask_values
    if values is None:
        return dataset
    for name, split in dataset.items():
        if "mask" not in split.features:
            raise ValueError(f"mask_values or mask_colors is given, but the split {name} has no column mask.")
        own = [category_feature(split.features[column]) for column in COORDINATES if column in split.features]
        own += [innermost(split.features[column]) for column in PRESENCE_COLUMNS if column in split.features]
        known = next((leaf.names for leaf in own if isinstance(leaf, ClassLabel)), spatial_concepts)
        names = list(known or conventions.mask_names)
        strange = [text for text in conventions.mask_names if text not in names]
        if strange:
            raise ValueError(f"A mask's names hold {strange[0]!r}, which is none of the concepts {', '.join(names)}.")
        split = convert_masks(split, values, names, of_colors)
        if known is None and isinstance(split, Dataset):
            # An image has no place for names: they go with the features of a column that is null in every row.
            places = {"bbox": List(List(Value("float32"), length=4)), "category": List(ClassLabel(names=names))}
            split = split.add_column("objects", [None] * len(split), feature=places)
        elif known is None:
            raise ValueError(f"A stream with mask_values needs their names: spatial_concepts=[{', '.join(names)}].")
        dataset[name] = split
        numbers = ", ".join(f"{number} = {text}" for number, text in sorted(values.items()))
        logger.info("mask of %s: %s.", name, numbers)
    return dataset


__all__ = [
    "Conventions",
    "apply_conventions",
    "other_keys",
    "part_names",
    "rewrite_column",
]

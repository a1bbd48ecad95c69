# SPDX-License-Identifier: Apache-2.0
"""Datasets of what annotation tools say: places moved to upright images, classes, splits, rows, and counts of all."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ascent_vit.utils.markdown import escape_markdown
from modeling_ascent_vit.concept_targets_ascent_vit import MASK_IGNORE

from ..cells import image_cell, read_image_file
from ..prepared import PreparedDataset
from ..schema import concept_features
from .annotated import AnnotatedImage, ImageFiles, Reading, Shape, read_header, reading
from .archive import check_shares, dataset_from_splits, draw, sizes_in_words
from .labels import (
    add_field_concepts,
    check_private,
    concept_name,
    find_classes,
    find_groups,
    keep_concepts,
    leave_out_numbers,
    public_groups,
    ways,
)


# How an image is turned to be upright, by its EXIF orientation: for pixels, and for places in its width and height.
TURNS: dict[int, tuple[Image.Transpose, Callable[..., tuple]]] = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, lambda x, y, w, h: (w - x, y)),
    3: (Image.Transpose.ROTATE_180, lambda x, y, w, h: (w - x, h - y)),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, lambda x, y, w, h: (x, h - y)),
    5: (Image.Transpose.TRANSPOSE, lambda x, y, w, h: (y, x)),
    6: (Image.Transpose.ROTATE_270, lambda x, y, w, h: (h - y, x)),
    7: (Image.Transpose.TRANSVERSE, lambda x, y, w, h: (h - y, w - x)),
    8: (Image.Transpose.ROTATE_90, lambda x, y, w, h: (y, w - x)),
}

# Pixels by which a place may leave its image, as rounding does.
ROUNDING = 1.0

FLAGS = ("crowd", "difficult", "truncated", "occluded")

SHOWN = 40


@dataclass
class Placed:
    """
    An image with its places checked.

    Args:
        image: image as read.
        size: width and height of the image as the annotator saw it.
        turn: EXIF orientation by which places are still to be turned, 1 for none.
        boxes: names, and x, y, width, height in the upright image.
        points: names, and x, y in the upright image.
        regions: shapes for a mask, as the annotator saw the image, with whether they are to be ignored.
    """

    image: AnnotatedImage
    size: tuple[int, int]
    turn: int = 1
    boxes: list[tuple[str, list[float]]] = field(default_factory=list)
    points: list[tuple[str, list[float]]] = field(default_factory=list)
    regions: list[tuple[Shape, bool]] = field(default_factory=list)

    def upright_size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        return self.size[::-1] if self.turn >= 5 else self.size

    def upright(self, x: float, y: float) -> tuple[float, float]:
        """A place in the upright image."""
        return TURNS[self.turn][1](x, y, *self.size) if self.turn in TURNS else (x, y)


def _frame(image: AnnotatedImage, orientation: str, counts: Counter[str]) -> Placed:
    """Finds out whether an image was annotated upright or as it is stored."""
    stored, tag = read_header(image.path)
    upright = stored[::-1] if tag >= 5 else stored
    size = image.size or upright
    if size not in (stored, upright):
        swapped = " They are swapped, so the image was turned since." if size == stored[::-1] else ""
        raise ValueError(
            f"{image.where}: the annotation is of {size[0]}x{size[1]} pixels, but the image {image.path} has "
            f"{upright[0]}x{upright[1]}: give the images that were annotated.{swapped}"
        )
    if tag not in TURNS:
        return Placed(image, size)
    if size == upright and stored != upright and image.size is not None:
        counts["images turned by EXIF, annotated upright"] += 1
        return Placed(image, size)
    if size == stored != upright:
        counts["images turned by EXIF, annotated as stored, whose places were turned"] += 1
        return Placed(image, stored, tag)
    counts[f"images turned by EXIF whose annotation was taken as {orientation}, as its size does not tell"] += 1
    return Placed(image, stored, tag) if orientation == "stored" else Placed(image, upright)


def _place(image: AnnotatedImage, options: dict[str, Any], counts: Counter[str]) -> Placed:
    """Moves places to the upright image, and counts those that are left out."""
    placed = _frame(image, options["orientation"], counts)
    width, height = placed.size
    ignored_flags = set(options["leave_out"])
    for name in (*(thing.name for thing in image.things), *(answer for _, answer in image.tags)):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{image.where}: a name must be text; got {name!r}.")
    for shape in image.shapes:
        with reading(image.where):
            left, top, right, bottom = shape.bounds()
        counts.update(f"{flag} shapes" for flag in shape.flags)
        counts["shapes"] += 1
        if right < left or bottom < top:
            raise ValueError(
                f"{image.where}: {shape.name!r} ends before it begins, {left:g}, {top:g} to {right:g}, {bottom:g}: "
                "width and height must be positive, and corners in order."
            )
        if right == left or bottom == top:
            counts["shapes without area, left out"] += 1
            image.unread += 1
            continue
        counts["shapes that leave their image"] += bool(
            min(left, top) < -ROUNDING or right > width + ROUNDING or bottom > height + ROUNDING
        )
        counts["shapes within one pixel"] += bool(right <= 1 and bottom <= 1)
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            counts["shapes outside of their image, left out"] += 1
            image.unread += 1
            continue
        ignored = bool(shape.flags & ignored_flags)
        names = [shape.name, *filter(None, (concept_name(*pair) for pair in shape.attributes))]
        counts["attributes of shapes, not taken (attributes=true makes them concepts)"] += (
            0 if options["attributes"] else len(shape.attributes)
        )
        names = names if options["attributes"] else names[:1]
        is_region = shape.mask is not None or bool(shape.outlines)
        if options["places"] == "mask" and (is_region or ignored):
            placed.regions.append((shape, ignored))
            names = names[1:]
        if ignored:
            counts[f"shapes {'ignored' if options['places'] == 'mask' else 'left out'} by leave_out"] += 1
            continue
        x, y = zip(placed.upright(left, top), placed.upright(right, bottom), strict=True)
        low = np.maximum([min(x), min(y)], 0)
        high = np.minimum([max(x), max(y)], placed.upright_size())
        placed.boxes += [(name, [*low.tolist(), *(high - low).tolist()]) for name in names]
    for point in image.points:
        counts.update(f"{flag} points" for flag in point.flags)
        counts["points"] += 1
        if point.flags & ignored_flags:
            counts["points left out by leave_out"] += 1
        elif not (-ROUNDING <= point.x <= width + ROUNDING and -ROUNDING <= point.y <= height + ROUNDING):
            counts["points outside of their image, left out"] += 1
            image.unread += 1
        else:
            spot = np.array(placed.upright(point.x, point.y))
            edge = np.nextafter(np.array(placed.upright_size(), dtype=np.float32), np.float32(0))
            placed.points.append((point.name, np.clip(spot, 0, edge).tolist()))
    if image.unread and not (placed.boxes or placed.points or placed.regions):
        # Something is there, so that it must not be taken for nothing.
        counts["images of which nothing marked could be taken, so not annotated"] += 1
        image.looked_at = False
    return placed


def _check_convention(counts: Counter[str]) -> None:
    """Raises ValueError where most places can only be of another convention."""
    shapes, outside = counts["shapes"], counts["shapes that leave their image"]
    if shapes and 2 * outside > shapes:
        raise ValueError(
            f"{outside} of {shapes} shapes leave their image ({100 * outside / shapes:.0f} %): are the boxes corners? "
            "For COCO, --option box_format=xyxy reads them so. Else give the images that were annotated."
        )
    if shapes and counts["shapes within one pixel"] == shapes:
        raise ValueError(f"All {shapes} shapes lie within one pixel: coordinates must be pixels, not from 0 to 1.")
    points, outside = counts["points"], counts["points outside of their image, left out"]
    if points and 2 * outside > points:
        raise ValueError(f"{outside} of {points} points lie outside of their image: are these the annotated images?")


def _mask(placed: Placed, names: dict[str, int], counts: Counter[str]) -> Image.Image:
    """Paints regions: what is ignored first, then large ones before small ones, as parts lie on wholes."""

    def rank(region: tuple[Shape, bool]) -> tuple[bool, float]:
        left, top, right, bottom = region[0].bounds()
        return not region[1], (left - right) * (bottom - top)

    regions = sorted(placed.regions, key=rank)
    owners = np.zeros(placed.size[::-1], dtype=np.int32)
    for number, (shape, _) in enumerate(regions, start=1):
        owners[shape.pixels(placed.size)] = number
    left_over = len(regions) - len(set(np.unique(owners)) - {0})
    counts["regions without a pixel, covered by smaller ones, or between centres"] += left_over
    values = [0, *(MASK_IGNORE if ignored else names[shape.name] + 1 for shape, ignored in regions)]
    mask = Image.fromarray(np.array(values, dtype=np.uint8)[owners])
    return mask.transpose(TURNS[placed.turn][0]) if placed.turn in TURNS else mask


class _Rows:
    """
    Makes the rows of a dataset, and counts what they hold.

    Args:
        placed: checked images by file.
        classes: class of each image.
        groups: group of each image that has one.
        places: objects or mask.
        counts: counts to add to.
    """

    def __init__(
        self, placed: dict[Path, Placed], classes: dict[Path, str], groups: dict, places: str, counts: Counter[str]
    ):
        self.placed, self.classes, self.groups, self.counts = placed, classes, groups, counts
        self.labels = sorted(set(classes.values()))
        tags = {path: item.image.tags for path, item in placed.items()}
        self.questions: dict[str, set[str]] = {}
        for question, answer in (tag for found in tags.values() for tag in found):
            name = concept_name(question, answer)
            self.questions.setdefault(question, set()).update({name} if name else ())
        self.global_names = list(dict.fromkeys(name for q in self.questions for name in sorted(self.questions[q])))
        found: Counter[str] = Counter()
        for item in placed.values():
            found.update(name for name, _ in item.boxes + item.points)
            found.update(shape.name for shape, ignored in item.regions if not ignored)
        self.spatial_names, self.per_concept = sorted(found), found
        self.has_points = any(item.points for item in placed.values())
        self.has_mask = places == "mask" and any(item.regions for item in placed.values())
        if self.has_mask and len(found) >= MASK_IGNORE:
            raise ValueError(
                f"A mask has no room for {len(found)} concepts, only {MASK_IGNORE - 1}: use places=objects."
            )

    def features(self) -> Any:
        """The features of the rows. In a dataset of masks, the boxes' feature holds the concepts' names."""
        from datasets import Value

        columns = ["objects"] + ["points"] * self.has_points + ["mask"] * self.has_mask
        columns += ["unknown_concepts"] * any(question for question in self.questions if self.questions[question])
        if not self.global_names and "unknown_concepts" in columns:
            columns.remove("unknown_concepts")
        extra = {"file_name": Value("string")} | ({"group_id": Value("string")} if self.groups else {})
        return concept_features(self.labels, self.global_names, self.spatial_names, columns, extra)

    def _concepts(self, image: AnnotatedImage) -> dict[str, Any]:
        answered = {question for question, _ in image.tags} | ({""} if image.looked_at else set())
        names = {name for tag in image.tags if (name := concept_name(*tag))}
        unknown = {name for q, found in self.questions.items() if q not in answered for name in found} - names
        known = bool(answered & self.questions.keys())
        self.counts.update(f"concept {name}" for name in names)
        ids = {name: i for i, name in enumerate(self.global_names)}
        return {
            "concepts": sorted(ids[name] for name in names) if known else None,
            "unknown_concepts": sorted(ids[name] for name in unknown) if known else None,
        }

    def rows(self, split: str, paths: list[Path], root: Path) -> Iterator[dict[str, Any]]:
        """Makes the rows of some images."""
        features = self.features()
        ids = {name: i for i, name in enumerate(self.spatial_names)}
        for path in tqdm(paths, desc=f"Reading {split}", unit="image", leave=False):
            item = self.placed[path]
            looked_at = item.image.looked_at
            row: dict[str, Any] = {"image": read_image_file(path, placed=False)[0]}
            row |= {"label": self.labels.index(self.classes[path]), "group_id": self.groups.get(path)}
            row |= {"file_name": str(path.relative_to(root)), **self._concepts(item.image)}
            for column, key, found in (("objects", "bbox", item.boxes), ("points", "xy", item.points)):
                placed = {key: [place for _, place in found], "category": [ids[name] for name, _ in found]}
                row[column] = placed if looked_at else None
            if self.has_mask:
                with reading(item.image.where):
                    row["mask"] = image_cell(_mask(item, ids, self.counts)) if looked_at else None
            yield {name: row[name] for name in features}


def _splits(
    images: dict[Path, AnnotatedImage], groups: dict[Path, str], own: bool, shares: tuple[float, float], seed: int
) -> tuple[dict[str, list[Path]], str]:
    """The images of each split, by what the tool says or drawn by whole groups; and what was done, in words."""
    if own and any(image.split for image in images.values()):
        without = sum(image.split is None for image in images.values())
        splits: dict[str, list[Path]] = {}
        for path, image in sorted(images.items()):
            splits.setdefault(image.split or "train", []).append(path)
        if "train" not in splits:
            raise ValueError(
                f"The images are all of {' and '.join(splits)}, so there is nothing to train on: give the source that "
                "holds train too, or draw new splits with --option splits=draw."
            )
        note = f"as the source has them; {without} images of none are train" if without else "as the source has them"
        return {name: splits[name] for name in ("train", "validation", "test") if name in splits}, note
    members: dict[Any, list[Path]] = {}
    for path in sorted(images):
        members.setdefault(groups.get(path, path), []).append(path)
    of = f"{len(members)} {'groups' if groups else 'images'}"
    counts = {}
    for name, share in zip(("validation", "test"), shares, strict=True):
        if share and len(members) > 2:
            counts[name] = max(1, round(share * len(members)))
    if sum(counts.values()) >= len(members):
        raise ValueError(f"The shares {shares[0]} and {shares[1]} leave none of {of} for train: lower them.")
    drawn = draw(list(members), counts, seed)
    note = f"drawn from {of} by seed {seed}, shares {shares[0]:g} (validation) and {shares[1]:g} (test)"
    return {name: [path for key in keys for path in members[key]] for name, keys in drawn.items()}, note


def _summary(rows: _Rows, result: Reading, unlisted: int, splits: str) -> str:
    """What was understood, a line each."""
    items = list(rows.placed.values())
    counts = rows.counts
    looked = [item for item in items if item.image.looked_at]
    empty = sum(not (item.image.shapes or item.image.points or item.image.tags) for item in looked)
    ignored = sum(flag for item in items for _, flag in item.regions)
    lines = [
        f"images: {len(items):,} of {len(rows.labels)} classes ({', '.join(rows.labels[:SHOWN])})",
        f"annotated: {len(looked):,}, of these {empty:,} without anything (taken as: nothing is there)",
        f"not annotated (null): {len(items) - len(looked):,}, of these {unlisted:,} that no annotation lists",
        f"boxes: {sum(len(item.boxes) for item in items):,}",
        f"masks: {sum(len(item.regions) for item in items) - ignored:,} regions, {ignored:,} ignored ones",
        f"points: {sum(len(item.points) for item in items):,}",
        f"splits: {splits}",
    ]
    shown = {name: rows.per_concept[name] for name in rows.spatial_names}
    whole = {name: counts.pop(f"concept {name}", 0) for name in rows.global_names}
    for title, found in (("concepts with a place", shown), ("concepts of the whole image", whole)):
        if found:
            named = [f"{name} {number:,}" for name, number in list(found.items())[:SHOWN]]
            lines.append(f"{title}: {', '.join(named)}{f' and {len(found) - SHOWN} others' * (len(found) > SHOWN)}")
    alike: dict[str, list[str]] = {}
    for name in (*rows.spatial_names, *rows.global_names):
        alike.setdefault("".join(name.lower().split()), []).append(name)
    if doubled := [" and ".join(map(repr, names)) for names in alike.values() if len(set(names)) > 1]:
        lines.append(f"names that differ in case or spaces alone: {', '.join(doubled)}")
    if result.missing:
        lines.append(f"missing images, left out: {len(result.missing):,}, the first being {result.missing[0]}")
    totals = ("shapes", "points", "shapes within one pixel")
    return "\n".join(lines + [f"{name}: {n:,}" for name, n in sorted(counts.items()) if n and name not in totals])


def options_of(read: Callable[..., None], tool: str, **options: Any) -> dict[str, Any]:
    """Options that a tool's reader takes; ValueError for one that is given and not taken."""
    taken = signature(read).parameters
    for name, value in options.items():
        if value is not None and name not in taken:
            raise ValueError(f"{tool} has no use for the option {name}: leave it out.")
    return {name: value for name, value in options.items() if name in taken}


def prepare_annotations(
    read: Callable[..., None],
    source: Path,
    *,
    images: str | None = None,
    class_from: str | None = None,
    classes: list[str] | None = None,
    concepts: list[str] | None = None,
    concepts_from: list[str] | None = None,
    places: Literal["objects", "mask"] = "objects",
    attributes: bool = False,
    leave_out: list[str] | None = None,
    empty: Literal["nothing", "unknown"] = "nothing",
    missing: Literal["error", "skip"] = "error",
    unlisted: Literal["keep", "skip"] = "keep",
    orientation: Literal["upright", "stored"] = "upright",
    box_format: Literal["xywh", "xyxy"] | None = None,
    names: str | None = None,
    window: list[float] | None = None,
    burned_in: Literal["refuse", "skip", "take"] | None = None,
    group: str | None = None,
    splits: Literal["own", "draw"] = "own",
    validation_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 0,
) -> PreparedDataset:
    """
    Prepares the images that a tool has annotated; the options are the same for all tools.

    Args:
        read: function that reads the tool's files.
        source: folder of the tool's files, or a single file.
        images: folder of the images; by default `source`.
        class_from: where the class of an image is: folder, tag, tag:QUESTION, category:NAME (it or none of it is
            there), category:NAME,NAME (the one that is there), field:NAME, or csv:FILE with columns file_name and
            class.
        classes: names of the classes, where tags or categories are not all classes.
        concepts: names of the concepts with a place to take; by default all.
        concepts_from: columns of metadata or of that CSV file that are concepts of the whole image.
        places: column for polygons and masks: their boxes in objects, or mask. Boxes are always objects.
        attributes: whether attributes of shapes are concepts too, in the shape's box.
        leave_out: flags of shapes and points to leave out, or to ignore in masks: crowd (by default), difficult,
            truncated, occluded.
        empty: meaning of an image that is listed without any annotation: that nothing is there, or that it is unknown.
        missing: whether listed images that are missing are an error, or left out.
        unlisted: whether image files that no annotation lists are kept as not annotated, where their class is known.
        orientation: whether images that EXIF turns were annotated upright or as stored, where sizes do not tell.
        box_format: COCO and VOC alone: xyxy where a tool writes corners counted from 0, which neither means.
        names: YOLO alone: file of the names, where it is not in `source`.
        window: DICOM alone: low and high value, in the modality's unit, that become black and white; by default the
            files' own window, or where they have none the range of values of their series.
        burned_in: DICOM alone: what is done about files that say that text, such as a name, is burnt into their
            pixels: refuse (by default), skip them, or take them.
        group: folder, or a field or question whose value images share that belong together and stay in one split.
        splits: whether splits are the source's own, where it has any, or drawn.
        validation_share: share of the images, or groups, that are drawn for validation.
        test_share: share of the images, or groups, that are drawn for test.
        seed: random seed of the draw.

    Raises:
        FileNotFoundError: for files that are missing.
        ValueError: for files that are not the tool's or contradict the images, or no class.
    """
    check_shares(validation_share, test_share)
    for flag in leave_out or []:
        if flag not in FLAGS:
            raise ValueError(f"leave_out may hold {', '.join(FLAGS)}; got {flag!r}.")
    root = Path(images).expanduser() if images is not None else source if source.is_dir() else source.parent
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder of images {root}.")
    result = Reading(ImageFiles(root))
    tool = read.__module__.rsplit(".", 1)[-1].replace("_", "-")
    own = {"box_format": box_format, "names": names, "window": window, "burned_in": burned_in}
    read(source, result, **options_of(read, tool, **own))
    if result.missing and (missing == "error" or not result.images):
        raise FileNotFoundError(
            f"{len(result.missing)} of {len(result.missing) + len(result.images)} annotated images are not in {root}, "
            f"the first being {result.missing[0]}: give their folder with --images, or leave them out with --option "
            "missing=skip."
        )
    if tool not in ("imagefolder", "dicom") and not any(image.looked_at for image in result.images.values()):
        raise ValueError(
            f"No image of {len(result.files.paths)} has an annotation in {source}: are these the files of {tool}, "
            "with the names and in the folders that it gives them?"
        )
    for image in result.images.values():
        image.looked_at &= empty == "nothing" or bool(image.things or image.tags)
    found, told = find_classes(result, class_from, classes, source if source.is_dir() else source.parent)
    add_field_concepts(result, concepts_from or [])
    leave_out_numbers(result)
    keep_concepts(result, concepts)
    unknown = sum(path not in found and path not in result.images for path in result.files.paths)
    result.counts["image files that no annotation lists, left out without a class"] += unknown
    chosen, added = {}, 0
    for path in sorted(found):
        known = result.images.get(path)
        if known is None:
            added += unlisted == "keep"
            if unlisted == "skip":
                continue
            known = AnnotatedImage(path, str(path), None, result.files.split_of(path), looked_at=False)
        chosen[path] = known
    if len(labels := {found[path] for path in chosen}) == 1:
        raise ValueError(f"All {len(chosen)} images have the class {labels.pop()!r}: there is nothing to tell apart.")
    if not chosen:
        raise ValueError(f"No image with a class is left of {len(result.files.paths)}: see {ways(result)}")
    options: dict[str, Any] = {"orientation": orientation, "places": places, "attributes": attributes}
    options["leave_out"] = ["crowd"] if leave_out is None else leave_out
    items = tqdm(chosen.items(), desc="Checking places", unit="image", leave=False)
    placed = {path: _place(image, options, result.counts) for path, image in items}
    _check_convention(result.counts)
    groups = public_groups(find_groups(result, group, chosen), result.private)
    parts, split_note = _splits(chosen, groups, splits == "own", (validation_share, test_share), seed)
    rows = _Rows(placed, {path: found[path] for path in chosen}, groups, places, result.counts)
    check_private(rows.labels + rows.global_names + rows.spatial_names, result.private)
    made = {name: rows.rows(name, paths, result.files.root) for name, paths in parts.items()}
    dataset = dataset_from_splits(made, rows.features())
    summary = _summary(rows, result, added, split_note)
    if leaks := [name for name in told if name in rows.spatial_names]:
        summary += f"\nthe class was told by {' and '.join(leaks)}, which is a concept too (--option concepts=[...])"
    settings: dict[str, Any] = {
        "class_from": class_from and class_from.rsplit("/", 1)[-1],
        "classes": classes,
    } | options
    settings |= {"empty": empty, "unlisted": unlisted, "group": group, "splits": splits, "seed": seed}
    settings |= {"window": window, "burned_in": burned_in}
    listed = "\n".join(f"- {escape_markdown(line)}" for line in summary.splitlines())
    return PreparedDataset(
        dataset=dataset,
        title=f"Images annotated with {tool}",
        license="other",
        description=f"{sizes_in_words(dataset)}. What the files of {tool} were understood to say:\n\n{listed}",
        settings={key: value for key, value in settings.items() if value is not None},
        summary=summary,
    )


def tool_adapter(read: Callable[..., None], **defaults: Any) -> Callable[..., PreparedDataset]:
    """The function `prepare(source, **options)` of a tool, with the options of [`prepare_annotations`]."""

    @wraps(prepare_annotations)
    def prepare(source: Path, **options: Any) -> PreparedDataset:
        return prepare_annotations(read, source, **(defaults | options))

    return prepare


__all__ = ["prepare_annotations", "tool_adapter"]

# SPDX-License-Identifier: Apache-2.0
"""What a concept dataset holds: a table of counts, and a sheet of samples with their annotations drawn."""

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from modeling_ascent_vit.concept_targets_ascent_vit import (
    PatchAxis,
    global_concept_targets,
    spatial_concept_presence,
    spatial_concept_targets,
)

from .cells import stored_annotation, stored_columns
from .schema import annotation_from_row, concepts_from_features, label_text, placed_concepts, problem_type


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision tell apart; without yellow, which is faint on white.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#000000")

# The patch grid of a model for images of 224 pixels in patches of 16.
GRID = 14

FONT_SIZE, LINE_WIDTH, MAX_LINES = 8, 60, 28


class _Counts:
    """
    Counts the annotations of a split, image by image.

    Args:
        num_global: number of global concepts.
        num_spatial: number of spatial concepts.
        grid: number of patches along each side of the image.
    """

    def __init__(self, num_global: int, num_spatial: int, grid: int):
        self.grid = grid
        self.shown, self.unknown = np.zeros((2, num_global), dtype=int)
        self.images, self.patches, self.present = np.zeros((3, num_spatial), dtype=int)
        self.annotated = self.without_concepts = self.without_places = self.without_lists = 0

    def add(self, annotation: Mapping[str, Any], size: tuple[int, int]) -> None:
        """Adds an image of this height and width with its annotation."""
        if len(self.shown):
            target = global_concept_targets(annotation, len(self.shown))
            self.shown += target == 1
            self.unknown += np.isnan(target)
            self.without_concepts += bool(np.isnan(target).all())
        if len(self.images):
            rows, columns = (PatchAxis(side, self.grid, 0, self.grid, self.grid, 1) for side in size)
            targets = spatial_concept_targets(annotation, (rows, columns), len(self.images))
            presence = spatial_concept_presence(annotation, targets, (rows, columns))
            marks = targets == 1
            self.images += marks.any(axis=0)
            self.patches += marks.sum(axis=0)
            self.annotated += int(marks.any(axis=1).sum())
            self.without_places += not marks.any()
            self.present += presence == 1
            self.without_lists += annotation.get("present") is None


def dataset_table(
    dataset: "DatasetDict", spatial_concepts: list[str] | None = None, grid: int = GRID
) -> dict[str, Any]:
    """
    Counts images, concepts and annotated patches of a concept dataset.

    Args:
        dataset: dataset with the columns of the schema, checked.
        spatial_concepts: names of a mask's concepts, see [`concepts_from_features`].
        grid: number of patches along each side of the image, for counting annotated patches.

    Returns:
        A dict with `grid`; `splits`, by split: images, classes (with images), images_without_concepts (global ones not
        annotated at all), images_without_places (no patch is annotated), annotated_patches (with any spatial concept),
        patches (no classes where values are predicted); `concepts`, by stream and name, then by split: images that
        show it, unknown (global) or patches (spatial); and `missing`: classes and concepts that have no image in a
        split, by split. Where the dataset has the column `present`, also images_without_lists and, of spatial
        concepts, `present`: images known to show it, with or without a place.
    """
    features = next(iter(dataset.values())).features
    labels, global_names, spatial_names = concepts_from_features(features, spatial_concepts)
    problem = problem_type(features["label"])
    has_lists = "present" in features
    splits: dict[str, dict[str, int]] = {}
    concepts: dict[str, dict[str, dict[str, dict[str, int]]]] = {
        "global": {name: {} for name in global_names},
        "spatial": {name: {} for name in spatial_names},
    }
    missing: dict[str, dict[str, list[str]]] = {}
    for split_name, split in dataset.items():
        counts = _Counts(len(global_names), len(spatial_names), grid)
        stored = tqdm(stored_columns(split), desc=f"Counting {split_name}", unit="image", leave=False)
        for i, row in enumerate(stored):
            counts.add(*stored_annotation(row, f"{split_name}[{i}]"))
        found_labels = split["label"][:]
        classes: list[int] = [] if problem == "regression" else found_labels
        if problem == "multi_label_classification":
            classes = [item for items in found_labels for item in items]
        present = np.bincount(np.array(classes, dtype=int), minlength=len(labels)) > 0
        splits[split_name] = {
            "images": len(split),
            **({} if problem == "regression" else {"classes": int(present.sum())}),
            "images_without_concepts": counts.without_concepts,
            "images_without_places": counts.without_places,
            "annotated_patches": counts.annotated,
            "patches": len(split) * grid**2 if spatial_names else 0,
        } | ({"images_without_lists": counts.without_lists} if has_lists else {})
        for i, name in enumerate(global_names):
            found = {"images": int(counts.shown[i]), "unknown": int(counts.unknown[i])}
            concepts["global"][name][split_name] = found
        for i, name in enumerate(spatial_names):
            found = {"images": int(counts.images[i]), "patches": int(counts.patches[i])}
            if has_lists:
                found["present"] = int(counts.present[i])
            concepts["spatial"][name][split_name] = found
        absent = [name for name, found in zip(labels, present, strict=True) if not found]
        missing[split_name] = {
            "classes": [] if problem == "regression" else absent,
            "global_concepts": [name for name, number in zip(global_names, counts.shown, strict=True) if not number],
            "spatial_concepts": [
                name for name, number in zip(spatial_names, counts.images + counts.present, strict=True) if not number
            ],
        }
    return {"grid": [grid, grid], "splits": splits, "concepts": concepts, "missing": missing}


def _aligned(rows: list[list[str]]) -> list[str]:
    """Aligns rows as lines of text: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def format_table(table: Mapping[str, Any]) -> str:
    """Formats the counts of [`dataset_table`] as text for a terminal."""
    names = list(table["splits"])
    keys = list(next(iter(table["splits"].values())))
    rows = [["", *names]]
    rows += [[key.replace("_", " "), *(f"{table['splits'][name][key]:,}" for name in names)] for key in keys]
    lines = _aligned(rows)
    for stream, concepts in table["concepts"].items():
        if not concepts:
            continue
        counted = list(next(iter(concepts.values()))[names[0]])
        lines += ["", f"{stream} concepts: {' / '.join(counted)}"]
        lines += _aligned(
            [["", *names]]
            + [
                [name, *(" / ".join(f"{counts[split][key]:,}" for key in counted) for split in names)]
                for name, counts in concepts.items()
            ]
        )
    absent = [
        f"{split}: no image of {len(found[key])} {key.replace('_', ' ')}"
        for split, found in table["missing"].items()
        for key in found
        if found[key]
    ]
    return "\n".join(lines + (["", "missing", *absent] if absent else []))


def _chosen(dataset: "DatasetDict", samples: int, seed: int) -> list[tuple[str, int]]:
    """Chooses splits and rows to draw, at random and in order: as many of each split as there is room for."""
    rng = np.random.default_rng(seed)
    shares = [samples // len(dataset) + (i < samples % len(dataset)) for i in range(len(dataset))]
    return [
        (name, int(row))
        for (name, split), share in zip(dataset.items(), shares, strict=True)
        for row in np.sort(rng.choice(len(split), size=min(share, len(split)), replace=False))
    ]


def _mark(axes: "Axes", x: float, y: float, number: int, colour: str) -> None:
    axes.text(
        x,
        y,
        str(number),
        color="white",
        fontsize=7,
        fontweight="bold",
        ha="center",
        va="center",
        clip_on=False,
        bbox={"boxstyle": "circle,pad=0.25", "facecolor": colour, "edgecolor": "white", "linewidth": 0.8},
    )


def _draw_mask(axes: "Axes", mask: np.ndarray, names: list[str]) -> list[tuple[str, str]]:
    """Colours each concept of a mask; gives colour and text of each."""
    from matplotlib.colors import to_rgb

    entries = []
    for value in np.unique(mask[mask > 0]).tolist():
        inside = mask == value
        colour = "#808080" if value == 255 else COLOURS[(value - 1) % len(COLOURS)]
        overlay = np.zeros((*mask.shape, 4))
        overlay[inside] = (*to_rgb(colour), 0.5)
        axes.imshow(overlay, interpolation="nearest")
        share = inside.mean()
        entries.append((colour, f"mask: {'ignore' if value == 255 else names[value - 1]} ({share:.1%} of the image)"))
    return entries


def _draw_row(axes: "Axes", row: Mapping[str, Any], names: list[str]) -> list[tuple[str, str]]:
    """Draws an image with what has a place in it; gives colour and text for its legend."""
    from matplotlib.patches import Rectangle

    image = row["image"]
    axes.imshow(np.asarray(image.convert("RGB")))
    axes.set_axis_off()
    entries: list[tuple[str, str]] = []
    if row.get("mask") is not None:
        entries += _draw_mask(axes, np.asarray(row["mask"]), names)
    number = 0
    for column, (coordinates, ids) in placed_concepts(row, len(names)).items():
        # Several concepts at one place share a number.
        places: dict[tuple[float, ...], list[str]] = {}
        for place, category in zip(coordinates.tolist(), ids.tolist(), strict=True):
            places.setdefault(tuple(place), []).append(names[category])
        for place, concepts in places.items():
            number += 1
            colour = COLOURS[(number - 1) % len(COLOURS)]
            x, y = place[:2]
            if column == "objects":
                left, top = max(x, 0), max(y, 0)
                right, bottom = min(x + place[2], image.width), min(y + place[3], image.height)
                for width, edge in ((3, "white"), (1.6, colour)):
                    corner = (left - 0.5, top - 0.5)
                    box = Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=edge, linewidth=width)
                    axes.add_patch(box)
                x, y = left, top
            _mark(axes, x - 0.5, y - 0.5, number, colour)
            entries.append((colour, f"{number}  " + ", ".join(concepts)))
    return entries


def _write_legend(axes: "Axes", entries: list[tuple[str, str]]) -> None:
    """Writes text beside an image, with a colour for each entry; what does not fit is counted."""
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(MAX_LINES, 0)
    line = 0
    for i, (colour, text) in enumerate(entries):
        wrapped = textwrap.wrap(text, LINE_WIDTH, subsequent_indent="    ")
        if line + len(wrapped) > MAX_LINES - 1 and i < len(entries) - 1:
            axes.text(0.04, line, f"... and {len(entries) - i} more", fontsize=FONT_SIZE, va="top", parse_math=False)
            return
        if colour:
            axes.text(0, line, "\u25a0", fontsize=FONT_SIZE, va="top", color=colour)
        for part in wrapped:
            axes.text(0.04, line, part, fontsize=FONT_SIZE, va="top", parse_math=False)
            line += 1


def picture_sheet(
    dataset: "DatasetDict", spatial_concepts: list[str] | None = None, samples: int = 12, seed: int = 0
) -> "Figure":
    """
    Draws samples of a concept dataset with their annotations, which are named beside them, three in a row.

    Args:
        dataset: dataset with the columns of the schema, checked.
        spatial_concepts: names of a mask's concepts, see [`concepts_from_features`].
        samples: number of images, spread evenly over the splits.
        seed: random seed of the choice of images.

    Returns:
        A figure. Boxes and points are numbered as in the text beside the image, masks are coloured. For image files:
        `figure.savefig("sheet.png")`.
    """
    from matplotlib.figure import Figure

    features = next(iter(dataset.values())).features
    _, global_names, spatial_names = concepts_from_features(features, spatial_concepts)
    chosen = _chosen(dataset, samples, seed)
    in_row = 3
    num_rows = -(-len(chosen) // in_row)
    figure = Figure(figsize=(7.2 * in_row, 3.7 * num_rows), dpi=100, layout="constrained")
    grid = figure.subplots(num_rows, 2 * in_row, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, (split_name, index) in enumerate(chosen):
        picture, legend = grid[i // in_row, 2 * (i % in_row) : 2 * (i % in_row) + 2]
        split: Dataset = dataset[split_name]
        row = split[index]
        annotation = annotation_from_row(row)
        entries = _draw_row(picture, row, spatial_names)
        title = f"{split_name} {index}: {label_text(features['label'], row['label'])}"
        picture.set_title(textwrap.shorten(title, 48, placeholder=" ..."), fontsize=9, loc="left", parse_math=False)
        if global_names:
            target = global_concept_targets(annotation, len(global_names))
            shown = [global_names[k] for k in np.flatnonzero(target == 1)]
            unknown = [global_names[k] for k in np.flatnonzero(np.isnan(target))]
            entries.insert(0, ("", "whole image: " + (", ".join(shown) or "none")))
            if unknown:
                entries.insert(1, ("", "not known: " + ", ".join(unknown)))
        if spatial_names and not any(colour for colour, _ in entries):
            entries.append(("", "no place is annotated"))
        for column, text in (("present", "somewhere in the image"), ("unknown_present", "somewhere or not")):
            if annotation.get(column) is not None:
                shown = [spatial_names[k] for k in annotation[column]]
                entries.append(("", f"{text}: {', '.join(shown) or 'none'}"))
        _write_legend(legend, entries)
    return figure


__all__ = ["dataset_table", "format_table", "picture_sheet"]

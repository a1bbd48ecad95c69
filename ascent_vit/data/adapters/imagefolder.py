# SPDX-License-Identifier: Apache-2.0
"""Folders of images, a folder a class, with splits above them where there are such, and metadata.csv or .jsonl."""

import json
from pathlib import Path
from typing import Any

from .annotated import Point, Reading, Shape, numbers, reading
from .archive import read_lines
from .tables import FILE_COLUMNS, read_table


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Rows of a JSON lines file, each with its place."""
    rows = []
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is no JSON: {error}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where} must be an object in braces; got {line:.40}.")
        rows.append((where, row))
    return rows


def _rows(entry: Any, key: str) -> list[tuple[str, list[float]]]:
    """Names and coordinates of objects or points, which are a dict of lists or a list of dicts."""
    if isinstance(entry, dict):
        names = entry.get("category", entry.get("categories"))
        pairs = list(zip(names or [], entry.get(key) or [], strict=True))
    else:
        pairs = [(item.get("category"), item[key]) for item in entry]
    for name, _ in pairs:
        if not isinstance(name, str):
            raise ValueError(f"the category {name!r} must be a name, as numbers mean nothing without")
    return pairs


def read(source: Path, result: Reading) -> None:
    """
    Reads a folder of images. One that metadata does not list has not been looked at.

    Args:
        source: folder of the images, at any depth, with metadata.csv or metadata.jsonl beside the files they name:
            file_name, and further columns; in JSON lines also objects with bbox (x, y, width, height), points with xy.
        result: reading to add to.
    """
    result.counts["metadata files"] = 0
    for path in sorted(source.rglob("metadata.*")):
        if path.suffix not in (".csv", ".jsonl"):
            continue
        result.counts["metadata files"] += 1
        for where, row in read_table(path) if path.suffix == ".csv" else _lines(path):
            with reading(where):
                column = next((name for name in FILE_COLUMNS if row.get(name)), None)
                if column is None:
                    raise ValueError("it names no image: a column file_name is missing")
                image = result.image(row[column], where, near=path.parent)
                image.fields = {k: str(v) for k, v in row.items() if isinstance(v, str | int | float) and k != column}
                placed = {key: row[key] for key in ("objects", "points") if row.get(key) is not None}
                image.looked_at = bool(placed)
                for name, box in _rows(placed.get("objects", []), "bbox"):
                    x, y, width, height = numbers(box, "bbox", 4)
                    image.shapes.append(Shape(name, numbers([x, y, x + width, y + height], "bbox", 4)))
                for name, xy in _rows(placed.get("points", []), "xy"):
                    image.points.append(Point(name, *numbers(xy, "xy", 2).tolist()))


__all__ = ["read"]

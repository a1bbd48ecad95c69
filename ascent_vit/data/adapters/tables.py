# SPDX-License-Identifier: Apache-2.0
"""CSV tables of images: their classes, groups and further facts, by column."""

import csv
import io
from pathlib import Path

from .annotated import Reading


FILE_COLUMNS = ("file_name", "filename", "file", "image", "image_path", "path", "name", "image_id", "id")
CLASS_COLUMNS = ("class", "label", "class_name", "category", "species", "diagnosis", "target")


def read_table(path: Path) -> list[tuple[str, dict[str, str]]]:
    """
    Reads a CSV file with names of columns in its first line; commas, semicolons or tabs between cells.

    Returns:
        Its rows, each with its place.

    Raises:
        FileNotFoundError: for a file that is missing.
        ValueError: for a file that is not UTF-8, has no rows, columns of the same name, or a row of another length.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): convert it.") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(line)]
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV file: {error}.") from error
    names = [name.strip() for name in lines[0]] if lines else []
    if len(lines) < 2 or len(set(names)) != len(names):
        raise ValueError(f"{path} must have a first line of different names of columns, and rows; got {names}.")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(names):
            raise ValueError(f"{path}, row {number}: expected {len(names)} cells, one a column; got {len(line)}.")
        rows.append((f"{path}, row {number}", dict(zip(names, (cell.strip() for cell in line), strict=True))))
    return rows


def add_table(path: Path, result: Reading) -> str:
    """
    Adds the columns of a CSV file to the fields of the images that it names, those without annotation included.

    Names of files may lack their ending, and of DICOM be ids, of a whole series or patient too.

    Returns:
        The column of classes: one named so, else the only one beside the files' names.

    Raises:
        ValueError: for no such column, or images that are named twice or none of which is found.
    """
    rows = read_table(path)
    names = list(rows[0][1])
    lower = {name.lower(): name for name in reversed(names)}
    columns = (*FILE_COLUMNS, *result.files.key_columns)
    file_column = next((lower[name] for name in columns if name in lower), names[0])
    others = [name for name in names if name != file_column]
    label = next((lower[name] for name in CLASS_COLUMNS if name in lower and lower[name] != file_column), None)
    if label is None and len(others) != 1:
        raise ValueError(
            f"{path} needs a column of classes called {', '.join(CLASS_COLUMNS[:3])} or so; it has {', '.join(names)}."
        )
    seen: set[Path] = set()
    for where, row in rows:
        name = row[file_column]
        files = result.files.named(name)
        result.counts[f"rows of {path.name} whose image is missing"] += not files
        if not seen.isdisjoint(files):
            raise ValueError(f"{where}: {name} is there twice.")
        seen.update(files)
        for file in files:
            if file not in result.images:
                result.image(str(file.relative_to(result.files.root)), where, near=result.files.root).looked_at = False
            result.images[file].fields |= {key: row[key] for key in others}
    if not seen:
        raise ValueError(
            f"{path}: none of its {len(rows)} images is in the source; the first is {rows[0][1][file_column]}."
        )
    return label or others[0]


__all__ = ["FILE_COLUMNS", "add_table", "read_table"]

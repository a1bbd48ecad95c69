# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are written whole or not at all."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def _beside(path: Path, ending: str) -> Path:
    """A hidden sibling of `path`: on the same file system, so that a rename is atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}.{ending}")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` to `path` as UTF-8, making its folder; readers see the old file or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path, "partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Writes `data` to `path` as indented JSON, whole or not at all. NaN and infinities become null."""
    write_text(path, json.dumps(_without_nan(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def replace_folder(path: str | os.PathLike) -> Iterator[Path]:
    """
    Gives an empty folder to write into, which takes the place of `path` when the block ends without an error.

    Args:
        path: the folder to make or to replace; its parent is made.

    Yields:
        A sibling folder of `path`. After an error it is gone and `path` is as it was.

    Example:

    ```python
    >>> with replace_folder("run/model") as folder:
    ...     model.save_pretrained(folder)
    ```
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = _beside(path, "partial"), _beside(path, "old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(partial, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
    finally:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


__all__ = ["replace_folder", "write_json", "write_text"]

# SPDX-License-Identifier: Apache-2.0
"""Files and folders: read with one error, written whole or not at all, kept from other processes."""

import ctypes
import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


# Linux's constants for renameat2: paths are relative to the working folder; two names are swapped.
AT_FDCWD, RENAME_EXCHANGE = -100, 2

LOCK = ".lock"

# More than any file of settings or records holds.
MOST_VALUES = 1_000_000


def _beside(path: Path, ending: str) -> Path:
    """A hidden sibling of `path`, of this thread: on the same file system, so that a rename is atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.{ending}")


def read_json(path: str | os.PathLike) -> Any:
    """
    Reads a JSON file, with or without a byte order mark.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ValueError: for one that is no JSON, naming it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file: {error}.") from error


def file_digest(path: str | os.PathLike) -> bytes:
    """The SHA-256 digest of a file, read in parts."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def check_extent(data: Any) -> None:
    """Raises ValueError for data of more than a million values, which a few lines of YAML can stand for."""
    waiting, number = [data], 0
    while waiting:
        number += 1
        if number > MOST_VALUES:
            raise ValueError(f"it stands for more than {MOST_VALUES:,} values")
        value = waiting.pop()
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes `data` to `path`, making its folder; readers see the old file or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path, "partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` to `path` as UTF-8, as [`write_bytes`] does."""
    write_bytes(path, text.encode("utf-8"))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Writes `data` to `path` as indented JSON, whole or not at all. NaN and infinities become null."""
    write_text(path, json.dumps(_without_nan(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _swap(first: Path, second: Path) -> bool:
    """Swaps two folders in one step, so that neither name is ever missing; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    names = os.fsencode(first), os.fsencode(second)
    return rename is not None and rename(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0


@contextmanager
def replace_folder(path: str | os.PathLike) -> Iterator[Path]:
    """
    Gives an empty folder to write into, which takes the place of `path` when the block ends without an error.

    Readers see the old folder or the new one. (Where the system cannot swap two names, which Linux can, there is an
    instant between them without either.)

    Args:
        path: folder to make or to replace; its parent is made.

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
        if not (path.exists() and _swap(partial, path)):
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


@contextmanager
def claim(path: str | os.PathLike, inside: bool = False) -> Iterator[None]:
    """
    Keeps a file or folder for this process while the block runs, by the lock `.NAME.lock` beside it.

    With `inside` it is `.lock` in the folder, for one that is written piece by piece and may be all one can write to.
    Folders that had to be made for the lock are removed where they are still empty. The system gives the lock back
    when the process ends, however it ends.

    Raises:
        FileExistsError: where another process has it.
    """
    from filelock import FileLock, Timeout

    path = Path(path).absolute()
    place = path / LOCK if inside else path.with_name(f".{path.name}{LOCK}")
    new_folders = [folder for folder in place.parents if not folder.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(
            f"Another process is writing to {path}: wait until it has ended, or name another place."
        ) from None
    try:
        yield
    finally:
        # Removed while it is still locked: later, another process could hold the lock of a file that is gone.
        with suppress(OSError):
            place.unlink()
        lock.release()
        with suppress(OSError):
            for folder in new_folders:
                folder.rmdir()


def check_new_folder(path: Path) -> None:
    """Raises NotADirectoryError for a file, and FileExistsError for a folder that is not empty."""
    if path.exists():
        if not path.is_dir():
            raise NotADirectoryError(f"{path} is a file: name a folder.")
        if any(path.iterdir()):
            raise FileExistsError(f"The folder {path} is not empty: name another one.")


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """
    Gives a folder to write into as [`replace_folder`] does, for one that is new or empty and that no other process
    writes.

    Raises:
        NotADirectoryError: for a file.
        FileExistsError: for a folder that is not empty, or that another process is writing.
    """
    path = Path(path)
    with claim(path):
        check_new_folder(path)
        with replace_folder(path) as partial:
            yield partial


__all__ = [
    "check_extent",
    "check_new_folder",
    "claim",
    "file_digest",
    "new_folder",
    "read_json",
    "replace_folder",
    "write_bytes",
    "write_json",
    "write_text",
]

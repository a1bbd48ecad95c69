# SPDX-License-Identifier: Apache-2.0
"""
Checkpoints that are whole or not there, and known to be so.

A checkpoint is written under another name, with the checksum of each of its files, brought to the disk and then
renamed; older ones are removed after that. One that has since been damaged is set aside, and the one before it used.
Nothing in a checkpoint can run code when it is read.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ascent_vit.utils.files import write_json

from .errors import writing


if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"


def checkpoints(output: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((output / "checkpoints").glob("checkpoint_*"))


def checkpoint_path(output: Path, step: int) -> Path:
    """Where the checkpoint after a number of steps belongs."""
    return output / "checkpoints" / f"checkpoint_{step:08d}"


def leftovers(folder: Path) -> list[Path]:
    """What interrupted writing left directly in a folder."""
    return [path for pattern in (".*.partial", ".*.old", "partial_*") for path in folder.glob(pattern)]


def remove_leftovers(output: Path) -> None:
    """Removes what interrupted writing left in a run's folder."""
    for folder in (output, output / "metrics", output / "checkpoints"):
        for path in leftovers(folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Brings a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksums(folder: Path) -> dict[str, str]:
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != CHECKSUMS:
            with path.open("rb") as file:
                sums[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, None if they are as they were written."""
    try:
        expected = json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8"))
        found = _checksums(checkpoint)
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS} cannot be read: {error}"
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            return f"{name} is missing" if name not in found else f"{name} is not as it was written"
    return None


def last_whole_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint without damage, None if there is none. Damaged ones are set aside, with a warning."""
    for checkpoint in reversed(checkpoints(output)):
        reason = damage(checkpoint)
        if reason is None:
            return checkpoint
        aside = checkpoint.with_name(f"damaged_{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(checkpoint, aside)
        logger.warning("The checkpoint %s is damaged (%s): it is now %s.", checkpoint, reason, aside.name)
    return None


def _remove(checkpoint: Path) -> None:
    """Removes a checkpoint, which has another name as soon as it is not whole any more."""
    doomed = checkpoint.with_name(f"partial_removed_{checkpoint.name}")
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed)


@contextmanager
def new_checkpoint(output: Path, step: int, keep: int | None, accelerator: "Accelerator") -> Iterator[Path]:
    """
    Gives all processes a folder for a checkpoint, which gets its name when the block ends without an error.

    Args:
        output: folder of the run.
        step: the number of steps made.
        keep: checkpoints to keep, the newest; None for all.
        accelerator: of the run.

    Yields:
        The folder. After an error it is gone, and all checkpoints are as they were.

    Raises:
        TrainingError: for what cannot be written.
    """
    final = checkpoint_path(output, step)
    partial = final.with_name(f"partial_{final.name}")
    main = accelerator.is_main_process
    with writing(f"The checkpoint of step {step}", output):
        try:
            if main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            accelerator.wait_for_everyone()
            yield partial
            accelerator.wait_for_everyone()
            if main:
                write_json(partial / CHECKSUMS, _checksums(partial))
                for path in (*partial.rglob("*"), partial):
                    _sync(path)
                if final.exists():
                    _remove(final)
                os.replace(partial, final)
                _sync(final.parent)
                for old in checkpoints(output)[:-keep] if keep is not None else ():
                    _remove(old)
            accelerator.wait_for_everyone()
        finally:
            if main:
                shutil.rmtree(partial, ignore_errors=True)


__all__ = [
    "checkpoint_path",
    "checkpoints",
    "damage",
    "last_whole_checkpoint",
    "leftovers",
    "new_checkpoint",
    "remove_leftovers",
]

# SPDX-License-Identifier: Apache-2.0
"""
Checkpoints that are whole or not there, and known to be so.

A checkpoint is written under another name, with the checksum of each of its files, brought to the disk and then
renamed; older ones are removed after that. One that has since been damaged is set aside, and the one before it used.
Nothing in a checkpoint can run code when it is read.

A run's checkpoint has Accelerate's part of its state, the moving average, how far the run has come and, for a stream,
where each process is in it.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import broadcast_object_list, load
from safetensors.torch import load_file, save_file

from ascent_vit.utils.files import file_digest, write_json

from .errors import TrainingError, writing
from .stream import StreamLoader


if TYPE_CHECKING:
    from accelerate import Accelerator

    from .run import Run

logger = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"


def checkpoints(output: Path) -> list[Path]:
    """Lists the checkpoints of a run, oldest first."""
    return sorted((output / "checkpoints").glob("checkpoint_*"))


def checkpoint_path(output: Path, step: int) -> Path:
    """Names the folder of the checkpoint after a number of steps."""
    return output / "checkpoints" / f"checkpoint_{step:08d}"


def leftovers(folder: Path) -> list[Path]:
    """Lists what interrupted writing left directly in a folder."""
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
            sums[path.relative_to(folder).as_posix()] = file_digest(path).hex()
    return sums


def damage(checkpoint: Path) -> str | None:
    """Says what is wrong with a checkpoint's files, None if they are as they were written."""
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
    """Finds the newest whole checkpoint, None if there is none. Damaged ones are set aside, with a warning."""
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
        step: number of optimiser steps made.
        keep: number of checkpoints to keep, the newest; None for all.
        accelerator: accelerator of the run.

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


def save_checkpoint(run: "Run") -> None:
    """Writes a checkpoint of a run, whose weights are checked to be finite first."""
    accelerator, progress = run.accelerator, run.progress
    run.guard.check_gradient()
    with new_checkpoint(run.output, progress.step, run.recipe.save_total_limit, accelerator) as folder:
        accelerator.save_state(str(folder))
        if isinstance(run.loader, StreamLoader):
            write_json(folder / f"stream_{accelerator.process_index}.json", run.loader.state_dict())
        if accelerator.is_main_process:
            if run.average is not None:
                save_file(run.average.state_dict(), folder / "average.safetensors")
            state = {"num_processes": accelerator.num_processes, "progress": progress.state_dict()}
            write_json(folder / "progress.json", state)


def load_checkpoint(run: "Run", folder: Path) -> None:
    """
    Brings a run to the state of a checkpoint.

    Raises:
        ValueError: for a checkpoint of another number of processes.
        TrainingError: for random states that cannot be read.
    """
    accelerator = run.accelerator
    saved = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    if saved["num_processes"] != accelerator.num_processes:
        raise ValueError(
            f"The run in {run.output} has {saved['num_processes']} processes and cannot be resumed with "
            f"{accelerator.num_processes}: start as many."
        )
    accelerator.load_state(str(folder))
    # Accelerate goes on without a word where it cannot read them.
    random_states = load(folder / f"random_states_{accelerator.process_index}.pkl")
    if not torch.equal(random_states["torch_manual_seed"], torch.get_rng_state()):
        raise TrainingError(f"The random states in {folder} cannot be read by the installed packages.")
    run.progress.load_state_dict(saved["progress"])
    if run.average is not None:
        run.average.load_state_dict(load_file(folder / "average.safetensors"))
    if isinstance(run.loader, StreamLoader):
        state = folder / f"stream_{accelerator.process_index}.json"
        run.loader.load_state_dict(json.loads(state.read_text(encoding="utf-8")))


def resume_run(run: "Run") -> None:
    """Brings a run to its newest checkpoint that is whole; leaves it at the start if there is none."""
    accelerator, progress = run.accelerator, run.progress
    found: list[Path | None] = [None]
    if accelerator.is_main_process:
        remove_leftovers(run.output)
        found = [last_whole_checkpoint(run.output)]
    folder = broadcast_object_list(found)[0]
    if folder is not None:
        load_checkpoint(run, folder)
    run.finished = progress.step == run.plan.total_steps and (run.output / "metrics.json").is_file()
    # What an interruption between a checkpoint and its model left out.
    if folder is not None and progress.best_step == progress.step and not run.finished:
        run.save_model()
    if accelerator.is_main_process:
        logger.info("Resuming at step %d of %d.", progress.step, run.plan.total_steps)


__all__ = [
    "checkpoint_path",
    "checkpoints",
    "damage",
    "last_whole_checkpoint",
    "leftovers",
    "load_checkpoint",
    "new_checkpoint",
    "remove_leftovers",
    "resume_run",
    "save_checkpoint",
]

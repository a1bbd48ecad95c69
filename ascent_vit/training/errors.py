# SPDX-License-Identifier: Apache-2.0
"""What ends a run whose input was valid."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError


class TrainingError(RuntimeError):
    """Training cannot go on, though its input was valid."""


@contextmanager
def writing(what: str, folder: str | os.PathLike) -> Iterator[None]:
    """
    Turns the many errors of a full or broken disk into one sentence.

    Args:
        what: name of what is being written, the subject of the error's sentence.
        folder: folder of the run.

    Raises:
        TrainingError: for an error of the system, of torch's file writer, or of safetensors.
    """
    try:
        yield
    except TrainingError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        if "inline_container.cc" in reason or "PytorchStreamWriter" in reason:
            reason = "the file system took no more bytes"
        raise TrainingError(
            f"{what} could not be written to {folder}: {reason}. What was there before is whole: free space, or mend "
            "the disk, and go on with --resume."
        ) from error


__all__ = ["TrainingError", "writing"]

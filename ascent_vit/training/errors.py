# SPDX-License-Identifier: Apache-2.0
"""What ends a run: input that turns out not to serve, and what goes wrong with input that was valid."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from ascent_vit.utils.metrics import EPOCH_METRICS


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


def check_best_metric(name: str | None, metrics: Collection[str]) -> None:
    """Checks that the metric that chooses the weights, if any, is one of validation; ValueError otherwise."""
    if name is not None and name not in metrics:
        raise ValueError(
            f"metric_for_best_model: {name} is not among the metrics of the validation split, which are "
            f"{', '.join(known for known in EPOCH_METRICS if known in metrics)}."
        )


__all__ = ["TrainingError", "check_best_metric", "writing"]

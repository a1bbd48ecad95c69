# SPDX-License-Identifier: Apache-2.0
"""Watching a run: what goes to a tracker, and when it has to stop."""

import importlib.util
import math
import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import TrainingError
from .recipe import Recipe


if TYPE_CHECKING:
    from accelerate import Accelerator

# Images of which concept maps are drawn after each epoch.
WATCHED_IMAGES = 4

# A loss so many times that of the first batch has exploded; one of less than 1 counts as 1.
EXPLOSION = 1000.0


def check_tracker(report_to: str) -> None:
    """ValueError where the package of a tracker is missing."""
    package = {"none": "torch"}.get(report_to, report_to)
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"report_to: {report_to} needs a package that is not installed: pip install {package}.")


def broken_term(losses: dict[str, float], first_loss: float) -> str | None:
    """
    What is wrong with the loss of a batch, None if nothing is.

    Args:
        losses: `loss` and its terms.
        first_loss: of the run's first batch.

    Returns:
        The term that is not finite, or the largest one of a loss that has exploded, with its value.
    """
    terms = {name: value for name, value in losses.items() if name != "loss"} or losses
    infinite = [name for name, value in (terms | losses).items() if not math.isfinite(value)]
    if infinite:
        return f"{infinite[0]} is {losses[infinite[0]]}"
    if losses["loss"] <= EXPLOSION * max(1.0, first_loss):
        return None
    largest = max(terms, key=lambda name: terms[name])
    return f"{largest} is {losses[largest]:.4g}, after a first loss of {first_loss:.4g}"


def diverged(step: int, reason: str, rows: str) -> TrainingError:
    """The error for a step at which a run has to stop, and the rows that it was taking."""
    return TrainingError(
        f"Training diverged at step {step}: {reason}, in the batch of {rows}. Look at these images, lower "
        "learning_rate or max_grad_norm, lengthen warmup_epochs, or use mixed_precision: no."
    )


class Watcher:
    """
    Sends values and pictures to the tracker of a recipe; does nothing without one.

    Args:
        accelerator: of the run.
        recipe: names tracker and run.
        output: folder of the run, in which everything is written.
        split: whose first images are drawn after each epoch; None for none.
    """

    def __init__(self, accelerator: "Accelerator", recipe: Recipe, output: Path, split: Any | None):
        self.accelerator, self.recipe, self.output = accelerator, recipe, output
        self.active = recipe.report_to != "none"
        drawn = split if split is not None and self.active and accelerator.is_main_process else ()
        self.images = [row["image"] for row in islice(drawn, WATCHED_IMAGES)]

    def start(self, values: dict[str, Any], step: int) -> None:
        """
        Opens the tracker.

        Args:
            values: of the run, kept as its hyper-parameters if they are plain.
            step: that the run goes on from; what an interrupted run recorded after it is dropped where that can be.
        """
        if not self.active:
            return
        # Read when trackio is imported.
        os.environ.setdefault("TRACKIO_DIR", str((self.output / "logs" / "trackio").resolve()))
        options: dict[str, dict[str, Any]] = {"tensorboard": {}, "trackio": {}}
        if step:
            options = {"tensorboard": {"purge_step": step + 1}, "trackio": {"resume": "allow"}}
        options["trackio"]["name"] = self.recipe.name
        plain = {key: value for key, value in values.items() if isinstance(value, int | float | str)}
        self.accelerator.init_trackers(self.recipe.name, None if step else plain, init_kwargs=options)

    def log(self, values: dict[str, float], step: int) -> None:
        """Records values of a step."""
        if self.active:
            self.accelerator.log(values, step=step)

    def log_concepts(self, model: Any, processor: Any, step: int) -> None:
        """Records what the model says of the watched images, and where it sees which concepts."""
        if not self.images:
            return
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        from ascent_vit.explanation import explain

        for number, explanation in enumerate(explain(model, processor, self.images)):
            canvas = FigureCanvasAgg(explanation.plot())
            canvas.draw()
            self._log_picture(f"concepts/image_{number}", np.asarray(canvas.buffer_rgba())[..., :3], step)

    def _log_picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: pixels[None]}, step=step, dataformats="NHWC")
            else:
                import trackio

                tracker.log({name: trackio.Image(pixels)}, step=step)


__all__ = ["Watcher", "broken_term", "check_tracker", "diverged"]

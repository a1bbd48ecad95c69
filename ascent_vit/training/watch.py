# SPDX-License-Identifier: Apache-2.0
"""Watching a run: what goes to a tracker."""

import importlib.util
import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from accelerate import Accelerator

    from ascent_vit.inference.protocols import ConceptClassifier, ConceptImageProcessor

    from .recipe import Recipe

# Images of which concept maps are drawn after each epoch.
WATCHED_IMAGES = 4


def check_tracker(report_to: str) -> None:
    """Checks that the package of a tracker is installed; ValueError where it is not."""
    package = {"none": "torch"}.get(report_to, report_to)
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"report_to: {report_to} needs a package that is not installed: pip install {package}.")


class Watcher:
    """
    Sends values and pictures to the tracker of a recipe; does nothing without one.

    Args:
        accelerator: accelerator of the run.
        recipe: recipe of the run, which names the tracker and the run.
        output: folder of the run, in which everything is written.
        split: split whose first images are drawn after each epoch; None for none.
    """

    def __init__(self, accelerator: "Accelerator", recipe: "Recipe", output: Path, split: Any | None):
        self.accelerator, self.recipe, self.output = accelerator, recipe, output
        self.active = recipe.report_to != "none"
        drawn = split if split is not None and self.active and accelerator.is_main_process else ()
        self.images = [row["image"] for row in islice(drawn, WATCHED_IMAGES)]

    def start(self, values: dict[str, Any], step: int) -> None:
        """
        Opens the tracker.

        Args:
            values: settings of the run, kept as its hyper-parameters if they are plain.
            step: step that the run goes on from; what an interrupted run recorded after it is dropped where that can
                be.
        """
        if not self.active:
            return
        # Set now, as trackio reads it when it is imported.
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

    def log_concepts(self, model: "ConceptClassifier", processor: "ConceptImageProcessor", step: int) -> None:
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


__all__ = ["Watcher", "check_tracker"]

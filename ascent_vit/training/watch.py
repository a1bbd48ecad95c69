# SPDX-License-Identifier: Apache-2.0
"""Watching a run: what goes to its trackers."""

import importlib.util
import json
import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ascent_vit.utils.files import read_json, write_json


if TYPE_CHECKING:
    from accelerate import Accelerator

    from ascent_vit.inference.protocols import ConceptClassifier, ConceptImageProcessor

    from .recipe import Recipe

# Images of which concept maps are drawn after each epoch.
WATCHED_IMAGES = 4


def check_trackers(names: list[str]) -> None:
    """Checks that the packages of trackers are installed, and logs in where needed; ValueError where that fails."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"report_to: {name} needs a package that is not installed: pip install {name}.")
    if "wandb" in names and os.environ.get("RANK", "0") == "0":
        import wandb

        if wandb.setup().settings.mode != "online":
            return
        try:
            reason = None if wandb.login() else "there is no API key"
        except Exception as error:  # Its own kinds, and those of the network below it.
            reason = _in_one_line(error)
        if reason:
            raise ValueError(f"report_to: wandb cannot log in ({reason}): run wandb login, or set WANDB_MODE=offline.")


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings without mappings in them: keys as `--set` takes them, `model.psi`, and lists as JSON."""
    plain: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            plain |= flat(value, f"{prefix}{key}.")
        else:
            plain[prefix + key] = json.dumps(value) if isinstance(value, list | tuple) else value
    return plain


class Watcher:
    """
    Sends values and pictures to the trackers of a recipe; does nothing without one. As a context it ends them when the
    run fails.

    Args:
        accelerator: accelerator of the run.
        recipe: recipe of the run, which names the trackers and the run.
        output: folder of the run, in which everything is written.
        split: split whose first images are drawn after each epoch; None for none.
    """

    def __init__(self, accelerator: "Accelerator", recipe: "Recipe", output: Path, split: Any | None):
        self.accelerator, self.recipe, self.output = accelerator, recipe, output
        self.active, self.has_store = bool(recipe.trackers), False
        drawn = split if split is not None and self.active and accelerator.is_main_process else ()
        self.images = [row["image"] for row in islice(drawn, WATCHED_IMAGES)]

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is not None and self.accelerator.is_main_process:
            for tracker in self.accelerator.trackers:
                if tracker.name == "mlflow":
                    import mlflow

                    mlflow.end_run("FAILED")
                elif tracker.name == "wandb":
                    tracker.tracker.finish(exit_code=1)
                else:
                    tracker.finish()
        if self.has_store:
            import mlflow

            # The next run of this process has a store of its own.
            mlflow.set_tracking_uri(None)

    def start(self, values: dict[str, Any], step: int) -> None:
        """
        Opens the trackers.

        Args:
            values: settings of the run, kept as its hyper-parameters.
            step: step that the run goes on from; what an interrupted run recorded after it is dropped where that can
                be.

        Raises:
            ValueError: for a tracker that cannot be opened.
        """
        if not self.active:
            return
        logs = (self.output / "logs").resolve()
        runs = logs / "runs.json"
        # Set now, as trackio reads it when it is imported.
        os.environ.setdefault("TRACKIO_DIR", str(logs / "trackio"))
        known = read_json(runs) if step and runs.is_file() else {}
        options = self._options(logs, step, known)
        try:
            self.accelerator.init_trackers(self.recipe.name, None if step else flat(values), init_kwargs=options)
        except OSError:
            raise
        except Exception as error:  # Each tracker has errors of its own.
            names = ", ".join(self.recipe.trackers)
            raise ValueError(f"report_to: {names} cannot be opened: {_in_one_line(error)}.") from error
        if self.accelerator.is_main_process:
            started = {tracker.name: tracker.tracker for tracker in self.accelerator.trackers}
            ids = {"wandb": lambda run: run.id, "mlflow": lambda run: run.info.run_id}
            write_json(runs, {name: ids[name](run) for name, run in started.items() if name in ids})

    def _options(self, logs: Path, step: int, known: dict[str, str]) -> dict[str, dict[str, Any]]:
        """Arguments of each tracker, by which it writes into the run's folder, and goes on with the run it knows."""
        name = self.output.resolve().name
        options: dict[str, dict[str, Any]] = {
            "tensorboard": {"purge_step": step + 1} if step else {},
            "trackio": {"name": self.recipe.name, "resume": "allow" if step else "never"},
            "wandb": {"name": name, "dir": str(logs)},
            "mlflow": {"run_name": name, "run_id": known.get("mlflow")},
        }
        if "wandb" in known:
            options["wandb"] |= {"id": known["wandb"], "resume": "allow"}
        if "mlflow" in self.recipe.trackers and self.accelerator.is_main_process:
            import mlflow

            logs.mkdir(parents=True, exist_ok=True)
            # A server of the user's goes before.
            if not mlflow.is_tracking_uri_set():
                mlflow.set_tracking_uri(f"sqlite:///{logs / 'mlflow.db'}")
                options["mlflow"]["logging_dir"], self.has_store = (logs / "mlflow").as_uri(), True
        return options

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
            elif tracker.name == "wandb":
                tracker.log_images({name: [pixels]}, step=step)
            elif tracker.name == "mlflow":
                import mlflow

                mlflow.log_image(pixels, key=name, step=step)
            else:
                import trackio

                tracker.log({name: trackio.Image(pixels)}, step=step)


__all__ = ["Watcher", "check_trackers"]

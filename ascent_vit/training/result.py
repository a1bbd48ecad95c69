# SPDX-License-Identifier: Apache-2.0
"""What a run gave: the metrics of its best weights, and the report."""

import dataclasses
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ascent_vit.evaluation import evaluate
from ascent_vit.utils.files import write_json
from ascent_vit.utils.versions import versions

from .errors import writing
from .report import write_report


if TYPE_CHECKING:
    from .run import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """
    What a run gave.

    Args:
        model_dir: folder with the best weights, their configuration and image processor, as the Hub holds them.
        metrics: metrics of the best weights on `split`, as in `metrics.json`.
        split: "test", or "validation" where the dataset has no test split; None, without metrics, for neither.
        best_epoch: epoch whose weights were the best on the validation split, counted from 1; the last one where
            there is none.
        steps: number of optimiser steps made.
    """

    model_dir: Path
    metrics: dict[str, float]
    split: str | None
    best_epoch: int
    steps: int


def facts_of(run: "Run", split: str | None) -> dict[str, Any]:
    """Gathers plain values of a run, as they stand in `metrics.json` beside the metrics of a split."""
    accelerator, recipe, progress = run.accelerator, run.recipe, run.progress
    images = progress.step * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    images *= accelerator.num_processes
    return {
        "split": split,
        "recipe": recipe.name,
        "dataset": run.data.name,
        "seed": recipe.seed,
        "steps": progress.step,
        "best_epoch": progress.best_epoch,
        "best_metric": recipe.best_metric,
        "best_validation_value": progress.best_value,
        "num_parameters": run.num_parameters,
        "num_train_images": run.data.num_images,
        "num_processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "setup_seconds": run.setup_seconds,
        "train_seconds": progress.train_seconds,
        "evaluation_seconds": run.evaluation_seconds,
        "train_images_per_second": images / progress.train_seconds if progress.train_seconds else None,
        **versions(),
    }


def write_results(run: "Run", metrics: dict[str, float], facts: dict[str, Any]) -> None:
    """Writes the report and, last, `metrics.json`, by which a run is known to be finished."""
    epochs = sorted((run.output / "metrics").glob("epoch_*.json"))
    report = {
        "metrics": metrics,
        **facts,
        "validation_seed": run.recipe.seed,
        "step_plan": dataclasses.asdict(run.plan),
        "recipe_values": dataclasses.asdict(run.recipe),
        "epochs": [json.loads(path.read_text(encoding="utf-8")) for path in epochs],
        "history": run.progress.history,
    }
    with writing("The report", run.output):
        write_report(run.output, report)
        write_json(run.output / "metrics.json", metrics | facts)


def finish(run: "Run") -> TrainingResult:
    """Evaluates the best weights as they were saved, and writes the results; those of a finished run are read."""
    accelerator, progress = run.accelerator, run.progress
    if run.finished:
        if accelerator.is_main_process:
            logger.info("The run in %s is finished already.", run.output)
        report = json.loads((run.output / "report.json").read_text(encoding="utf-8"))
        accelerator.end_training()
        values = (report[name] for name in ("metrics", "split", "best_epoch", "steps"))
        return TrainingResult(run.model_dir, *values)
    model = run.model_class.from_pretrained(run.model_dir).to(accelerator.device)  # type: ignore[attr-defined]
    loaders = {"test": run.test_loader, "validation": run.validation_loader}
    split, loader = next((item for item in loaders.items() if item[1] is not None), (None, None))
    start = time.perf_counter()
    metrics = {} if loader is None else evaluate(model, loader, accelerator, progress=True)
    run.evaluation_seconds += time.perf_counter() - start
    if split == "test":
        run.watcher.log({f"test/{key}": value for key, value in metrics.items()}, progress.step)
    if accelerator.is_main_process:
        write_results(run, metrics, facts_of(run, split))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return TrainingResult(run.model_dir, metrics, split, progress.best_epoch, progress.step)


__all__ = ["TrainingResult", "finish"]

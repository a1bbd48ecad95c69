# SPDX-License-Identifier: Apache-2.0
"""A training run: what it is made of, and how far it has come."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ascent_vit.utils.files import replace_folder

from .errors import writing
from .report import LOSSES
from .sharding import is_sharded, whole_model


if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch.optim.swa_utils import AveragedModel

    from ascent_vit.inference.protocols import ConceptClassifier, ConceptImageProcessor

    from .divergence import DivergenceGuard
    from .features import CachedTokens
    from .optimisation import Freezer, StepPlan
    from .recipe import Recipe
    from .watch import Watcher


@dataclass
class Progress:
    """
    How far a run has come; saved in every checkpoint, as plain values.

    Args:
        step: number of optimiser steps made.
        best_value: best value so far of the metric that chooses the weights; None before the first.
        best_epoch: epoch with that value, counted from 1.
        best_step: number of steps made by its end.
        train_seconds: time spent in steps.
        first_loss: loss of the first batch.
        sums: sum of each loss term over the batches since the last evaluation.
        num_batches: number of these batches.
        history: records of `report.HISTORY`, one every `logging_steps` steps.
    """

    step: int = 0
    best_value: float | None = None
    best_epoch: int = 0
    best_step: int = 0
    train_seconds: float = 0.0
    first_loss: float | None = None
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LOSSES, 0.0))
    num_batches: int = 0
    history: list[list[float | None]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


@dataclass(frozen=True)
class RunData:
    """
    The dataset of a run.

    Args:
        name: Hub id or folder of the dataset, for the records.
        train: split to train on.
        validation: split that chooses the weights to keep; None for a run without.
        test: split that the kept weights are evaluated on; None for a run without.
        names: names of classes, or of values, and of global and spatial concepts.
        problem: what is predicted, by transformers' name.
        validation_is_cut: whether `validation` was cut from the dataset's train split.
    """

    name: str
    train: Any
    validation: Any | None
    test: Any | None
    names: tuple[list[str], list[str], list[str]]
    problem: str
    validation_is_cut: bool

    @property
    def num_images(self) -> int | None:
        """Number of images to train on, None for a stream."""
        return len(self.train) if hasattr(self.train, "__len__") else None


@dataclass
class Run:
    """
    The parts of a run, as [`~ascent_vit.training.setup.set_up`] makes them.

    Args:
        recipe: recipe of the run, its mixed precision resolved.
        output: folder for everything that the run writes.
        accelerator: accelerator that has prepared model, optimiser and loaders.
        data: splits of the dataset.
        plan: numbers of steps.
        processor: the model's image processor.
        model_class: class of the model before the accelerator wrapped it.
        num_parameters: number of the model's parameters.
        freezer: switch for the gradients of the backbone.
        average: moving average of the weights; None without `ema_decay`.
        model: the model, as the accelerator wrapped it.
        optimizer: the optimiser.
        scheduler: schedule of the learning rate.
        loader: batches to train on.
        validation_loader: batches of the validation split; None without one.
        test_loader: batches of the test split; None without one.
        guard: stops the run when it diverges.
        watcher: sends values and pictures to the trackers.
        features: tokens of the frozen backbone in a file; None where it computes them.
        progress: how far the run has come.
        finished: whether the run had been finished before it was resumed.
        setup_seconds: time spent on making these parts.
        evaluation_seconds: time spent on evaluation.
    """

    recipe: "Recipe"
    output: Path
    accelerator: "Accelerator"
    data: RunData
    plan: "StepPlan"
    processor: "ConceptImageProcessor"
    model_class: type
    num_parameters: int
    freezer: "Freezer"
    average: "AveragedModel | None"
    model: Any
    optimizer: "torch.optim.Optimizer"
    scheduler: Any
    loader: Any
    validation_loader: Any | None
    test_loader: Any | None
    guard: "DivergenceGuard"
    watcher: "Watcher"
    features: "CachedTokens | None" = None
    progress: Progress = field(default_factory=Progress)
    finished: bool = False
    setup_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    @property
    def kept_model(self) -> "ConceptClassifier":
        """The weights to evaluate and to save: the moving average where there is one."""
        if is_sharded(self.accelerator):
            return whole_model(self.model_class, self.model)
        kept: Any = self.model if self.average is None else self.average.module
        return self.accelerator.unwrap_model(kept)

    @property
    def model_dir(self) -> Path:
        """Folder of the weights that are kept."""
        return self.output / "model"

    def save_model(self) -> None:
        """Writes the weights to evaluate as the run's model."""
        with writing("The model", self.output):
            model = self.kept_model
            if self.accelerator.is_main_process:
                with replace_folder(self.model_dir) as folder:
                    model.save_pretrained(folder)
                    self.processor.save_pretrained(folder)
        self.accelerator.wait_for_everyone()


__all__ = ["Progress", "Run", "RunData"]

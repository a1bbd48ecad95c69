# SPDX-License-Identifier: Apache-2.0
"""When a run has to stop: a loss or gradient that is not finite, or a loss that explodes."""

import math
from itertools import islice
from typing import TYPE_CHECKING, Any

from .errors import TrainingError
from .stream import StreamLoader


if TYPE_CHECKING:
    import torch

    from .recipe import Recipe

# A loss so many times that of the first batch has exploded; a first loss below 1 counts as 1.
EXPLOSION = 1000.0

# Epoch and place of a batch, and, of a stream, the places of its rows.
TakenBatch = tuple[int, int, list[list[int]]]


def broken_term(losses: dict[str, float], first_loss: float) -> str | None:
    """
    Says what is wrong with the loss of a batch, None if nothing is.

    Args:
        losses: `loss` and its terms.
        first_loss: loss of the run's first batch.

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
    """Makes the error for a step at which a run has to stop, with the rows that it was taking."""
    return TrainingError(
        f"Training diverged at step {step}: {reason}, in the batch of {rows}. Look at these images, lower "
        "learning_rate or max_grad_norm, lengthen warmup_epochs, or use mixed_precision: no."
    )


class DivergenceGuard:
    """
    Stops a run that diverges, and names the rows of the batches at which it did.

    Args:
        loader: batches to train on, prepared by the accelerator.
        recipe: recipe of the run.
        validation_is_cut: whether the validation split was cut from the dataset's train split.
        num_images: number of images in the train split, of which the loader may have several views; None for a stream.
    """

    def __init__(self, loader: Any, recipe: "Recipe", validation_is_cut: bool, num_images: int | None):
        self.loader, self.recipe, self.validation_is_cut = loader, recipe, validation_is_cut
        self.num_images = num_images
        # The batches of the step that is being made, and the gradient of the last one with its step and batches.
        self.taken: list[TakenBatch] = []
        self.gradient: tuple[torch.Tensor, int, list[TakenBatch]] | None = None

    def take_batch(self, epoch: int, place: int) -> None:
        """Remembers the batch that the loader gave last."""
        self.taken.append((epoch, place, getattr(self.loader, "rows", [])))

    def take_gradient(self, norm: "torch.Tensor", step: int) -> None:
        """Remembers the norm of a step's gradient, to be checked when reading it costs no wait for the device."""
        self.gradient = (norm, step, self.taken)

    def end_step(self) -> None:
        """Ends a step: the batches that come next are of a new one."""
        self.taken = []

    def check_losses(self, losses: dict[str, float], first_loss: float, step: int) -> None:
        """Checks the loss of the last batch; TrainingError if it is not finite, or has exploded."""
        reason = broken_term(losses, first_loss)
        if reason is not None:
            raise diverged(step, reason, self.name_rows(self.taken[-1:]))

    def check_gradient(self) -> None:
        """Checks the last step's gradient; TrainingError if it is not finite. With fp16 such a step is skipped."""
        if self.gradient is None:
            return
        norm, step, batches = self.gradient
        self.gradient = None
        if self.recipe.mixed_precision != "fp16" and not math.isfinite(norm):
            raise diverged(step, f"the gradient is {float(norm)}", self.name_rows(batches))

    def name_rows(self, batches: list[TakenBatch]) -> str:
        """Names the rows of batches of this process, in words."""
        if isinstance(self.loader, StreamLoader):
            rows = [f"row {row} of shard {shard}" for _, _, places in batches for _, shard, row in places]
            return f"{', '.join(rows)}, counted from 0, of the streamed train split"
        indices: list[Any] = []
        for epoch, place, _ in batches:
            self.loader.set_epoch(epoch)
            indices += next(islice(self.loader.batch_sampler, place, None))
        rows = [str(index[1] if isinstance(index, tuple) else index % self.num_images) for index in indices]
        cut = ", from which the validation split has been cut" if self.validation_is_cut else ""
        return f"rows {', '.join(rows)}, counted from 0, of the train split{cut}"


__all__ = ["DivergenceGuard", "broken_term"]

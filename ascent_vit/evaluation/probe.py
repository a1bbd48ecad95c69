# SPDX-License-Identifier: Apache-2.0
"""What evaluators share that look at a model image by image, through changed images, overrides or weights."""

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ascent_vit.inference.mode import evaluation_mode, input_kind

from .errors import NotApplicableError
from .samples import EvaluatorSample, column_means


if TYPE_CHECKING:
    from accelerate import Accelerator

    from ascent_vit.inference.protocols import ConceptClassifier

    # Values of each image of a batch, (B, columns), NaN where an image cannot be judged: of the bare model, the pixels
    # as the dataloader gave them, and the batch.
    Measure = Callable[[ConceptClassifier, Tensor, dict[str, Tensor]], Tensor]


# Small images go in larger batches, in which a layer costs less: as many as have so many pixels.
LARGEST_BATCH, BATCH_PIXELS = 96, 2**18


def images_at_once(batch_size: int, image_size: Sequence[int]) -> int:
    """Number of images per forward pass: those asked for, and more where images of so many pixels are small."""
    return max(batch_size, min(LARGEST_BATCH, BATCH_PIXELS // math.prod(image_size)))


def choose_subset(number: int, images: int, seed: int) -> list[int]:
    """Draws the indices of at most `images` of `number` images by a seed, ascending: the same in every process."""
    return np.sort(np.random.default_rng(seed).permutation(number)[:images]).tolist()


def random_ranks(pixel_values: Tensor, number: int, seed: int) -> Tensor:
    """
    Draws a random order of `number` things for each image, `(B, number)`: the rank of each, 0 first.

    It is drawn from the seed and the image's pixels, so that it depends neither on the batch nor on the process.
    """
    orders = []
    for image in pixel_values.cpu().float().numpy():
        generator = np.random.default_rng([seed, zlib.crc32(image.tobytes())])
        orders.append(generator.permutation(number))
    return torch.from_numpy(np.stack(orders)).to(pixel_values.device)


def descending_ranks(scores: Tensor, ties: Tensor) -> Tensor:
    """Ranks scores `(B, n)`, 0 for the greatest; equal ones in the order of the ranks `ties`."""
    order = ties.argsort(-1)
    order = order.gather(-1, scores.gather(-1, order).argsort(dim=-1, descending=True, stable=True))
    return order.argsort(-1)


class RowsOfImages(Metric):
    """Values of images, a row each, gathered from all processes that bring their own."""

    is_differentiable = False
    full_state_update = False
    rows: list[Tensor]

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, values: Tensor):
        """Adds values (B, columns), a row per image."""
        self.rows.append(values)

    def compute(self) -> Tensor:
        """All rows, (images, columns)."""
        return dim_zero_cat(self.rows)


class TokenMemory:
    """
    Tokens of batches that are given again, up to a number of bytes.

    Args:
        most_bytes: bytes of tokens to keep, at most.
    """

    def __init__(self, most_bytes: int):
        self.most_bytes = most_bytes
        self.batch: Tensor | None = None
        self.kept: dict[int, Remembered] = {}

    def find(self, pixel_values: Tensor, options: dict[str, Any]) -> "Remembered | None":
        found = self.kept.get(id(pixel_values))
        return found if found is not None and found.serves(pixel_values, options) else None

    def keep(self, remembered: "Remembered"):
        """Keeps the tokens if they are of the batch that is measured, and if there is room."""
        if remembered.pixel_values is not self.batch:
            return
        size = sum(tensor.nbytes for tensor in remembered.output.values() if isinstance(tensor, Tensor))
        if size <= self.most_bytes:
            self.most_bytes -= size
            self.kept[id(remembered.pixel_values)] = remembered


@dataclass(frozen=True, eq=False)
class Remembered:
    """What a model made of pixels, in the version that they had, with options of its forward."""

    pixel_values: Tensor
    version: int
    options: dict[str, Any]
    output: Any

    def serves(self, pixel_values: Tensor, options: dict[str, Any]) -> bool:
        return self.pixel_values is pixel_values and (pixel_values._version, options) == (self.version, self.options)


@contextmanager
def remembered_tokens(model: "ConceptClassifier", memory: TokenMemory | None = None) -> Iterator[None]:
    """
    Lets a model compute the tokens of images once, for as long as the same tensor of pixels is given, and those of the
    memory's batches once for all.

    Overrides of concepts, and what is asked of the outputs, change only what the model makes of the tokens. The rest
    of its behaviour, and its own `forward`, are as before. A compiled model computes them each time.
    """
    encoder: Any = getattr(model, "ascent_vit", None)
    if encoder is None or getattr(model, "_compiled_call_impl", None) is not None:
        yield
        return
    own, compute = encoder.__dict__.get("forward"), encoder.forward
    memory = memory or TokenMemory(0)
    last: Remembered | None = None

    def forward(pixel_values: Tensor, **options: Any) -> Any:
        nonlocal last
        if last is None or not last.serves(pixel_values, options):
            last = memory.find(pixel_values, options)
        if last is None:
            version = pixel_values._version
            last = Remembered(pixel_values, version, options, compute(pixel_values, **options))
            memory.keep(last)
        return last.output

    encoder.forward = forward
    try:
        yield
    finally:
        del encoder.forward
        if own is not None:
            encoder.forward = own


def rows_of_images(
    model: "ConceptClassifier",
    dataloader: Iterable[dict[str, Tensor]],
    measure: "Measure",
    accelerator: "Accelerator | None" = None,
    progress: bool = False,
    description: str = "Evaluating",
) -> np.ndarray:
    """
    Measures every image of a dataloader, in as many processes as there are.

    Args:
        model: model to measure, put into evaluation mode for the time.
        dataloader: batches as [`evaluate`] takes them, perhaps with a `memory` of their tokens.
        measure: function that gives a batch's values.
        accelerator: accelerator that prepared `dataloader`; see [`evaluate`].
        progress: whether to show a progress bar.
        description: text of the progress bar.

    Returns:
        Values (images, columns) in float64, in the order of the images, the same in every process.

    Raises:
        ValueError: for a dataloader without images.
    """
    from tqdm.auto import tqdm

    bare_model = model if accelerator is None else accelerator.unwrap_model(model)
    device, _ = input_kind(bare_model)
    rows = RowsOfImages(sync_on_compute=accelerator is None)
    hidden = not progress or not (accelerator is None or accelerator.is_local_main_process)
    memory: TokenMemory = getattr(dataloader, "memory", None) or TokenMemory(0)
    with evaluation_mode(bare_model), remembered_tokens(bare_model, memory):
        for batch in tqdm(dataloader, desc=description, unit="batch", disable=hidden):
            pixels = batch["pixel_values"].to(device)
            # Pixels that are moved to the device each time are never given again.
            memory.batch = pixels if pixels is batch["pixel_values"] else None
            values = measure(bare_model, pixels, batch).to(device)
            if accelerator is not None:
                values = accelerator.gather_for_metrics(values)
            rows.update(values.cpu())
    if not rows.update_called:
        raise ValueError("The dataloader gave no images: evaluate a split that has some.")
    return rows.compute().double().numpy()


def check_counts(**values: int) -> None:
    """Checks that all values are 1 or more; ValueError naming the first that is not."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be 1 or more; got {value}.")


class ImageEvaluator(ABC):
    """
    Evaluates a model image by image, through changed images, overrides or weights. Base of the evaluators.

    Attributes:
        description: name of the evaluator, in progress bars and sentences.
        count_name: name of the number of images among the results.
        needs_maps: whether it judges maps of spatial concepts, and so only models that have some.
        primary_metric: name of the result that stands for all.
        greater_is_better: whether a greater value of it is better.
    """

    description: ClassVar[str]
    count_name: ClassVar[str]
    needs_maps: ClassVar[bool] = True
    primary_metric: ClassVar[str]
    greater_is_better: ClassVar[bool] = True

    @abstractmethod
    def measurement(self, model: "ConceptClassifier") -> "tuple[Sequence[str], Measure]":
        """Says what to measure of an image with a bare model: names of the columns and a function that gives them."""

    def results(self, names: Sequence[str], means: list[float], counts: list[int]) -> dict[str, Any]:
        """Names the results, from the mean of each column and the number of images in it."""
        return dict(zip(names, means, strict=True)) | {self.count_name: counts[0]}

    def __call__(
        self,
        model: "ConceptClassifier",
        dataloader: Iterable[dict[str, Tensor]],
        accelerator: "Accelerator | None" = None,
        progress: bool = False,
    ) -> dict[str, Any]:
        """
        Evaluates a model.

        Args:
            model, dataloader, accelerator, progress: arguments of [`evaluate`].

        Returns:
            `dict`: the results by name, the same in every process.

        Raises:
            NotApplicableError: for a model or images that cannot be judged.
        """
        return self.sample(model, dataloader, accelerator, progress).values()

    def sample(
        self,
        model: "ConceptClassifier",
        dataloader: Iterable[dict[str, Tensor]],
        accelerator: "Accelerator | None" = None,
        progress: bool = False,
    ) -> EvaluatorSample:
        """Measures a model image by image. Arguments and errors are those of a call."""
        bare_model = model if accelerator is None else accelerator.unwrap_model(model)
        if self.needs_maps and not bare_model.config.num_spatial_concepts:
            raise NotApplicableError(f"{self.description} needs maps, and the model has no spatial concepts")
        names, measure = self.measurement(bare_model)
        rows = rows_of_images(model, dataloader, measure, accelerator, progress, self.description)
        return EvaluatorSample(self, names, rows)


__all__ = ["ImageEvaluator", "NotApplicableError", "choose_subset", "column_means", "rows_of_images"]

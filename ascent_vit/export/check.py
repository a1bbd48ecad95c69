# SPDX-License-Identifier: Apache-2.0
"""Compares an exported model with the model that it was made from: on random pixels, and on a dataset."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from modeling_ascent_vit.class_scores_ascent_vit import ScoreFunction, chosen_classes, score_function


if TYPE_CHECKING:
    from .formats import ExportableModel

# Float32 arithmetic in another order differs by less; a wrong graph by much more.
TOLERANCE = 1e-4

# Largest change of attention by lower precision, on average over concepts and patches.
ATTENTION_TOLERANCE = 0.05

CHECKED_BATCH_SIZES = (1, 2, 5)

ATTENTIONS = ("global_concept_attention", "spatial_concept_attention", "unsupervised_concept_attention")

Runner = Callable[[np.ndarray], dict[str, np.ndarray]]


class ExportError(RuntimeError):
    """An exported model that does not answer as it should."""


def additivity_error(outputs: dict[str, np.ndarray], class_bias: np.ndarray) -> float:
    """max |logits - sum of contributions - biases|."""
    explained = outputs["concept_contributions"].sum(1, dtype=np.float64) + class_bias
    return float(np.abs(outputs["logits"] - explained).max())


def check_export(
    module: "ExportableModel", run: Runner, image_shape: tuple[int, int, int], exact: bool, seed: int
) -> dict[str, float]:
    """
    Compares an exported model with the float32 model on random pixels, in batches of 1, 2 and 5.

    Args:
        module: the float32 model.
        run: the exported model.
        image_shape: channels, height and width of the images.
        exact: whether every output must agree within 1e-4 (relative to its largest value, if that is above 1);
            otherwise, attention must agree within 0.05 on average, and contributions must add up within 1e-4.
        seed: random seed of the pixels.

    Returns:
        The largest difference of each output, and `additivity_error`.

    Raises:
        ExportError: for outputs that differ; it names the first.
    """
    generator = torch.Generator().manual_seed(seed)
    class_bias = module.model.class_bias().detach().double().numpy()
    differences: dict[str, float] = {"additivity_error": 0.0}
    for batch_size in CHECKED_BATCH_SIZES:
        pixels = torch.randn(batch_size, *image_shape, generator=generator)
        with torch.no_grad():
            expected = {name: value.numpy() for name, value in module(pixels).items()}
        try:
            got = run(pixels.numpy())
        except Exception as error:
            raise ExportError(f"The exported model does not run on {batch_size} images: {error}") from error
        if got.keys() != expected.keys():
            raise ExportError(f"The exported model gives {', '.join(got)} instead of {', '.join(expected)}.")
        for name, value in expected.items():
            if got[name].shape != value.shape:
                raise ExportError(f"The exported {name} has the shape {got[name].shape} instead of {value.shape}.")
            change = np.abs(got[name].astype(np.float64) - value)
            largest = float(change.max())
            differences[name] = max(differences.get(name, 0.0), largest)
            # Asked in this way, a difference that is NaN is not within the tolerance.
            if exact or name == "patch_grid":
                within = largest <= TOLERANCE * max(1.0, float(np.abs(value).max()))
            else:
                within = bool(change.mean() <= ATTENTION_TOLERANCE) if name in ATTENTIONS else np.isfinite(largest)
            if not within:
                raise ExportError(
                    f"The exported {name} differs from the model's by {largest:.3g}, and nothing was written: please "
                    "report this with the versions of torch, transformers and the runtime."
                )
        missing = additivity_error(got, class_bias)
        differences["additivity_error"] = max(differences["additivity_error"], missing)
        if not missing <= TOLERANCE * max(1.0, float(np.abs(got["logits"]).max())):
            raise ExportError(f"Contributions and biases miss the logits by {missing:.3g}, and nothing was written.")
    return differences


def decisions(logits: Tensor, function: ScoreFunction) -> Tensor:
    """What is decided by logits (B, K): the class, (B,), or, where an image may have several, of each, (B, K)."""
    return logits > 0 if function == "sigmoid" else chosen_classes(logits, function)


class _Mean:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: np.ndarray) -> None:
        values = np.asarray(values, dtype=np.float64)
        self.total += float(values.sum())
        self.count += values.size

    def value(self) -> float:
        return self.total / self.count


def _correlations(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each image's maps (B, N, S), over patches and concepts; without constant maps."""
    left, right = (x.reshape(len(x), -1).astype(np.float64) for x in (left, right))
    left, right = (x - x.mean(1, keepdims=True) for x in (left, right))
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    judged = norms > 0
    return (left * right).sum(1)[judged] / norms[judged]


def measure_quantization(
    module: "ExportableModel", run: Runner, batches: Iterable[dict[str, Tensor]], progress: bool = False
) -> dict[str, float]:
    """
    Measures on a dataset what the export, with its quantisation, changed: classes and concepts.

    Args:
        module: the float32 model.
        run: the exported model, see [`load`].
        batches: batches of `pixel_values` (B, C, H, W) and, where known, `labels` (B,).
        progress: whether to show a progress bar.

    Returns:
        `num_images`; `accuracy` of the exported model and `accuracy_float32`; `class_agreement`, the share of images
        in the same class, where an image may have several the share of all classes told alike, and none of the three
        of values; `top_concept_agreement`, the share of images with the same strongest contribution to the float32
        model's class; `global_concept_agreement` and `patch_concept_agreement`, the shares of images and patches that
        attend most to the same concept; `map_correlation`, the mean over images of the correlation of their spatial
        attention; `map_max_difference`, `logit_max_difference` and `additivity_error`, the largest. Figures for which
        the model or the dataset has nothing are left out.

    Raises:
        ValueError: without images.
    """
    if progress:
        from tqdm.auto import tqdm

        batches = tqdm(batches, desc="Comparing", unit="batch")
    class_bias = module.model.class_bias().detach().double().numpy()
    means: dict[str, _Mean] = {}
    largest: dict[str, float] = {}
    number = 0

    def add(name: str, values: np.ndarray) -> None:
        means.setdefault(name, _Mean()).add(values)

    def raise_to(name: str, value: float) -> None:
        largest[name] = max(largest.get(name, 0.0), value)

    for batch in batches:
        pixels = batch["pixel_values"].float()
        with torch.no_grad():
            expected = {name: value.numpy() for name, value in module(pixels).items()}
        got = run(pixels.numpy())
        number += len(pixels)
        function = score_function(module.model.config)
        logits, other_logits = (torch.from_numpy(x["logits"]) for x in (expected, got))
        classes = chosen_classes(logits, function).numpy()
        decided, given = decisions(logits, function), decisions(other_logits, function)
        if function != "none" and batch.get("labels") is not None:
            add("accuracy", (given == batch["labels"]).numpy())
            add("accuracy_float32", (decided == batch["labels"]).numpy())
        if function != "none":
            add("class_agreement", (given == decided).numpy())
        rows = np.arange(len(classes))
        strongest, other = (x["concept_contributions"][rows, :, classes].argmax(-1) for x in (expected, got))
        add("top_concept_agreement", strongest == other)
        for name, stream in (("global_concept_agreement", "global"), ("patch_concept_agreement", "spatial")):
            key = f"{stream}_concept_attention"
            if key in expected:
                add(name, expected[key].argmax(-1) == got[key].argmax(-1))
        if "spatial_concept_attention" in expected:
            left, right = (x["spatial_concept_attention"] for x in (expected, got))
            add("map_correlation", _correlations(left, right))
            raise_to("map_max_difference", float(np.abs(left - right).max()))
        raise_to("logit_max_difference", float(np.abs(expected["logits"] - got["logits"]).max()))
        raise_to("additivity_error", additivity_error(got, class_bias))
    if not number:
        raise ValueError("The dataset gave no images: measure on a split that has some.")
    measured = {name: mean.value() for name, mean in means.items() if mean.count}
    return {"num_images": number, **measured, **largest}


__all__ = ["ExportError", "check_export", "measure_quantization"]

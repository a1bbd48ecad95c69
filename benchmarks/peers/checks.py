# SPDX-License-Identifier: Apache-2.0
"""What the measures of captum and Quantus say of our maps, and of other maps of the same model."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from explainers import EXPLAINERS, Explain
from PIL import Image
from rows import PeerRun
from torch import Tensor

from ascent_vit.evaluation.probe import choose_subset
from ascent_vit.explanation import LogitsModel
from ascent_vit.inference import load_model
from ascent_vit.training import Recipe


# Steps of Quantus' pixel flipping.
FLIPPING_STEPS = 16
# Of captum's perturbations: number, and deviation of the noise in normalised pixels.
SAMPLES, NOISE = 10, 0.1
BATCH = 64
SUBSET_SEED = 0


def over_pixels(maps: Tensor, patch: int) -> Tensor:
    """Maps of patches `(B, h, w)` as attributions of pixels `(B, 3, H, W)` with the same sums."""
    pixels = maps.repeat_interleave(patch, -2).repeat_interleave(patch, -1)
    return pixels[:, None].expand(-1, 3, -1, -1) / (3 * patch**2)


@dataclass(frozen=True)
class Maps:
    """
    A model, images, their predicted classes, and what explains these.

    Args:
        model: model in evaluation mode.
        explain: what explains it.
        patch: side of a patch in pixels.
        pixels: images, `(B, 3, H, W)`.
        classes: predicted classes, `(B,)`.
        ink: pixels of the object, `(B, 1, H, W)`.
        seed: random seed.
    """

    model: Any
    explain: Explain
    patch: int
    pixels: Tensor
    classes: Tensor
    ink: np.ndarray
    seed: int

    def attributions(self, pixels: Tensor, classes: Tensor) -> Tensor:
        return over_pixels(self.explain(pixels, classes).detach(), self.patch).contiguous()


def by_captum(maps: Maps) -> dict[str, float]:
    """captum's infidelity against random noise and its greatest sensitivity, means over images."""
    from captum.metrics import infidelity, sensitivity_max

    generator = torch.Generator().manual_seed(maps.seed)

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        noise = NOISE * torch.randn(inputs.shape, generator=generator)
        return noise, inputs - noise

    attributions = maps.attributions(maps.pixels, maps.classes)
    with torch.no_grad():
        unfaithful = infidelity(
            LogitsModel(maps.model), perturb, maps.pixels, attributions, target=maps.classes, n_perturb_samples=SAMPLES
        )
    torch.manual_seed(maps.seed)
    sensitive = sensitivity_max(
        # It gives a tuple, and wants one.
        lambda inputs, target: (maps.attributions(inputs[0], target),),
        maps.pixels,
        n_perturb_samples=SAMPLES,
        max_examples_per_batch=BATCH,
        target=maps.classes,
    )
    return {"captum infidelity": unfaithful.mean().item(), "captum sensitivity_max": sensitive.mean().item()}


def by_quantus(maps: Maps) -> dict[str, float]:
    """Metrics of Quantus with its own parameters, but for the number of steps, means over images."""
    import quantus

    options: dict[str, Any] = {"disable_warnings": True, "display_progressbar": False}
    side = maps.pixels.shape[-1]
    metrics = {
        "FaithfulnessCorrelation": quantus.FaithfulnessCorrelation(**options),
        # Its own area under a curve needs a function that numpy 2.4 has not: the mean of the curve stands for it.
        "PixelFlipping": quantus.PixelFlipping(features_in_step=side**2 // FLIPPING_STEPS, **options),
        "Sparseness": quantus.Sparseness(**options),
        "Complexity": quantus.Complexity(**options),
        "PointingGame": quantus.PointingGame(**options),
        "RelevanceMassAccuracy": quantus.RelevanceMassAccuracy(**options),
    }
    attributions = maps.attributions(maps.pixels, maps.classes).sum(1, keepdim=True).numpy()
    found = {}
    for name, metric in metrics.items():
        np.random.seed(maps.seed)
        values = metric(
            model=LogitsModel(maps.model),
            x_batch=maps.pixels.numpy(),
            y_batch=maps.classes.numpy(),
            a_batch=attributions.copy(),
            s_batch=maps.ink,
            device="cpu",
        )
        found[f"Quantus {name}"] = float(np.nanmean(np.array(values, dtype=float)))
    return found


def make(run: PeerRun, recipe: Recipe, dataset: Any, work: Path, first: dict[str, Any] | None) -> dict[str, Any]:
    """Measures one way to explain our model by the peers' own metrics."""
    arguments = dict(run.arguments)
    model, processor = load_model(arguments.pop("model"))
    size = processor.patch_size
    patch = size if isinstance(size, int) else size[0]
    split = dataset["test"].select(choose_subset(len(dataset["test"]), run.images["maps"], SUBSET_SEED))
    pixels = processor(list(split["image"]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        classes = model(pixels).logits.argmax(-1)
    masks = [np.asarray(mask.resize(pixels.shape[-2:][::-1], Image.Resampling.NEAREST)) for mask in split["mask"]]
    ink = (np.stack(masks)[:, None] > 0).astype(float)
    explain = EXPLAINERS[run.method](model, patch, **arguments)
    maps = Maps(model, explain, patch, pixels, classes, ink, run.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"metrics": by_captum(maps) | by_quantus(maps)}

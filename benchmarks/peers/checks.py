# SPDX-License-Identifier: Apache-2.0
"""What the measures of captum and Quantus say of our maps, and of others beside them."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from explanations import Setup, set_up
from pointing import patch_centres
from rows import PeerRun
from torch import Tensor

from ascent_vit.explanation import LogitsModel
from ascent_vit.training import Recipe


# Steps of Quantus' pixel flipping.
FLIPPING_STEPS = 14
SAMPLES = 10


def over_pixels(maps: Tensor, patch: int) -> Tensor:
    """Maps of patches `(B, h, w)` as attributions of pixels `(B, 3, H, W)` with the same sums."""
    pixels = maps.repeat_interleave(patch, -2).repeat_interleave(patch, -1)
    return pixels[:, None].expand(-1, 3, -1, -1) / (3 * patch**2)


def box_masks(rows: Any, side: int) -> np.ndarray:
    """Pixels of the objects' boxes, `(B, 1, side, side)`."""
    centres = patch_centres((side, side), (side, side))
    masks = []
    for row in rows:
        left, top, width, height = row["bbox"]
        scale = torch.tensor([side / row["image"].width, side / row["image"].height])
        corner, extent = torch.tensor([left, top]) * scale, torch.tensor([width, height]) * scale
        masks.append(((centres >= corner) & (centres <= corner + extent)).all(-1).view(1, side, side))
    return torch.stack(masks).numpy().astype(float)


def by_captum(setup: Setup, pixels: Tensor, classes: Tensor) -> dict[str, float]:
    """captum's infidelity against random noise and its greatest sensitivity, means over images."""
    from captum.metrics import infidelity, sensitivity_max

    model = LogitsModel(setup.model)
    generator = torch.Generator().manual_seed(setup.run.seed)

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.randn(inputs.shape, generator=generator)
        return noise, inputs - noise

    def explain(inputs: tuple[Tensor], target: Tensor) -> tuple[Tensor]:
        return (over_pixels(setup.explain(inputs[0], target).detach(), setup.patch).contiguous(),)

    (attributions,) = explain((pixels,), classes)
    with torch.no_grad():
        unfaithful = infidelity(
            model, perturb, pixels, attributions, target=classes, n_perturb_samples=SAMPLES, normalize=True
        )
    torch.manual_seed(setup.run.seed)
    sensitive = sensitivity_max(explain, pixels, n_perturb_samples=SAMPLES, max_examples_per_batch=10, target=classes)
    return {
        "captum infidelity": unfaithful.mean().item(),
        "captum sensitivity_max": sensitive.mean().item(),
    }


def by_quantus(setup: Setup, pixels: Tensor, classes: Tensor, masks: np.ndarray) -> dict[str, float]:
    """Metrics of Quantus with its own parameters, but for the number of steps, means over images."""
    import quantus

    side = pixels.shape[-1]
    options: dict[str, Any] = {"disable_warnings": True, "display_progressbar": False}
    metrics = {
        "FaithfulnessCorrelation": quantus.FaithfulnessCorrelation(**options),
        # Its own area under a curve needs a function that numpy 2.4 has not: the mean of the curve stands for it.
        "PixelFlipping": quantus.PixelFlipping(features_in_step=side**2 // FLIPPING_STEPS, **options),
        "Sparseness": quantus.Sparseness(**options),
        "Complexity": quantus.Complexity(**options),
        "PointingGame": quantus.PointingGame(**options),
        "RelevanceMassAccuracy": quantus.RelevanceMassAccuracy(**options),
    }
    maps = over_pixels(setup.explain(pixels, classes).detach(), setup.patch).sum(1, keepdim=True).numpy()
    found = {}
    for name, metric in metrics.items():
        np.random.seed(setup.run.seed)
        values = metric(
            model=LogitsModel(setup.model),
            x_batch=pixels.numpy(),
            y_batch=classes.numpy(),
            a_batch=maps.copy(),
            s_batch=masks,
            device="cpu",
        )
        found[f"Quantus {name}"] = float(np.mean(values))
    return found


def make(run: PeerRun, recipe: Recipe, dataset: Any, work: Path, first: dict[str, Any] | None) -> dict[str, Any]:
    """Measures one way to explain by the peers' own metrics."""
    setup = set_up(run, recipe, dataset, work)
    split, loader = setup.part("maps")
    pixels = torch.cat([batch["pixel_values"] for batch in loader])
    with torch.no_grad():
        classes = setup.model(pixels).logits.argmax(-1)
    masks = box_masks([split[i] for i in range(len(split))], pixels.shape[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"metrics": by_captum(setup, pixels, classes) | by_quantus(setup, pixels, classes, masks)}

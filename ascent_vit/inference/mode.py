# SPDX-License-Identifier: Apache-2.0
"""How a model is asked: its mode, and what images of another size than its own need."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch


if TYPE_CHECKING:
    from .protocols import ConceptClassifier


@contextmanager
def evaluation_mode(model: "ConceptClassifier | torch.nn.Module") -> Iterator[None]:
    """Puts a model into evaluation mode without gradients; it gets its own mode back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def input_kind(model: "ConceptClassifier | torch.nn.Module") -> tuple[torch.device, torch.dtype]:
    """
    Device and dtype of the pixels that a model takes: its first parameter's.

    Offloaded weights have no device until a layer is called. What calls it moves its inputs, so the CPU will do.
    """
    parameter = next(iter(model.parameters()))
    return torch.device("cpu") if parameter.is_meta else parameter.device, parameter.dtype


def size_options(config: Any, pixel_values: torch.Tensor) -> dict[str, bool]:
    """Arguments of a model's forward for pixels `(B, C, H, W)`: to interpolate where they have another size."""
    own = getattr(config, "image_size", None)
    return {} if own is None or tuple(pixel_values.shape[2:]) == tuple(own) else {"interpolate_pos_encoding": True}


__all__ = ["evaluation_mode", "input_kind", "size_options"]

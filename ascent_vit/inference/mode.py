# SPDX-License-Identifier: Apache-2.0
"""The mode in which a model answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch


if TYPE_CHECKING:
    from .protocols import ConceptClassifier


@contextmanager
def evaluation_mode(model: "ConceptClassifier | torch.nn.Module") -> Iterator[None]:
    """Evaluation mode without gradients; the model gets its own mode back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


__all__ = ["evaluation_mode"]

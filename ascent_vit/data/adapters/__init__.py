# SPDX-License-Identifier: Apache-2.0
"""Datasets from their official archives: one module for each, with a function `prepare(source, **options)`."""

import importlib
from collections.abc import Callable

from ..prepared import PreparedDataset


ADAPTERS = ("cub", "apy", "awa2", "kits19", "mnist")


def load_adapter(name: str) -> Callable[..., PreparedDataset]:
    """
    Imports the function that prepares a dataset.

    Args:
        name: name of the dataset, one of `ADAPTERS`.

    Returns:
        `prepare(source: Path, **options) -> PreparedDataset`; its keyword-only arguments are its options.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in ADAPTERS:
        raise ValueError(
            f"There is no adapter {name!r}; there are {', '.join(ADAPTERS)}. A dataset in the Hub's own layouts needs "
            "none: map its columns while it is loaded."
        )
    return importlib.import_module(f"{__name__}.{name}").prepare


__all__ = ["ADAPTERS", "load_adapter"]

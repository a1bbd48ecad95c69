# SPDX-License-Identifier: Apache-2.0
"""
Datasets from their official archives, one module for each with a function `prepare(source, **options)`, and from the
files of annotation tools, one module for each with a function `read` and the options of `assemble`.
"""

import importlib
from collections.abc import Callable

from ..prepared import PreparedDataset


ARCHIVES = ("cub", "apy", "awa2", "kits19", "mnist")
TOOLS = ("coco", "yolo", "voc", "labelme", "cvat", "label-studio", "imagefolder", "dicom")

# What a tool's files mean where the options do not say.
DEFAULTS = {
    "imagefolder": {"class_from": "folder"},
    "dicom": {"group": "patient", "places": "mask"},
}
ADAPTERS = ARCHIVES + TOOLS


def load_adapter(name: str) -> Callable[..., PreparedDataset]:
    """
    Imports the function that prepares a dataset.

    Args:
        name: name of the dataset or the tool, one of `ADAPTERS`.

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
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    if name not in TOOLS:
        return module.prepare
    from .assemble import tool_adapter

    return tool_adapter(module.read, **DEFAULTS.get(name, {}))


__all__ = ["ADAPTERS", "ARCHIVES", "TOOLS", "load_adapter"]

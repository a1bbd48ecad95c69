# SPDX-License-Identifier: Apache-2.0
"""Exports models to other runtimes; what each needs is imported when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .check import measure_quantization
    from .export import export_model

_LAZY = {"export_model": "export", "measure_quantization": "check"}

__all__ = ["export_model", "measure_quantization"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

# SPDX-License-Identifier: Apache-2.0
"""Weights in from other layouts, models out to other runtimes; everything is imported when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .checkpoint import ConversionReport, convert
    from .export import export_model
    from .export_check import measure_quantization

_LAZY = {
    "ConversionReport": "checkpoint",
    "convert": "checkpoint",
    "export_model": "export",
    "measure_quantization": "export_check",
}

__all__ = ["ConversionReport", "convert", "export_model", "measure_quantization"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

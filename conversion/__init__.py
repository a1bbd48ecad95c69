# SPDX-License-Identifier: Apache-2.0
"""Converts weights of other layouts; everything is imported when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .checkpoint import ConversionReport, convert

_LAZY = {
    "ConversionReport": "checkpoint",
    "convert": "checkpoint",
}

__all__ = ["ConversionReport", "convert"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

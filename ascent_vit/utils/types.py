# SPDX-License-Identifier: Apache-2.0
"""Checks of values from files and options against type annotations."""

import sys
import types
import typing
from typing import Any, Literal


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that an annotation names; whole numbers are numbers too, booleans are neither."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, item) for item in typing.get_args(hint))
    if origin is Literal:
        return isinstance(value, str) and value in typing.get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(fits(item, typing.get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def describe(hint: Any) -> str:
    """Describes an annotation in words, as in "a whole number or null"."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(item) for item in typing.get_args(hint))
    if origin is Literal:
        return " or ".join(typing.get_args(hint))
    if origin is list:
        return f"a list of {describe(typing.get_args(hint)[0])}"
    words = {float: "a number", int: "a whole number", str: "text", bool: "true or false", dict: "a mapping"}
    return words.get(hint, "null")


__all__ = ["describe", "fits"]

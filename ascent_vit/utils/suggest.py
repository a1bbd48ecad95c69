# SPDX-License-Identifier: Apache-2.0
"""The nearest known names where one is unknown."""

import difflib
from collections.abc import Iterable


# Names that are listed where none is near: classes can be hundreds.
MOST_LISTED = 40


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: up to three names like it in any case, else those there are."""
    names = list(known)
    by_lower_case = {name.lower(): name for name in names}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=3)
    if near:
        return f"did you mean {', '.join(repr(by_lower_case[match]) for match in near)}?"
    others = f" and {len(names) - MOST_LISTED} others" if len(names) > MOST_LISTED else ""
    return f"known are {', '.join(names[:MOST_LISTED]) or 'none'}{others}."


__all__ = ["suggest"]

# Copyright 2026 The ASCENT-ViT project. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Suggestions for unknown names."""

import difflib
from collections.abc import Iterable


# Most names in a list of all known ones: there can be hundreds of classes.
MOST_LISTED = 40


def suggest(name: str, known: Iterable[str]) -> str:
    """Ends a sentence about an unknown name: with up to three names like it in any case, else with those known."""
    names = list(known)
    by_lower_case = {name.lower(): name for name in names}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=3)
    if near:
        return f"did you mean {', '.join(repr(by_lower_case[match]) for match in near)}?"
    others = f" and {len(names) - MOST_LISTED} others" if len(names) > MOST_LISTED else ""
    return f"known are {', '.join(names[:MOST_LISTED]) or 'none'}{others}."


__all__ = ["suggest"]

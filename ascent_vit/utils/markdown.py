# SPDX-License-Identifier: Apache-2.0
"""Text of others within Markdown: names of classes, concepts, files and datasets are shown and never interpreted."""

import re
from typing import Any


def escape_markdown(text: Any) -> str:
    """Text that Markdown shows as it is, on one line: no markup, no HTML, no table cell ends."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~&$!])", r"\\\1", " ".join(str(text).split()))


def code_span(text: Any) -> str:
    """Text as a code span on one line, which no backtick in it can end, nor a bar the table's cell around it."""
    shown = " ".join(str(text).split()).replace("`", "'").replace("|", "/")
    return f"`{shown}`"


__all__ = ["code_span", "escape_markdown"]

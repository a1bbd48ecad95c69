# SPDX-License-Identifier: Apache-2.0
"""Foreign text within Markdown: names of classes, concepts, files and datasets are shown and never interpreted."""

import re
from typing import Any


def escape_markdown(text: Any) -> str:
    """Escapes text so that Markdown shows it as it is, on one line: no markup, no HTML, no end of a table cell."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~&$!])", r"\\\1", " ".join(str(text).split()))


def code_span(text: Any) -> str:
    """Makes text a code span on one line; no backtick in it ends the span, no bar the table cell around it."""
    shown = " ".join(str(text).split()).replace("`", "'").replace("|", "/")
    return f"`{shown}`"


__all__ = ["code_span", "escape_markdown"]

# SPDX-License-Identifier: Apache-2.0
"""The whole model on one page: what it does by class, by concept, by error and by slice."""

from .run import summarize
from .summary import Summary


__all__ = ["Summary", "summarize"]

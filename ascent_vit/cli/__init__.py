# SPDX-License-Identifier: Apache-2.0
"""The command line, `ascent-vit`."""

from .app import app, main


__all__ = ["app", "main"]

# SPDX-License-Identifier: Apache-2.0
"""
The command line, `ascent-vit`: a package of its own, so that help, versions and usage errors need not wait for torch.
"""

from .app import app, main


__all__ = ["app", "main"]

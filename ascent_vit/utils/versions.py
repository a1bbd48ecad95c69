# SPDX-License-Identifier: Apache-2.0
"""Versions of what a result was made with."""

import importlib.metadata
import importlib.util
import platform


PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "datasets")


def versions() -> dict[str, str]:
    """Versions of Python, of this package, and of those installed that results depend on."""
    from ascent_vit import __version__

    installed = [package for package in PACKAGES if importlib.util.find_spec(package)]
    return {
        "python_version": platform.python_version(),
        "ascent_vit_version": __version__,
        **{f"{package}_version": importlib.metadata.version(package) for package in installed},
    }


__all__ = ["versions"]

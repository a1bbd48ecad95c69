# SPDX-License-Identifier: Apache-2.0
"""What was installed when a figure was made."""

import importlib.metadata
import importlib.util
import platform


PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "datasets")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on, as far as they are installed."""
    from ascent_vit import __version__

    installed = [package for package in PACKAGES if importlib.util.find_spec(package)]
    return {
        "python_version": platform.python_version(),
        "ascent_vit_version": __version__,
        **{f"{package}_version": importlib.metadata.version(package) for package in installed},
    }


__all__ = ["versions"]

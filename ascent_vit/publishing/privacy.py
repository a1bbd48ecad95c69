# SPDX-License-Identifier: Apache-2.0
"""Keeps this machine's paths and secrets from being published."""

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any


# Folders of users' files on any machine.
HOME_ROOTS = ("home", "Users", "root", "mnt", "media", "Volumes")

# Characters that end a path within prose, code, JSON or YAML.
_END = r"""\s"'`<>|,;:()\[\]{}"""
_POSIX_PATH = re.compile(rf"(?:file://)?(?<![\w.~:/\\%-])/(?P<first>[\w.~-]+)(?:/[^{_END}/]+)*/?")
_FILE_ADDRESS = re.compile(rf"file://[^{_END}]*")
_HOME_PATH = re.compile(rf"(?<![\w/])~[\w.-]*/[^{_END}]+")
_WINDOWS_PATH = re.compile(rf"(?<!\w)(?:[A-Za-z]:[\\/]|\\\\)[^{_END}]+")

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
_SECRET_LENGTH = 8


def _is_local(first: str) -> bool:
    return first in HOME_ROOTS or Path("/", first).is_dir()


def strip_paths(text: str) -> str:
    """
    Cuts absolute paths in a text to their last part, the name of the file or folder.

    A path counts as absolute if its first folder exists on this machine or is one of users' files elsewhere, or if it
    begins with a drive, `~/` or `file://`. Addresses of the web stay.

    Example:

    ```python
    >>> strip_paths('{"dataset": "/home/ann/data/birds"}')
    '{"dataset": "birds"}'
    ```
    """
    text = _FILE_ADDRESS.sub(lambda match: PurePosixPath(match[0]).name, text)
    text = _WINDOWS_PATH.sub(lambda match: PureWindowsPath(match[0]).name, text)
    text = _HOME_PATH.sub(lambda match: PurePosixPath(match[0]).name, text)
    return _POSIX_PATH.sub(lambda match: PurePosixPath(match[0]).name if _is_local(match["first"]) else match[0], text)


def strip_values(value: Any) -> Any:
    """Applies [`strip_paths`] to every text in the data of a JSON file, also to keys."""
    if isinstance(value, Mapping):
        return {strip_values(key): strip_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strip_values(item) for item in value]
    if not isinstance(value, str):
        return value
    path = PurePosixPath(value)
    # A text that is nothing but a path may have spaces in it.
    if path.is_absolute() and len(path.parts) > 1 and "\n" not in value and _is_local(path.parts[1]):
        return path.name
    return strip_paths(value)


def check_secrets(text: str, name: str) -> None:
    """
    Looks for secrets of this machine in a text.

    Args:
        text: text to be published.
        name: name of its file, for the error.

    Raises:
        ValueError: for a token of the Hub, the value of an environment variable that holds a secret, or the path of
            the user's home folder.
    """
    if _TOKEN.search(text):
        raise ValueError(f"{name} holds what looks like a token of the Hub: take it out before publishing.")
    for variable, value in os.environ.items():
        if _SECRET_NAME.search(variable) and len(value) >= _SECRET_LENGTH and value in text:
            raise ValueError(f"{name} holds the value of {variable}: take it out before publishing.")
    home = str(Path.home())
    if len(home) > 1 and re.search(rf"{re.escape(home)}(?![\w.-])", text):
        raise ValueError(f"{name} holds the path of your home folder: take it out before publishing.")


__all__ = ["check_secrets", "strip_paths", "strip_values"]

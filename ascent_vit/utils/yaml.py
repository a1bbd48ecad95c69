# SPDX-License-Identifier: Apache-2.0
"""YAML as people mean it, of files and of KEY=VALUE on the command line."""

import re
from typing import Any

import yaml

from .files import check_extent


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars, as people mean them: 5e-5 is a number and `no` a word."""

    yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if tag not in ("tag:yaml.org,2002:bool",)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise ValueError(f"the key {repeated[0]} is given twice.")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str, source: str) -> Any:
    """Parses YAML in which 5e-5 is a number and `no` a word; ValueError naming `source` for what is no YAML."""
    try:
        data = yaml.load(text, Loader=_Loader)
        check_extent(data)
        return data
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        # The last two are what PyYAML raises for a `!!timestamp` that is none, and for endlessly nested lists.
        raise ValueError(f"{source} is no valid YAML: {error}") from error


def read_key_value(pair: str, option: str) -> tuple[str, Any]:
    """
    Reads one KEY=VALUE, its value as YAML.

    Args:
        pair: text after the option.
        option: name of the option for errors, such as `--set`.

    Raises:
        ValueError: for text other than KEY=VALUE, or a value that is no YAML.
    """
    key, equals, text = pair.partition("=")
    key = key.strip()
    if not (key and equals):
        raise ValueError(f"{option} takes KEY=VALUE, for example seed=1; got {pair!r}.")
    return key, read_yaml(text, f"{option} {key}")


__all__ = ["read_key_value", "read_yaml"]

# SPDX-License-Identifier: Apache-2.0
"""Inputs of several commands: the options of datasets."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer


DatasetOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="KEY=VALUE",
        help="An option of the dataset's loading, as in columns='{label: species}' or, of digits, seed=1; repeatable.",
    ),
]


def read_dataset_options(pairs: Sequence[str]) -> dict[str, Any]:
    """
    Reads options KEY=VALUE of a dataset's loading, the values as YAML.

    Raises:
        ValueError: for an option that is not KEY=VALUE, a value that is not YAML, or streaming.
    """
    from ascent_vit.utils.yaml import read_key_value

    options = dict(read_key_value(pair, "--option") for pair in pairs)
    if options.get("streaming"):
        raise ValueError("This command needs the whole dataset: leave --option streaming out.")
    return options


__all__ = ["DatasetOptions", "read_dataset_options"]

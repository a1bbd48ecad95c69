# SPDX-License-Identifier: Apache-2.0
"""What several commands read: models, and the options of datasets."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ascent_vit.models import load_model


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
    Options KEY=VALUE of a dataset's loading, the values read as YAML.

    Raises:
        ValueError: for something else than KEY=VALUE, a value that is no YAML, or streaming.
    """
    import yaml

    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not (key and equals):
            raise ValueError(f"--option takes KEY=VALUE; got {pair!r}.")
        try:
            options[key] = yaml.safe_load(value)
        except (yaml.YAMLError, AttributeError, RecursionError) as error:
            raise ValueError(f"The value of --option {key} cannot be read: {error}") from error
    if options.get("streaming"):
        raise ValueError("This command needs the whole dataset: leave --option streaming out.")
    return options


__all__ = ["DatasetOptions", "load_model", "read_dataset_options"]

# SPDX-License-Identifier: Apache-2.0
"""What several commands read: models, and the options of datasets."""

from collections.abc import Sequence
from pathlib import Path
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


def load_model(name_or_path: str) -> tuple[Any, Any]:
    """
    A model in evaluation mode and its image processor, of the Hub or a folder.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for another kind of model.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    import ascent_vit  # noqa: F401  Registers the model.

    folder = Path(name_or_path).expanduser()
    if not folder.is_dir() and (name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1):
        raise FileNotFoundError(f"There is no model folder {folder}.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"The folder {folder} holds no config.json: give one that a model was saved to.")
    source = str(folder) if folder.is_dir() else name_or_path
    try:
        model = AutoModelForImageClassification.from_pretrained(source)
        processor = AutoImageProcessor.from_pretrained(source)
    except OSError as error:
        raise FileNotFoundError(f"The model {name_or_path} cannot be read: {error}") from error
    if model.config.model_type != "ascent_vit":
        raise ValueError(
            f"{name_or_path} is a model of type {model.config.model_type}: give an ASCENT-ViT, as train writes it."
        )
    return model.eval(), processor


__all__ = ["DatasetOptions", "load_model", "read_dataset_options"]

# SPDX-License-Identifier: Apache-2.0
"""Inputs of several commands: the options of datasets."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer


if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset
    from torch.utils.data import DataLoader

    from ascent_vit.inference import ConceptClassifier, ConceptImageProcessor

logger = logging.getLogger(__name__)

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


def read_split(dataset: str, split: str, options: dict[str, Any], config: Any) -> "Dataset":
    """
    Loads a split of a dataset, to be read as a model of this configuration needs it.

    Raises:
        ValueError: for a split that the dataset does not have.
    """
    from ascent_vit.data import load_concept_dataset

    # Whole numbers are classes unless the model says that it predicts values.
    known = {"problem_type": "regression"} if config.problem_type == "regression" else {}
    splits = load_concept_dataset(dataset, **known | options)
    if split not in splits:
        raise ValueError(f"The dataset has no split {split}; it has {', '.join(splits)}: choose with --split.")
    return splits[split]


def check_rows(
    rows: "Dataset",
    split: str,
    options: dict[str, Any],
    processor: "ConceptImageProcessor",
    accelerator: "Accelerator",
) -> None:
    """Raises the errors of a split as one `ValueError`, and logs its warnings; one process looks first."""
    from datasets import DatasetDict

    from ascent_vit.data import check_once
    from ascent_vit.data.loading import spatial_names

    with accelerator.main_process_first():
        report = check_once(
            DatasetDict({split: rows}),
            spatial_concepts=spatial_names(options),
            window=getattr(processor, "window", None),
            progress=accelerator.is_main_process,
        )
        report.raise_errors()
    for warning in report.warnings if accelerator.is_main_process else ():
        logger.warning("%s", warning)


def load_batches(
    classifier: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    dataset: str,
    split: str,
    options: Sequence[str],
    batch_size: int,
) -> "DataLoader":
    """
    Loads the images of a split, with what is known of them, in batches for a model.

    Raises:
        ValueError: for a split that the dataset does not have, or classes or concepts that are not the model's.
    """
    from torch.utils.data import DataLoader

    from ascent_vit.data import ConceptCollator
    from ascent_vit.data.loading import spatial_names
    from ascent_vit.data.schema import COLUMNS
    from ascent_vit.evaluation.dataset import check_names

    dataset_options = read_dataset_options(options)
    rows = read_split(dataset, split, dataset_options, classifier.config)
    check_names(classifier.config, rows.features, spatial_names(dataset_options))
    chosen = rows.select_columns([name for name in COLUMNS if name in rows.features])
    return DataLoader(chosen, batch_size, collate_fn=ConceptCollator(processor, classifier.config.num_labels))


__all__ = ["DatasetOptions", "check_rows", "load_batches", "read_dataset_options", "read_split"]

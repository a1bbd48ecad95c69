# SPDX-License-Identifier: Apache-2.0
"""Inputs of several commands: the options of datasets."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer


if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from ascent_vit.inference import ConceptClassifier, ConceptImageProcessor

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

    from ascent_vit.data import ConceptCollator, load_concept_dataset
    from ascent_vit.data.loading import spatial_names
    from ascent_vit.data.schema import COLUMNS
    from ascent_vit.evaluation.dataset import check_names

    dataset_options = read_dataset_options(options)
    # Whole numbers are classes unless the model says that it predicts values.
    known = {"problem_type": "regression"} if classifier.config.problem_type == "regression" else {}
    splits = load_concept_dataset(dataset, **known | dataset_options)
    if split not in splits:
        raise ValueError(f"The dataset has no split {split}; it has {', '.join(splits)}.")
    check_names(classifier.config, splits[split].features, spatial_names(dataset_options))
    chosen = splits[split].select_columns([name for name in COLUMNS if name in splits[split].features])
    return DataLoader(chosen, batch_size, collate_fn=ConceptCollator(processor, classifier.config.num_labels))


__all__ = ["DatasetOptions", "load_batches", "read_dataset_options"]

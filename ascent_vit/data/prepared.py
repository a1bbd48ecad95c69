# SPDX-License-Identifier: Apache-2.0
"""A dataset ready to be written, as adapters and detectors hand it over."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets import DatasetDict


@dataclass(frozen=True)
class PreparedDataset:
    """
    A dataset in the schema, with what its card says.

    Args:
        dataset: splits with the columns of the schema. An image with a file of its own is that file's bytes, or its
            path, whose bytes are embedded when the dataset is written.
        title: title of the card, such as "CUB-200-2011 with 108 concepts".
        license: name of the licence on the Hub, or "other".
        description: text of the card in Markdown: source, citation, how concepts were made, what was left out and why,
            with counts.
        settings: options and random seeds that the dataset was made with.
        summary: what was understood of the source, in lines with numbers; shown when the dataset is written.
    """

    dataset: "DatasetDict"
    title: str
    license: str
    description: str
    settings: dict[str, Any]
    summary: str = ""


__all__ = ["PreparedDataset"]

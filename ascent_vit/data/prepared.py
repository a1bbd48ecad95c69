# SPDX-License-Identifier: Apache-2.0
"""What adapters and the detector's annotation hand over to be written."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets import DatasetDict


@dataclass(frozen=True)
class PreparedDataset:
    """
    A dataset in the schema, with what its card says.

    Args:
        dataset: columns of the schema, images as the original file where there is one: its bytes, or its path, whose
            bytes are embedded when the dataset is written.
        title: as "CUB-200-2011 with 108 concepts".
        license: the Hub's name of the licence, or "other".
        description: Markdown: source, citation, how concepts were made, what was left out and why, with counts.
        settings: options and every seed used.
    """

    dataset: "DatasetDict"
    title: str
    license: str
    description: str
    settings: dict[str, Any]


__all__ = ["PreparedDataset"]

# SPDX-License-Identifier: Apache-2.0
"""Dataset cards, and prepared datasets as a folder: parquet files in the Hub's layout, with the card."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ascent_vit.utils.files import file_digest, write_text
from ascent_vit.utils.markdown import code_span, escape_markdown

from .prepared import PreparedDataset
from .schema import GROUP_COLUMN, concepts_from_features, problem_type


if TYPE_CHECKING:
    from datasets import Dataset
    from huggingface_hub import DatasetCard

TAGS = ["ascent-vit", "explainability", "concept-based-models"]

# Rows of a row group, as the Hub writes images: what a stream holds at a time.
ROWS_AT_A_TIME = 100
SHARD_BYTES = 500 * 10**6

COLUMN_MEANINGS = {
    "image": "the image",
    "concepts": "concepts of the whole image that it shows; null = not known, empty = none",
    "unknown_concepts": "concepts of the whole image of which it is not known",
    "objects": "boxes of concepts that have a place: `bbox` as x, y, width, height in pixels, and `category`",
    "points": "places of concepts: `xy` in pixels, and `category`",
    "mask": "per pixel 0 = not annotated, i = concept i - 1 of those that have a place, 255 = ignore",
    "present": "all concepts that have a place and are somewhere in the image; null = not known, empty = none",
    "unknown_present": "concepts that have a place of which it is not known whether they are in the image",
    GROUP_COLUMN: "what rows belong together: those with the same one are never in two splits",
}

TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

A concept dataset: images with {{ what }}, and with the human concepts that they show, in the schema of the toolkit
`ascent-vit`.

{{ description }}

## Use

```python
from datasets import load_dataset

dataset = load_dataset({{ repo }})
```

Training a model that explains itself in these concepts:
`ascent-vit train --recipe RECIPE --dataset {{ place }} --output DIR`.{% if mask_names %}
The names of the mask's concepts are not in its column; add
`--set 'dataset_options.spatial_concepts=[...]'` with the {{ mask_names | length }} names below.{% endif %}


## Content

| split | images |
|---|---|
{% for name, number in splits.items() %}| {{ name }} | {{ number }} |
{% endfor %}
| column | meaning |
|---|---|
{% for name, meaning in columns.items() %}| {{ name }} | {{ meaning }} |
{% endfor %}
- {% if classes %}{{ classes | length }} classes: {{ classes | join(", ") }}{% else %}{{ values }} \
value{{ "s" if values > 1 else "" }} to predict for each image{% endif %}
{% if global_concepts %}- {{ global_concepts | length }} concepts of the whole image: \
{{ global_concepts | join(", ") }}
{% endif %}{% if spatial_concepts %}- {{ spatial_concepts | length }} concepts that have a place: \
{{ spatial_concepts | join(", ") }}
{% endif %}
{% if settings %}## How it was made

{% if command %}```bash
{{ command }}
```

{% endif %}| setting | value |
|---|---|
{% for name, value in settings.items() %}| {{ name }} | {{ value }} |
{% endfor %}{% endif %}"""


# What images have by the kind of their label, and what the column holds.
LABEL_MEANINGS = {
    "single_label_classification": ("a class", "its class"),
    "multi_label_classification": ("the classes that each has", "all classes that it has; empty = none of them"),
    "regression": ("values to predict", "what is to be predicted of it"),
}


def _meaning(name: str, feature: Any) -> str:
    meaning = COLUMN_MEANINGS.get(name, "see above")
    if name == "label":
        meaning = LABEL_MEANINGS[problem_type(feature)][1]
    if name == "objects" and "score" in feature:
        meaning += "; `score` is what the detector gave each box, from 0 to 1"
    return meaning


def dataset_card(
    prepared: PreparedDataset,
    repo_id: str | None = None,
    command: str | None = None,
    spatial_concepts: list[str] | None = None,
    files: Mapping[str, str] | None = None,
) -> "DatasetCard":
    """
    Makes the card of a dataset, whose header restores its features and splits when it is loaded.

    Args:
        prepared: dataset, with its title, licence, description and settings.
        repo_id: the Hub repository that it goes to, if any.
        command: command that made the dataset.
        spatial_concepts: names of a mask's concepts, where the features do not have them.
        files: pattern of each split's files, `data/SPLIT-*` by default.
    """
    from datasets.info import DatasetInfo, DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard, DatasetCardData

    features = next(iter(prepared.dataset.values())).features
    labels, global_names, spatial_names = concepts_from_features(features, spatial_concepts)
    problem = problem_type(features["label"])
    data = DatasetCardData(
        license=prepared.license, pretty_name=prepared.title, tags=TAGS, task_categories=["image-classification"]
    )
    DatasetInfosDict({"default": DatasetInfo(features=features)}).to_dataset_card_data(data)
    files = files or {name: f"data/{name}-*" for name in prepared.dataset}
    data_files = [{"split": name, "path": pattern} for name, pattern in files.items()]
    MetadataConfigs({"default": {"data_files": data_files}}).to_dataset_card_data(data)
    return DatasetCard.from_template(
        data,
        template_str=TEMPLATE,
        title=escape_markdown(prepared.title),
        description=prepared.description.strip(),
        repo=f'"{repo_id}"' if repo_id else '"PATH_OF_THIS_FOLDER"',
        place=repo_id or "PATH_OF_THIS_FOLDER",
        splits={name: f"{len(split):,}" for name, split in prepared.dataset.items()},
        columns={code_span(name): _meaning(name, feature) for name, feature in features.items()},
        what=LABEL_MEANINGS[problem][0],
        classes=[escape_markdown(name) for name in labels] if problem != "regression" else [],
        values=len(labels),
        global_concepts=[escape_markdown(name) for name in global_names],
        spatial_concepts=[escape_markdown(name) for name in spatial_names],
        mask_names=spatial_concepts,
        command=command and " ".join(command.split()),
        settings={
            escape_markdown(name): escape_markdown(value)
            for name, value in prepared.settings.items()
            if value is not None
        },
    )


def _write_split(split: "Dataset", folder: Path, name: str) -> str:
    """
    Writes parquet files `NAME-00000-of-00001-DIGEST.parquet` with images embedded, a few rows in memory at a time.

    Returns:
        The pattern of the files. With their digest in it the card differs where rows differ, by which `datasets` knows
        what it has kept of another folder of the same name.
    """
    import pyarrow.parquet
    from datasets.table import embed_table_storage

    rows = split.with_format("arrow")
    partial: list[Path] = []
    writer = None
    written = 0
    for start in tqdm(range(0, len(rows), ROWS_AT_A_TIME), desc=f"Writing {name}", unit="batch", leave=False):
        table = embed_table_storage(rows[start : start + ROWS_AT_A_TIME].combine_chunks())
        if writer is None:
            partial.append(folder / f"{name}.{len(partial)}.partial")
            writer = pyarrow.parquet.ParquetWriter(partial[-1], table.schema)
        writer.write_table(table)
        written += table.nbytes
        if written >= SHARD_BYTES or start + ROWS_AT_A_TIME >= len(rows):
            writer.close()
            writer, written = None, 0
    digest = hashlib.sha256()
    for path in partial:
        digest.update(file_digest(path))
    ending = f"{digest.hexdigest()[:16]}.parquet"
    for number, path in enumerate(partial):
        path.rename(folder / f"{name}-{number:05d}-of-{len(partial):05d}-{ending}")
    return f"{folder.name}/{name}-*-{ending}"


def write_dataset(
    prepared: PreparedDataset,
    folder: str | os.PathLike,
    repo_id: str | None = None,
    command: str | None = None,
    spatial_concepts: list[str] | None = None,
) -> None:
    """
    Writes a dataset so that `datasets.load_dataset(folder)` restores its splits and features: `data/*.parquet` and the
    card `README.md`. A digest of the rows is part of the files' names, so that `datasets` never takes them for others.

    Args:
        prepared: dataset that has been checked.
        folder: existing, empty folder; give that of [`replace_folder`] to have it whole or not at all.
        repo_id: the Hub repository that it goes to, if any.
        command: command that made the dataset.
        spatial_concepts: names of a mask's concepts, where the features do not have them.
    """
    data = Path(folder) / "data"
    data.mkdir()
    files = {name: _write_split(split, data, name) for name, split in prepared.dataset.items()}
    card = dataset_card(prepared, repo_id, command, spatial_concepts, files)
    write_text(Path(folder) / "README.md", str(card).rstrip("\n") + "\n")


__all__ = ["dataset_card", "write_dataset"]

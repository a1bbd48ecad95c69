# SPDX-License-Identifier: Apache-2.0
"""Small pictures, and a short way to what a tool's adapter makes of a folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ascent_vit.data.adapters import load_adapter
from ascent_vit.data.checks import validate_dataset


def write_picture(path: Path, size: tuple[int, int] = (60, 40), orientation: int = 1) -> Path:
    """A picture of this width and height, as stored, with an EXIF orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.full((size[1], size[0], 3), 90, dtype=np.uint8))
    exif = Image.Exif()
    if orientation != 1:
        exif[274] = orientation
    image.save(path, exif=exif)
    return path


def write_json_file(path: Path, data) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


class Made:
    """A prepared dataset: rows by file name, with categories as names, and the summary's lines by what they count."""

    def __init__(self, tool: str, source: Path, **options):
        self.prepared = load_adapter(tool)(source, **options)
        validate_dataset(self.prepared.dataset)
        self.splits, self.rows = {}, {}
        for split, rows in self.prepared.dataset.items():
            for row in rows:
                self.splits[row["file_name"]] = split
                self.rows[row["file_name"]] = self.named(row, rows.features)
        self.lines = dict(line.split(": ", 1) for line in self.prepared.summary.splitlines() if ": " in line)

    @staticmethod
    def named(row, features):
        row["label"] = features["label"].int2str(row["label"])
        for column, key in (("objects", "bbox"), ("points", "xy")):
            if row.get(column) is not None:
                names = features[column]["category"].feature
                pairs = zip(row[column]["category"], row[column][key], strict=True)
                row[column] = [(names.int2str(i), [round(v, 2) for v in place]) for i, place in pairs]
        for column in ("concepts", "unknown_concepts"):
            if row.get(column) is not None:
                row[column] = [features[column].feature.int2str(i) for i in row[column]]
        if row.get("mask") is not None:
            names = [None, *features["objects"]["category"].feature.names]
            values, counts = np.unique(np.asarray(row["mask"]), return_counts=True)
            row["areas"] = {names[v] if v < 255 else "ignored": int(n) for v, n in zip(values, counts, strict=True)}
        return row


@pytest.fixture
def make():
    return Made


@pytest.fixture
def picture():
    return write_picture


@pytest.fixture
def write_json():
    return write_json_file


@pytest.fixture
def tiny_recipe(tmp_path):
    """A file with the recipe of a model that trains for two steps."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        """
model:
  backbone_config: {model_type: vit, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
                    intermediate_size: 32, image_size: 32, patch_size: 8}
  none_concept: true
max_steps: 2
per_device_train_batch_size: 4
seed: 0
"""
    )
    return path

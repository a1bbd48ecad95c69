# SPDX-License-Identifier: Apache-2.0
"""Splits of a dataset of the Hub whose files have other features than each other: taken by name, or refused."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

import ascent_vit


# Each loads a dataset in a process of its own, as the client reads the Hub's address while it is imported.
pytestmark = [pytest.mark.as_people_have_it, pytest.mark.slow]

ROOT = Path(__file__).parents[3]

PROGRAM = """
import json, sys
from ascent_vit.data import load_concept_dataset
try:
    dataset = load_concept_dataset("ann/birds", streaming=sys.argv[1] == "streaming")
    found = {}
    for name, split in dataset.items():
        names = split.features["label"].names
        found[name] = [[names[row["label"]], int(row["image"].getpixel((0, 0))[0])] for row in split]
    print(json.dumps(found))
except ValueError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture
def load(tmp_path):
    """Loads splits, by the order of their names, from a Hub; the class of a grey of 10 is cat, of 20 dog."""
    spec = importlib.util.spec_from_file_location("hub_double_of_splits", ROOT / "tests" / "hub_double.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)

    def run(splits, mode="whole", card=None):
        with module.hub_double() as hub:
            files = {} if card is None else {"README.md": card.encode()}
            for file, (names, colours) in splits.items():
                rows = {
                    "image": [Image.fromarray(np.full((8, 8, 3), colour, np.uint8)) for colour in colours],
                    "label": [names.index({10: "cat", 20: "dog", 30: "cow"}[colour]) for colour in colours],
                }
                features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
                path = tmp_path / file
                Dataset.from_dict(rows, features=features).to_parquet(path)
                files[f"data/{file}"] = path.read_bytes()
            digests = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
            hub.contents.update({digests[path]: content for path, content in files.items()})
            hub.repositories["dataset", "ann/birds"] = module.Repository(private=False)
            hub.repositories["dataset", "ann/birds"].add(digests, "first")
            environment = os.environ | hub.environment(tmp_path / "home")
            environment |= {"PYTHONPATH": str(Path(ascent_vit.__file__).parents[1])}
            command = [sys.executable, "-c", PROGRAM, mode]
            result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return run


TRAIN, TEST = "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"
SAME = {"train": [["cat", 10], ["dog", 20]], "test": [["dog", 20], ["cat", 10]]}


def test_names_in_another_order(load):
    assert load({TRAIN: (["cat", "dog"], [10, 20]), TEST: (["dog", "cat"], [20, 10])}) == SAME


def test_names_that_differ(load):
    sentence = load({TRAIN: (["cat", "dog"], [10, 20]), TEST: (["cat", "cow"], [10, 30])})
    assert "The names of label differ between the splits train and test: 'cow' is in one of them alone" in sentence


def test_a_stream_is_refused(load):
    sentence = load({TRAIN: (["cat", "dog"], [10, 20]), TEST: (["dog", "cat"], [20, 10])}, "streaming")
    assert "number their classes or concepts in different orders" in sentence and "leave streaming out" in sentence
    assert load({TRAIN: (["cat", "dog"], [10, 20]), TEST: (["cat", "dog"], [20, 10])}, "streaming") == SAME

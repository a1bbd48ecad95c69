# SPDX-License-Identifier: Apache-2.0
"""The measurement of doubt: its parts on a few images, and the page that shows them."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from ascent_vit.data import load_concept_dataset


ROOT = Path(__file__).parents[2]


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def doubt():
    pytest.importorskip("mapie")
    pytest.importorskip("matplotlib")
    return load_script("doubt")


@pytest.fixture(scope="module")
def doubt_tables():
    return load_script("doubt_tables")


def test_the_page_shows_what_was_measured(doubt_tables):
    page = (ROOT / "docs" / "doubt.md").read_text(encoding="utf-8")
    results = json.loads((ROOT / "benchmarks" / "results" / "doubt.json").read_text(encoding="utf-8"))
    assert doubt_tables.with_tables(page, results) == page
    results["birds"]["selection"]["area"] += 0.01
    assert doubt_tables.with_tables(page, results) != page
    with pytest.raises(ValueError, match="The page has 0 tables"):
        doubt_tables.with_tables("no table", results)


def test_areas_by_hand(doubt):
    confidence = np.array([0.9, 0.8, 0.7, 0.6])
    assert doubt.risk_area(confidence, np.array([1.0, 1.0, 1.0, 0.0])) == pytest.approx(1 / 16)
    assert doubt.risk_area(confidence, np.array([0.0, 1.0, 1.0, 1.0])) == pytest.approx(
        (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4
    )
    found = doubt.auroc(np.array([0.1, 0.2, 5.0]), np.array([0.3, 9.0]))
    assert found["auroc"] == pytest.approx(5 / 6)


def test_a_known_dataset_lacks_ten_classes(doubt, tmp_path, make_classes):
    splits = make_classes(12)
    doubt.write_known(splits, str(tmp_path / "known"))
    known = load_concept_dataset(str(tmp_path / "known"))
    names = known["train"].features["label"].names
    assert len(names) == 2 and set(known["train"]["label"]) == {0, 1}
    for row in known["train"]:
        assert row["label"] == names.index(f"class {row['concepts'][0]}")


@pytest.fixture
def make_classes():
    from datasets import ClassLabel, Dataset, DatasetDict, Features, List
    from datasets import Image as ImageFeature
    from PIL import Image

    def make(number):
        features = Features(
            {
                "image": ImageFeature(),
                "label": ClassLabel(names=[f"class {i}" for i in range(number)]),
                "concepts": List(ClassLabel(names=[f"concept {i}" for i in range(number)])),
            }
        )
        rows = {
            "image": [Image.new("L", (8, 8), i) for i in range(number)],
            "label": list(range(number)),
            "concepts": [[i] for i in range(number)],
        }
        return DatasetDict({"train": Dataset.from_dict(rows, features=features)})

    return make


@pytest.mark.slow
def test_every_part_is_measured_once(doubt, tmp_path, monkeypatch):
    splits = load_concept_dataset("digits", copies=3)
    monkeypatch.setattr(doubt, "load_concept_dataset", lambda name: splits)
    file = tmp_path / "doubt.json"
    arguments = ["digits", "--output", str(file), "--images", "6", "--dialogues", "3", "--questions", "2"]
    doubt.main(arguments)
    results = json.loads(file.read_text(encoding="utf-8"))
    shifts = [name for name, _ in doubt.conditions()]
    assert len(shifts) == 10
    digits = results["digits"]
    talks = ["dialogues", "dialogues to the end", "dialogues, noise 64", "dialogues to the end, noise 64"]
    parts = ["images", "alpha", "coverage per class", "coverage together", "selection"]
    parts += [f"sets {name}" for name in shifts] + talks + [f"another kind, {name}" for name in shifts]
    assert list(digits) == parts
    assert digits["images"] == len(splits["validation"]) + len(splits["test"])
    assert digits["sets as they are"]["accuracy"] > 0.8
    for talk in talks:
        for order in ("guard", "uncertainty", "random"):
            values = digits[talk][order]
            assert [len(values[name]) for name in ("accuracy", "size", "coverage", "questions")] == [3] * 4
            assert values["questions"] == [0, 1, 2] or "to the end" not in talk
    # A second run has nothing left to do, and another model's part is added to the file.
    monkeypatch.setattr(doubt, "measure", None)
    doubt.main(arguments)
    again = json.loads(file.read_text(encoding="utf-8"))
    assert again["digits"] == digits
    doubt.Results(file, "birds").part("images", lambda: 7)
    assert json.loads(file.read_text(encoding="utf-8")) == again | {"birds": {"images": 7}}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["corrections", "edits"])
def test_scripts_run_whole(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    script, file = load_script(name), tmp_path / "results.json"
    if name == "corrections":
        script.main(str(ROOT / "hub" / "digits"), "digits", file, images=4)
        areas = json.loads(file.read_text(encoding="utf-8"))["results"]
        assert len(areas) == 2
    else:
        monkeypatch.setattr(script, "STEPS", 1)
        monkeypatch.setattr(script, "FINE_TUNING_STEPS", 1)
        script.main(file, str(ROOT / "hub" / "digits"), seeds=1)
        (rows,) = json.loads(file.read_text(encoding="utf-8"))["runs"]
        assert len(rows) == 5
    assert capsys.readouterr().out.startswith("| ")

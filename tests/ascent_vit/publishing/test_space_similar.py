# SPDX-License-Identifier: Apache-2.0
"""An index beside a model is published with it, without photographs that nobody may show."""

import ast

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from ascent_vit import ConceptIndex, explain
from ascent_vit.inference import load_model
from ascent_vit.publishing import PublishOptions, stage, stage_space
from ascent_vit.publishing.publish import is_own
from ascent_vit.publishing.space_similar import similar_table


pytest.importorskip("faiss")
ATTACK = "<img src=x onerror=alert(1)>"


@pytest.fixture
def run_with_index(run_folder):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in range(6)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["wren", ATTACK])})
    dataset = Dataset.from_dict({"image": images, "label": [0, 1] * 3}, features=features)
    model, processor = load_model(str(run_folder / "model"))
    ConceptIndex.build(model, processor, dataset, thumbnails=True).save(run_folder / "model" / "index")
    return run_folder


def has_photographs(folder) -> bool:
    return any(b"JFIF" in path.read_bytes() for path in folder.rglob("*.arrow"))


def test_thumbnails_go_out_where_the_licence_allows_it(run_with_index, tmp_path):
    for path in run_with_index.glob("*.json"):
        path.write_text(path.read_text().replace("digits", "my birds"))
    query = explain(*load_model(str(run_with_index / "model")), Image.new("RGB", (40, 30), "red"))
    expected = [case.row for case in ConceptIndex.load(run_with_index / "model").similar(query)]
    options = {"kept": PublishOptions(data_license="cc-by-4.0"), "dropped": PublishOptions()}
    for name, option in options.items():
        target = tmp_path / name
        target.mkdir()
        files = {file.path for file in stage(run_with_index, target, "ann/birds", option)}
        assert {"index/index.json", "index/contributions.faiss", "index/cases/state.json"} <= files
        assert has_photographs(target) is (name == "kept")
        cases = ConceptIndex.load(target).similar(explain(*load_model(str(target)), query.image))
        assert [case.row for case in cases] == expected
        assert all((case.thumbnail is None) is (name == "dropped") for case in cases)
    assert is_own("index/index.json")


def test_an_index_of_other_weights_is_not_published(run_with_index, tmp_path):
    (tmp_path / "target").mkdir()
    with pytest.raises(ValueError, match="is of other weights or names than the model that is published"):
        stage(run_with_index, tmp_path / "target", "ann/birds", PublishOptions(float16=True))


def test_a_space_of_a_model_with_an_index_loads_it(run_with_index, tmp_path):
    stage_space(run_with_index, tmp_path / "space", "ann/birds")
    app = (tmp_path / "space" / "app.py").read_text()
    ast.parse(app)
    assert "index = ConceptIndex.load(MODEL, REVISION)" in app and "from ascent_vit.cases import" in app
    assert "faiss-cpu" in (tmp_path / "space" / "requirements.txt").read_text()
    assert not list((tmp_path / "space").rglob("*.faiss"))


def test_the_table_escapes_names(run_with_index):
    query = explain(*load_model(str(run_with_index / "model")), Image.new("RGB", (40, 30), "red"))
    cases = ConceptIndex.load(run_with_index / "model").similar(query, k=6)
    text = similar_table(cases)
    assert text.count("data:image/jpeg;base64,") == 6 and ATTACK not in text and "&lt;img src=x" in text
    assert f"{cases[0].score:.3f}" in text
    assert "no such image" in similar_table([])

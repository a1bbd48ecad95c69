# SPDX-License-Identifier: Apache-2.0
"""An index on a Hub: beside the model, without photographs unless they are asked for, found by the model's id."""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from ascent_vit import explain


ROOT = Path(__file__).parents[3]

PUSH = """
from ascent_vit import ConceptIndex
index = ConceptIndex.load(sys.argv[1])
print(index.push_to_hub(sys.argv[2], thumbnails=sys.argv[3] == "thumbnails"))
"""
ASK = """
import json, pickle
from ascent_vit import ConceptIndex
try:
    index = ConceptIndex.load(sys.argv[1])
    cases = index.similar(pickle.load(open(sys.argv[2], "rb")), k=3)
    print(json.dumps([[case.row, case.label, case.thumbnail is None] for case in cases]))
except (FileNotFoundError, ValueError) as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture
def hub():
    spec = importlib.util.spec_from_file_location("hub_double_of_cases", ROOT / "tests" / "hub_double.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    with module.hub_double() as hub:
        yield hub


@pytest.mark.slow
def test_pushed_and_loaded(index, index_folder, model_and_processor, pictures, hub, tmp_path):
    def client(code, *words):
        environment = os.environ | hub.environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", f"import sys\n{code}", *map(str, words)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()[-1]

    query = explain(*model_and_processor, pictures[3])
    (tmp_path / "query.pkl").write_bytes(pickle.dumps(query))
    expected = [[case.row, case.label] for case in index.similar(query, k=3)]
    assert "ann/birds" in client(PUSH, index_folder, "ann/birds", "plain")
    files = hub.files("ann/birds")
    assert {name for name in files if name.startswith("index/")} == {
        f"index/{path.relative_to(index_folder).as_posix()}" for path in index_folder.rglob("*") if path.is_file()
    }
    assert not any(b"JFIF" in content for content in files.values())
    answers = json.loads(client(ASK, "ann/birds", tmp_path / "query.pkl"))
    assert answers == [[*case, True] for case in expected]
    client(PUSH, index_folder, "ann/birds", "thumbnails")
    assert any(b"JFIF" in content for content in hub.files("ann/birds").values())
    answers = json.loads(client(ASK, "ann/birds", tmp_path / "query.pkl"))
    assert answers == [[*case, False] for case in expected]
    assert "There is no index ann/nothing" in client(ASK, "ann/nothing", tmp_path / "query.pkl")

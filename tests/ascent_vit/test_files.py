# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are written whole or not at all."""

import json
import os
import stat

import pytest

from ascent_vit.files import replace_folder, write_json, write_text


def test_text_replaces_text(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "first")
    write_text(path, "zweites, größer")
    assert path.read_text(encoding="utf-8") == "zweites, größer"
    assert os.listdir(path.parent) == ["a.txt"]


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [1.5, float("inf")], "z": {"w": None}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [1.5, None], "z": {"w": None}}


def test_json_that_cannot_be_written_leaves_the_old(tmp_path):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert (tmp_path / "a.json").read_text() == "[\n  1\n]\n"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_is_replaced_whole(tmp_path):
    for names in (["a", "b"], ["c"]):
        with replace_folder(tmp_path / "model") as folder:
            for name in names:
                (folder / name).write_text(name)
            if names == ["c"]:
                assert sorted(os.listdir(tmp_path / "model")) == ["a", "b"]
    assert os.listdir(tmp_path / "model") == ["c"]
    assert os.listdir(tmp_path) == ["model"]
    (tmp_path / "plain").mkdir()
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_an_error_leaves_the_old_folder(tmp_path):
    with replace_folder(tmp_path / "model") as folder:
        (folder / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), replace_folder(tmp_path / "model") as folder:
        (folder / "a").write_text("new")
        raise KeyboardInterrupt
    assert (tmp_path / "model" / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["model"]

# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are written whole or not at all."""

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ascent_vit.utils import files
from ascent_vit.utils.files import (
    check_extent,
    claim,
    file_digest,
    new_folder,
    read_json,
    replace_folder,
    write_json,
    write_text,
)


# In a process of its own: the functions of the file, without all that the package imports.
OTHER = f"import runpy, os, sys, time; files = runpy.run_path({str(Path(files.__file__))!r})\n"


def test_text_replaces_text(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "first")
    write_text(path, "zweites, größer")
    assert path.read_text(encoding="utf-8") == "zweites, größer"
    assert os.listdir(path.parent) == ["a.txt"]


def test_digest_of_a_file(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc" * 100_000)
    assert file_digest(tmp_path / "a.bin") == hashlib.sha256(b"abc" * 100_000).digest()


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


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b'{"a":' * 100_000])
def test_json_of_others(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match="a.json is no JSON file"):
        read_json(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match="b.json does not exist"):
        read_json(tmp_path / "b.json")


def test_few_lines_that_stand_for_many_values():
    lines = ["x"]
    for _ in range(40):
        lines = [lines, lines]
    with pytest.raises(ValueError, match="more than 1,000,000 values"):
        check_extent(lines)
    endless = {}
    endless["a"] = [endless]
    with pytest.raises(ValueError, match="more than"):
        check_extent(endless)
    check_extent({"a": [1, {"b": None}]})


def test_threads_write_one_file(tmp_path):
    texts = [str(i) * 50_000 for i in range(8)]
    threads = [threading.Thread(target=write_text, args=(tmp_path / "a.txt", text)) for text in texts * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a.txt").read_text() in texts and os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_that_is_replaced_is_never_missing(tmp_path):
    with replace_folder(tmp_path / "model") as folder:
        (folder / "a").write_text("0")
    code = """
seen = set()
print("ready", flush=True)
while not os.path.exists(sys.argv[1] + "/stop"):
    seen.add(open(sys.argv[1] + "/model/a").read())
print(len(seen))
"""
    reader = subprocess.Popen([sys.executable, "-c", OTHER + code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert reader.stdout.readline() == "ready\n"
    for i in range(300):
        with replace_folder(tmp_path / "model") as folder:
            (folder / "a").write_text(str(i))
    (tmp_path / "stop").touch()
    assert int(reader.communicate(timeout=60)[0]) > 1 and reader.returncode == 0


def test_a_place_is_claimed_by_one_process(tmp_path):
    code = "with files['claim'](sys.argv[1]): print('mine', flush=True); time.sleep(60)"
    place = tmp_path / "new" / "out"
    holder = subprocess.Popen([sys.executable, "-c", OTHER + code, place], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "mine\n"
    with pytest.raises(FileExistsError, match="Another process is writing to .*out: wait"), claim(place):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    # The lock of a process that was killed is left, and holds nobody up.
    assert os.listdir(place.parent) == [".out.lock"]
    with claim(place), pytest.raises(FileExistsError), claim(place):
        pass
    assert os.listdir(place.parent) == []
    with claim(place, inside=True):
        assert os.listdir(place) == [".lock"]
    assert not place.exists()


def test_a_new_folder_stays_the_first_ones(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("first")
        with pytest.raises(FileExistsError, match="Another process"), new_folder(tmp_path / "out"):
            pass
    with pytest.raises(FileExistsError, match="not empty"), new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "a").read_text() == "first" and os.listdir(tmp_path) == ["out"]

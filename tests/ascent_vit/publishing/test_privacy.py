# SPDX-License-Identifier: Apache-2.0
"""What is cut out of published texts, what stays, and what refuses publication."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascent_vit.publishing.privacy import check_secrets, strip_paths, strip_values


NAMES = st.text(alphabet="abcXYZ019_.-", min_size=1, max_size=8).filter(lambda name: name.strip("."))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"dataset": "/home/ann/data/birds"}', '{"dataset": "birds"}'),
        ("read /tmp/a/b.csv.", "read b.csv."),
        ("[x](/home/ann/f.png) and `/Users/ann/g.png`", "[x](f.png) and `g.png`"),
        ("--source=/home/ann/x --to ~/y/z", "--source=x --to z"),
        (r"C:\Users\ann\x.csv", "x.csv"),
        ("file:///home/ann/x.csv", "x.csv"),
    ],
)
def test_paths_are_cut_to_their_last_part(text, expected):
    assert strip_paths(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/home/ann and s3://tmp/x",
        "and/or, 1/2, image/png, user/name, ann/birds, a / b",
        r"learning\_rate \| [x](docs/publishing.md)",
        "has_bill_shape::a<b>",
    ],
)
def test_other_texts_stay(text):
    assert strip_paths(text) == text and strip_values({text: [text]}) == {text: [text]}


@given(st.sampled_from(["/home", "/root", "/tmp", "/Users"]), st.lists(NAMES, min_size=2, max_size=5))
def test_no_folder_is_left(root, parts):
    folders = [f"secret{i}{part}" for i, part in enumerate(parts[:-1])]
    path = "/".join([root, *folders, parts[-1]])
    data = json.dumps(strip_values({"a": [path, f"see {path} there"], "b": 1.5, "c": None}))
    assert not any(folder in data for folder in folders) and parts[-1] in data


def test_a_path_with_spaces():
    assert strip_values({"output": "/home/ann/my birds/run"}) == {"output": "run"}


def test_secrets_refuse(monkeypatch):
    check_secrets("nothing of that kind, hf_short", "README.md")
    with pytest.raises(ValueError, match="report.json holds what looks like a token"):
        check_secrets("token hf_" + "a1B2" * 8, "report.json")
    monkeypatch.setenv("SOME_API_KEY", "correct horse battery")
    with pytest.raises(ValueError, match="the value of SOME_API_KEY"):
        check_secrets("key: correct horse battery", "report.json")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ann"))
    with pytest.raises(ValueError, match="your home folder"):
        check_secrets("in /home/ann/x", "README.md")
    check_secrets("in /home/anna/x", "README.md")

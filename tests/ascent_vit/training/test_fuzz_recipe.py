# SPDX-License-Identifier: Apache-2.0
"""Every key of a recipe wrong once, in a file, in Python and by --set; and files that are no recipes."""

import datetime

import pytest
import yaml
from hypothesis import strategies as st

from ascent_vit.training.reading import configuration_files, load_recipe
from ascent_vit.training.recipe import FIELDS, Recipe
from ascent_vit_cli.app import run


NAN, INF = float("nan"), float("inf")
WRONG = [
    *(None, "x", "", 0, -1, 3, 1.5, NAN, INF, -INF, 10**12, 10**400, 1e308, True, b"x", datetime.date(2020, 1, 1)),
    *([], [1], {}, {"a": 1}, {1: 2}, {"psi": "x"}, {"preset": 3}, {"preset": ["a"]}, {"preset": "nope"}),
    *({"preset": None}, {"backbone_config": 3}, {"backbone_config": {"model_type": ["v"]}}, {"size": "x"}),
    *({"backbone_config": {"model_type": "vit", 3: 4}}, {"scale": "x"}, {"flip": NAN}, {None: None}),
]
TEXTS = [
    *(b"", b"\xff\xfe", b"[", b"- a", b"a: b: c", b"? [a]\n: b", b"? {a: b}\n: c", b"&a [*a]", b"a: &a [*a]"),
    *(b'x: !!python/object/apply:os.system ["ls"]', b"[" * 5000, b"{" * 5000, b"a: " + b"9" * 5000, b"seed: 1:30"),
    *(b"<<: 3", b"<<: {seed: 3}", b"null: 3", b"1: 2", b"seed: 2020-99-99", b"seed: .nan", b"\0", b"n\xe9: 3"),
    *(b"---\na: 1\n---\nb: 2", b'a: !!binary "x"', b"a: !!timestamp x", b"seed: !!int x", b"seed: !!float x"),
    *(b"? - a\n? - a\n", b"seed: 1\nseed: 2", b"seed: 0x10\nmodel: 3", b"\t", b"%", b"seed: *a", b"seed: |\n  3"),
]


@pytest.fixture
def good():
    return yaml.safe_load(configuration_files("recipes")["digits"].read_text(encoding="utf-8"))


@pytest.mark.parametrize("key", FIELDS)
def test_every_key_wrong_once(fuzz, good, tmp_path, key):
    path = tmp_path / "recipe.yaml"

    def check(value):
        path.write_text(yaml.dump({**good, key: value}), encoding="utf-8")
        ways = {
            "file": lambda: load_recipe(path),
            "Python": lambda: Recipe(**{**good, key: value}),
            "--set": lambda: load_recipe("digits", [f"{key}={yaml.dump(value, default_flow_style=True).strip()}"]),
        }
        for way, call in ways.items():
            got = fuzz.outcome(lambda call=call: flat(call))
            assert isinstance(got, fuzz.Refused | Recipe), way

    fuzz.each("recipes", WRONG, check)


def flat(call):
    """YAML's own errors show the place on lines of their own, which the command joins."""
    try:
        return call()
    except ValueError as error:
        sentence = " ".join(str(error).split())
        raise ValueError(sentence if sentence.endswith((".", "?")) else f"{sentence}.") from error


@pytest.mark.parametrize("text", TEXTS, ids=[str(i) for i in range(len(TEXTS))])
def test_files_that_are_no_recipes(fuzz, tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text)
    with fuzz.one_case("recipes"):
        assert isinstance(fuzz.outcome(lambda: flat(lambda: load_recipe(path))), fuzz.Refused)


@pytest.mark.parametrize("examples", [100, pytest.param(700, marks=pytest.mark.nightly)])
def test_any_text(fuzz, tmp_path, good, examples):
    path, text = tmp_path / "recipe.yaml", yaml.dump(good)

    def check(edit):
        at, removed, put = edit
        at %= len(text)
        path.write_text(text[:at] + put + text[at + removed :], encoding="utf-8")
        fuzz.outcome(lambda: flat(lambda: load_recipe(path)))

    odd = st.text(st.sampled_from("-:?[]{}&*!|>'\"%@`#,. \n\t0e9~nxé\x85\u2028"), max_size=6)
    fuzz.run("recipes", examples, st.tuples(st.integers(0, 5000), st.integers(0, 20), odd), check)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", ["model.psi=x", "model.psi=.nan", "model.fusion_points=1000000000", "processor.size=x", "seed=x"]
)
def test_the_command_calls_it_bad_input(fuzz, setting, tmp_path, capsys):
    """Also what the configuration refuses, later than the recipe."""
    arguments = ["train", "--recipe", "digits", "--output", str(tmp_path / "run"), "--set", setting]
    assert run(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and setting.split("=")[0].rpartition(".")[2] in lines[0]

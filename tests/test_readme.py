# SPDX-License-Identifier: Apache-2.0
"""
The code in the README and in the pages of docs/ runs, and prints what they say.

Python blocks of a page run in their order, in a folder that has what a clone has and the files they name. Commands run
through the command line itself. What is not run is named here, with the reason; it is compiled, or read by the command
line, all the same.
"""

import contextlib
import importlib.util
import io
import re
import shlex
import shutil
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from markdown_it import MarkdownIt
from PIL import Image
from transformers import AutoConfig, AutoModel

from ascent_vit.data import concept_features
from ascent_vit_cli.app import app, run


ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]

# Python blocks by page and number; all others run.
NOT_RUN = {
    ("docs/metrics.md", 0): "trains two models of the reader's; test_leakage.py does so",
    ("docs/publishing.md", 0): "sends to the Hub; test_publish.py sends to a double",
    ("docs/publishing.md", 1): "loads from the Hub with its code; test_remote_code.py does so from a folder",
    ("docs/space.md", 0): "starts an app, and sends to the Hub; test_space.py does both",
    ("docs/speed.md", 1): "compiles for half a minute; test_optimize.py does so",
    ("docs/training.md", 0): "trains three epochs of a ViT-B; test_trainer.py does so with a small one",
    ("docs/training.md", 1): "goes on from the block before",
}

# What blocks import that not every environment has: they run where it is installed.
OPTIONAL = ("captum", "fiftyone", "pytorch_grad_cam")

# Commands of the README by their beginning; all others run.
COMMANDS_NOT_RUN = {
    "pip install": "installs, then trains for five minutes or runs these tests; .ci/run and test_demo.py",
    "ascent-vit demo": "trains for five minutes; test_demo.py runs it with four steps",
    "pytest": "these tests",
    "ascent-vit prepare cub": "needs the archive; test_prepare.py makes one",
    "ascent-vit check data/birds": "checks what the line before prepares; test_as_people_have_it.py makes small ones",
    "ascent-vit train --recipe birds": "needs a pretrained backbone; test_features.py trains on a real one",
}
SLOW_COMMANDS = ("ascent-vit evaluate",)


def fences(page: str) -> list:
    """The code blocks of a page in their order, each with `info` (its language), `content` and `before` (text)."""
    blocks, before = [], ""
    for token in MarkdownIt("commonmark").parse((ROOT / page).read_text(encoding="utf-8")):
        if token.type == "inline":
            before = token.content
        elif token.type == "fence":
            token.meta["before"] = before
            blocks.append(token)
            before = ""
    return blocks


def python_blocks(page: str) -> list[tuple[str, str | None]]:
    """Python blocks, each with what the page says that it prints: a text block after the word "prints"."""
    blocks = fences(page)
    result = []
    for block, after in zip_longest(blocks, blocks[1:]):
        shown = after is not None and after.info == "text" and after.meta["before"].endswith("prints")
        if block.info == "python":
            result.append((block.content, after.content if shown else None))
    return result


def commands(page: str) -> list[str]:
    """The commands of the bash blocks of a page, comments and continued lines taken out."""
    lines = []
    for block in fences(page):
        if block.info == "bash":
            for line in block.content.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                lines += [part.strip() for part in shlex.join(words).replace("'&&'", "&&").split("&&") if part.strip()]
    return lines


NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")


def assert_printed(printed: str, shown: str):
    """Equal but for one in the last digit after a decimal point: another CPU rounds otherwise."""
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown), f"printed:\n{printed}\nshown:\n{shown}"
    for got, expected in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        decimals = len(expected.partition(".")[2])
        tolerance = 1.01 * 10**-decimals if decimals else 0
        assert abs(float(got) - float(expected)) <= tolerance, f"printed:\n{printed}\nshown:\n{shown}"


def small_backbone(folder: Path, model_type: str):
    config = AutoConfig.for_model(
        model_type, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=14
    )
    AutoModel.from_config(config).save_pretrained(folder)


def bird_dataset(folder: Path):
    import datasets

    features = concept_features(["crow", "wren"], spatial_concepts=["beak", "wing"])
    image = Image.fromarray(np.zeros((40, 60, 3), dtype=np.uint8))
    row = {"image": image, "label": 0, "objects": {"bbox": [[1.0, 2.0, 10.0, 8.0]], "category": [1]}}
    rows = datasets.Dataset.from_list([row, {**row, "label": 1}], features=features)
    rows = rows.rename_columns({"label": "species", "objects": "annotations"})
    datasets.DatasetDict({"train": rows}).save_to_disk(folder)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder that has what the pages name: the models, the image, and small stand-ins for what the Hub has."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub").symlink_to(ROOT / "hub")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    small_backbone(tmp_path / "facebook" / "dinov2-base", "dinov2")
    small_backbone(tmp_path / "dinov2-small", "dinov2")
    bird_dataset(tmp_path / "USER" / "birds")
    torch.save({"state_dict": {"model.weight": torch.zeros(2, 3)}}, tmp_path / "cub.ckpt")
    shutil.copytree(ROOT / "hub" / "digits", tmp_path / "runs" / "birds")
    return tmp_path


def pages_with_python():
    return [page for page in PAGES if python_blocks(page)]


def test_every_text_that_is_printed_belongs_to_a_block():
    texts = [
        block for page in PAGES for block in fences(page) if block.info == "text" and "prints" in block.meta["before"]
    ]
    shown = [text for page in PAGES for _, text in python_blocks(page) if text is not None]
    assert len(texts) == len(shown) >= 8


def test_what_is_not_run_is_there():
    blocks = {(page, i) for page in PAGES for i in range(len(python_blocks(page)))}
    assert blocks >= NOT_RUN.keys()
    lines = commands("README.md")
    assert all(any(line.startswith(start) for line in lines) for start in [*COMMANDS_NOT_RUN, *SLOW_COMMANDS])


@pytest.mark.parametrize("page", pages_with_python())
def test_python_blocks(page, clone, capsys):
    names = {"__name__": "__main__", "image": Image.new("RGB", (240, 160))}  # the README's reader has an image
    for i, (code, shown) in enumerate(python_blocks(page)):
        compiled = compile(code, f"{page}, Python block {i}", "exec")
        if (page, i) in NOT_RUN:
            assert shown is None
            continue
        imported = re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE)
        if any(name in OPTIONAL and importlib.util.find_spec(name) is None for name in imported):
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compiled, names)
        if shown is not None:
            assert_printed(printed.getvalue(), shown)
    if page == "README.md":
        assert names["inputs"]["spatial_concept_targets"].shape[-1] == 3
    if page == "docs/explaining.md":
        assert all((clone / f"explanation.{suffix}").stat().st_size > 1000 for suffix in ("png", "html", "json"))


def readme_commands(slow: bool) -> list[str]:
    lines = [line for line in commands("README.md") if not line.startswith(tuple(COMMANDS_NOT_RUN))]
    return [line for line in lines if line.startswith(SLOW_COMMANDS) == slow]


def run_command(line: str):
    program, *arguments = shlex.split(line)
    assert program == "ascent-vit", line
    assert run(arguments) == 0, line


def test_commands(clone, capsys):
    lines = readme_commands(slow=False)
    assert len(lines) >= 2
    for line in lines:
        run_command(line)
    assert {path.name for path in (clone / "explanations").iterdir()} == {"digit.png", "digit.html", "digit.json"}
    assert (clone / "to-be-sent" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("line", readme_commands(slow=True))
def test_slow_commands(line, clone):
    run_command(line)
    assert (clone / "figures.json").is_file()


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_are_those_of_the_command_line(page):
    known = typer.main.get_command(app).commands
    for line in commands(page):
        program, *arguments = shlex.split(line)
        if program == "ascent-vit":
            assert arguments[0] in known, line
            known[arguments[0]].make_context(arguments[0], arguments[1:])


def test_the_two_lines_that_others_look_for():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines.count('pip install ".[train]" && ascent-vit demo --output demo') == 1
    assert [line for line in lines if re.fullmatch(r"pip install .* && pytest", line)] == [
        'pip install ".[test]" && pytest'
    ]

# SPDX-License-Identifier: Apache-2.0
"""The tutorials: as they are committed, and run whole."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient


ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
NAMES = ["1_first_steps", "2_your_own_data", "3_train_with_accelerate", "4_any_backbone", "5_how_far_to_trust"]
KIBIBYTES = 400
PICTURES = ("image/png", "image/jpeg")
DRAWN, FOUND = "Drawn birds in the layout of CUB-200-2011", "The archive of CUB-200-2011"

# The roots of a machine's own paths.
ABSOLUTE = re.compile(r"(?<![\w.~/])/(?:tmp|home|root|work|usr|opt|var|mnt|Users)/|\b[A-Z]:\\")


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: nbformat.NotebookNode) -> Iterator[nbformat.NotebookNode]:
    for cell in code_cells(notebook):
        yield from cell.outputs


def text_of(output: nbformat.NotebookNode) -> str:
    values = [value for kind, value in output.get("data", {}).items() if kind not in PICTURES]
    return "\n".join([output.get("text", ""), *map(str, values)])


def all_text(notebook: nbformat.NotebookNode) -> str:
    return "\n".join(map(text_of, outputs(notebook)))


def count_pictures(notebook: nbformat.NotebookNode) -> int:
    return sum(not set(PICTURES).isdisjoint(output.get("data", {})) for output in outputs(notebook))


def numbers(pattern: str, text: str) -> list[float]:
    """What the group of a pattern matches, as numbers; there must be some."""
    found = [float(value) for value in re.findall(pattern, text)]
    assert found, f"{pattern} is nowhere in the outputs"
    return found


def test_the_folder_holds_what_is_tested():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES
    assert "notebooks/" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_is_a_whole_run(name):
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < KIBIBYTES * 1024
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3" and notebook.metadata.language_info == {"name": "python"}
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for output in outputs(notebook)}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert not [output.text for output in outputs(notebook) if output.get("name") == "stderr"]
    assert not ABSOLUTE.search(all_text(notebook)) and not ABSOLUTE.search("\n".join(c.source for c in notebook.cells))


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    prose = "\n".join(cell.source for cell in read(FOLDER / f"{name}.ipynb").cells if cell.cell_type == "markdown")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link]
    assert links and all((FOLDER / link).exists() for link in links)


def test_no_photograph_of_cub_is_committed():
    text = all_text(read(FOLDER / "3_train_with_accelerate.ipynb"))
    assert DRAWN in text and FOUND not in text


def check_first_steps(text: str) -> None:
    total, score = numbers(r"sum ([+-][\d.]+)", text)[0], numbers(r"score +([+-][\d.]+)\n", text)[0]
    assert total == pytest.approx(score, abs=1e-4)
    assert "even becomes odd" in text


def check_your_own_data(text: str) -> None:
    assert numbers(r"accuracy +([\d.]+)\n", text)[-1] > 0.9 and numbers(r"pixel_tpr +([\d.]+)\n", text)[-1] > 0.9
    assert "model.safetensors" in text


def check_train_with_accelerate(text: str) -> None:
    assert DRAWN in text and "Nothing was sent." in text
    assert numbers(r"accuracy: ([\d.]+)\n", text)[0] > 0.8
    assert numbers(r"pixel_tpr +higher +([\d.]+)\n", text)[0] > 0.9
    assert text.rstrip().endswith("True")


def check_any_backbone(text: str) -> None:
    assert max(numbers(r"largest difference ([\d.e+-]+)", text)) < 1e-3
    assert max(numbers(r"(?m)^\w+ +\d+ +\d+x\d+ +[\d,]+ +([\d.e+-]+)$", text)) < 1e-4


def check_how_far_to_trust(text: str) -> None:
    assert numbers(r"additivity_error ([\d.e+-]+)", text)[0] < 1e-5
    (off_open, off_gated) = numbers(r"off the ink ([\d.]+)", text)
    assert off_gated < 0.2 < 0.5 < off_open


CHECKS = dict(
    zip(
        NAMES,
        (
            check_first_steps,
            check_your_own_data,
            check_train_with_accelerate,
            check_any_backbone,
            check_how_far_to_trust,
        ),
        strict=True,
    )
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if i < 2 else pytest.mark.nightly) for i, name in enumerate(NAMES)],
)
def test_a_notebook_runs_whole(name, tmp_path, monkeypatch):
    shutil.copytree(FOLDER, tmp_path / "notebooks", ignore=shutil.ignore_patterns("output", "CUB_200_2011"))
    for folder in ("hub", "docs", "configuration"):
        (tmp_path / folder).symlink_to(ROOT / folder, target_is_directory=True)
    # The command is the one that is tested, and nothing comes from the network or from an earlier run.
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    committed = read(FOLDER / f"{name}.ipynb")
    notebook = read(FOLDER / f"{name}.ipynb")
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(tmp_path / "notebooks")}}
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources=resources, coalesce_streams=True).execute()
    CHECKS[name](all_text(notebook))
    assert count_pictures(notebook) == count_pictures(committed) > 0

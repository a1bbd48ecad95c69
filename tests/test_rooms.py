# SPDX-License-Identifier: Apache-2.0
"""The rooms of the house: imports point one way, and long files have a reason."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ascent_vit


ROOT = Path(__file__).parents[1]

# From the ground up: a room may import those before it.
ROOMS = [
    "modeling_ascent_vit",
    "ascent_vit/utils",
    "ascent_vit/inference",
    "ascent_vit/data",
    "ascent_vit/explanation",
    "ascent_vit/cases",
    "ascent_vit/evaluation",
    "ascent_vit/summary",
    "ascent_vit/safeguard",
    "ascent_vit/training",
    "ascent_vit/export",
    "ascent_vit/publishing",
    "conversion",
    "ascent_vit_cli",
]
# The one circle: transformers copies a file's relative imports when it saves the file beside a model, also those for a
# type checker alone, and by this one the PIL backend takes the torchvision backend along.
BACKENDS = (
    "modeling_ascent_vit.image_processing_pil_ascent_vit",
    "modeling_ascent_vit.image_processing_ascent_vit",
)
# Files over the limit, each with its reason.
MOST_LINES = 600
LONG_FILES = {
    "modeling_ascent_vit/modeling_ascent_vit.py": "the method, from the smallest module to the head",
}


def imports(path: Path) -> Iterator[tuple[str, str | None]]:
    """
    Modules that a file imports, each with the name taken from it, if any; also inside of functions and for a type
    checker alone. Relative ones are named from the root.
    """
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def import_graph() -> dict[str, set[str]]:
    """The modules of this project that each of them imports. A package counts where a name is taken from itself."""
    files = {}
    for folder in ("modeling_ascent_vit", "ascent_vit", "conversion", "ascent_vit_cli"):
        for path in files_of(folder):
            parts = path.relative_to(ROOT).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        graph[name] = set()
        for imported, attribute in imports(path):
            module = imported.replace("ascent_vit.conversion", "conversion")
            submodule = f"{module}.{attribute}"
            graph[name].add(submodule if submodule in files else module)
        graph[name] &= files.keys() - {name}
    return graph


def room_of(module: str) -> str | None:
    """The room that a module of this project is in; None for other modules and for the package itself."""
    first, *rest = module.split(".")
    if first == "ascent_vit" and rest:
        return rest[0] if rest[0] == "conversion" else f"ascent_vit/{rest[0]}"
    return first if first in ("modeling_ascent_vit", "conversion", "ascent_vit_cli") else None


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    allowed = {None, room, *ROOMS[: ROOMS.index(room)]}
    files = files_of(room)
    assert files
    for path in files:
        others = {room_of(module) for module, _ in imports(path)} - allowed
        assert not others, f"{path.relative_to(ROOT)} imports {', '.join(sorted(others))}"


def test_no_circle():
    graph = import_graph()
    pil, torchvision = BACKENDS
    assert pil in graph[torchvision]
    graph[pil].remove(torchvision)
    # Names that the package imports when they are first used stand there for a type checker.
    graph["ascent_vit"] -= {f"ascent_vit{module}" for module in ascent_vit._LAZY.values()}
    # An error names the circle.
    TopologicalSorter(graph).prepare()


def test_the_package_is_imported_without_figures():
    code = "import sys, ascent_vit; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_room_is_named():
    rooms = {f"ascent_vit/{path.parent.name}" for path in (ROOT / "ascent_vit").glob("*/__init__.py")}
    assert rooms == {room for room in ROOMS if room.startswith("ascent_vit/")}
    assert [path.name for path in (ROOT / "ascent_vit").glob("*.py")] == ["__init__.py"]


def test_long_files_have_a_reason():
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for folder in (*ROOMS, "benchmarks", "docs")
        for path in files_of(folder)
    }
    assert {path for path, number in lines.items() if number > MOST_LINES} == set(LONG_FILES)

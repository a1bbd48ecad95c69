# SPDX-License-Identifier: Apache-2.0
"""The rooms of the house: imports point one way, and long files have a reason."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]

# From the ground up: a room may import those before it.
ROOMS = [
    "modeling_ascent_vit",
    "ascent_vit/utils",
    "ascent_vit/inference",
    "ascent_vit/data",
    "ascent_vit/explanation",
    "ascent_vit/evaluation",
    "ascent_vit/training",
    "ascent_vit/export",
    "ascent_vit/publishing",
    "conversion",
    "ascent_vit/cli",
]
# Files over the limit, each with its reason.
MOST_LINES = 600
LONG_FILES = {
    "modeling_ascent_vit/modeling_ascent_vit.py": "the method, from the smallest module to the head",
}


def imported_modules(path: Path) -> set[str]:
    """Names of the modules that a file imports, also inside of functions; relative ones from the root."""
    package = path.relative_to(ROOT).parent.parts
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            modules.add(".".join([*above, *([node.module] if node.module else [])]))
    return modules


def room_of(module: str) -> str | None:
    """The room that a module of this project is in; None for other modules and for the package itself."""
    first, *rest = module.split(".")
    if first == "ascent_vit" and rest:
        return rest[0] if rest[0] == "conversion" else f"ascent_vit/{rest[0]}"
    return first if first in ("modeling_ascent_vit", "conversion") else None


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    allowed = {None, room, *ROOMS[: ROOMS.index(room)]}
    files = files_of(room)
    assert files
    for path in files:
        others = {room_of(module) for module in imported_modules(path)} - allowed
        assert not others, f"{path.relative_to(ROOT)} imports {', '.join(sorted(others))}"


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

# SPDX-License-Identifier: Apache-2.0
"""Who imports whom: each room only those that CONTRIBUTING.md says."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
# Modules beside the rooms, for all of them; and the package itself, which gives the model's public names.
FREE = {"files", "markdown", "models", "utils"}

ROOMS = {
    "modeling_ascent_vit": set(),
    "conversion": {"model", "publishing"},
    "ascent_vit/data": {"model"},
    "ascent_vit/explanation": {"model"},
    "ascent_vit/evaluation": {"model", "data", "explanation"},
    "ascent_vit/training": {"model", "data", "explanation", "evaluation"},
    "ascent_vit/publishing": {"model", "data", "explanation"},
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


def rooms_of(modules: set[str], own: str) -> set[str]:
    """The project's rooms among modules, other than the own one."""
    rooms = set()
    for module in modules:
        first, *rest = module.split(".")
        if first == "modeling_ascent_vit":
            rooms.add("model")
        elif first == "conversion":
            rooms.add("conversion")
        elif first == "ascent_vit" and rest:
            rooms.add(rest[0])
    return rooms - FREE - {own}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    own = "model" if room == "modeling_ascent_vit" else room.rpartition("/")[2]
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        others = rooms_of(imported_modules(path), own)
        assert others <= ROOMS[room], f"{path.relative_to(ROOT)} imports {', '.join(sorted(others - ROOMS[room]))}"


def test_every_room_is_named():
    rooms = {f"ascent_vit/{path.parent.name}" for path in (ROOT / "ascent_vit").glob("*/__init__.py")}
    rooms.discard("ascent_vit/utils")
    assert rooms == {room for room in ROOMS if room.startswith("ascent_vit/")} | {"ascent_vit/cli"}

# SPDX-License-Identifier: Apache-2.0
"""The documentation is built without a warning, its links lead somewhere, and its picture is its program's."""

import importlib
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image

import ascent_vit


ROOT = Path(__file__).parents[2]
ROOMS = ("cases", "conversion", "data", "evaluation", "explanation", "export", "inference", "publishing", "training")
MARKDOWN = [path for folder in (".", "docs") for path in sorted((ROOT / folder).glob("*.md"))]


class Page(HTMLParser):
    """Links, pictures and places of a page of HTML."""

    def __init__(self, text: str):
        super().__init__()
        self.targets: set[str] = set()
        self.places: set[str] = set()
        self.equations = 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.places |= {values[name] for name in ("id", "name") if values.get(name)}
        name = {"a": "href", "img": "src", "link": "href", "script": "src"}.get(tag)
        if name and values.get(name):
            self.targets.add(values[name])
        self.equations += tag == "math"


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[Path, Page]:
    """Every page, by the README's own command but for the folder that it writes to."""
    output = tmp_path_factory.mktemp("docs")
    assert "`sphinx-build -W docs build/docs`" in (ROOT / "README.md").read_text(encoding="utf-8")
    # As sphinx-build, -P leaves the working folder out of the path: the package that is installed is documented.
    command = [sys.executable, "-P", "-m", "sphinx", "-W", "-q", "docs", output]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return {path: Page(path.read_text(encoding="utf-8")) for path in output.rglob("*.html")}


@pytest.mark.slow
def test_links_lead_somewhere(pages):
    broken = []
    for path, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not file.exists() or (parts.fragment and file in pages and parts.fragment not in pages[file].places):
                broken.append(f"{path.name}: {target}")
    assert not broken
    links = sum(len(page.targets) for page in pages.values())
    assert len(pages) > 20 and links > 500


@pytest.mark.slow
def test_pages_ask_no_other_machine_for_anything(pages):
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?:https?:)?//[^"]+"', text), path.name


@pytest.mark.slow
def test_every_page_is_in_the_index(pages):
    index = next(page for path, page in pages.items() if path.name == "index.html" and path.parent.name != "reference")
    for source in sorted((ROOT / "docs").glob("*.md")):
        assert source.stem == "index" or f"{source.stem}.html" in index.targets, source.name


@pytest.mark.slow
def test_equations_and_reference_are_there(pages):
    assert next(page for path, page in pages.items() if path.name == "design.html").equations > 40
    places = set().union(*(page.places for path, page in pages.items() if path.parent.name == "reference"))
    rooms = [importlib.import_module(f"ascent_vit.{name}") for name in ROOMS]
    public = {f"{room.__name__}.{name}" for room in rooms for name in room.__all__ if name != "METRICS"}
    public |= {f"ascent_vit.{name}" for name in ("AscentViTConfig", "AscentViTForImageClassification")}
    assert not public - places
    assert {"explain", "train", "publish"} <= places  # commands


@pytest.mark.slow
def test_docstrings_are_rendered_whole(pages):
    """Sections become lists of arguments, references become links, and nothing of the notation is left."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in pages if path.parent.name == "reference"}
    for name, text in texts.items():
        shown = re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)
        assert not re.findall(r"\[<code[^>]*>[^\]]*</code>\]|\.\. \w+::|{py:|(?:Args|Returns):\s", shown), name
    assert 'href="#ascent_vit.explanation.Explanation.for_class"' in texts["explanation.html"]
    assert texts["explanation.html"].count("field-list") > 10


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_in_the_repository_lead_somewhere(path):
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8")):
        for child in token.children or []:
            target = child.attrGet("href") or child.attrGet("src") or ""
            parts = urlsplit(target)
            if target and not parts.scheme and parts.path:
                assert (path.parent / unquote(parts.path)).exists(), target


@pytest.mark.slow
def test_the_picture_is_drawn_by_its_program(tmp_path):
    program = [sys.executable, str(ROOT / "docs" / "images" / "draw.py"), str(tmp_path)]
    subprocess.run(program, check=True, capture_output=True)
    digit = np.asarray(Image.open(ROOT / "docs" / "images" / "digit.png"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "digit.png")), digit)
    drawn, shown = (Image.open(folder / "explanation.png").convert("L") for folder in (tmp_path, ROOT / "docs/images"))
    assert drawn.size == shown.size
    # Fonts are smoothed a little otherwise in other versions.
    assert np.abs(np.asarray(drawn, dtype=float) - np.asarray(shown, dtype=float)).mean() < 2
    assert (ROOT / "docs" / "images" / "explanation.png").stat().st_size < 200_000


def test_the_table_of_rooms_is_in_the_order_of_imports():
    named = re.findall(r"^\| `([\w/]+)/` \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert named == runpy.run_path(str(ROOT / "tests" / "test_rooms.py"))["ROOMS"]


def test_citation_and_changelog_name_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == ascent_vit.__version__ and citation["license"] == "Apache-2.0"
    assert [author["family-names"] for author in citation["references"][0]["authors"]] == ["Sinha", "Xiong", "Zhang"]
    assert ascent_vit.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

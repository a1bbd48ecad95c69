# SPDX-License-Identifier: Apache-2.0
"""How Sphinx makes the documentation: sphinx-build -W docs build/docs"""

import os
import re
from pathlib import Path

import typer
from docutils import nodes
from docutils.utils import new_document
from docutils.utils.math.latex2mathml import tex2mathml
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import ascent_vit
from ascent_vit_cli.app import app as command_line


DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "ASCENT-ViT"
author = "The ASCENT-ViT project"
project_copyright = f"2026, {author}"
release = version = ascent_vit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["images"]

myst_enable_extensions = ["dollarmath", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"ASCENT-ViT {release}"
html_math_renderer = "mathml"
html_copy_source = False
# Equations and fonts are the browser's own: pages ask no other machine for anything.
html_static_path = ["style"]
html_css_files = ["pages.css"]

# Pages of the repository that are pages of the documentation too.
OUTSIDE = DOCS / "outside"
OUTSIDE_PAGES = {
    "benchmarks/RESULTS.md": "results",
    "benchmarks/study/README.md": "study",
    "benchmarks/peers/README.md": "beside-peers",
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
    "SECURITY.md": "security",
}


def copy_outside_pages(app: Sphinx) -> None:
    """Copies the pages that lie outside of docs/ to docs/outside/, which git ignores; old copies go."""
    OUTSIDE.mkdir(exist_ok=True)
    wanted = {f"{name}.md": ROOT / source for source, name in OUTSIDE_PAGES.items()}
    for copy in OUTSIDE.iterdir():
        if copy.name not in wanted:
            copy.unlink()
    for name, source in wanted.items():
        text = source.read_text(encoding="utf-8")
        copy = OUTSIDE / name
        if not copy.is_file() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")


LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")


def mend_links(app: Sphinx, docname: str, source: list[str]) -> None:
    """
    Relative links as they are for readers of the repository, made to fit the documentation: those to its pages go
    there, pictures are found, and of links to other files and folders the name is left.
    """
    page = DOCS / f"{docname}.md"
    original = {f"outside/{name}": ROOT / path for path, name in OUTSIDE_PAGES.items()}.get(docname, page)
    pages = {(ROOT / path).resolve(): OUTSIDE / f"{name}.md" for path, name in OUTSIDE_PAGES.items()}

    def mend(match: re.Match) -> str:
        target = (original.parent / match["target"]).resolve()
        if not target.exists():
            return match[0]  # Sphinx tells of it.
        shown = pages.get(target, target)
        if match["image"] or (shown.suffix == ".md" and shown.is_relative_to(DOCS)):
            relative = Path(os.path.relpath(shown, page.parent)).as_posix()
            return f"{match['image']}[{match['text']}]({relative}{match['anchor'] or ''})"
        path = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else target.name
        named = match["text"].strip("`") in (path, target.name)
        return f"`{path}`" if named else f"{match['text']} (`{path}`)"

    source[0] = LINK.sub(mend, source[0])


CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
REFERENCE = re.compile(r"\[``(~?)([\w.]+)``\]")


def prepare_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Mends what Napoleon would misread: colons in single backticks, and a list of arguments without its heading."""
    lines[:] = CODE.sub(r"``\1``", "\n".join(lines)).split("\n")
    if re.match(r"\w+ \(.*:$", lines[0]):
        lines[:] = ["Args:", *(f"    {line}" for line in lines)]


def docstring_to_markdown(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Hands a docstring to MyST, which reads Napoleon's field lists too, with its references as roles."""
    text = REFERENCE.sub(r"{py:obj}`\1.\2`", "\n".join(lines))
    lines[:] = [".. markdown::", "", *(f"   {line}" for line in text.split("\n")), ""]


class Markdown(SphinxDirective):
    """Markdown within the reStructuredText that autodoc writes."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        document = new_document(self.get_source_info()[0], self.state.document.settings)
        MystParser().parse("\n".join(self.content), document)
        return document.children


class CommandReference(SphinxDirective):
    """What `ascent-vit COMMAND --help` says of every command, from the same source."""

    def run(self) -> list[nodes.Node]:
        commands = typer.main.get_command(command_line).commands  # type: ignore[attr-defined]
        text = "\n".join(line for name, command in sorted(commands.items()) for line in self.describe(name, command))
        return self.parse_text_to_nodes(text, allow_section_headings=True)

    @staticmethod
    def describe(name: str, command: typer.core.TyperCommand) -> list[str]:
        lines = [
            f"## {name}",
            "",
            re.sub(r"(--[a-z-]+)", r"`\1`", command.help or ""),
            "",
            "| | default | |",
            "|---|---|---|",
        ]
        for parameter in command.params:
            if parameter.name == "help":
                continue
            if isinstance(parameter, typer.core.TyperArgument):
                usage = parameter.metavar or parameter.name.upper()
            else:
                is_flag = getattr(parameter, "is_flag", False)
                usage = parameter.opts[0] + ("" if is_flag else f" {parameter.metavar or 'VALUE'}")
            default = "" if parameter.default is None or parameter.default is False else f"`{parameter.default}`"
            default = "required" if parameter.required else default
            help_text = re.sub(r"(--[a-z-]+)", r"`\1`", getattr(parameter, "help", None) or "").replace("|", "\\|")
            lines.append(f"| `{usage}` | {default} | {help_text} |")
        return [*lines, ""]


def visit_math(translator, node: nodes.Element) -> None:
    """Equations as MathML, which browsers draw by themselves."""
    mathml = tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))
    block = isinstance(node, nodes.math_block)
    translator.body.append(f'<div class="math">{mathml}</div>\n' if block else mathml)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.add_directive("markdown", Markdown)
    app.add_directive("command-reference", CommandReference)
    app.connect("builder-inited", copy_outside_pages)
    app.connect("source-read", mend_links)
    # Napoleon's priority is 500.
    app.connect("autodoc-process-docstring", prepare_docstring, priority=400)
    app.connect("autodoc-process-docstring", docstring_to_markdown, priority=600)

"""Settings of Sphinx, and what it makes of the package: the configuration reference, and errors where a docstring lacks.

The source folder is that of the repository, so that links between README, docs/ and the other files lead where they lead on
a site of repositories. `make docs` builds it; warnings are errors there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import finetune
from finetune.cli import help, key_comments
from finetune.io.paths import CONF

project = "finetune"
author = "The finetune maintainers"
version = release = finetune.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/*.md"]
html_theme = "furo"
html_title = f"finetune {version}"
html_copy_source = False

myst_heading_anchors = 4
# types stand in the signatures, where Python's own words are shorter than ours
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autoclass_content = "both"  # the arguments are those of __init__
default_role = "code"
highlight_language = "none"  # of commands and what they print
autodoc_default_options = {"members": True, "undoc-members": True}

PAGES = {
    "Use it": ["getting_started", "data", "strategies", "training", "models", "evaluate_predict_export", "exports"],
    "In code, at scale": ["in_your_own_code", "sweeps", "tracking", "several_devices", "cluster"],
    "What it reaches": ["defaults", "performance", "promises"],
    "Reference": ["configuration", "api"],
    "The project": ["/CONTRIBUTING", "/SECURITY", "/CHANGELOG"],
}
"""Caption to the pages below it, in `docs/` but for those that begin with a slash."""

GROUPS = (
    "model", "data", "data/augment", "strategy", "optimizer", "scheduler", "loss", "metrics", "callbacks", "trainer", "logger",
    "sweep", "sweep/space", "paths",
)  # fmt: skip

logger = logging.getLogger(__name__)


class ConfigurationReference(SphinxDirective):
    """`configuration`: every group with its options, every key with its default and comment, from the YAML files."""

    def run(self) -> list[nodes.Node]:
        """Return the nodes of the reference."""
        for path in sorted(CONF.rglob("*.yaml")):
            self.env.note_dependency(str(path))
        return self.parse_text_to_nodes("\n".join(reference()), allow_section_headings=True)


def reference() -> Iterator[str]:
    """Yield the lines of the configuration reference, in Markdown."""
    yield "## Commands\n"
    for name in help.EXAMPLES:
        text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
        yield f"### {name}\n"
        yield f"`{key_comments.read_header(text).split('     ')[0]}`\n"
        yield from table(text, "", key_comments.read_comments(text))
    yield "## Groups\n"
    choices = key_comments.choice_comments("train")
    for group in GROUPS:
        yield f"### {group}=\n"
        yield f"{choices.get(group, '')}\n"
        yield from options(group)


def options(group: str) -> Iterator[str]:
    """Yield what all options of a group have in common, then each option with its own keys."""
    files = sorted((CONF / group).glob("*.yaml"), key=lambda file: (file.stem != "_base", file.stem))
    if group == "model":
        yield f"Options: {', '.join(f'`{file.stem}`' for file in files[1:])}.\n"
        files = files[:1]
    for file in files:
        text = file.read_text(encoding="utf-8")
        lines = key_comments.read_header(text).splitlines()
        commands = [line.strip() for line in lines if line.startswith("  ")]
        title = "" if file.stem == "_base" else f"**`{group}={file.stem}`** "
        yield title + escape(" ".join(line for line in lines if not line.startswith("  "))) + "\n"
        if commands:
            yield from ["```", *commands, "```\n"]
        comments = key_comments.key_comments("train", {group: file.stem})
        yield from table(text, key_comments.prefix_of(text, group), comments)


def table(text: str, prefix: str, comments: dict[str, str]) -> Iterator[str]:
    """Yield a table of the keys of a YAML text: the key, its default, its comment; nothing where there are none."""
    rows = []
    for line, name in key_comments.iterate_keys(text):
        key, value = prefix + name, key_comments.COMMENT.sub("", line.partition(":")[2]).strip()
        if name and name != "defaults" and (value or key in comments):
            shown = f"`{value}`" if value else ""
            rows.append(f"| `{key}` | {escape(shown)} | {escape(comments.get(key, ''))} |")
    if rows:
        yield from ["| key | default | what |", "|---|---|---|", *rows, ""]


def escape(text: str) -> str:
    """Return text for a cell of a table, in which nothing but what is between backticks is marked up."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if i % 2 else re.sub(r"([_*<])", r"\\\1", part) for i, part in enumerate(parts))


def add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """Add the list of all pages to the first one: on a site of repositories it would be read as text."""
    if name == root_doc:
        for caption, pages in PAGES.items():
            lines = [page[1:] if page.startswith("/") else f"docs/{page}" for page in pages]
            source[0] += "\n\n```{toctree}\n:hidden:\n:caption: " + caption + "\n\n" + "\n".join(lines) + "\n```\n"


def keep_colon(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Make a dash of the colon in the first line of an attribute: napoleon would take what stands before it for a type."""
    if what in ("attribute", "property", "data") and lines:
        lines[0] = lines[0].replace(": ", " -- ")


def require_docstring(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Warn of a public name that says nothing of itself; the build has no warnings."""
    if not any(line.strip() for line in lines):
        logger.warning("%s has no docstring", name)


def add_index(app: Sphinx, error: Exception | None) -> None:
    """Write the page that a server answers a folder with."""
    if error is None:
        page = f'<!doctype html><meta http-equiv="refresh" content="0; url={root_doc}.html">'
        (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Register the directive and the hooks."""
    app.add_directive("configuration", ConfigurationReference)
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", keep_colon, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", require_docstring)
    app.connect("build-finished", add_index)

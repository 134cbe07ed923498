"""Configuration of the documentation site (`make docs`)."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
REPOSITORY = os.environ.get("UPFEAT_REPOSITORY", "")  # address of the source tree, for links to it

project = "upfeat"
author = "The upfeat authors"
copyright = "The upfeat authors, Apache-2.0"
release = importlib.metadata.version("upfeat")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "conf.py", "results/remarks.md"]

# Pages are Markdown; tutorials are percent scripts that run at every build (set
# UPFEAT_DOCS_EXECUTE=off to write their text and code only).
myst_enable_extensions = ["deflist", "fieldlist", "dollarmath"]
myst_heading_anchors = 3
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = os.environ.get("UPFEAT_DOCS_EXECUTE", "cache")
nb_execution_timeout = 600
nb_execution_raise_on_error = True
source_suffix = {".md": "myst-nb", ".py": "myst-nb"}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"upfeat {release}"


def write_commands(app: "Sphinx") -> None:
    """Write the page of all commands and options from their help texts."""
    page = HERE / "commands.md"
    line = [sys.executable, "-m", "typer", "upfeat.cli.app", "utils", "docs", "--name", "upfeat"]
    subprocess.run([*line, "--output", str(page)], check=True, capture_output=True)
    text = page.read_text().replace("# `upfeat`", "# Commands", 1)
    page.write_text(text.replace("&#x27;", "'").replace("&quot;", '"'))


def link_sources(app: "Sphinx", document: str, source: list[str]) -> None:
    """Let links to files outside the site be their names, or links to the source tree."""
    folder = (HERE / document).parent

    def outside(match: re.Match[str]) -> str:
        text, target = match.groups()
        place = (folder / target.partition("#")[0]).resolve()
        in_site = place.is_relative_to(HERE) and place.suffix != ".json" and place.is_file()
        if in_site or not place.exists():  # the latter is no link, or the build warns of it
            return match.group()
        if not REPOSITORY:
            return text
        return f"[{text}]({REPOSITORY}/{place.relative_to(HERE.parent)})"

    source[0] = re.sub(r"\[([^\]]+)\]\((?!https?:|#|mailto:)([^)\s]+)\)", outside, source[0])


def setup(app: "Sphinx") -> None:
    """Connect what is computed at build time."""
    app.connect("builder-inited", write_commands)
    app.connect("source-read", link_sources)

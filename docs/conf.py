"""Configuration of the documentation site (`make docs`)."""

import importlib.metadata
import os

project = "upfeat"
author = "The upfeat authors"
copyright = "The upfeat authors, Apache-2.0"  # noqa: A001  (Sphinx's name for it)
release = importlib.metadata.version("upfeat")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
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

html_theme = "furo"
html_title = f"upfeat {release}"

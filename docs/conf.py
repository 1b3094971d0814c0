"""Sphinx: MyST pages, furo, warnings are errors (``make docs``)."""

from __future__ import annotations

import oram

project = "oram"
release = version = oram.__version__
copyright = "the oram authors"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
nitpicky = False  # numpy's and Sphinx's own types are not resolved here

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"

html_theme = "furo"
html_title = f"oram {release}"

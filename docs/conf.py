"""Sphinx: MyST pages, furo, warnings are errors (``make docs``)."""

from __future__ import annotations

import re
from typing import Any

import oram

project = "oram"
release = version = oram.__version__
copyright = "the oram authors"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"

html_theme = "furo"
html_title = f"oram {release}"


def _paragraphs(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Our docstrings are plain text: arguments as ``name: what it is``, with continuation lines indented, and Cost and Leaks in a sentence."""
    text: list[str] = []
    for line in lines:
        if line.startswith(" ") and text and text[-1] and not text[-1].endswith("::"):
            text[-1] += " " + line.strip()
            continue
        argument = re.match(r"([a-z_]+(?:, [a-z_]+)*): ", line)
        if argument and text and text[-1]:
            text.append("")
        text.append(f"*{argument[1]}*: {line[argument.end() :]}" if argument else line)
    lines[:] = [re.sub(r"\b(Cost|Leaks|Cost and leaks)(?=:| as)", r"**\1**", line) for line in text]


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.connect("autodoc-process-docstring", _paragraphs)

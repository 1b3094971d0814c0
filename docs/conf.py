"""Sphinx: MyST pages, furo, warnings are errors (``make docs``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import oram
from oram.benchmark import Results
from oram.benchmark.report import page

project = "oram"
release = version = oram.__version__
copyright = "the oram authors"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in ("Pairs", "Progress", "U8", "I64", "SchemeParams")}
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 72  # a longer one has an argument a line

html_theme = "furo"
html_title = f"oram {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]

# Made by a function, not by their constructors.
_MADE = {"oram.ObliviousStore", "oram.Blocks", "oram.Stats", "oram.backends.Backend", "oram.backends.StateFile"}
_MADE |= {"oram.backends.BufferBackend", "oram.backends.XorBackend"}
_KEPT = max((Path(__file__).parents[1] / "bench" / "results").glob("*-oram-bench.json"))
_NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$", re.MULTILINE)
_ARGUMENT = re.compile(r"([ZAS]|[a-z_]+(?:, [a-z_]+)*): ")


def _paragraphs(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Our docstrings are plain text: arguments as ``name: what it is``, a line each, with continuation lines indented; Cost and Leaks in a sentence."""
    text: list[str] = []
    listed = False  # whether the last line belongs to a list of arguments
    for line in lines:
        if line.startswith(" ") and text and text[-1] and not text[-1].endswith("::"):
            text[-1] += " " + line.strip()
            continue
        argument = _ARGUMENT.match(line)
        if bool(argument) != listed and text and text[-1]:
            text.append("")
        listed = bool(argument)
        text.append(f"* **{argument[1]}**: {line[argument.end() :]}" if argument else line)
    lines[:] = [re.sub(r"\b(Cost|Leaks|Cost and leaks)(?=:| as)", r"**\1**", line) for line in text]


def _signature(_app: Any, what: str, name: str, _object: Any, _options: Any, signature: str, returns: str) -> Any:
    """No parameter list where there is nothing to call; aliases by their names."""
    if what == "class" and name in _MADE:
        return "", None
    return signature and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature), returns


def _marks(_app: Any, _name: str, source: list[str]) -> None:
    """The mark of a block that the tests do not run, for readers."""
    source[0] = _NOT_RUN.sub(r"*Not run by the tests: \1.*\n", source[0])


def _report(app: Any, error: Exception | None) -> None:
    """The page of the kept run of ``oram bench``, beside the others."""
    if error is None and app.builder.format == "html":
        (Path(app.outdir) / "benchmark-report.html").write_text(page(Results.from_json(_KEPT.read_text())))


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.connect("build-finished", _report)
    app.connect("source-read", _marks)
    app.connect("autodoc-process-docstring", _paragraphs)
    app.connect("autodoc-process-signature", _signature)

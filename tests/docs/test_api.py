"""docs/api.md has every public name, from its docstring: shapes, errors, cost and leaks cannot go stale there."""

from __future__ import annotations

import enum
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.one_kernel

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = "".join((DOCS / name).read_text() for name in ("api.md", "aio.md"))
_DIRECTIVE = re.compile(r"^\.\. auto(?:function|class|module):: ([\w.]+)(?:\(\))?\n((?:   :.+\n)*)", re.MULTILINE)
DIRECTIVES = dict(_DIRECTIVE.findall(PAGES))  # name: its options
MODULES = ("oram", "oram.aio", "oram.backends", "oram.errors", "oram.trace")


def names(module: str) -> Iterator[str]:
    there = importlib.import_module(module)
    for name in getattr(
        there, "__all__", [n for n, v in vars(there).items() if getattr(v, "__module__", "") == module]
    ):
        if not inspect.ismodule(getattr(there, name)) and not name.startswith("_"):
            yield f"{module}.{name}"


def documented(name: str) -> bool:
    module = name.rpartition(".")[0]
    value = getattr(importlib.import_module(module), name.rpartition(".")[2])
    origin = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    alias = not (inspect.isclass(value) or inspect.isroutine(value))
    kept_as_text = alias and f"`{name}`" in PAGES  # an alias of a type, which has no page of its own
    return (
        kept_as_text
        or name in DIRECTIVES
        or origin in DIRECTIVES
        or ":members:" in DIRECTIVES.get(getattr(value, "__module__", ""), "")
    )


@pytest.mark.parametrize("name", [name for module in MODULES for name in names(module)])
def test_every_public_name_is_there(name: str) -> None:
    assert documented(name)


def _classes() -> Iterator[tuple[str, type]]:
    for name in DIRECTIVES:
        module, _, last = name.rpartition(".")
        value = getattr(importlib.import_module(module or name), last, None) if module else None
        if inspect.isclass(value):
            yield name, value


@pytest.mark.parametrize(("name", "which"), list(_classes()), ids=[name for name, _ in _classes()])
def test_every_public_method_is_there(name: str, which: type) -> None:
    """Autodoc leaves out what has no docstring, and what its directive does not name; an interface's methods are with the interface."""
    members = re.search(r":members:(.*)\n", DIRECTIVES[name])
    chosen = None if members is None else [each.strip() for each in members[1].split(",") if each.strip()]
    for attribute, value in vars(which).items():
        public = callable(value) or isinstance(value, property | classmethod | staticmethod)
        if attribute.startswith("_") or not public or (issubclass(which, enum.Enum)):
            continue
        inherited = any(attribute in vars(base) for base in which.__mro__[1:-1])
        if members is None or (chosen and attribute not in chosen):
            assert inherited or _internal(which, attribute), f"{name}.{attribute} is not on the page"
        else:
            assert inspect.getdoc(getattr(which, attribute)), f"{name}.{attribute} has no docstring"


def _internal(which: type, attribute: str) -> bool:
    """Of parameters, what the library asks them; of a contract, its tests."""
    return attribute == "problems" or (which.__name__.endswith("Conformance") and attribute.startswith("test_"))


def _operations() -> Iterator[tuple[str, Any]]:
    for name, which in _classes():
        if name in ("oram.aio.AsyncObliviousStore", "oram.aio.AsyncBlocks") or name in (
            "oram.ObliviousStore",
            "oram.Blocks",
        ):
            for attribute, value in vars(which).items():
                if not attribute.startswith("_") and (callable(value) or isinstance(value, property)):
                    yield f"{name}.{attribute}", value
    for name in DIRECTIVES:
        module, _, last = name.rpartition(".")
        if module in ("oram", "oram.aio") and inspect.isfunction(getattr(importlib.import_module(module), last, None)):
            yield name, getattr(importlib.import_module(module), last)


@pytest.mark.parametrize(("name", "operation"), list(_operations()), ids=[name for name, _ in _operations()])
def test_every_operation_says_what_it_costs_and_leaks(name: str, operation: Any) -> None:
    text = inspect.getdoc(operation) or ""
    stated = "Cost" in text and re.search("[Ll]eaks", text)
    assert stated or re.search(r"[Tt]he same as|[Ll]ike ``|[Aa]s ``|``(?:oram|ObliviousStore)\.", text), (
        f"{name}: {text}"
    )

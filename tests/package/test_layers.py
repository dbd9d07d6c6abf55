"""The import rule of the package: each layer imports only the layers below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ..support.processes import ROOT

PACKAGE = ROOT / "adh_auth"

#: From top to bottom. The names on one line don't know each other.
LAYERS = (
    ("__main__",),
    ("cli", "pytest_plugin"),
    ("sign_in", "testing", "helper"),
    ("for_requests", "for_httpx", "for_httpx2", "stores"),
    ("clients",),
    ("rotation",),
    ("store", "oauth"),
    ("tokens", "events", "sandbox"),
    ("errors",),
    ("common",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

#: Who may import a package from outside: prefixes of module names.
OUTSIDE = {
    "requests": ("clients.requests_", "for_requests", "sign_in.", "cli."),
    "urllib3": ("clients.requests_", "for_requests", "sign_in.", "cli."),
    "httpx": ("for_httpx", "cli.demo."),
    "httpx2": ("for_httpx2", "cli.demo."),
    "filelock": ("store.file_lock",),
    "psycopg": ("store.postgresql",),
    "redis": ("store.redis",),
}

#: What of `store` the core may know.
STORE_FOR_ROTATION = {"store.base", "store.record", "store.stat_cache"}

#: Pure modules do no input or output and share nothing between threads.
PURE = ("oauth.", "tokens", "rotation.decision")
IMPURE = {"os", "socket", "threading"}


class Import(NamedTuple):
    """One import: who imports what. Both without the name of the package where they are part of it."""

    by: str
    what: str
    ours: bool

    def __str__(self) -> str:
        return f"{self.by} -> {self.what}"


def _module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {_module(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(module: str, source: str) -> Iterator[Import]:
    """Every import of that source, late ones and those for type checkers included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, ours=False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _imported_from(module, node)


def _imported_from(module: str, node: ast.ImportFrom) -> Iterator[Import]:
    if not node.level:
        if (node.module or "").partition(".")[0] == "adh_auth":
            yield Import(module, f"adh_auth by its own name ({node.module})", ours=False)
        else:
            yield Import(module, node.module or "", ours=False)
        return
    folder = module.split(".")[: -node.level]
    source = [*folder, *(node.module.split(".") if node.module else [])]
    for alias in node.names:
        named = ".".join([*source, alias.name])
        yield Import(module, named if named in MODULES else ".".join(source) or "__init__", ours=True)


def broken_rules(found: Import) -> list[str]:
    """The rules that an import breaks, in a few words each."""
    if found.ours:
        return _broken_inside(found)
    top = found.what.partition(".")[0]
    broken = []
    if top in OUTSIDE and not found.by.startswith(OUTSIDE[top]):
        broken.append(f"{top} is not imported here")
    if top in IMPURE and found.by.startswith(PURE):
        broken.append("a pure module")
    if found.what.startswith("adh_auth"):
        broken.append("the package by its own name")
    return broken


def _broken_inside(found: Import) -> list[str]:
    mine, other = found.by.partition(".")[0], found.what.partition(".")[0]
    if mine == "__init__" or (mine == "cli" and other == "__init__"):  # the names; the version
        return []
    broken = []
    if mine != other and not LEVEL.get(other, -1) > LEVEL[mine]:
        broken.append("not a layer below")
    if mine == "sandbox" and other != mine:
        broken.append("the sandbox imports nothing of the library")
    if mine == "rotation" and other == "store" and found.what not in STORE_FOR_ROTATION:
        broken.append("the core knows a store by its contract")
    return broken


@pytest.mark.parametrize("module", sorted(MODULES))
def test_an_import_points_downward(module: str) -> None:
    """No module imports its own layer's neighbour, a layer above it, or a package that is not its business."""
    source = MODULES[module].read_text(encoding="utf-8")
    broken = {str(found): rules for found in imports_of(module, source) if (rules := broken_rules(found))}
    assert broken == {}


def test_modules_of_a_folder_form_no_circle() -> None:
    """Two modules that import each other are one module, late imports and those for type checkers included."""
    known: dict[str, set[str]] = {
        module: {
            found.what
            for found in imports_of(module, path.read_text(encoding="utf-8"))
            if found.ours and found.what in MODULES and found.what != "__init__"
        }
        for module, path in MODULES.items()
    }
    assert {module for module in known if module in _reached(known, module)} == set()


def _reached(known: dict[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        new = known[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached


def test_every_file_at_the_top_is_in_the_rule() -> None:
    """A new module or folder says where it belongs."""
    assert {module.partition(".")[0] for module in MODULES} - {"__init__"} <= LEVEL.keys()


def test_folders_are_empty_packages() -> None:
    """What a folder holds is imported by its module's name."""
    inits = [path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]
    assert {path for path in inits if path.read_text(encoding="utf-8")} == set()


#: An import that breaks a rule, and the rule.
WRONG = (
    ("store.record", "from ..rotation.job import Job", "not a layer below"),
    ("store.record", "from ..oauth import replies", "not a layer below"),
    ("common.text", "def late():\n    from ..errors import AdhAuthError", "not a layer below"),
    ("rotation.core", "from ..store.token_file import TokenFile", "by its contract"),
    ("rotation.core", "from ..store import disk", "by its contract"),
    ("rotation.core", "import requests", "not imported here"),
    ("clients.httpx_flow", "from httpx import Client", "not imported here"),
    ("clients.base", "import urllib3.util", "not imported here"),
    ("store.token_file", "import filelock", "not imported here"),
    ("oauth.replies", "import socket", "a pure module"),
    ("tokens", "import os.path", "a pure module"),
    ("rotation.decision", "from threading import Lock", "a pure module"),
    ("sandbox.routes", "from ..common.text import one_line", "imports nothing of the library"),
    ("for_requests", "from .for_httpx import AdhHttpxAuth", "not a layer below"),
    ("cli.main", "from adh_auth.errors import AdhAuthError", "by its own name"),
)


@pytest.mark.parametrize(("module", "source", "rule"), WRONG, ids=[f"{row[0]}: {row[1]}" for row in WRONG])
def test_an_import_that_breaks_a_rule_is_found(module: str, source: str, rule: str) -> None:
    """The rule is not empty."""
    broken = [text for found in imports_of(module, source) for text in broken_rules(found)]
    assert any(rule in text for text in broken), broken

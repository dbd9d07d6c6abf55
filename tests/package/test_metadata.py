"""What the package index shows of the package, beside the README."""

from __future__ import annotations

import re

from ..support.processes import ROOT

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_authors_urls_and_where_to_report() -> None:
    """An empty side column helps nobody."""
    urls = dict(re.findall(r'^(\w+) = "(https://.*)"$', PYPROJECT, re.MULTILINE))
    assert {"Homepage", "Issues"} <= urls.keys()
    assert re.search(r"^authors = \[\{ name = ", PYPROJECT, re.MULTILINE)
    assert "Report a security\nproblem privately" in README


def test_every_address_is_one_of_the_platform() -> None:
    """No domain is made up."""
    hosts = set(re.findall(r"https://([\w.-]*agenticdeveloperhub[\w.-]*)", PYPROJECT + README))
    assert hosts <= {"agenticdeveloperhub.com", "api.agenticdeveloperhub.com"}


def test_installing_is_told_once() -> None:
    """On the first screen; an extra is installed as its error says, beside what needs it."""
    commands = re.findall(r"^pip install (.*?)(?: +#.*)?$", README, re.MULTILINE)
    assert README.splitlines().index(next(line for line in README.splitlines() if "pip install" in line)) < 35
    assert [command for command in commands if not command.startswith('"adh-auth[')] == commands[:1]
    extras = {"adh-auth[httpx2]", "adh-auth[postgres]", "adh-auth[encrypted]"}
    assert set(re.findall(r'pip install "([^"]+)"', README)) <= extras

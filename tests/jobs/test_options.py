"""What messages and pages tell people to type."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from jobs.cli import app

ROOT = Path(__file__).parents[2]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
OF_OTHERS = {
    "--head",  # ray start
    "--user", "--now",  # systemctl, journalctl
    "--always", "--dirty", "--abbrev", "--exclude",  # git describe
    "--help",
}  # fmt: skip


def options(command: Any) -> Iterator[str]:
    """All that a command and those below it take."""
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for below in getattr(command, "commands", {}).values():
        yield from options(below)


KNOWN = {*options(typer.main.get_command(app))} | OF_OTHERS


@pytest.mark.parametrize("folder", ["pipeline", "jobs"])
def test_every_option_that_a_message_names_exists(folder: str) -> None:
    named = {
        (option, f"{path.relative_to(ROOT)}:{node.lineno}")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for option in OPTION.findall(node.value)
    }
    assert len(named) > 50
    assert {(option, where) for option, where in named if option not in KNOWN} == set()


def test_every_option_that_a_page_names_exists() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {(option, page.name) for page in pages for option in OPTION.findall(page.read_text())}
    assert len(named) > 50
    assert {(option, where) for option, where in named if option not in KNOWN} == set()

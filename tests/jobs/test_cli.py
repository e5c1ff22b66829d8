"""The command line: every help has an example, and what helps, README and docs show is accepted."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperCommand, TyperGroup
from typer.testing import CliRunner

from jobs.cli import app
from jobs.recipes import find_recipe
from pipeline.settings import parse_overrides

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FERAL = typer.main.get_command(app)
SEPARATOR = re.compile(r"\s*(?:;\s|&&|\|)\s*")


def commands(group: Any = FERAL, path: tuple[str, ...] = ()) -> Iterator[tuple[str, TyperCommand]]:
    """Every command that does something, with what is typed for it."""
    for name, command in getattr(group, "commands", {}).items():
        yield " ".join((*path, name)), command
        yield from commands(command, (*path, name))


def shown(text: str) -> list[list[str]]:
    """The words of each feral command in lines of a shell, without comments, environment and redirections."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if "feral " not in line:
            continue
        line = re.sub(r"\$\([^)]*\)", "0" * 64, line)  # what another command prints
        for one in SEPARATOR.split(line.partition(" # ")[0]):
            words = shlex.split(one.partition(" > ")[0], comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                del words[0]
            if words[:1] == ["feral"]:
                found.append(words[1:])
    return found


def accept(words: list[str]) -> None:
    """Reads a command line as `feral` does, and does nothing.

    Raises:
        UsageError: no such command or option, or too few or too many words.
        ValueError: a recipe or a setting that is not there.
    """
    command: Any = FERAL
    context: Any = None
    while True:
        context = command.make_context(command.name, list(words), parent=context)
        rest = [*context._protected_args, *context.args]
        if not isinstance(command, TyperGroup) or not rest:
            break
        _, command, words = command.resolve_command(context, rest)
    if command.name == "submit":
        accept(context.params["command"])
    if command.name in ("pretrain", "show") and context.params["recipe"].islower():
        find_recipe(context.params["recipe"])().override(parse_overrides(context.params["settings"] or []))


@pytest.mark.parametrize(("name", "command"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_the_help_of_every_command_has_an_example_that_is_accepted(name: str, command: TyperCommand) -> None:
    said = CliRunner().invoke(app, [*name.split(), "--help"]).output
    example = (command.help or "").partition("Example: ")[2]
    assert example
    assert "Example: feral" in said or "Example: MLFLOW" in said
    told = shown(example.replace("\n", " "))
    assert any(words[: len(name.split())] == name.split() for words in told)
    for words in told:
        accept(words)


@pytest.mark.parametrize(
    "line",
    ["curate photos/", "evaluate a --no", "jobs lgo a", "submit -- pretrian a", "show simclr_32px data.bach=3",
     "pretrain simclr_64px"],
)  # fmt: skip
def test_a_wrong_command_would_be_found(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing|unknown|did you mean"):
        accept(line.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_is_accepted(page: Path) -> None:
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    told = shown("\n".join(blocks))
    for words in told:
        accept(words)
    assert told or page.stem in ("reliability", "speed")  # these show none in blocks


def test_the_version_is_told() -> None:
    from importlib.metadata import version

    said = CliRunner().invoke(app, ["--version"])
    assert (said.exit_code, said.output) == (0, f"feral {version('feral')}\n")

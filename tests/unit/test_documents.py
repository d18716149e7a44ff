"""What documents tell people to type is taken by the real parser."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from serve.cli.commands import app

ROOT = Path(__file__).parents[2]
FOLDERS = ("deploy", "k8s", "serve", "pipelines", "actors", "cluster", "tests")
DOCUMENTS = [
    ROOT / "README.md",
    *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("README.md"))),
    *sorted((ROOT / "deploy").rglob("*.yml")),
    *sorted((ROOT / "k8s").rglob("*.yaml")),
]
QUOTED = re.compile(r"`farm ([a-z][^`]*)`")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
TYPED = re.compile(r"^(?:\S.* )?(?:-- )?(?<!\S)farm ([a-z].*)$", re.MULTILINE)
COMMENTED = re.compile(r"^\s*# farm ([a-z].* --.*)$", re.MULTILINE)


def commands(text: str, *, yaml: bool) -> Iterator[str]:
    yield from QUOTED.findall(text)
    if yaml:
        yield from COMMENTED.findall(text)
    for block in FENCED.findall(text):
        yield from TYPED.findall(block.replace("\\\n", " "))


def flaw_of(command: str) -> str | None:
    """Why `farm` would not take it; that something is missing, or only stands for a value, is none."""
    at, context = typer.main.get_command(app), None
    words = shlex.split(command.replace("[", "").replace("]", ""), comments=True)
    try:
        while isinstance(at, typer.core.TyperGroup) and words:
            context = at.make_context("farm", words, parent=context)
            words = [*context._protected_args, *context.args]
            if words:
                _, at, words = at.resolve_command(context, words)
        if not isinstance(at, typer.core.TyperGroup):
            at.make_context(command, words, parent=context)
    except typer.BadParameter:
        return None
    except typer.TyperException as error:
        return str(error)
    return None


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_of_a_document_is_there_with_its_options(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    flaws = {command: flaw_of(command) for command in commands(text, yaml=path.suffix != ".md")}
    assert {command: flaw for command, flaw in flaws.items() if flaw} == {}


@pytest.mark.parametrize("command", ["workers --gone", "keys add --scope operate --name x", "worker", "cost chek"])
def test_a_command_that_is_not_there_is_found(command: str) -> None:
    assert flaw_of(command) is not None

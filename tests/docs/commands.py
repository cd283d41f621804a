"""The commands that the pages and the verbs' helps show."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import click

from spotckpt.cli.main import VERBS, cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_STATUS = re.compile(r"\s+# exit status (\d+)$")


@dataclass(frozen=True)
class Command:
    """One line of a shell, and the exit status that it is said to have."""

    text: str
    status: int = 0

    @classmethod
    def parse(cls, line: str) -> Command:
        match = _STATUS.search(line)
        return cls(line[: match.start()], int(match[1])) if match else cls(line)

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def of_page(page: Path) -> list[Command]:
    """Those of its shell blocks, in order; lines that end in a backslash go on."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [Command.parse(line.strip()) for line in lines if line.strip() and not line.startswith("#")]


def inline(page: Path) -> list[str]:
    """What stands in the text as a command of ours."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return [span for span in re.findall(r"`([^`\n]+)`", text) if re.match(r"spotckpt [a-z]", span)]


def of_help(verb: str) -> list[Command]:
    """The examples at the end of its help."""
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    match = re.search(r"\nExamples?:\n(.*)", command.epilog or "", re.DOTALL)
    return [Command.parse(line.strip()) for line in match[1].splitlines() if line.strip()] if match else []


def unknown_options(text: str) -> list[str]:
    """The options of a command in the text that its verb does not have."""
    _, verb, *words = shlex.split(text)
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None, f"{text}: no such command"
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    ours = words[: words.index("--")] if "--" in words else words
    return [word for word in ours if word.startswith("--") and word.partition("=")[0] not in {*known, "--help"}]


__all__ = ["PAGES", "ROOT", "VERBS", "Command", "inline", "of_help", "of_page", "unknown_options"]

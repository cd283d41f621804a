"""The documents are tested: their programs run, and what they list is what there is."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from spotckpt import errors
from spotckpt.cli.main import VERBS, cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = [program for page in PAGES for program in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_the_programs_are_python(number):
    ast.parse(PROGRAMS[number])


def test_every_command_is_documented():
    for command in VERBS:
        assert f"`spotckpt {command}" in README, f"README.md does not tell of {command}"


def test_every_exit_status_is_documented_and_distinct():
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
    assert len({kind.exit_status for kind in classes}) == len(classes)
    for kind in classes:
        assert re.search(rf"{kind.__name__}\b.* {kind.exit_status}\b", errors.__doc__ or "") or kind.__name__ in (
            "StopTraining",
        ), kind.__name__


def test_the_command_line_s_exit_statuses_are_on_the_front_page():
    told = cli.epilog or ""
    table = README.partition("## Exit statuses")[2].partition("## How it is built")[0]
    stretches = [range(int(first), int(last) + 1) for first, last in re.findall(r"(\d+) to (\d+)", table)]
    on_the_page = {int(number) for number in re.findall(r"\b\d+\b", table)}.union(*stretches)
    numbers = {int(number) for number in re.findall(r"(?:^|\s{2}|, )(\d+)\s", told, re.MULTILINE)}
    assert len(numbers) > 20
    assert numbers <= on_the_page


def marked_faults() -> set[int]:
    numbers: set[int] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "fault":
                numbers |= {ast.literal_eval(argument) for argument in node.args}
    return numbers


def test_the_faults_listed_are_those_that_tests_inject():
    listed = {
        int(number) for number in re.findall(r"^\| (\d+) \|", (ROOT / "docs/faults.md").read_text(), re.MULTILINE)
    }
    assert listed == marked_faults()

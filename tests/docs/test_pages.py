"""Every command that a page or a help shows does what it says, against one server and one run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spotckpt.doctor import rates
from spotckpt.store.base import MIB
from tests.docs.commands import PAGES, ROOT, VERBS, Command, inline, of_help, of_page, unknown_options
from tests.docs.conftest import World

PROGRAM = re.compile(r"```python\n(.*?)```", re.DOTALL)
ELSEWHERE = {
    "spotckpt demo": "tests/demo/test_demo.py",
    "spotckpt drill": "tests/drill/test_drill.py",
    "spotckpt agent": "tests/docs/conftest.py",
    "spotckpt exec --restarts 3 -- python": "docs/getting-started.md",
}
"""What takes long, or goes on until it is stopped, and is run in another place too. Here its options are checked."""
WANTED = ("getting-started", "resuming", "metrics", "ec2", "format", "reliability", "performance")


@pytest.fixture(autouse=True)
def a_small_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two parts: moto reads a few MB in a second."""
    for name in ("FIRST_BYTES", "BLOCK_BYTES", "MOST_BYTES"):
        monkeypatch.setattr(rates, name, 17 * MIB)


def is_run_elsewhere(command: Command) -> bool:
    [*found] = [path for start, path in ELSEWHERE.items() if command.text.startswith(start)]
    assert all((ROOT / path).exists() for path in found)
    return bool(found)


def is_verdict(command: Command) -> bool:
    """Whether its status tells of the machine that the tests run on."""
    return command.text.startswith("spotckpt doctor ")


def check(world: World, commands: list[Command], home: Path | None = None) -> list[str]:
    """Runs them; what each of them said to standard error."""
    said = []
    for command in commands:
        if is_run_elsewhere(command):
            assert not unknown_options(command.text), command.text
        else:
            done = world.run(command, home)
            said.append(done.err)
            statuses = (0, 1) if is_verdict(command) else (command.status,)
            assert done.status in statuses, f"{command.text}\n{done.out}\n{done.err}"
            assert "Traceback" not in done.err, f"{command.text}\n{done.err}"
    return said


def test_there_is_a_page_for_everything():
    assert {f"{name}.md" for name in WANTED} <= {page.name for page in PAGES}
    front = PAGES[0].read_text()
    assert all(f"(docs/{page.name})" in front for page in PAGES[1:])


@pytest.mark.parametrize(
    "page", [page for page in PAGES[1:] if page.stem != "getting-started"], ids=lambda page: page.stem
)
def test_every_command_of_a_page_runs(page, world):
    check(world, of_page(page))


def test_the_first_program_runs_and_a_second_start_finds_it_finished(world, tmp_path):
    page = ROOT / "docs/getting-started.md"
    [program] = [one for one in PROGRAM.findall(page.read_text()) if "__main__" in one]
    (tmp_path / "train.py").write_text(program)
    first, *_, again, under_exec = check(world, of_page(page), tmp_path)
    assert "new run" in first.splitlines()[0]
    assert "finished run" in again.splitlines()[0]
    assert "finished run" in under_exec


def test_the_front_page_s_commands_are_those_that_the_gate_runs():
    run_by_the_gate = [one for one in of_page(PAGES[0]) if one.text.startswith("pip install -c constraints.txt")]
    rest = [one.text for one in of_page(PAGES[0]) if one not in run_by_the_gate]
    assert len(run_by_the_gate) == 4
    assert rest == ["python3 -m venv .venv && . .venv/bin/activate"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_the_text_have_the_options_that_are_named(page):
    for text in inline(page):
        assert text.split()[1] in VERBS, f"{page.name}: {text}"
        assert not unknown_options(text), f"{page.name}: {text}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_to_headings_lead_to_headings(page):
    for target, heading in re.findall(r"\]\(((?!http)[^)#]*)#([^)]+)\)", page.read_text()):
        text = ((page.parent / target) if target else page).read_text()
        assert heading in {_anchor(line) for line in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}, (
            f"{target}#{heading}"
        )


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_s_help_ends_with_an_example(verb):
    found = of_help(verb)
    assert found, f"spotckpt {verb} --help has no example"
    for command in found:
        assert command.words[:2] == ["spotckpt", verb]
        assert not unknown_options(command.text)


def test_every_example_runs(world):
    """In the order of the list, as some need what others made: unpin what was pinned, push what was pulled."""
    for verb in VERBS:
        check(world, of_help(verb))

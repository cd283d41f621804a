"""The floors of the house: imports run strictly downward, and what must stay light does not load torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "spotckpt"
FLOORS = [
    {"redact"},
    {"errors", "deadline"},
    {"config", "address"},
    {"store"},
    {"snapshot", "notices"},
    {"agent", "curves"},
    {"training", "doctor"},
    {"drill", "moving"},
    {"adapters"},
    {"cli", "demo", "__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
WITHOUT_TORCH = {name for rooms in FLOORS[:6] for name in rooms} | {"doctor", "drill", "cli", "__main__"}
SAME_FLOOR_ALLOWED = {("config", "address"), ("cli", "demo"), ("__main__", "cli")}


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_room_has_a_floor():
    assert {room(path) for path in modules()} <= set(FLOOR)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downward(path):
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "spotckpt" or len(parts) < 2 or parts[1] not in FLOOR or parts[1] == room(path):
            continue
        below = FLOOR[parts[1]] < FLOOR[room(path)]
        assert below or (room(path), parts[1]) in SAME_FLOOR_ALLOWED, f"{room(path)} imports {name}"


def test_there_is_no_cycle_between_modules():
    names = {".".join(("spotckpt", *path.relative_to(ROOT).with_suffix("").parts)): path for path in modules()}
    edges = {
        name: {found for target in imported(path) for found in (target, target.rpartition(".")[0]) if found in names}
        for name, path in names.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"cycle: {' -> '.join((*trail, name))}"
        if name not in done:
            for target in edges[name] - {name}:
                visit(target, (*trail, name))
            done.add(name)

    for name in names:
        visit(name, ())


@pytest.mark.parametrize(
    "path", [path for path in modules() if room(path) in WITHOUT_TORCH], ids=lambda path: str(path.relative_to(ROOT))
)
def test_rooms_without_torch_do_not_import_it(path):
    assert not {name for name in imported(path) if name.split(".")[0] == "torch"}


def test_light_imports_do_not_load_torch():
    lines = [
        "import spotckpt",
        "spotckpt.Interrupted; dir(spotckpt)",
        "import spotckpt.cli.main",
        "import spotckpt.agent.service, spotckpt.store.open, spotckpt.snapshot.save",
    ]
    code = "\n".join(f"{line}\nassert 'torch' not in sys.modules, {line!r}" for line in lines)
    subprocess.run([sys.executable, "-c", f"import sys\n{code}"], check=True, timeout=120)

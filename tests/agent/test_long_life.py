"""An agent that lives for weeks: nothing in it grows with what it has done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.agent.harness import Machine, Trainer

NUMBERS = 100


@dataclass(frozen=True)
class Size:
    """What a process holds."""

    memory_kib: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Size:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return cls(int(status["RssAnon"].split()[0]), descriptors, int(status["Threads"]))

    def grew_beyond(self, before: Size) -> bool:
        """By more than a heap that is used again and again does, and connections that are kept for the next request."""
        grown_kib = self.memory_kib - before.memory_kib
        return grown_kib > 4096 or self.descriptors > before.descriptors + 8 or self.threads > before.threads + 4


def save(trainers: dict[str, Trainer], first: dict[str, int], last: dict[str, int]) -> None:
    """Snapshots of those steps in each run at once, each committed before the next is staged."""
    tags = {
        uri: trainer.start("many", uri=uri, step=first[uri], count=last[uri] - first[uri] + 1, numbers=NUMBERS)
        for uri, trainer in trainers.items()
    }
    for uri, tag in tags.items():
        trainers[uri].reply(tag, timeout_s=250)


def files(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if not path.name.startswith("heart")}


def test_a_thousand_snapshots_leave_nothing_in_the_agent(here: Machine, uri, s3_env):
    agent = here.agent()
    trainers = {uri: here.trainer(), s3_env.uri: here.trainer()}
    for address, trainer in trainers.items():
        trainer.open(address)
    # botocore's garbage is collected every few hundred snapshots: what is there before says nothing
    warm, end = {uri: 350, s3_env.uri: 220}, {uri: 700, s3_env.uri: 300}
    save(trainers, dict.fromkeys(trainers, 1), warm)
    before, in_spool = Size.of(agent.pid), files(here.spool)
    save(trainers, {address: last + 1 for address, last in warm.items()}, end)
    after = Size.of(agent.pid)
    assert not after.grew_beyond(before), f"{before}, then {after}"
    assert files(here.spool) == in_spool
    committed = {run["uri"]: int(run["last_committed"].split("-s")[1][:8]) for run in here.runs()}
    assert committed == end
    assert len(agent.log_text.splitlines()) < 1100, "more than a line for each snapshot"

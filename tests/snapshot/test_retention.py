"""What retention may never say, whatever run it looks at."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotckpt.address import Metric
from spotckpt.config import Best, Every, Keep
from spotckpt.errors import SettingError
from spotckpt.snapshot.catalog import Catalog
from spotckpt.snapshot.keys import SnapshotId, claim_key, pack_key, part_key
from spotckpt.snapshot.records import Base, Claim, Heartbeat, Holder
from spotckpt.snapshot.retention import SETTLING_S, SWEEP_AGE_S, Header, Plan, Seen, loose, plan, stale, unnamed
from spotckpt.store.base import Stat, Unfinished
from tests.snapshot.bucket import sid

METRIC = Metric("valid", "top1", "max")
NOW = 1e9


@dataclass
class Life:
    """One attempt of an imagined run."""

    number: int
    base: SnapshotId | None
    ids: list[SnapshotId] = field(default_factory=list)
    told: SnapshotId | None = None
    released: bool = False


@dataclass
class Run:
    """An imagined run; `line` is what a restart would choose from, newest first, by what the lives did."""

    lives: list[Life]
    headers: dict[SnapshotId, Header]
    parents: dict[SnapshotId, SnapshotId | None]
    pins: dict[str, SnapshotId]
    ages: dict[int, float]

    @property
    def line(self) -> list[SnapshotId]:
        life = self.lives[-1]
        found, base = list(reversed(life.ids)), life.base
        while base is not None:
            life = self.lives[base.attempt - 1]
            found += [one for one in reversed(life.ids) if one.sequence <= base.sequence]
            base = life.base
        return found

    def seen(self, without: Any = ()) -> Seen:
        headers = {one: header for one, header in self.headers.items() if one not in without}
        numbers = [life.number for life in self.lives]
        catalog = Catalog(
            highest=len(self.lives),
            claims={n: Claim(n, "n", 0.0, Holder()) for n in numbers},
            bases={life.number: Base(life.number, str(life.base) if life.base else None) for life in self.lives},
            heartbeats={
                life.number: Heartbeat(life.number, 1, 0.0, life.released, str(life.told) if life.told else None)
                for life in self.lives
            },
            snapshots=frozenset(headers),
            written={claim_key(n): NOW - age for n, age in self.ages.items()},
        )
        return Seen(catalog, headers, self.pins, NOW)

    def packs(self) -> list[Stat]:
        return [Stat(key, 1, "e", NOW) for one in self.headers for key in (pack_key(one), part_key(one))]


@st.composite
def runs(draw: st.DrawFn) -> Run:
    run = Run([], {}, {}, {}, {})
    step = 0
    for number in range(1, draw(st.integers(1, 4)) + 1):
        known = run.line if run.lives else []
        base = draw(st.sampled_from([None, *known[:1] * 6, *known])) if known else None
        life = Life(number, base, released=draw(st.booleans()))
        run.lives.append(life)
        run.ages[number] = draw(st.sampled_from([0.0, SETTLING_S - 1, SETTLING_S + 1, 1e7]))
        step = base.step if base is not None else 0
        for sequence in range(draw(st.integers(0, 5))):
            step += draw(st.integers(0, 4))
            one = sid(number, sequence, step)
            acknowledged = [life.told] if life.told else []
            # what lands without an answer is not what the next one continues
            parent = acknowledged[-1] if acknowledged else base
            theirs = run.headers[parent].packs if parent is not None else ()
            packs = [pack_key(one), *(draw(st.lists(st.sampled_from(theirs), unique=True)) if theirs else ())]
            value = draw(st.sampled_from([{}, {METRIC.path: float("nan")}, *({METRIC.path: n / 2} for n in range(3))]))
            written = 100.0 * number + draw(st.integers(0, 50))
            run.headers[one] = Header(one, tuple(packs), written, draw(st.booleans()), value)
            run.parents[one] = parent
            life.ids.append(one)
            if draw(st.integers(0, 4)):
                life.told = one
    if run.headers:
        for name in draw(st.lists(st.sampled_from("ab"), unique=True)):
            run.pins[name] = draw(st.sampled_from(sorted(run.headers)))
    return run


keeps = st.builds(
    Keep,
    st.integers(1, 4),
    st.lists(st.sampled_from([Every(steps=2), Every(steps=5), Every(seconds=10.0)]), max_size=2).map(tuple),
    st.lists(st.integers(1, 3).map(lambda n: Best(METRIC, n)), max_size=1).map(tuple),
)


@given(runs(), keeps, st.booleans())
def test_what_must_stay_stays(run: Run, keep: Keep, abandoned: bool) -> None:
    decided = plan(run.seen(), keep, abandoned=abandoned)
    assert {*decided.keep, *decided.drop} == {*run.headers} and not decided.keep.keys() & decided.drop.keys()
    assert all(decided.keep.values()) and all(decided.drop.values()), "each with why"
    kept = decided.keep.keys()
    line = run.line
    assert {*line[: keep.last], *run.pins.values()} <= kept
    base = run.lives[-1].base
    assert base is None or base in kept
    finite = [one for one in line if run.headers[one].is_finite]
    assert {*finite[:1]} <= kept


@given(runs(), keeps, st.booleans())
def test_no_pack_goes_that_is_referred_to_or_will_be(run: Run, keep: Keep, abandoned: bool) -> None:
    decided = plan(run.seen(), keep, abandoned=abandoned)
    seen = run.seen(without=decided.drop)
    gone = loose(seen, unnamed(seen, run.packs()), decided.drop.keys())
    for one in decided.keep:
        assert not {part_key(one), *run.headers[one].packs} & gone.keys()
    for life in run.lives:
        lately = life is run.lives[-1] or run.ages[life.number + 1] < SETTLING_S
        parent = life.told or life.base
        if not life.released and lately and parent is not None and _all_lately(run, life):
            # its next snapshot, under way just now, may refer to all that its parent does
            assert parent in decided.keep
    for key in gone:
        assert key.split("/")[1] in {str(one) for one in decided.drop}
    orphans = {key for one in decided.drop for key in (pack_key(one), part_key(one))}
    named = {key for one in decided.keep for key in run.headers[one].packs}
    assert gone.keys() == orphans - named, "and what nobody names does go"


def _all_lately(run: Run, life: Life) -> bool:
    return all(run.ages[number] < SETTLING_S for number in range(life.number + 1, len(run.lives) + 1))


@given(runs(), keeps, st.booleans())
def test_once_pruned_there_is_nothing_more_to_prune(run: Run, keep: Keep, abandoned: bool) -> None:
    decided = plan(run.seen(), keep, abandoned=abandoned)
    again = plan(run.seen(without=decided.drop), keep, abandoned=abandoned)
    assert (again.keep.keys(), again.drop) == (decided.keep.keys(), {})


@given(runs(), keeps, keeps)
def test_who_asks_for_more_keeps_more(run: Run, keep: Keep, more: Keep) -> None:
    both = Keep(
        max(keep.last, more.last),
        (*keep.every, *more.every),
        tuple(
            Best(METRIC, max(best.count for best in (*keep.best, *more.best))) for _ in [0] if keep.best or more.best
        ),
    )
    seen = run.seen()
    assert plan(seen, keep).keep.keys() | plan(seen, more).keep.keys() <= plan(seen, both).keep.keys()
    assert plan(seen, keep, abandoned=True).keep.keys() <= plan(seen, keep).keep.keys()
    assert not plan(seen, None).drop


def one_attempt(count: int, **fields: Any) -> Run:
    life = Life(1, None, released=True)
    life.ids = [sid(1, n, 10 * n) for n in range(count)]
    headers = {one: Header(one, (pack_key(one),), 3600.0 * one.sequence, **fields) for one in life.ids}
    return Run([life], headers, {}, {}, {1: 1e7})


def sequences(decided: Plan) -> list[int]:
    return sorted(one.sequence for one in decided.keep)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("last=3", [7, 8, 9]),
        ("last=1, every=40 steps", [0, 4, 8, 9]),
        ("every=4h", [0, 4, 8, 9]),
        ("last=2, every=1000 steps", [0, 8, 9]),
        ("best=valid/top1:max:2", [1, 3, 9]),
        ("best=valid/top1:min", [6, 9]),
    ],
)
def test_the_rules(text: str, kept: list[int]) -> None:
    run = one_attempt(10)
    values = {1: 0.9, 3: 0.9, 4: 0.2, 5: float("nan"), 6: 0.1}
    for one in run.headers:
        if one.sequence in values:
            run.headers[one] = replace(run.headers[one], evaluated={METRIC.path: values[one.sequence]})
    decided = plan(run.seen(), Keep.parse(text))
    assert sequences(decided) == kept
    assert str(Keep.parse(str(Keep.parse(text)))) == str(Keep.parse(text))
    assert all(f"none of {Keep.parse(text)}" == why for why in decided.drop.values())


def test_the_last_without_nan_stays() -> None:
    run = one_attempt(6)
    for one in run.headers:
        run.headers[one] = replace(run.headers[one], is_finite=one.sequence in (1, 2))
    decided = plan(run.seen(), Keep())
    assert sequences(decided) == [2, 5]
    assert decided.keep[sid(1, 2, 20)] == "the last without NaN"


def test_going_back_deletes_nothing_by_itself() -> None:
    run = one_attempt(6)
    second = Life(2, sid(1, 1, 10), [sid(2, 0, 20)], told=sid(2, 0, 20))
    run.lives.append(second)
    run.headers[second.ids[0]] = Header(second.ids[0], (pack_key(second.ids[0]),))
    run.ages[2] = 1e7
    assert plan(run.seen(), Keep(last=2)).keep.keys() == {sid(1, 1, 10), sid(1, 4, 40), sid(1, 5, 50), sid(2, 0, 20)}
    cleared = plan(run.seen(), Keep(last=2), abandoned=True)
    assert cleared.keep.keys() == {sid(1, 1, 10), sid(2, 0, 20)}
    assert cleared.drop[sid(1, 5, 50)] == "of a branch that no restart would come to"


def test_nothing_is_deleted_while_somebody_chooses() -> None:
    run = one_attempt(6)
    seen = run.seen()
    catalog = replace(seen.catalog, highest=2, written={claim_key(1): 0.0, claim_key(2): NOW - 60})
    catalog = replace(catalog, claims={**catalog.claims, 2: Claim(2, "n", 0.0, Holder())})
    decided = plan(replace(seen, catalog=catalog), Keep())
    assert not decided.drop and "attempt 2 is choosing" in decided.keep[sid(1, 0, 0)]
    later = replace(catalog, written={**catalog.written, claim_key(2): NOW - SETTLING_S - 1})
    assert sequences(plan(replace(seen, catalog=later), Keep())) == [5]


@pytest.mark.fault(22)
def test_only_what_is_ours_and_old_and_over_is_swept() -> None:
    """Leftovers of an earlier life: of the highest attempt only if it is released, and never strangers'."""
    run = one_attempt(1)
    run.lives.append(Life(2, sid(1, 0, 0), told=None))
    run.ages[2] = 1e7
    lost, living = sid(1, 7, 70, "0000000f"), sid(2, 0, 5, "0000000f")
    old, young = NOW - SWEEP_AGE_S - 1, NOW - SWEEP_AGE_S + 1
    keys = [pack_key(lost), pack_key(living), part_key(lost), f"packs/{lost}/strange.json", "packs/strange"]
    objects = [Stat(key, 1, "e", old) for key in keys] + [Stat(pack_key(lost, 1), 1, "e", young)]
    seen = run.seen()
    assert loose(seen, unnamed(seen, objects), ()).keys() == {pack_key(lost), part_key(lost)}
    writes = [Unfinished(key, "u", old) for key in (*keys, "run.json", "strange", "../run.json")]
    writes += [Unfinished(pack_key(lost, 1), "u", young), Unfinished(pack_key(lost, 2), "u", float("inf"))]
    assert [one.key for one in stale(seen, writes)] == [pack_key(lost), part_key(lost), "run.json"]
    run.lives[1].released = True
    seen = run.seen()
    assert pack_key(living) in loose(seen, unnamed(seen, objects), ())
    assert pack_key(living) in [one.key for one in stale(seen, writes)]


@pytest.mark.parametrize("text", ["", "last=0", "last=-1", "last=1, last=2", "every=0", "every=0s", "every=5 apples"])
def test_a_policy_that_cannot_be(text: str) -> None:
    with pytest.raises(SettingError, match=r"keep|every"):
        Keep.parse(text)


@pytest.mark.parametrize("text", ["best=top1", "best=valid/top1:max:0", "newest=3", "last", "last=", "best=valid/top1"])
def test_a_rule_that_is_none(text: str) -> None:
    with pytest.raises(SettingError, match="keep"):
        Keep.parse(text)

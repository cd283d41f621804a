from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from spotckpt.errors import MismatchError, UsageError
from spotckpt.training import replay
from spotckpt.training.position import Position
from tests.training.lives import draws, interrupted, lives, plain, seed
from tests.training.roundtrip import value_through_bytes

# torchdata 0.11 calls a function that torch 2.13 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")

NUM_BATCHES = 4
NUM_BOUNDARIES = 2 * (NUM_BATCHES + 1)


class Noisy(Dataset[torch.Tensor]):
    """Random augmentation from all global generators; without workers it shares them with the training step."""

    def __len__(self) -> int:
        return 2 * NUM_BATCHES

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, torch.rand(()).item(), random.random()])


class OwnGenerator(Noisy):
    def __init__(self) -> None:
        self.rng = np.random.default_rng(3)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, self.rng.random()])


class Stream(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        info = torch.utils.data.get_worker_info()
        worker, step = (info.id, info.num_workers) if info else (0, 1)
        for index in range(worker, 2 * NUM_BATCHES, step):
            yield torch.tensor([index, torch.rand(()).item()])


class NumpyOrder:
    """A loader of one's own, with a numpy generator."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(5)

    def __iter__(self) -> Iterator[int]:
        for index in self.rng.permutation(NUM_BATCHES):
            yield int(index)


def own_generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def with_sampler_generator() -> DataLoader[Any]:
    data = Noisy()
    return DataLoader(data, batch_size=2, sampler=RandomSampler(data, replacement=True, generator=own_generator()))


IN_PROCESS = {
    "ordered": lambda: DataLoader(Noisy(), batch_size=2),
    "shuffled": lambda: DataLoader(Noisy(), batch_size=2, shuffle=True),
    "own generator": lambda: DataLoader(Noisy(), batch_size=2, shuffle=True, generator=own_generator()),
    "sampler's generator": with_sampler_generator,
    "weighted": lambda: DataLoader(Noisy(), batch_size=2, sampler=WeightedRandomSampler([1.0, 2.0] * 4, 8)),
    "batch sampler": lambda: DataLoader(Noisy(), batch_sampler=BatchSampler(RandomSampler(Noisy()), 2, False)),
    "no batching": lambda: DataLoader(range(NUM_BATCHES), batch_size=None, shuffle=True),
    "dataset's generator": lambda: DataLoader(OwnGenerator(), batch_size=2, shuffle=True),
    "iterable": lambda: DataLoader(Stream(), batch_size=2),
    "stateful": lambda: StatefulDataLoader(Noisy(), batch_size=2, shuffle=True),
    "stateful, own generator": lambda: StatefulDataLoader(Noisy(), 2, shuffle=True, generator=own_generator()),
    "list": lambda: list(range(NUM_BATCHES)),
    "own class": NumpyOrder,
}
WITH_WORKERS = {
    "shuffled": lambda: DataLoader(Noisy(), batch_size=2, shuffle=True, num_workers=2),
    "own generator": lambda: DataLoader(Noisy(), 2, shuffle=True, num_workers=2, generator=own_generator()),
    "iterable": lambda: DataLoader(Stream(), batch_size=2, num_workers=2),
    "stateful": lambda: StatefulDataLoader(Noisy(), batch_size=2, shuffle=True, num_workers=2),
}
PERSISTENT = {
    "shuffled": lambda: DataLoader(Noisy(), 2, shuffle=True, num_workers=2, persistent_workers=True),
    "own generator": lambda: DataLoader(
        Noisy(), 2, shuffle=True, num_workers=2, persistent_workers=True, generator=own_generator()
    ),
    "stateful": lambda: StatefulDataLoader(Noisy(), 2, shuffle=True, num_workers=2, persistent_workers=True),
}


def without_augmentation(trace: list[Any]) -> list[Any]:
    return [(epoch, what if what == "end" else [row[0] for row in what], drawn) for epoch, what, drawn in trace]


@pytest.mark.parametrize("kind", IN_PROCESS)
def test_killed_at_every_boundary_twice_equals_the_plain_loop(kind: str) -> None:
    make = IN_PROCESS[kind]
    expected = plain(make)
    for first in range(1, NUM_BOUNDARIES):
        for second in range(1, NUM_BOUNDARIES - first + 1):
            assert interrupted(make, [first, second]) == expected, (first, second)


@pytest.mark.parametrize("kind", WITH_WORKERS)
def test_with_workers_killed_at_every_boundary_twice_equals_the_plain_loop(kind: str) -> None:
    make = WITH_WORKERS[kind]
    expected = plain(make)
    for first in range(1, NUM_BOUNDARIES):
        second = 1 + first % 2 if first < NUM_BOUNDARIES - 1 else 1
        assert interrupted(make, [first, second]) == expected, first


@pytest.mark.parametrize("kind", PERSISTENT)
def test_persistent_workers_keep_the_order_and_say_what_differs(kind: str) -> None:
    make = PERSISTENT[kind]
    expected = plain(make, num_epochs=3)
    for kills in ([1, 2], [4, 1], [5, 3], [7, 2], [10, 2], [12]):
        last = lives(make, kills, num_epochs=3)[-1]
        trace = last.run()
        assert without_augmentation(trace) == without_augmentation(expected), kills
        if sum(kills) < 5:
            assert trace == expected, kills
        else:
            assert replay.PERSISTENT_IS_INEXACT in last.said, kills


@pytest.mark.parametrize("kind", [kind for kind in IN_PROCESS if kind not in ("iterable", "list", "own class")])
def test_skip_without_workers_equals_the_plain_loop(kind: str) -> None:
    make = IN_PROCESS[kind]
    expected = plain(make)
    for first in range(1, NUM_BOUNDARIES):
        *_, last = lives(make, [first], resume="skip")
        assert last.run() == expected, first
        assert last.replayed == []


@pytest.mark.parametrize("kind", ["shuffled", "own generator", "stateful"])
def test_skip_with_workers_keeps_the_order_and_says_what_differs(kind: str) -> None:
    expected = without_augmentation(plain(WITH_WORKERS[kind]))
    for first, second in ((1, 1), (3, 2), (6, 1), (9, 1)):
        *_, last = lives(WITH_WORKERS[kind], [first, second], resume="skip")
        assert without_augmentation(last.run()) == expected, first
        assert replay.SKIP_IS_INEXACT in last.said or (first + second) % 5 == 0


def test_skip_with_persistent_workers_keeps_the_order() -> None:
    make = PERSISTENT["shuffled"]
    expected = without_augmentation(plain(make, num_epochs=3))
    for kills in ([2, 1], [6, 1, 1], [7, 5]):
        assert without_augmentation(interrupted(make, kills, resume="skip", num_epochs=3)) == expected, kills


@pytest.mark.parametrize("kind", ["iterable", "list", "own class"])
def test_what_cannot_skip_is_replayed_and_says_so(kind: str) -> None:
    make = IN_PROCESS[kind]
    *_, last = lives(make, [2], resume="skip")
    assert last.run() == plain(make)
    assert last.said == [replay.SKIP_IS_REPLAY]


def test_replay_shows_its_progress_and_can_be_stopped() -> None:
    *_, last = lives(IN_PROCESS["shuffled"], [3])
    last.run()
    assert last.replayed == [(1, 3), (2, 3), (3, 3)]


def test_a_shorter_loader_is_refused() -> None:
    *_, last = lives(IN_PROCESS["list"], [3])
    last.make = lambda: [0, 1]
    with pytest.raises(MismatchError, match=r"3 batches .* the loader now has 2"):
        last.run()
    *_, last = lives(IN_PROCESS["ordered"], [3], resume="skip")
    last.make = lambda: DataLoader(range(4), batch_size=2)
    with pytest.raises(MismatchError, match=r"3 batches .* the loader now has 2"):
        last.run()


# Programs of other shapes: a function of (position, record, boundary), run to the end and killed at every boundary.


def run_program(program: Any, state: Any, trace: Any, kill_at: int, number: int = 0) -> Any:
    """The state at the boundary where it was killed, or at the end; the trace; whether it came to the end."""
    seed(number)
    position = Position(say=lambda text: None)
    record, kept, count = list(trace), [], 0
    if state is not None:
        position.load(state)

    class Stop(BaseException):
        pass

    def boundary() -> None:
        nonlocal count
        count += 1
        if count == kill_at:
            kept.append((value_through_bytes(position.state()), list(record)))
            raise Stop

    try:
        program(position, record.append, boundary)
    except Stop:
        return (*kept[0], False)
    assert not position.resuming
    position.finish()
    return value_through_bytes(position.state()), record, True


def check_program(program: Any) -> None:
    """Every pair of kills gives what no kill gives, and the finished program yields nothing again."""
    end, expected, _ = run_program(program, None, [], 0)
    for first in range(1, 100):
        state, trace, over = run_program(program, None, [], first)
        if over:
            break
        for second in range(1, 4):
            again, longer, _ = run_program(program, state, trace, second, number=second)
            _, result, _ = run_program(program, again, longer, 0, number=77)
            assert result == expected, (first, second)
    assert first > 3
    _, result, _ = run_program(program, end, expected, 1, number=5)
    assert result == expected


def two_loaders(position: Position, record: Any, boundary: Any) -> None:
    generator = own_generator()
    train = DataLoader(Noisy(), 2, shuffle=True, generator=generator)
    valid = DataLoader(Noisy(), 4, shuffle=True, generator=generator)
    for epoch in position.epochs(2, on_epoch_end=boundary):
        for batch in position.batches(train, on_boundary=boundary):
            record((epoch, batch.tolist(), draws()))
        for batch in position.batches(valid, on_boundary=boundary):
            record((epoch, "valid", batch.tolist(), draws()))
            if position.batch == 1:
                break


def two_phases(position: Position, record: Any, boundary: Any) -> None:
    loader = DataLoader(Noisy(), 4, shuffle=True)
    warm_up = NumpyOrder()
    for batch in position.batches(warm_up, on_boundary=boundary):
        record(("warm-up", batch, draws()))
    for epoch in position.epochs(2, on_epoch_end=boundary):
        for batch in position.batches(loader, on_boundary=boundary):
            record((1, epoch, batch.tolist(), draws()))
        if epoch == 1:
            break
    for batch in position.batches(warm_up, on_boundary=boundary):
        record(("between", batch, draws()))
    for epoch in position.epochs(2, on_epoch_end=boundary):
        for batch in position.batches(loader, on_boundary=boundary):
            record((2, epoch, batch.tolist(), draws()))
    for batch in position.batches(warm_up, on_boundary=boundary):
        record(("test", batch, draws()))


def only_steps(position: Position, record: Any, boundary: Any) -> None:
    for step in position.steps(5, on_boundary=boundary):
        record((step, draws()))
    for step in position.steps(2, on_boundary=boundary):
        record(("more", step, draws()))


def without_epochs(position: Position, record: Any, boundary: Any) -> None:
    loader = DataLoader(Noisy(), 4, shuffle=True, generator=own_generator())
    for epoch in range(3):
        for batch in position.batches(loader, on_boundary=boundary):
            record((epoch, batch.tolist(), draws()))


def generators_by_epoch(position: Position, record: Any, boundary: Any) -> None:
    def batches(epoch: int) -> Iterator[Any]:
        for index in torch.randperm(4).tolist():
            yield epoch, index, draws()

    for epoch in position.epochs(2, on_epoch_end=boundary):
        for batch in position.batches(batches(epoch), on_boundary=boundary):
            record((batch, draws()))


def steps_in_epochs(position: Position, record: Any, boundary: Any) -> None:
    for epoch in position.epochs(2, on_epoch_end=boundary):
        for step in position.steps(3, on_boundary=boundary):
            record((epoch, step, draws()))


def tracked_generator(position: Position, record: Any, boundary: Any) -> None:
    rng = np.random.default_rng(1)
    position.watch("rng", rng)

    class Order:
        def __iter__(self) -> Iterator[int]:
            return iter(rng.permutation(4).tolist())

    order = Order()
    for epoch in position.epochs(2, on_epoch_end=boundary):
        for batch in position.batches(order, on_boundary=boundary):
            record((epoch, batch, rng.random(), draws()))


PROGRAMS = [
    two_loaders,
    two_phases,
    only_steps,
    without_epochs,
    generators_by_epoch,
    steps_in_epochs,
    tracked_generator,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_programs_of_other_shapes(program: Any) -> None:
    check_program(program)


def nothing() -> None:
    pass


def position_at(state: Any = None) -> Position:
    position = Position(say=lambda text: None)
    if state is not None:
        position.load(value_through_bytes(state))
    return position


def test_more_epochs_go_on_after_the_end() -> None:
    position = position_at()
    assert list(position.epochs(2, on_epoch_end=nothing)) == [0, 1]
    assert list(position.batches([7], on_boundary=nothing)) == [7]
    later = position_at(position.state())
    assert list(later.epochs(4, on_epoch_end=nothing)) == [2, 3]
    assert list(later.batches([7], on_boundary=nothing)) == [7]
    again = position_at(position.state())
    assert list(again.epochs(2, on_epoch_end=nothing)) == []
    assert list(again.batches([7], on_boundary=nothing)) == []


def test_more_steps_go_on_after_the_end() -> None:
    position = position_at()
    assert list(position.steps(2, on_boundary=nothing)) == [0, 1]
    assert list(position_at(position.state()).steps(4, on_boundary=nothing)) == [2, 3]
    assert list(position_at(position.state()).steps(2, on_boundary=nothing)) == []


def test_loops_left_by_break_stay_left() -> None:
    position = position_at()
    for _ in position.epochs(9, on_epoch_end=nothing):
        break
    assert list(position_at(position.state()).epochs(20, on_epoch_end=nothing)) == []
    position = position_at()
    for _ in position.steps(9, on_boundary=nothing):
        break
    assert list(position_at(position.state()).steps(20, on_boundary=nothing)) == []


def test_a_finished_program_yields_nothing_though_it_stopped_inside() -> None:
    position = position_at()
    for _ in position.epochs(9, on_epoch_end=nothing):
        for _ in position.batches([1, 2, 3], on_boundary=nothing):
            position.finish()
    again = position_at(position.state())
    assert list(again.epochs(9, on_epoch_end=nothing)) == []
    assert position.batch == 0


def test_loops_inside_one_another_are_refused() -> None:
    position = position_at()
    with pytest.raises(UsageError, match="inside another one"):
        for _ in zip(
            position.batches([1], on_boundary=nothing), position.batches([1], on_boundary=nothing), strict=True
        ):
            pass
    position = position_at()
    with pytest.raises(UsageError, match="inside another loop"):
        for _ in position.epochs(1, on_epoch_end=nothing):
            list(position.epochs(1, on_epoch_end=nothing))


def test_iterators_without_a_repeatable_start_are_refused() -> None:
    position = position_at()
    for once in (enumerate([1]), iter([1]), zip([1], strict=True), iter(DataLoader([1]))):
        with pytest.raises(UsageError, match="cannot be repeated"):
            position.batches(once, on_boundary=nothing)
    generator = (index for index in range(9))
    for _ in position.batches(generator, on_boundary=nothing):
        break
    with pytest.raises(UsageError, match=r"second run.batches"):
        list(position.batches(generator, on_boundary=nothing))


def test_the_users_errors_come_out_unchanged() -> None:
    class Broken:
        def __iter__(self) -> Iterator[int]:
            yield 1
            raise LookupError("mine")

    position, states = position_at(), []
    with pytest.raises(LookupError, match="mine"):
        list(position.batches(Broken(), on_boundary=lambda: states.append(position.state())))
    state = states[0]
    later = position_at({**state, "active": {**state["active"], "count": 2}})
    with pytest.raises(LookupError, match="mine"):
        list(later.batches(Broken(), on_boundary=nothing))


def test_a_program_without_the_loop_of_the_snapshot_is_refused() -> None:
    position, states = position_at(), []
    for _ in position.epochs(2, on_epoch_end=nothing):
        list(position.batches([1, 2], on_boundary=lambda: states.append(position.state())))
    later = position_at(states[0])
    with pytest.raises(MismatchError, match="passed by without that loop"):
        list(later.epochs(2, on_epoch_end=nothing))
    later = position_at(states[0])
    with pytest.raises(MismatchError, match=r"run\.batches, here is run\.steps"):
        for _ in later.epochs(2, on_epoch_end=nothing):
            list(later.steps(2, on_boundary=nothing))


def test_batches_know_their_length_and_their_index() -> None:
    position = position_at()
    batches = position.batches(["a", "b"], on_boundary=nothing)
    assert len(batches) == 2
    assert [(position.batch, position.in_body) for _ in batches] == [(0, True), (1, True)]
    assert (position.batch, position.in_body) == (0, False)


def test_while_resuming_the_state_is_what_was_loaded() -> None:
    position, states = position_at(), []
    for _ in position.epochs(1, on_epoch_end=nothing):
        list(position.batches([1, 2], on_boundary=lambda: states.append(position.state())))
    later = position_at(states[0])
    for _ in later.epochs(1, on_epoch_end=nothing):
        assert later.resuming
        assert later.state()["active"]["count"] == 1
        list(later.batches([1, 2], on_boundary=nothing))
        assert not later.resuming


class Unsized:
    def __iter__(self) -> Iterator[int]:
        return iter(range(4))

    def __len__(self) -> int:
        raise LookupError("nobody knows")


def test_a_loader_of_another_length_is_remarked() -> None:
    def said_on_resume(before: Any, now: Any, **changes: object) -> list[str]:
        position, states, said = position_at(), [], []
        for _ in position.batches(before, on_boundary=lambda: states.append(position.state())):
            pass
        later = Position(say=said.append)
        state = value_through_bytes(states[1])
        later.load({**state, "active": {key: value for key, value in state["active"].items() if key not in changes}})
        for _ in later.batches(now, on_boundary=nothing):
            pass
        return said

    assert said_on_resume([1] * 8, [1] * 16) == [
        "warning: the loader had 8 batches when the snapshot was taken and now has 16: "
        "the position (batch 2) may mean other samples"
    ]
    assert said_on_resume([1] * 8, [2] * 8) == []
    assert said_on_resume([1] * 8, [1] * 16, len=None) == [], "a snapshot that does not know"
    assert said_on_resume(Unsized(), [1] * 16) == said_on_resume([1] * 8, Unsized()) == []

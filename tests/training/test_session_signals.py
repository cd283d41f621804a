"""SIGTERM of a training process, with real signals."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from spotckpt.training.signals import TermSignal
from tests.support.servers import wait_until
from tests.training.native import wait_in_native_call


class Heard:
    def __init__(self) -> None:
        self.times: list[float] = []
        self.threads: set[str] = set()

    def __call__(self) -> None:
        self.times.append(time.monotonic())
        self.threads.add(threading.current_thread().name)


@pytest.fixture
def heard() -> Iterator[tuple[Heard, TermSignal]]:
    heard = Heard()
    term = TermSignal(heard)
    assert term.install()
    yield heard, term
    term.close()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.fault(4)
def test_two_signals_are_one_action(heard: tuple[Heard, TermSignal]) -> None:
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    wait_until(lambda: heard[0].times)
    os.kill(os.getpid(), signal.SIGTERM)
    heard[1].close()  # joins the thread that would act
    assert len(heard[0].times) == 1
    assert heard[0].threads == {"spotckpt-sigterm"}


@pytest.mark.fault(5)
def test_a_long_operation_in_cpp_delays_nothing(heard: tuple[Heard, TermSignal]) -> None:
    def heard_meanwhile() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: heard[0].times, what="the signal, while the main thread is in C")

    wait_in_native_call(heard_meanwhile)
    assert len(heard[0].times) == 1


def test_a_forked_worker_dies_of_its_own_signal_and_wakes_nobody(heard: tuple[Heard, TermSignal]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is what torch's loaders do
        ready, tell = os.pipe()
        pid = os.fork()
    if pid == 0:
        os.write(tell, b".")
        signal.pause()
        os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM
    heard[1].close()
    assert heard[0].times == []


def test_only_the_main_thread_takes_the_signal_over() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(TermSignal(lambda: None).install()))
    thread.start()
    thread.join()
    assert found == [False]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_previous_handler_comes_back_and_nothing_is_left_open() -> None:
    calls: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    try:
        before = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
        term = TermSignal(lambda: None)
        term.install()
        os.kill(os.getpid(), signal.SIGTERM)
        assert calls == []
        term.close()
        term.close()
        os.kill(os.getpid(), signal.SIGTERM)
        assert calls == [signal.SIGTERM]
        assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == before
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_two_runs_may_be_closed_in_the_order_in_which_they_were_opened() -> None:
    before = signal.getsignal(signal.SIGTERM)
    first, second = TermSignal(Heard()), TermSignal(Heard())
    assert first.install()
    assert second.install()
    first.close()
    second.close()
    assert signal.getsignal(signal.SIGTERM) == before

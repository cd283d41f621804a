"""The agent as a process: locks, socket, signals, the watch for notices, and when to end.

Signals only write a byte; everything happens in the loop below. The loop's work is short: what waits for the network
is done by the runs' and connections' own threads.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import logging
import os
import queue
import selectors
import signal
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spotckpt.agent import locks, paths
from spotckpt.agent.agent import Agent
from spotckpt.agent.departure import depart
from spotckpt.agent.options import ALREADY_RUNNING, AgentOptions
from spotckpt.agent.processes import Process
from spotckpt.agent.spool import Spool
from spotckpt.agent.systemd import ServiceManager, advance, status_line
from spotckpt.deadline import SYSTEM_CLOCK, Deadline
from spotckpt.errors import AgentError, SpotckptError
from spotckpt.notices.ec2 import Ec2Metadata, Poll, choose_endpoint
from spotckpt.notices.notice import Notice
from spotckpt.notices.watch import Watcher

_LOG = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK_S = 1.0
_LONG_LOOK_S = 30.0
_SHOW_S = 5.0
_STOP_MARGIN_S = 10.0
_POKE = b"\0"
_OBJECTS_BETWEEN_COLLECTIONS = 100_000
"""The table of a large state is tens of thousands of tuples in no cycle: looking for one doubles their cost."""


def run(options: AgentOptions) -> int:
    """Serves until it is stopped, or idle if private.

    Returns:
        0; ALREADY_RUNNING if another agent has the runtime directory or the spool; else the error's exit status.
    """
    try:
        entry = _Entry.take(options)
    except locks.Held as error:
        _LOG.debug("%s", error)
        return ALREADY_RUNNING
    except SpotckptError as error:
        _LOG.error("%s", error)
        return error.exit_status
    if options.detach and not entry.detach():
        return 0
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    return _Service(options, entry).serve()


def _listen(path: Path) -> socket.socket:
    # nobody else has the lock: whatever lies at the path is of an agent that is dead
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(64)
    return listener


@dataclass
class _Entry:
    """The locks and the socket: from here on this process, or the child it becomes, is the agent."""

    listener: socket.socket
    lock_fds: list[int]
    socket_file: str

    @classmethod
    def take(cls, options: AgentOptions) -> _Entry:
        """Takes both.

        Raises:
            Held: another agent has them.
            AgentError: a directory cannot hold them.
        """
        path = paths.socket_path(options.runtime_dir)
        fds: list[int] = []
        try:
            for directory in dict.fromkeys((options.runtime_dir, options.spool_dir)):
                paths.make_private_dir(directory)
                fds.append(locks.acquire(directory, pid=os.getpid(), socket=path))
            return cls(_listen(path), fds, str(path))
        except OSError as error:
            raise AgentError(
                f"the agent cannot use {error.filename or path}: {error.strerror}",
                hint="set SPOTCKPT_RUNTIME_DIR or SPOTCKPT_SPOOL to a directory that you can write, and with sockets",
            ) from error

    def detach(self) -> bool:
        """Becomes a child of nobody that we know; False in the parent, which has only to end.

        Clients can connect from before the parent ends: the socket listens already.
        """
        if os.fork():
            return False
        for fd in self.lock_fds:
            locks.introduce(fd, pid=os.getpid(), socket=self.path)
        return True

    @property
    def path(self) -> Path:
        return Path(self.socket_file)


@dataclass
class _Source:
    """The metadata service, and on the way the instance's name."""

    metadata: Ec2Metadata
    agent: Agent

    def poll(self) -> Poll:
        poll = self.metadata.poll()
        if poll.state == "answers" and not self.agent.instance:
            self.agent.instance = self.metadata.text("/latest/meta-data/instance-id")
        return poll

    def close(self) -> None:
        self.metadata.close()


@dataclass
class _Service:
    options: AgentOptions
    entry: _Entry
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _first_look: threading.Event = field(default_factory=threading.Event)
    _to_watch: queue.SimpleQueue[Process] = field(default_factory=queue.SimpleQueue)
    _watched: dict[int, Process] = field(default_factory=dict)
    _stop_by: Deadline | None = None
    _stopped_twice: bool = False
    _advance: object = None
    _endpoint: str = ""
    _departing: bool = False

    def serve(self) -> int:
        faulthandler.enable()  # a watchdog's SIGABRT tells where every thread was
        # a private agent has the environment of its trainer, whose manager does not wait for the agent's word
        self._manager = ServiceManager({} if self.options.private else os.environ)
        self._idle = Deadline.after(self.options.idle_exit_s)
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._listen_to_signals()
        self._selector.register(self.entry.listener, selectors.EVENT_READ, "listener")
        self._selector.register(self._wake_out, selectors.EVENT_READ, "wake")
        self.agent = Agent(
            Spool(self.options.spool_dir, self.options.disk_dir),
            self.options,
            first_look=self._first_look,
            watch_process=self._watch_process,
            poke=self._poke,
        )
        self.agent.board.load()
        self.agent.adopt()
        watcher = self._start_watcher()
        _LOG.info("agent %d serves %s, spool %s", os.getpid(), self.entry.socket_file, self.options.spool_dir)
        self._manager.tell(READY=1)
        try:
            self._loop()
        finally:
            self.entry.path.unlink(missing_ok=True)  # before the locks go, with this process
            if watcher is not None:
                watcher.stop()
            self.agent.forget_kept(all=True)
        _LOG.info("agent %d ends", os.getpid())
        return 0

    def _listen_to_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_in.fileno(), warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            signal.signal(number, lambda *_: None)  # the wakeup descriptor gets the number; the loop acts
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _start_watcher(self) -> Watcher | None:
        endpoint, warning = choose_endpoint(self.options.metadata_endpoint)
        if warning:
            _LOG.warning("%s", warning)
        if not endpoint:
            _LOG.info("AWS_EC2_METADATA_DISABLED is set: no interruption notices from EC2")
            self._first_look.set()
            return None
        self._endpoint = endpoint
        source = _Source(Ec2Metadata(endpoint), self.agent)
        watcher = Watcher(source, self._see, interval_s=self.options.poll_interval_s)
        watcher.first_look = self._first_look
        watcher.start()
        return watcher

    def _see(self, notices: Sequence[Notice]) -> None:
        self.agent.board.see("ec2", notices)
        if notices:
            self._poke()

    def _poke(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_in.send(_POKE)

    def _watch_process(self, process: Process) -> None:
        self._to_watch.put(process)
        self._poke()

    def _loop(self) -> None:
        was_busy = False
        while not self._is_over():
            try:
                self._turn()
                self.agent.forget_kept()
                self._let_go()
                self._report()
            except Exception:  # noqa: BLE001  the edge: a fault in one turn must not end the agent
                _LOG.exception("a fault in the agent's loop")
                SYSTEM_CLOCK.sleep(_LOOK_S)
            busy = self.agent.busy
            if busy or was_busy:
                self._idle = Deadline.after(self.options.idle_exit_s)
            was_busy = busy
            if self.options.private and self._idle.passed:
                _LOG.info("idle for %g s", self.options.idle_exit_s)
                return

    def _patience_s(self) -> float:
        """How long nothing need be looked at. Whatever happens wakes the loop; only time itself does not."""
        if self._stop_by is not None:
            return _LOOK_S
        if self._manager.listens:
            return min(_SHOW_S if self.agent.has_runs else _LONG_LOOK_S, self._manager.patience_s)
        return min(_LONG_LOOK_S, self._idle.seconds_left) if self.options.private else _LONG_LOOK_S

    def _is_over(self) -> bool:
        if self._stop_by is None:
            return False
        return self._stopped_twice or self._stop_by.passed or not self.agent.has_runs

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._patience_s()):
            if key.data == "listener":
                self._accept()
            elif key.data == "wake":
                self._woken()
            else:
                self._ended(key.fd)
        while not self._to_watch.empty():
            self._register(self._to_watch.get())

    def _report(self) -> None:
        """Tells the service manager. Only a turn without a fault does: what it hears proves that the loop works."""
        if not self._manager.listens:
            return
        self._manager.beat()
        standing = self.agent.status()
        self._manager.show(status_line(standing))
        if self._stop_by is not None and advance(standing) != self._advance:
            self._advance = advance(standing)
            self._stop_by = Deadline.after(self.options.stop_grace_s)
            self._manager.extend_stop(self.options.stop_grace_s + _STOP_MARGIN_S)

    def _let_go(self) -> None:
        """When the Auto Scaling group waits for this machine and nothing is left to commit, it is told so, once."""
        final = [notice for notice in self.agent.board.in_force() if notice.is_final]
        if self._departing or self.agent.has_open_runs or all(notice.kind != "lifecycle" for notice in final):
            return
        known = [notice.deadline for notice in final if notice.deadline is not None]
        deadline = Deadline(min(known)) if known else None
        go = functools.partial(depart, self.options, self._endpoint, deadline)
        with contextlib.suppress(RuntimeError):  # no thread to be had: after the next turn
            threading.Thread(target=go, name="departure", daemon=True).start()
            self._departing = True

    def _accept(self) -> None:
        try:
            accepted, _ = self.entry.listener.accept()
        except OSError as error:
            _LOG.warning("a client could not be accepted: %s", error)
            SYSTEM_CLOCK.sleep(0.1)  # out of descriptors: the listener would be readable again at once
            return
        self.agent.connected(accepted)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for byte in self._wake_out.recv(4096):
                if byte in _STOP_SIGNALS:
                    self._stop(signal.Signals(byte).name)

    def _stop(self, name: str) -> None:
        if self._stop_by is not None:
            self._stopped_twice = True
            _LOG.warning("%s again: ending at once", name)
            return
        self._stop_by = Deadline.after(self.options.stop_grace_s)
        _LOG.info("%s: finishing within %g s", name, self.options.stop_grace_s)
        self._manager.tell(STOPPING=1)
        if self.agent.has_runs:
            notice = Notice("signal", "terminate", self._stop_by.at, f"signal:{os.getpid()}", name)
            self.agent.board.see("signal", [notice])

    def _register(self, process: Process) -> None:
        if process in self._watched.values():
            return
        fd = process.open_pidfd()
        if fd is None:
            self.agent.process_gone(process)
            return
        self._watched[fd] = process
        self._selector.register(fd, selectors.EVENT_READ, "process")

    def _ended(self, fd: int) -> None:
        process = self._watched.pop(fd)
        self._selector.unregister(fd)
        os.close(fd)
        self.agent.process_gone(process)

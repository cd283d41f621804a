"""Starting agents, finding them, and what clients may send them."""

from __future__ import annotations

import errno
import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spotckpt.agent import protocol
from spotckpt.agent.__main__ import main
from spotckpt.agent.client import Client
from spotckpt.agent.options import ALREADY_RUNNING, AgentOptions
from spotckpt.agent.paths import make_private_dir, socket_path
from spotckpt.agent.processes import Process as Seen
from spotckpt.agent.processes import start_time
from spotckpt.agent.service import _Entry
from spotckpt.agent.spawn import ensure_agent
from spotckpt.errors import AgentError, Denied, SettingError, SpotckptError, Superseded
from tests.agent.harness import Machine
from tests.support.servers import wait_until


def _raw(here: Machine) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(20)
    connected.connect(str(here.runtime / "agent.sock"))
    return connected


def test_two_started_at_once_leave_one_and_both_trainers_get_it(here: Machine, uri: str) -> None:
    trainers = [here.trainer(FAKE_SPAWNS="1") for _ in range(2)]
    pids = {trainer.hello["agent_pid"] for trainer in trainers}
    assert len(pids) == 1
    (pid,) = pids
    loser = here.start_agent()
    assert loser.wait() == ALREADY_RUNNING
    assert "Traceback" not in loser.log_text
    assert os.getsid(pid) != os.getsid(0)
    inherited = {str(Path(f"/proc/{pid}/fd/{fd}").readlink()) for fd in (0, 1, 2)}
    assert inherited == {"/dev/null", str(here.runtime / "agent.log")}
    for trainer in trainers:
        trainer.popen.stdin.close()  # type: ignore[union-attr]
        assert trainer.wait() == 0
    seen = Seen(pid, start_time(pid) or 0)
    os.kill(pid, 15)
    wait_until(lambda: not seen.alive, what="the end of the private agent")


def test_an_idle_private_agent_ends_and_a_stale_socket_is_replaced(here: Machine) -> None:
    agent = here.agent("--private", "--idle-exit=0.3")
    assert agent.wait() == 0
    assert not (here.runtime / "agent.sock").exists()
    killed = here.agent()
    killed.kill()
    assert (here.runtime / "agent.sock").exists()
    with pytest.raises(AgentError, match="no agent answers"):
        here.client()
    here.agent()
    with here.client() as client:
        status = client.call("status", timeout=60)
        assert status["agent"]["spool_dir"] == str(here.spool)
        assert status["runs"] == []


def test_who_cannot_send_knows_at_once_that_the_agent_has_gone(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(tmp_path / "agent.sock"))
        listening.listen()

        def serve() -> socket.socket:
            """Answers hello, then takes nothing more; its end stays open, so that who reads notices nothing."""
            accepted, _ = listening.accept()
            accepted.recv(4096)
            accepted.shutdown(socket.SHUT_RD)
            accepted.sendall(b'{"reply": 1, "ok": true, "agent_pid": 1}\n')
            return accepted

        with ThreadPoolExecutor(1) as other:
            serving = other.submit(serve)
            with Client.connect(tmp_path / "agent.sock") as client, serving.result():
                with pytest.raises(AgentError, match="has gone at 'status'"):
                    client.call("status", timeout=60)
                assert client.lost


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_client_of_another_user_is_hung_up_on(here: Machine) -> None:
    here.agent()
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connected:
            os._exit(connected.connect_ex(str(here.runtime / "agent.sock")))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EACCES
    # file permissions keep others out first: open them, so that the question of who it is remains
    here.runtime.chmod(0o711)
    (here.runtime / "agent.sock").chmod(0o666)
    hello = json.dumps({"op": "status", "call": 1}).encode() + b"\n"
    directory = os.open(here.runtime, os.O_PATH)
    answers = []
    for uid in (0, 65534):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setuid(uid)
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connected:
                    connected.settimeout(20)
                    connected.connect(f"/proc/self/fd/{directory}/agent.sock")
                    os.write(write, b"connected ")
                    connected.sendall(hello)
                    os.write(write, connected.recv(4096))
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as stream:
            answers.append(stream.read())
        assert os.waitpid(child, 0)[1] == 0
    os.close(directory)
    assert b"before hello" in answers[0]
    assert answers[1] == b"connected "


def test_what_is_no_message_gets_an_error_and_ends_nothing(here: Machine) -> None:
    here.agent()
    with _raw(here) as connected, connected.makefile("rwb") as stream:

        def ask(line: bytes) -> dict[str, object]:
            stream.write(line + b"\n")
            stream.flush()
            reply: dict[str, object] = json.loads(stream.readline())
            return reply

        for line in (b"", b"not json", b"[1]", b"\xff", b"[" * 100_000, b'{"op": ["open"]}', b'{"op": "evaporate"}'):
            assert ask(line)["error"] in ("MalformedMessage", "AgentError")
        assert "before hello" in str(ask(b'{"op": "status", "call": 5}')["message"])
        other = {"op": "hello", "call": 6, "version": protocol.VERSION + 1}
        assert "speaks version" in str(ask(json.dumps(other).encode())["message"])
        wrong = {"op": "hello", "call": 7, "version": protocol.VERSION, "pid": 1, "start_time": 1, "boot_id": "x"}
        assert "cannot see" in str(ask(json.dumps(wrong).encode())["message"])
    with _raw(here) as connected, connected.makefile("rb") as stream:
        connected.sendall(b"x" * (protocol.MAX_MESSAGE_BYTES + 2))
        assert "over" in json.loads(stream.readline())["message"]
        assert stream.readline() == b""
    with here.client() as client:
        for op, fields in (
            ("slot", {"uri": "file:///nowhere", "size_bytes": 1, "step": 1}),
            ("slot", {"uri": 7}),
            ("open", {"uri": "s3:bucket"}),
            ("open", {"uri": "file://relative/path"}),
            ("open", {"uri": "nowhere://x/y"}),
            ("open", {"uri": "file:///x/y", "settings": {"stale_after_s": "long"}}),
            ("open", {"uri": "file:///x/y", "settings": [1]}),
            ("open", {"uri": "file:///x/y", "environment": [1]}),
            ("attach", {"uri": "file:///x/y", "attempt": 1}),
            ("drain", {"uri": "file:///x/y", "deadline_s": -1}),
            ("notify", {"action": "stop", "in_s": "soon"}),
        ):
            with pytest.raises(SpotckptError) as raised:
                client.call(op, timeout=60, **fields)
            assert "fault in the agent" not in str(raised.value)
        assert client.call("status", timeout=60)["runs"] == []


def test_errors_keep_their_class_over_the_socket() -> None:
    denied = protocol.to_error(protocol.error_fields(Denied("put", "s3://b/k", "403", hint="allow it")))
    assert isinstance(denied, Denied)
    assert (denied.operation, denied.key, denied.cause, denied.hint) == ("put", "s3://b/k", "403", "allow it")
    assert isinstance(protocol.to_error(protocol.error_fields(Superseded("gone"))), Superseded)
    assert isinstance(protocol.to_error({"error": "Nonsense", "message": "m"}), AgentError)
    assert isinstance(protocol.to_error({"error": "annotations"}), AgentError)


def test_a_directory_that_others_can_write_or_a_path_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(AgentError, match="can be written by others"):
        make_private_dir(tmp_path / "open")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(AgentError, match="not a directory"):
        make_private_dir(tmp_path / "link")
    with pytest.raises(AgentError, match="longer than"):
        socket_path(tmp_path / ("x" * 120))


def test_nobody_there_is_said_with_the_way_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="spotckpt agent"):
        Client.connect(tmp_path / "agent.sock")


@pytest.mark.parametrize("name", ["agent.lock", "agent.sock"])
def test_a_directory_that_cannot_hold_the_lock_or_the_socket_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    options = AgentOptions(runtime_dir=tmp_path, spool_dir=tmp_path)
    with pytest.raises(AgentError, match=f"cannot use {tmp_path}/{name}: Is a directory"):
        _Entry.take(options)


def test_a_log_that_cannot_be_written_is_named(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in here.environment.items():
        monkeypatch.setenv(variable, value)
    make_private_dir(here.runtime)
    (here.runtime / "agent.log").mkdir()
    with pytest.raises(AgentError, match=f"no agent can be started: Is a directory .{here.runtime}/agent.log"):
        ensure_agent()


def test_a_reserve_that_is_no_number_or_negative_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--reserve-mb=nan"])
    assert "--reserve-mb: invalid int value: 'nan'" in capsys.readouterr().err
    with pytest.raises(SettingError, match="less than none"):
        AgentOptions(reserve_bytes=-1)

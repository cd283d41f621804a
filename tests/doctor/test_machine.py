"""What is found out about a machine: its metadata service, its memory, and who would kill the training."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from spotckpt.agent.processes import boot_id, pid_namespace
from spotckpt.agent.spool import Spool, held_bytes
from spotckpt.agent.token import Token
from spotckpt.doctor import machine
from spotckpt.errors import SettingError
from spotckpt.notices.hops import hops_left
from tests.support.imds import TOKEN_PATH, Imds, running_imds
from tests.support.servers import free_port

URI = "s3://bucket/run"


@pytest.fixture
def imds() -> Iterator[Imds]:
    with running_imds() as served:
        yield served


def test_a_service_that_answers(imds):
    found = machine.ask_metadata(imds.endpoint)
    assert (found.state, found.instance, found.notices) == ("answers", "i-0123456789abcdef0", ())
    assert found.hops_left == 2


@pytest.mark.parametrize(("limit", "left"), [(1, 1), (2, 2), (64, 2)])
def test_the_hop_limit_by_what_arrives(imds, limit, left):
    imds.hop_limit = limit
    assert hops_left(imds.endpoint, timeout_s=1.0 if limit == 1 else 60.0) == left


def test_no_answer_has_no_hops(imds):
    imds.silent.add(TOKEN_PATH)
    assert hops_left(imds.endpoint, timeout_s=0.2) is None
    assert hops_left(f"http://127.0.0.1:{free_port()}") is None


def test_a_service_that_says_nothing_refuses_or_is_not_there(imds):
    imds.token_status = 403
    assert machine.ask_metadata(imds.endpoint).state == "disabled"
    imds.silent.add(TOKEN_PATH)
    lost = machine.ask_metadata(imds.endpoint)
    assert lost.state == "failing"
    assert "hop-limit" in lost.detail
    assert machine.ask_metadata(f"http://127.0.0.1:{free_port()}").state == "absent"


def test_nobody_is_asked_where_the_environment_says_so():
    assert machine.ask_metadata("", {"AWS_EC2_METADATA_DISABLED": "true"}).state is None


def test_a_notice_in_force_is_told(imds):
    imds.spot("terminate", in_s=80)
    [notice] = machine.ask_metadata(imds.endpoint).notices
    assert notice.startswith("spot terminate in ")


def test_this_machine(tmp_path):
    found = machine.look(URI, {"SPOTCKPT_SPOOL": str(tmp_path / "spool"), "SPOTCKPT_SPOOL_QUOTA": "1GB"})
    assert found.spool == str(tmp_path / "spool")
    assert not (tmp_path / "spool").exists()
    assert found.spool_room > 0 < found.disk_room
    assert found.memory > 0
    assert found.copy_bytes_per_s > 1e7
    assert (found.quota, found.torchrun_kill_s, found.world_size, found.sigterm_grace_s) == (10**9, None, 1, 10.0)


def test_slots_of_the_run_itself_are_room_for_it(tmp_path):
    """A sparse file is as long as a slot of a terabyte, and takes nothing."""
    spool, disk, terabyte = tmp_path / "spool", tmp_path / "disk", 10**12
    spool.mkdir()
    environ = {"SPOTCKPT_SPOOL": str(spool), "CACHE_DIRECTORY": str(disk)}
    run = Spool(spool, disk).create(Token(URI, "r" * 16, 1, "n", 0, 1, 1, boot_id(), pid_namespace(), 2.0, 10.0))
    slot = run.growable(1, most=3)
    assert slot is not None
    assert not slot.allocate(4096, reserve_bytes=0)
    os.truncate(slot.data_path, terabyte)
    own, other = machine.look(URI, environ), machine.look("s3://bucket/other", environ)
    assert abs(own.spool_room - other.spool_room - terabyte) < terabyte // 10
    slot._disk.parent.mkdir(parents=True, exist_ok=True)
    slot._disk.with_name("slot-1.data").write_bytes(bytes(100))
    assert held_bytes(URI, spool=spool, disk=disk) == (terabyte, 100)
    assert held_bytes("s3://bucket/other", spool=spool, disk=disk) == (0, 0)


def test_who_kills_is_in_the_environment():
    worker = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "SPOTCKPT_SIGTERM_GRACE": "25"}
    found = machine.look(URI, worker)
    assert (found.torchrun_kill_s, found.world_size, found.sigterm_grace_s) == (30.0, 2, 25.0)
    assert machine.look(URI, {**worker, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "90"}).torchrun_kill_s == 90.0
    with pytest.raises(SettingError, match="TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        machine.look(URI, {**worker, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "soon"})


@pytest.mark.parametrize(
    ("parent", "kill_s"),
    [
        (["python", "torchrun", "--shutdown-timeout", "77", "train.py"], 77.0),
        (["python", "-m", "torch.distributed.run", "--shutdown_timeout=78", "train.py"], 78.0),
        (["python", "torchrun", "train.py"], 30.0),
        ([], 30.0),
    ],
)
def test_torchrun_tells_its_workers_of_its_option_by_its_command_line_only(parent, kill_s):
    assert machine._torchrun_kill_s({"TORCHELASTIC_RUN_ID": "none"}, parent) == kill_s
    assert machine._torchrun_kill_s({}, parent) is None


def test_hibernation_is_on_the_kernel_s_command_line():
    assert machine._can_hibernate("console=ttyS0 resume=UUID=1234 resume_offset=4096\n")
    assert not machine._can_hibernate("console=ttyS0 noresume quiet\n")

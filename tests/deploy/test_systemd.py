"""The units in a real systemd: it boots, trains, is disturbed in every way, goes off, and another one goes on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import pytest

from tests.deploy.machine import Booted, booted, readme_block, reason_not_to
from tests.support.imds import Imds, running_imds
from tests.support.proxy import Proxy
from tests.support.servers import S3Env, wait_until

REASON = reason_not_to()
AGENT, TRAIN = "spotckpt-agent.service", "spotckpt-train@resnet.service"
STOP_S = 2
SLOW_BYTES_PER_S = 200_000
NETWORK = """[Unit]
Description=a network
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
"""
DROP_IN = "[Service]\n{1}StandardOutput=append:/shared/{0}.log\nStandardError=append:/shared/{0}.log\n"


def files(env: S3Env, imds: Imds, *, pace: float) -> dict[str, str]:
    """What the person who installs would write, and all times made short."""
    aws = "".join(f"{name}={value}\n" for name, value in env.environment.items())
    command = f"/opt/spotckpt/bin/python -m tests.deploy.training --out /shared/out --pace {pace}"
    options = f"--metadata-endpoint {imds.endpoint} --poll-interval 0.2 --stop-grace 15"
    return {
        "/etc/spotckpt/agent.env": f"PYTHONPATH=/srv/spotckpt\nSPOTCKPT_AGENT_OPTIONS={options}\n",
        "/etc/spotckpt/train/resnet.env": f"COMMAND={command}\nPYTHONPATH=/srv/spotckpt\nSPOTCKPT_URI={env.uri}\n{aws}",
        f"/etc/systemd/system/{AGENT}.d/test.conf": DROP_IN.format(
            "agent", f"WatchdogSec=5s\nTimeoutStopSec={STOP_S}s\n"
        ),
        f"/etc/systemd/system/{TRAIN}.d/test.conf": DROP_IN.format("train", "RestartSec=0.2s\n"),
        "/etc/systemd/system/a-network.service": NETWORK,
        "/etc/systemd/boot/multi-user.target.d/test.conf": "[Unit]\nWants=a-network.service network.target\n",
    }


def commits(env: S3Env) -> list[str]:
    """The ids of the committed snapshots, in order."""
    return sorted(key.rpartition("/")[2].removesuffix(".json") for key in env.keys("run/snapshots/"))


def num_attempts(env: S3Env) -> int:
    return sum(bool(re.search(r"/\d{4}\.json$", key)) for key in env.keys("run/attempts/"))


def body_of(env: S3Env, key: str) -> dict[str, object]:
    body: dict[str, object] = json.loads(env.client.get_object(Bucket=env.bucket, Key=key)["Body"].read())["body"]
    return body


def wait_for_another_commit(env: S3Env) -> None:
    before = commits(env)
    wait_until(lambda: len(commits(env)) > len(before), what="another commit")


def wait_in_mid_upload(machine: Booted) -> None:
    status = r"1 run; s3://\S+: uploading a\S+, \d+ % of \d\.\d MB"
    wait_until(lambda: re.fullmatch(status, machine.show(AGENT, "StatusText")), what="an upload")


def wait_restarted(machine: Booted, unit: str, times: int) -> None:
    def again() -> bool:
        return machine.show(unit, "NRestarts") == str(times) and machine.show(unit, "ActiveState") == "active"

    wait_until(again, what=f"restart {times} of {unit}")


def status_is_there_for_root_and_the_user(machine: Booted, env: S3Env) -> None:
    """By systemctl, and by the command that deploy/README.md gives."""
    assert machine.show(AGENT, "StatusText").startswith(f"1 run; {env.uri}: ")
    command = readme_block("Look").replace("spotckpt status", "spotckpt status --json")
    told = json.loads(machine.run("env", "PYTHONPATH=/srv/spotckpt", "sh", "-c", command))
    assert [run["uri"] for run in told["runs"]] == [env.uri]


def agent_is_killed_and_hangs(machine: Booted, env: S3Env) -> None:
    """The training goes on through both, in the same process and the same attempt."""
    trainer = machine.show(TRAIN, "MainPID")
    machine.systemctl("kill", "--signal=KILL", AGENT)
    wait_restarted(machine, AGENT, 1)
    wait_for_another_commit(env)
    machine.systemctl("kill", "--signal=STOP", AGENT)
    wait_restarted(machine, AGENT, 2)
    assert "Fatal Python error: Aborted" in (machine.shared / "agent.log").read_text()
    wait_for_another_commit(env)
    assert machine.show(TRAIN, "MainPID") == trainer
    assert num_attempts(env) == 1


def notice_comes(machine: Booted, env: S3Env, imds: Imds) -> None:
    """Committed in time; the next life begins at once and claims nothing until the notice is gone."""
    deadline = time.time() + 20
    imds.spot("terminate", in_s=20)
    wait_restarted(machine, TRAIN, 1)
    key = f"run/snapshots/{commits(env)[-1]}.json"
    assert env.client.head_object(Bucket=env.bucket, Key=key)["LastModified"].timestamp() < deadline
    assert body_of(env, key)["reason"] == "notice"
    assert body_of(env, "run/attempts/0001.heartbeat.json")["last_committed"] == commits(env)[-1]
    log = machine.shared / "train.log"
    wait_until(lambda: "spot terminate" in log.read_text().rpartition("Interrupted")[2], what="the next life waits")
    assert num_attempts(env) == 1
    imds.clear()
    wait_until(lambda: commits(env)[-1].startswith("a0002"), what="a commit of the second attempt")


def power_goes_in_mid_upload(machine: Booted, env: S3Env, line: Proxy) -> None:
    """The training stops first, then the agent, for which longer is waited than TimeoutStopSec, then the network."""
    line.bytes_per_s = SLOW_BYTES_PER_S
    wait_in_mid_upload(machine)
    machine.power_off()
    log = machine.shared / "agent.log"
    wait_until(lambda: "SIGTERM: finishing" in log.read_text(), what="the agent's turn to stop")
    time.sleep(2 * STOP_S)
    assert "ends" not in log.read_text().rpartition("SIGTERM: finishing")[2]
    line.bytes_per_s = None
    machine.wait_off(60)
    last = commits(env)[-1]
    assert body_of(env, f"run/snapshots/{last}.json")["reason"] == "notice"
    assert body_of(env, "run/attempts/0002.heartbeat.json")["last_committed"] == last
    assert re.search(r"agent \d+ ends", log.read_text().rpartition("SIGTERM: finishing")[2])
    stops = [machine.console.index(f"Stopped {what}") for what in ("spotckpt-train@", "spotckpt-agent", "a-network")]
    assert stops == sorted(stops)
    assert "timed out" not in machine.console.partition("Stopping spotckpt-train")[2]


@pytest.mark.fault(6)
@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_a_training_survives_all_that_happens_to_a_machine_with_systemd(s3_env, tmp_path):
    install = readme_block("Install the units")
    plain = "from tests.deploy.training import plain; print(plain())"
    with (
        running_imds() as imds,
        Proxy(s3_env.url) as line,
        subprocess.Popen([sys.executable, "-c", plain], stdout=subprocess.PIPE) as reference,
    ):
        environment = s3_env.behind(line.url)
        with booted(tmp_path / "first", install=install, files=files(environment, imds, pace=0.1)) as machine:
            wait_until(lambda: commits(s3_env), what="a first commit")
            status_is_there_for_root_and_the_user(machine, s3_env)
            agent_is_killed_and_hangs(machine, s3_env)
            notice_comes(machine, s3_env, imds)
            power_goes_in_mid_upload(machine, s3_env, line)
        # the other machine has no room in memory: its slots are on the disk that both units see
        with booted(tmp_path / "second", install=install, files=files(environment, imds, pace=0), shm="1m") as machine:
            out = tmp_path / "second/out"
            wait_until(out.exists, what="the training's end")
            wait_until(lambda: machine.show(TRAIN, "ActiveState") == "inactive", what="its last commit")
            assert machine.show(TRAIN, "Result") == "success"
            assert "are staged on disk" in (tmp_path / "second/train.log").read_text()
        assert out.read_bytes() == reference.communicate(timeout=60)[0].strip()
    assert num_attempts(s3_env) == 3
    assert s3_env.uploads() == []

"""What is found out while tensors are read: the next snapshot is taken, for everything that was restored so far."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import spotckpt
from spotckpt.errors import MismatchError
from tests.support.proxy import Proxy, answer, cut_reply, reset, then
from tests.support.servers import S3Env
from tests.training.machine import Bucket, Machine, machine


@pytest.fixture
def there() -> Iterator[Machine]:
    """Another machine: nothing lies in its spool."""
    with machine() as found:
        yield found


def damage(root: Path, snapshot: str, tensor: str) -> None:
    """Flips a bit of the tensor, in that snapshot's own pack."""
    (pack,) = (root / "packs" / snapshot).glob("rank-*.safetensors")
    part = Bucket(f"file://{root}").record(str(pack.with_suffix(".json").relative_to(root)))
    own = part["packs"].index(str(pack.relative_to(root)))
    (chunk,) = [row[4][0] for row in part["tensors"] if row[0] == tensor and row[4][0][0] == own]
    data = bytearray(pack.read_bytes())
    data[chunk[1]] ^= 1
    pack.write_bytes(data)


def broken_off(here: Machine, bucket: Bucket) -> list[str]:
    """A run that ended by an exception in step 4; its snapshots, of steps 2 and 4."""
    here.train(bucket.uri, "--every=1h", "--save-in=1", "--save-in=3", "--at=4", "--act=raise", status=1)
    return [manifest["snapshot"] for manifest in bucket.manifests()]


@pytest.mark.fault(64)
@pytest.mark.parametrize("tensor", ["model/0.weight", "optimizer/state/0/momentum_buffer"])
def test_the_snapshot_before_is_taken_for_everything(
    here: Machine, there: Machine, tmp_path: Path, plain: str, tensor: str
) -> None:
    bucket = Bucket(f"file://{tmp_path}/run")
    *older, newest = broken_off(here, bucket)
    damage(tmp_path / "run", newest, tensor)
    again = there.train(bucket.uri)
    assert f"{newest}: " in again.said and f"tensor {tensor} does not match its digest" in again.said
    assert f"going on from {older[-1]}" in again.said
    assert again.trace[0].endswith(f" {older[-1]}")
    assert again.end == plain
    base = bucket.record("attempts/0002.base.json")
    assert (base["snapshot"], base["skipped"]) == (older[-1], [newest])


@pytest.mark.fault(67)
def test_none_is_left(here: Machine, there: Machine, tmp_path: Path, plain: str) -> None:
    bucket, root = Bucket(f"file://{tmp_path}/run"), tmp_path / "run"
    snapshots = broken_off(here, bucket)
    for snapshot in snapshots:
        damage(root, snapshot, "model/2.weight")
    ended = there.train(bucket.uri, status=34)
    assert all(ended.said.count(f"{snapshot}: ") >= 1 for snapshot in snapshots)
    assert bucket.released(2)
    assert "attempts/0002.base.json" not in bucket.listing(), "it went on from nothing"
    damage(root, snapshots[-1], "model/2.weight")  # once more: mended
    assert there.train(bucket.uri).end == plain


def test_the_last_snapshot_of_a_finished_run(here: Machine, there: Machine, tmp_path: Path, plain: str) -> None:
    bucket = Bucket(f"file://{tmp_path}/run")
    here.train(bucket.uri, "--every=1h", "--save-in=4", "--save-in=9")
    _, before, final = bucket.manifests()
    assert final["finished"] and before["step"] == final["step"]
    # the last step's weights are in the pack of the snapshot before, as nothing changed since
    for manifest in (before, final):
        for pack in (tmp_path / "run" / "packs" / manifest["snapshot"]).glob("rank-*.safetensors"):
            data = bytearray(pack.read_bytes())
            data[-1] ^= 1
            pack.write_bytes(data)
    again = there.train(bucket.uri)
    assert "skipped" in again.said
    assert again.steps
    assert again.end == plain
    assert bucket.manifests()[-1]["finished"]


@pytest.mark.fault(44)
def test_a_pack_that_is_replaced_while_it_is_read(here: Machine, there: Machine, s3_env: S3Env, plain: str) -> None:
    bucket = Bucket(s3_env.uri)
    here.environment.update(s3_env.environment)
    *older, newest = broken_off(here, bucket)
    (key,) = [key for key in s3_env.keys(f"run/packs/{newest}") if key.endswith("rank-00000.safetensors")]
    body = s3_env.client.get_object(Bucket=s3_env.bucket, Key=key)["Body"].read()

    def replace() -> None:
        s3_env.client.put_object(Bucket=s3_env.bucket, Key=key, Body=body[:-1] + bytes([body[-1] ^ 1]))

    with Proxy(s3_env.url) as proxy:
        proxy.on("GET", f"{newest}/rank-00000.safetensors", then(reset(), replace))
        again = there.train(bucket.uri, env=s3_env.behind(proxy.url).environment)
    assert f"{newest}/rank-00000.safetensors was replaced while it was read" in again.said
    assert again.trace[0].endswith(f" {older[-1]}")
    assert again.end == plain


@pytest.mark.fault(43)
def test_bodies_that_end_early_or_are_shorter_than_asked_for(
    here: Machine, there: Machine, s3_env: S3Env, plain: str
) -> None:
    bucket = Bucket(s3_env.uri)
    here.environment.update(s3_env.environment)
    newest = broken_off(here, bucket)[-1]
    with Proxy(s3_env.url) as proxy:
        proxy.on("GET", r"rank-00000\.safetensors", cut_reply(600), times=2)
        proxy.on("GET", r"rank-00000\.safetensors", answer(206, b"short"), times=2)
        again = there.train(bucket.uri, env=s3_env.behind(proxy.url).environment)
        assert len(proxy.wait_for("GET", r"rank-00000\.safetensors")) >= 6
    assert "skipped" not in again.said
    assert again.trace[0].endswith(f" {newest}")
    assert again.end == plain


# In this process, with an agent of its own


class Boom(Exception):
    """What ends a training here."""


@pytest.fixture
def at(here: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    here.enter(monkeypatch)
    return f"file://{tmp_path}/run"


def train(uri: str, num_steps: int, *, fail: bool) -> list[int]:
    """Snapshots at every step; returns the steps whose bodies ran."""
    model, steps = torch.nn.Linear(2, 1), []
    with spotckpt.open_run(uri, every="1h") as run:
        run.track(model=model)
        for step in run.steps(num_steps):
            run.save()  # what was asked for is not dropped for a newer one
            run.vars["list"] = [*run.vars.get("list", []), step]
            model.weight.data.fill_(step + 1)
            steps.append(step)
            if fail and step == num_steps - 1:
                raise Boom
    return steps


def test_an_attempt_that_ends_before_its_loops_has_no_effect(at: str) -> None:
    with pytest.raises(Boom):
        train(at, 4, fail=True)
    bucket = Bucket(at)
    for address, number in ((at, 2), (f"{at}@step=1", 3)):
        with pytest.raises(Boom), spotckpt.open_run(address) as run:
            run.track(model=torch.nn.Linear(2, 1))
            assert run.resumed_from is not None
            raise Boom
        assert bucket.released(number)
        assert f"attempts/{number:04d}.base.json" not in bucket.listing()
    # what attempt 3 was told still holds for the next one, as nothing was done since
    assert train(at, 4, fail=False) == [1, 2, 3]


def test_what_was_restored_before_follows(here: Machine, at: str, tmp_path: Path) -> None:
    with pytest.raises(Boom):
        train(at, 4, fail=True)
    here.kill_agent()  # and with it what it kept of the last attempt
    bucket = Bucket(at)
    *older, newest = [manifest["snapshot"] for manifest in bucket.manifests()]
    damage(tmp_path / "run", newest, "model/weight")
    model = torch.nn.Linear(2, 1)
    with spotckpt.open_run(at) as run:
        assert (run.resumed_from, run.step, run.vars["list"]) == (newest, 3, [0, 1, 2])
        run.vars["mine"] = "kept"
        run.track(model=model)
        assert (run.resumed_from, run.step, run.vars["list"]) == (older[-1], 2, [0, 1])
        assert run.vars["mine"] == "kept"
        assert model.weight.tolist() == [[2.0, 2.0]]
        assert list(run.steps(4)) == [2, 3]


def test_what_the_snapshot_before_does_not_hold_does_not_keep_damaged_bytes(
    here: Machine, at: str, tmp_path: Path
) -> None:
    model = torch.nn.Linear(2, 1)
    for names, steps in ((["model"], 2), (["model", "head"], 3)):
        with pytest.raises(Boom), spotckpt.open_run(at, every="1h") as run:
            run.track(**{name: torch.nn.Linear(2, 1) for name in names}, optional=names[1:])
            for step in run.steps(steps):
                run.save()  # what was asked for is not dropped for a newer one
                if step == steps - 1:
                    raise Boom
    here.kill_agent()
    bucket = Bucket(at)
    *_, first, second = [manifest["snapshot"] for manifest in bucket.manifests()]
    damage(tmp_path / "run", second, "head/weight")
    why = f"head had been restored.*{first} does not hold"
    with pytest.raises(MismatchError, match=why), spotckpt.open_run(at) as run:
        run.track(model=model, head=torch.nn.Linear(2, 1), optional=["head"])
    with spotckpt.open_run(f"{at}@{first}") as run:
        run.track(model=model, head=torch.nn.Linear(2, 1), optional=["head"])
        assert run.resumed_from == first

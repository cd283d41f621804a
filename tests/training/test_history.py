"""The metric history across lives: killed processes leave no gap in a curve and no point twice."""

from __future__ import annotations

import re
import signal
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spotckpt
from spotckpt.snapshot.catalog import read_catalog
from spotckpt.snapshot.fetch import read_manifest, verify
from spotckpt.snapshot.history import read_history
from spotckpt.snapshot.manifest import Manifest
from spotckpt.snapshot.metrics import History
from spotckpt.store.open import open_store
from tests.cli.command import in_process
from tests.support.proxy import Proxy
from tests.support.servers import S3Env, wait_until
from tests.training.machine import Machine

ROWS = 800
MIB = 1 << 20


def manifests(uri: str) -> list[Manifest]:
    store = open_store(uri)
    return [read_manifest(store, one) for one in sorted(read_catalog(store).snapshots)]


def columns(history: History) -> dict[str, Any]:
    """Everything that was logged, bit by bit."""
    return {
        f"{set_name}/{name}": (series.steps, series.epochs, repr(list(series)))
        for set_name, names in history.items()
        for name, series in names.items()
    }


@pytest.mark.fault(6, 7)
def test_killed_again_and_again_a_curve_has_no_gap_and_no_point_twice(here: Machine, tmp_path: Path) -> None:
    plain, uri = f"file://{tmp_path}/plain", f"file://{tmp_path}/run"
    here.train(plain, "--every=1h", f"--rows={ROWS}")
    for step in (2, 5):
        trainer = here.start(uri, f"--at={step}", "--act=hold", f"--rows={ROWS}")
        trainer.wait_for("holding")
        trainer.signal(signal.SIGKILL)
        trainer.wait()
    trainer = here.start(uri, "--at=8", "--act=spin", f"--rows={ROWS}")
    trainer.wait_for("spinning")
    here.kill_agent()
    trainer.go()
    assert trainer.wait() == 0, trainer.said
    store, [*_, last] = open_store(uri), manifests(uri)
    found = columns(read_history(store, last))
    assert found == columns(read_history(open_store(plain), manifests(plain)[-1]))
    assert found["train/loss"][0] == list(range(10)) and found["samples/worst"][0] == [0, 1]
    assert found["samples/x"][0] == list(range(10 * ROWS))
    assert max(len(one.history) for one in manifests(uri)) > 1
    for one in manifests(uri):
        assert verify(store, one.snapshot).problems == ()
        assert len(read_history(store, one)["samples"]["x"]) == ROWS * one.step


def test_a_rewind_takes_the_curve_back(here: Machine, tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/run"
    here.train(uri, "--every=1h", "--save-in=3", f"--rows={ROWS}")
    here.train(f"{uri}@step=4", "--epochs=1", f"--rows={ROWS}")
    last = manifests(uri)[-1]
    assert last.snapshot.attempt == 2 and last.step == 5
    assert read_history(open_store(uri), last)["train"]["loss"].steps == list(range(5))


def test_values_of_all_kinds_and_decisions_survive_a_resume(here: Machine, tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/run"
    for life in range(3):
        with pytest.MonkeyPatch.context() as patch:
            here.enter(patch)
            with spotckpt.open_run(uri, every="1h") as run:
                for step in run.steps(4 * life + 4):
                    loss = [5.0, 3.0, 4.0, 3.5, 3.2, 2.0, 2.5][min(step, 6)]
                    run.log("valid", loss=loss, table=torch.full((2, 2), step), note=f"step {step}")
                    assert run.improved("valid", "loss", patience=3) == (step < 4 or 5 <= step <= 7)
                assert run.best("valid", "loss", "min") == (
                    spotckpt_best(3.0, 1) if life == 0 else spotckpt_best(2.0, 5)
                )
                steps = [one.step for one in run.best("valid", "loss", "min", k=2)]
                assert steps == [[1, 3], [5, 6], [5, 6]][life]
                assert (
                    run.history["valid"]["note"][1] == "step 1" and len(run.history["valid"]["table"]) == 4 * life + 4
                )
                assert run.history["valid"]["table"][2].tolist() == [[2, 2], [2, 2]]


def spotckpt_best(value: float, step: int) -> Any:
    from spotckpt.snapshot.metrics import Best

    return Best(value, step, -1)


def test_a_curve_of_a_large_snapshot_costs_its_own_bytes(
    here: Machine, s3_env: S3Env, monkeypatch: pytest.MonkeyPatch
) -> None:
    """48 MiB of state in a real server: read through a proxy that counts."""
    here.train(s3_env.uri, "--every=4 steps", f"--rows={ROWS}", "--width=1000000", "--epochs=1", env=s3_env.environment)
    with Proxy(s3_env.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        store = open_store(s3_env.uri)
        [*_, newest] = sorted(read_catalog(store).snapshots)
        manifest = read_manifest(store, newest)
        before = len(proxy.seen)
        assert read_history(store, manifest)["samples"]["x"].steps == list(range(5 * ROWS))
        asked = [(seen.method, urllib.parse.unquote(seen.path)) for seen in proxy.seen[before:]]
    assert manifest.data_bytes > 40 * MIB
    assert len(asked) == len(manifest.history) <= 2
    assert all(method == "GET" and re.search(r"/history\.safetensors$", path) for method, path in asked)
    assert sum(one.length for one in manifest.history) < 5 * ROWS * 2 * 22 + 10_000


@pytest.mark.fault(87)
def test_a_metric_that_turns_nan_is_said_once_and_kept(
    here: Machine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = f"file://{tmp_path}/run"
    with pytest.MonkeyPatch.context() as patch:
        here.enter(patch)
        with spotckpt.open_run(uri, every="1 steps", keep="last=1") as run:
            for step in run.steps(6):
                run.log("train", loss=1.0 if step < 3 else float("nan"))
                run.save()
    store = open_store(uri)
    wait_until(lambda: [one.step for one in sorted(read_catalog(store).snapshots)] == [3, 6], what="the pruning's end")
    last = manifests(uri)[-1]
    assert last.finished
    assert np.isnan(read_history(store, last)["train"]["loss"].columns()[2]).tolist() == [False] * 3 + [True] * 3
    assert "train/loss is nan at step 3" in capfd.readouterr().err
    for verb, address in (("ls", uri), ("show", uri)):
        shown = in_process(verb, address)
        assert "nan!" in shown.out and shown.status == 0

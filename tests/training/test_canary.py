"""Secrets everywhere in a training's environment, arguments and addresses, and in nothing that is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from spotckpt.agent.paths import LOG_NAME
from tests.support.proxy import Proxy, answer
from tests.training.machine import Machine, machine

SCRIPT = """
import os, sys, torch, spotckpt

@spotckpt.resumable(sys.argv[1], every="1 steps")
def train(run, hf_token, url, note, database, nested):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run.track(model=model, optimizer=optimizer)
    for _ in run.steps(int(sys.argv[2])):
        optimizer.zero_grad()
        model(torch.ones(2)).sum().backward()
        optimizer.step()
    if sys.argv[2] == "2":
        raise RuntimeError("the first life ends early")

token = os.environ["HF_TOKEN"]
signed = "https://b.s3.amazonaws.com/k?X-Amz-Credential=CANARY-credential&X-Amz-Signature=CANARY-signature"
database = "postgresql://me:CANARY-database@host/db"
nested = {"password": ["CANARY-nested"]}
train(token, url=signed, note=f"logged in with {token}", database=database, nested=nested)
"""
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "CANARY-secret-key",
    "AWS_SESSION_TOKEN": "CANARY-session-token",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN": "CANARY-container-token",
    "HF_TOKEN": "CANARY-hf-token",
    "DATABASE_PASSWORD": "CANARY-password",
}


def refusal(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code} by the proxy</Message></Error>".encode()


@pytest.fixture
def here(s3_env):
    with machine() as made:
        made.environment |= SECRETS
        yield made


def run(here: Machine, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], env=here.environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_no_secret_is_written_anywhere(s3_env, here, tmp_path: Path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    said: dict[str, str] = {}
    with Proxy(s3_env.url) as proxy:
        here.environment["AWS_ENDPOINT_URL_S3"] = proxy.url
        proxy.on("PUT", "packs", answer(403, refusal("AccessDenied")))
        for steps in ("2", "4"):
            life = run(here, str(script), s3_env.uri, steps)
            said[f"life of {steps} steps"] = life.stdout + life.stderr
            shown = run(here, "-m", "spotckpt", "status", "--json")
            assert json.loads(shown.stdout)["agent"]
            said[f"status after {steps} steps"] = shown.stdout + shown.stderr
        assert life.returncode == 0, life.stderr
        said["show"] = run(here, "-m", "spotckpt", "show", s3_env.uri, "--json").stdout
        wrong = "s3://me:CANARY-user@bucket/run?X-Amz-Signature=CANARY-address"
        said["wrong address"] = run(here, "-m", "spotckpt", "ls", wrong).stderr
    said["log"] = (here.runtime / LOG_NAME).read_text()
    for key in s3_env.keys():  # noqa: SIM118  not a dictionary
        said[key] = s3_env.client.get_object(Bucket=s3_env.bucket, Key=key)["Body"].read().decode("latin-1")
    for path in [*here.spool.rglob("*.json"), *here.runtime.rglob("*.json")]:
        said[str(path)] = path.read_text()
    assert "the first life ends early" in said["life of 2 steps"]
    assert "AccessDenied" in said["log"]
    assert len([key for key in said if "/snapshots/" in key]) >= 2
    assert "[redacted]" in next(text for key, text in said.items() if "/snapshots/" in key)
    assert {name: text for name, text in said.items() if "CANARY" in text} == {}

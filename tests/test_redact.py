"""What is a secret, and what only looks like one."""

from __future__ import annotations

import pytest

from spotckpt.errors import StoreError, Superseded
from spotckpt.redact import REDACTED, redacted, redacted_value, secrets_of


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("GET https://b.s3.amazonaws.com/k?X-Amz-Credential=AKIA%2F1&X-Amz-Date=7&X-Amz-Signature=canary end", "end"),
        ("https://h/k?x-amz-security-token=canary&part=2", "part=2"),
        ("az://c/k?sv=2026&sig=canary", "sv=2026"),
        ("https://h/k?access_token=canary&user=me", "user=me"),
        ("sftp://me:canary@host/run: no route", "sftp://me:"),
        ("https://:canary@host/run", "@host/run"),
        ("postgresql://me:c@n:canary@host", "postgresql://me:"),
    ],
)
def test_passwords_and_signatures_in_addresses_are_replaced_and_the_rest_stays(text, rest):
    found = redacted(text)
    assert "canary" not in found
    assert REDACTED in found and rest in found
    assert redacted(found) == found


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/run@best=valid/top1:max",
        "http://127.0.0.1:4566/bucket?uploads",
        "is it a program? signature=unknown",
        "s3://bucket/run/packs/a0001-n000001-s00000001-deadbeef",
        "key=value and token=3",
    ],
)
def test_what_is_none_stays(text):
    assert redacted(text) == text


def test_arguments_are_replaced_by_their_name_or_by_what_the_environment_calls_secret():
    environ = {
        "HF_TOKEN": "hf_canary",
        "DB_PASSWORD": "canary-2",
        "TOKENIZERS_PARALLELISM": "sometimes",
        "SHORT_TOKEN": "on",
    }
    arguments = {
        "api_key": "canary-3",
        "nested": {"password": "canary-4", "all": ["is hf_canary", "sometimes", "on"]},
        "url": "s3://me:canary-5@b/k",
        "pad_token": "<pad>",
        "max_tokens": 4096,
        "tokenizer": "bpe",
        "token": None,
    }
    assert redacted_value("arguments", arguments, environ) == {
        "api_key": REDACTED,
        "nested": {"password": REDACTED, "all": [f"is {REDACTED}", "sometimes", "on"]},
        "url": f"s3://me:{REDACTED}@b/k",
        "pad_token": "<pad>",
        "max_tokens": 4096,
        "tokenizer": "bpe",
        "token": None,
    }


def test_the_environments_secrets_are_known_by_name():
    environ = {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "a-secret-key",
        "AWS_SESSION_TOKEN": "a-session-token",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/secrets/token",
        "WANDB_API_KEY": "a-wandb-key",
    }
    assert secrets_of(environ) == ["a-session-token", "a-secret-key", "a-wandb-key"]


def test_errors_do_not_show_them():
    error = StoreError("put", "sftp://me:canary@host/run/pack", "GET /k?sig=canary failed")
    assert "canary" not in f"{error} {error.message} {error.key} {error.cause} {error.args}"
    assert "canary" not in str(Superseded("attempt 2 owns sftp://me:canary@host/run"))

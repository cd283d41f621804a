"""From addresses to stores."""

from __future__ import annotations

import subprocess
import sys

import pytest

from spotckpt.errors import AddressError
from spotckpt.store.local import LocalStore
from spotckpt.store.open import ENVIRONMENT_NAMES, aws_environment, open_store
from spotckpt.store.retry import Retrying
from spotckpt.store.s3 import S3Store


def test_the_protocol_decides(tmp_path):
    for uri, kind in ((f"file://{tmp_path}", LocalStore), (str(tmp_path), LocalStore), ("s3://b/run", S3Store)):
        store = open_store(uri)
        assert isinstance(store, Retrying)
        assert isinstance(store.inner, kind)
    assert open_store("s3a://b/run/").uri == "s3://b/run"


def test_memory_is_shared_by_address():
    open_store("memory://unit/one").create("key", b"x")
    assert open_store("memory://unit/one").read("key", limit_bytes=1) == b"x"
    assert not open_store("memory://unit/two").exists("key")


def test_an_unknown_scheme_is_named_with_those_known():
    with pytest.raises(AddressError, match=r"warp://.*s3://.*file://"):
        open_store("warp://b/run")


def test_a_missing_package_is_named():
    with pytest.raises(AddressError, match=r"gs://b/run.*not installed.*gcsfs"):
        open_store("gs://b/run")


def test_the_environment_is_taken_by_name():
    environ = {"AWS_PROFILE": "p", "AWS_SECRET_ACCESS_KEY": "s", "HOME": "/root", "AWS_LAMBDA_X": "no"}
    assert aws_environment(environ) == {"AWS_PROFILE": "p", "AWS_SECRET_ACCESS_KEY": "s"}
    assert {"AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"} <= set(ENVIRONMENT_NAMES)


def test_a_directory_needs_no_aws_packages():
    code = (
        "import sys\nfrom spotckpt.store.open import open_store\nopen_store('file:///tmp/none').list('')\n"
        "print([name for name in ('torch', 's3fs') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.strip() == "[]"

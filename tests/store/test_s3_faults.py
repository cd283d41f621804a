"""What S3, the network and the credentials can do to a store, and what must be true after."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from email.utils import formatdate
from itertools import count
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import pytest

from spotckpt.deadline import SYSTEM_CLOCK, Clock, Deadline
from spotckpt.errors import (
    AlreadyExists,
    BucketMissing,
    ConditionsIgnored,
    Denied,
    NoCredentials,
    NotFound,
    OutcomeUnknown,
    Replaced,
    StoreError,
    Unavailable,
)
from spotckpt.store.base import MIB, Store
from spotckpt.store.conditions import require_conditions
from spotckpt.store.connection import SILENCE_TIMEOUT_S
from spotckpt.store.open import open_store
from spotckpt.store.retry import Retrying
from spotckpt.store.s3 import S3Store
from tests.store.clock import FakeClock
from tests.store.ranges import read_ranges
from tests.support.proxy import Proxy, answer, cut_reply, cut_request, drop_reply, flip_byte, reset, stall, strip_header
from tests.support.servers import (
    MotoServer,
    Reply,
    Request,
    Reset,
    S3Env,
    ScriptedServer,
    Seaweed,
    Silence,
    running,
    wait_until,
)

VERBS = ["create", "put", "read", "read_into", "list", "stat", "exists", "delete"]


def use(store: Store, verb: str, key: str = "snapshots/one.json") -> object:
    """The verb with arguments that would do on a healthy store."""
    arguments: dict[str, tuple[object, ...]] = {
        "create": (key, b"data"),
        "put": (key, [b"data"]),
        "read_into": (key, [(0, [memoryview(bytearray(4))])]),
        "list": ("snapshots/",),
        "delete": ([key],),
    }
    options = {"limit_bytes": 100} if verb == "read" else {}
    return getattr(store, verb)(*arguments.get(verb, (key,)), **options)


def s3_at(url: str, *, clock: Clock = SYSTEM_CLOCK, **environment: str) -> S3Store:
    given = {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": url,
        **environment,
    }
    return S3Store("s3://bucket/run", environment=given, clock=clock)


def connected(store: S3Store) -> S3Store:
    """The same store, with its client: to make one can take longer than the deadline of a test."""
    with suppress(StoreError):
        store.read("nothing", limit_bytes=1)
    return store


def silent_after_a_word() -> ScriptedServer:
    """Answers its first request only."""
    replies = iter([Reply(404)])
    return ScriptedServer(lambda request: next(replies, Silence()))


def error_body(code: str, **more: str) -> bytes:
    inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in {"Code": code, **more}.items())
    return f'<?xml version="1.0" encoding="UTF-8"?><Error>{inner}</Error>'.encode()


@pytest.mark.fault(28)
@pytest.mark.parametrize("size_bytes", [10, 8 * MIB], ids=["small", "fills the socket"])
@pytest.mark.parametrize("verb", ["create", "put"])
def test_a_server_silent_before_100_continue_does_not_outlast_the_deadline(verb, size_bytes):
    with silent_after_a_word() as server:
        store = connected(s3_at(server.url))
        deadline = Deadline.after(1.5)
        data = bytes(size_bytes)
        with pytest.raises(OutcomeUnknown, match=r"snapshots/one\.json.*no answer"):
            if verb == "create":
                store.create("snapshots/one.json", data, deadline=deadline)
            else:
                store.put("snapshots/one.json", [data], deadline=deadline)
        assert deadline.now() < deadline.at + SILENCE_TIMEOUT_S / 2
        assert "Expect" not in server.requests[-1].headers


@pytest.mark.fault(28)
@pytest.mark.parametrize("verb", VERBS)
def test_silence_ends_every_verb_at_the_default_deadline(verb):
    with silent_after_a_word() as server:
        store = connected(s3_at(server.url))
        store.call_timeout_s = 0.7
        begin = time.monotonic()
        with pytest.raises((Unavailable, OutcomeUnknown), match=r"s3://bucket/run/snapshots/"):
            use(store, verb)
        assert time.monotonic() - begin < SILENCE_TIMEOUT_S / 2


@pytest.mark.fault(35)
def test_a_lost_reply_to_a_conditional_put_is_our_own_success(s3_env):
    with Proxy(s3_env.url) as proxy:
        proxy.on("PUT", "manifest", drop_reply())
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        assert store.put_if_absent("manifest.json", b"our nonce") is False
        assert len(proxy.wait_for("PUT", "manifest")) == 2
    assert s3_env.keys() == ["run/manifest.json"]


@pytest.mark.fault(35)
def test_a_lost_reply_without_a_second_try_is_unknown(s3_env):
    with Proxy(s3_env.url) as proxy:
        proxy.on("PUT", "manifest", drop_reply())
        store = S3Store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        with pytest.raises(OutcomeUnknown, match=r"manifest\.json"):
            store.create("manifest.json", b"our nonce")
        assert store.read("manifest.json", limit_bytes=100) == b"our nonce"


@pytest.mark.fault(35)
def test_a_lost_reply_and_then_a_dead_server_stays_unknown(s3_env):
    with Proxy(s3_env.url) as proxy:
        proxy.on("PUT", "manifest", drop_reply())
        proxy.on("*", "", answer(503, error_body("SlowDown")), times=float("inf"))
        clock = FakeClock()
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment, clock=clock)
        with pytest.raises(OutcomeUnknown, match=r"manifest\.json"):
            store.put_if_absent("manifest.json", b"our nonce", deadline=Deadline.after(60.0, clock))
        assert len(proxy.seen) > 2


@pytest.mark.fault(35)
def test_a_412_whose_object_cannot_be_read_stays_unknown(s3_env):
    with Proxy(s3_env.url) as proxy:
        proxy.on("PUT", "manifest", drop_reply())
        proxy.on("GET", "manifest", answer(403, error_body("AccessDenied")))
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        with pytest.raises(OutcomeUnknown, match=r"manifest\.json.*may be our own"):
            store.put_if_absent("manifest.json", b"our nonce")


@pytest.mark.fault(38)
def test_a_true_conflict_names_the_object_and_deletes_nothing(s3_env):
    theirs = b"another writer's bytes, which are longer than ours"
    with Proxy(s3_env.url) as proxy:
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        store.create("manifest.json", theirs)
        for ours in (b"ours", theirs[:-1] + b"!", theirs + b" and more"):
            with pytest.raises(AlreadyExists, match=r"run/manifest\.json.*another writer"):
                store.put_if_absent("manifest.json", ours)
        assert store.read("manifest.json", limit_bytes=100) == theirs
        assert not [seen for seen in proxy.seen if seen.method == "DELETE" or "delete" in seen.path]


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    ("verb", "action"),
    [
        ("create", "s3:PutObject"),
        ("put", "s3:PutObject"),
        ("read", "s3:GetObject"),
        ("read_into", "s3:GetObject"),
        ("list", "s3:ListBucket"),
        ("stat", "s3:GetObject"),
        ("exists", "s3:GetObject"),
        ("delete", "s3:DeleteObject"),
    ],
)
def test_denied_is_not_missing(verb, action):
    with ScriptedServer(lambda request: (request.body(), Reply(403, error_body("AccessDenied")))[1]) as server:
        with pytest.raises(Denied, match=rf"s3://bucket/run/snapshots/.*403.*{action}"):
            use(s3_at(server.url), verb)
        assert len(server.requests) == 1, "denied is not tried again"


@pytest.mark.fault(40)
@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_key_is_told_by_a_server_that_verifies(verb, seaweed_env):
    store = open_store(seaweed_env.uri, environment={**seaweed_env.environment, "AWS_SECRET_ACCESS_KEY": "wrong"})
    with pytest.raises((Denied, NoCredentials), match="run/snapshots/"):
        use(store, verb)
    assert seaweed_env.keys() == []


@pytest.mark.fault(45)
def test_a_listing_has_more_than_a_page_of_keys():
    keys = {f"run/snapshots/{number:05d}.json" for number in range(101)}
    with running(MotoServer(page_keys=50)) as server:
        env = server.new_env()
        for key in keys:
            env.client.put_object(Bucket=env.bucket, Key=key, Body=b"x")
        with Proxy(env.url) as proxy:
            found = open_store(env.uri, environment=env.behind(proxy.url).environment).list("snapshots/")
            assert len(proxy.seen) == 3
    assert sorted(f"run/{stat.key}" for stat in found) == sorted(keys)


@pytest.mark.fault(45)
def test_pages_reordered_and_overlapping_give_each_key_once():
    pages = [[f"run/s/{n}" for n in reversed(range(start, start + 1000))] for start in (2000, 500, 0, 1500)]

    def script(request: Request) -> Reply:
        number = int(parse_qs(urlsplit(request.path).query).get("continuation-token", ["0"])[0])
        items = "".join(f'<Contents><Key>{k}</Key><Size>1</Size><ETag>"e"</ETag></Contents>' for k in pages[number])
        more = number + 1 < len(pages)
        token = f"<NextContinuationToken>{number + 1}</NextContinuationToken>" if more else ""
        body = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{items}</ListBucketResult>"
        return Reply(200, body.encode())

    with ScriptedServer(script) as server:
        found = [stat.key for stat in s3_at(server.url).list("s/")]
    assert len(found) == len(set(found)) == 3000
    assert set(found) == {f"s/{n}" for n in range(3000)}


@pytest.mark.fault(45)
def test_a_listing_that_goes_in_circles_ends():
    body = b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>same</NextContinuationToken>"
    with (
        ScriptedServer(lambda request: Reply(200, body + b"</ListBucketResult>")) as server,
        pytest.raises(Unavailable, match="listing"),
    ):
        s3_at(server.url).list("s/")


@pytest.mark.fault(50)
def test_a_store_that_ignores_conditions_is_found_and_named(s3_env):
    with Proxy(s3_env.url) as proxy:
        proxy.on("PUT", "", strip_header("If-None-Match"), times=float("inf"))
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        assert store.put_if_absent("run.json", b"the run")
        with pytest.raises(ConditionsIgnored, match=rf"s3://{s3_env.bucket}/run.*If-None-Match"):
            require_conditions(store, "run.json", b"the run")
        assert store.read("run.json", limit_bytes=100) == b"the run"
    assert s3_env.keys() == ["run/run.json"]


@pytest.mark.fault(50)
def test_a_store_that_refuses_the_condition_is_named():
    body = error_body("NotImplemented", Message="A header you provided implies functionality that is not implemented")
    with (
        ScriptedServer(lambda request: (request.body(), Reply(501, body))[1]) as server,
        pytest.raises(ConditionsIgnored, match=r"run\.json.*not implemented"),
    ):
        s3_at(server.url).create("run.json", b"")


@pytest.mark.fault(58)
@pytest.mark.parametrize("verb", VERBS)
def test_without_credentials_the_chain_is_named_and_nothing_is_asked_anonymously(verb):
    with ScriptedServer(lambda request: Reply(200)) as server:
        nothing = {
            "AWS_ENDPOINT_URL_S3": server.url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        }
        store = open_store("s3://bucket/run", environment=nothing)
        with pytest.raises(NoCredentials, match=r"s3://bucket/run/.*AWS_ACCESS_KEY_ID.*~/\.aws.*instance's role"):
            use(store, verb)
        assert server.requests == []


@pytest.mark.fault(58)
def test_without_credentials_in_a_bare_process(tmp_path):
    code = (
        "from spotckpt.store.open import open_store\n"
        "from spotckpt.errors import NoCredentials\n"
        "try:\n    open_store('s3://bucket/run').exists('run.json')\n"
        "except NoCredentials as error:\n    print(error)\n"
    )
    with ScriptedServer(lambda request: Reply(200)) as server:
        bare = {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL_S3": server.url}
        done = subprocess.run(
            [sys.executable, "-c", code], env=bare, capture_output=True, text=True, timeout=240, check=False
        )
        assert server.requests == []
    assert "instance's role" in done.stdout, done.stderr


@pytest.mark.fault(58)
def test_a_profile_that_is_not_there_is_named(tmp_path):
    environment = {"AWS_PROFILE": "research", "AWS_CONFIG_FILE": str(tmp_path / "none")}
    with pytest.raises(NoCredentials, match="research"):
        open_store("s3://bucket/run", environment=environment).exists("run.json")


@pytest.mark.fault(27)
@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://no-such-host.invalid:80"], ids=["refused", "no DNS"])
def test_an_endpoint_that_is_not_there_is_unavailable(url):
    with pytest.raises(Unavailable, match=r"run\.json"):
        s3_at(url).create("run.json", b"")


@pytest.mark.fault(31)
@pytest.mark.fault(32)
def test_a_storm_of_errors_is_weathered(s3_env):
    with Proxy(s3_env.url) as proxy:
        for action in (answer(503, error_body("SlowDown")), answer(500, error_body("InternalError")), reset()):
            proxy.on("*", "", action)
        proxy.on("*", "", cut_reply(20))
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        store.put("heartbeat.json", [b"beat"])
        assert store.read("heartbeat.json", limit_bytes=10) == b"beat"


@pytest.mark.fault(32)
@pytest.mark.parametrize(
    ("verb", "status", "body", "kind"),
    [
        ("create", 502, b"<html>Bad Gateway", OutcomeUnknown),
        ("create", 504, b"", OutcomeUnknown),
        ("list", 502, b"<html>Bad Gateway", Unavailable),
        ("list", 200, b"<html>Welcome", Unavailable),
    ],
)
def test_a_gateways_own_page_is_no_answer_of_the_store(verb, status, body, kind):
    with (
        ScriptedServer(lambda request: (request.body(), Reply(status, body))[1]) as server,
        pytest.raises(kind, match="s3://bucket/run/snapshots/"),
    ):
        use(s3_at(server.url), verb)


@pytest.mark.fault(37)
def test_a_conflict_of_simultaneous_writes_is_tried_again(s3_env):
    with Proxy(s3_env.url) as proxy:
        proxy.on("PUT", "claim", answer(409, error_body("ConditionalRequestConflict")))
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        assert store.put_if_absent("claim.json", b"mine") is True


@pytest.mark.fault(39)
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, error_body("AuthorizationHeaderMalformed", Region="eu-west-1")),
        (301, error_body("PermanentRedirect", Region="eu-west-1")),
    ],
)
def test_the_wrong_region_is_named(status, body):
    def script(request: Request) -> Reply:
        request.body()
        return Reply(status, body, {"x-amz-bucket-region": "eu-west-1"})

    with (
        ScriptedServer(script) as server,
        pytest.raises(StoreError, match=r"run\.json.*eu-west-1.*AWS_DEFAULT_REGION=eu-west-1"),
    ):
        s3_at(server.url).create("run.json", b"")


KMS_KEY = "arn:aws:kms:us-east-1:111122223333:key/0d59937288b7"


def refusing(code: str, message: str, status: int = 400, **headers: str) -> ScriptedServer:
    def script(request: Request) -> Reply:
        request.body()
        return Reply(status, error_body(code, Message=message), headers)

    return ScriptedServer(script)


@pytest.mark.fault(42)
@pytest.mark.parametrize(
    ("status", "code", "message", "kind", "remedy"),
    [
        (400, "KMS.DisabledException", f"{KMS_KEY} is disabled.", StoreError, "enable the bucket's KMS key"),
        (400, "KMS.KMSInvalidStateException", f"{KMS_KEY} is pending deletion.", StoreError, "encrypt the bucket with"),
        (
            403,
            "AccessDenied",
            f"User: role/trainer is not authorized to perform: kms:GenerateDataKey on resource: {KMS_KEY}",
            Denied,
            "allow kms:GenerateDataKey and kms:Decrypt",
        ),
    ],
)
def test_a_key_that_cannot_encrypt_is_named(status, code, message, kind, remedy):
    with refusing(code, message, status) as server:
        with pytest.raises(StoreError, match=rf"run/snapshots/one\.json.*{KMS_KEY}.*{remedy}") as caught:
            Retrying(s3_at(server.url)).put("snapshots/one.json", [b"data"])
        assert type(caught.value) is kind
        assert len(server.requests) == 1, "another try would not help"


@pytest.mark.fault(42)
def test_a_throttled_key_is_asked_again_and_named():
    message = "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls."
    headers = {"x-amz-server-side-encryption-aws-kms-key-id": KMS_KEY}
    clock = FakeClock()
    with refusing("ThrottlingException", message, **headers) as server:
        store = Retrying(s3_at(server.url, clock=clock))
        with pytest.raises(Unavailable, match=rf"run/snapshots/one\.json.*{KMS_KEY} is asked too often"):
            store.put("snapshots/one.json", [b"data"], deadline=Deadline.after(60.0, clock))
        assert len(server.requests) > 1


@pytest.mark.fault(54)
@pytest.mark.parametrize(("offset_s", "told"), [(36000, "3(59|60).. s behind"), (-36000, "3(59|60).. s ahead of")])
@pytest.mark.parametrize("in_body", [True, False])
def test_a_clock_that_is_off_is_told_with_the_offset(offset_s, told, in_body):
    def script(request: Request) -> Reply:
        request.body()
        theirs = time.time() + offset_s
        said = {"ServerTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(theirs))} if in_body else {}
        body = error_body("RequestTimeTooSkewed", Message="The difference between the request time and ...", **said)
        return Reply(403, body, {} if in_body else {"Date": formatdate(theirs, usegmt=True)})

    with (
        ScriptedServer(script) as server,
        pytest.raises(StoreError, match=rf"run/run\.json.*clock is ({told}) the store's.*set this machine's clock"),
    ):
        s3_at(server.url).create("run.json", b"")


@pytest.mark.fault(41)
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "delete"])
def test_a_bucket_that_is_not_there_is_not_an_empty_one(verb, s3_env):
    with pytest.raises(BucketMissing, match=r"s3://no-such-bucket/run/snapshots/.*create the bucket"):
        use(open_store("s3://no-such-bucket/run", environment=s3_env.environment), verb)


@pytest.mark.fault(43)
def test_a_body_that_comes_short_is_no_answer(s3_env):
    data = os.urandom(100_000)
    open_store(s3_env.uri).put("pack", [data])
    with Proxy(s3_env.url) as proxy:
        plain = S3Store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        proxy.on("GET", "pack", cut_reply(50_000), times=5)
        with pytest.raises(Unavailable, match="run/pack"):
            plain.read("pack", limit_bytes=100_000)
        assert read_ranges(plain, "pack", [(0, 60_000), (1, 99_999)]) == [data[:60_000], data[1:]]


@pytest.mark.fault(44)
def test_an_object_replaced_between_two_ranges_is_not_mixed(s3_env):
    old, new = b"o" * 100, b"n" * 100
    ranges = [(number, 1) for number in range(40)]
    plain = S3Store(s3_env.uri, environment=s3_env.environment)

    def replace(_: int) -> None:
        if next(turn) == 0:
            s3_env.client.put_object(Bucket=s3_env.bucket, Key="run/pack", Body=new)

    for store in (plain, open_store(s3_env.uri)):
        plain.put("pack", [old])
        turn = count()
        with pytest.raises(Replaced, match="replaced"):
            read_ranges(store, "pack", ranges, progress=replace)


def test_only_the_parts_that_were_lost_go_up_again(s3_env):
    data = os.urandom(40 * MIB)
    told: list[int] = []
    with Proxy(s3_env.url) as proxy:
        proxy.on("PUT", "partNumber=2", reset())
        proxy.on("PUT", "partNumber=1", cut_request(1000))
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        store.put("pack", [data], progress=told.append)
        assert len(proxy.wait_for("PUT", "partNumber")) == 5
    assert sum(told) == len(data)
    assert s3_env.client.get_object(Bucket=s3_env.bucket, Key="run/pack")["Body"].read() == data


@pytest.mark.fault(34)
def test_a_complete_that_answers_200_with_an_error_is_an_error(s3_env):
    with Proxy(s3_env.url) as proxy:
        proxy.on("POST", "uploadId", answer(200, error_body("InternalError", Message="We encountered an error")))
        store = S3Store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        with pytest.raises(OutcomeUnknown, match=r"run/pack.*InternalError"):
            store.put("pack", [bytes(17 * MIB)])
    assert s3_env.keys() == []
    assert s3_env.uploads() == []


@pytest.mark.fault(36)
def test_a_lost_reply_to_complete_is_looked_up(s3_env):
    with Proxy(s3_env.url) as proxy:
        proxy.on("POST", "uploadId", drop_reply())
        store = S3Store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        assert store.put("pack", [bytes(17 * MIB)]).size_bytes == 17 * MIB
        assert len(proxy.wait_for("POST", "uploads")) == 1


class GivenUp(BaseException):
    pass


@pytest.mark.parametrize("server", ["s3_env", "seaweed_env"])
def test_an_aborted_put_leaves_no_upload(server, request):
    env: S3Env = request.getfixturevalue(server)
    store = open_store(env.uri, environment=env.environment)

    def give_up(_: int) -> None:
        assert env.uploads() == ["run/pack"]
        raise GivenUp

    with pytest.raises(GivenUp):
        store.put("pack", [bytes(40 * MIB)], progress=give_up)
    assert env.uploads() == []
    assert env.keys() == []


def test_the_upload_of_a_process_that_was_killed_ends_with_the_next_one_of_the_same_key(s3_env):
    bucket, prefix = s3_env.bucket, s3_env.uri.partition(s3_env.bucket + "/")[2]
    for key in ("pack", "pack-of-another"):
        s3_env.client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/{key}")
    open_store(s3_env.uri, environment=s3_env.environment).put("pack", [bytes(17 * MIB)])
    assert s3_env.uploads() == [f"{prefix}/pack-of-another"]


def test_an_abort_that_is_refused_once_is_tried_again(s3_env):
    def give_up(_: int) -> None:
        raise GivenUp

    with Proxy(s3_env.url) as proxy:
        proxy.on("DELETE", "uploadId", answer(503, error_body("SlowDown")), times=2)
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        with pytest.raises(GivenUp):
            store.put("pack", [bytes(24 * MIB)], progress=give_up)
        assert len(proxy.wait_for("DELETE", "uploadId", count=3)) == 3
    assert s3_env.uploads() == []


def test_a_put_that_overruns_its_deadline_ends_and_is_aborted(s3_env):
    with Proxy(s3_env.url, bytes_per_s=MIB / 2) as proxy:
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        assert not store.exists("pack")
        deadline = Deadline.after(1.5)
        with pytest.raises((Unavailable, OutcomeUnknown), match="run/pack"):
            store.put("pack", [bytes(24 * MIB)], deadline=deadline)
        assert deadline.now() < deadline.at + 30, "all of it would take 48 s"
    wait_until(lambda: s3_env.uploads() == [], what="the abort")
    assert s3_env.keys() == []


def test_a_stalled_request_does_not_use_up_the_deadline_of_others(s3_env):
    with Proxy(s3_env.url) as proxy:
        proxy.on("GET", "slow", stall(), times=float("inf"))
        store = open_store(s3_env.uri, environment=s3_env.behind(proxy.url).environment)
        store.put("quick", [b"q"])
        stalled = threading.Thread(target=_ignore, args=(store, "slow"))
        stalled.start()
        proxy.wait_for("GET", "slow")
        assert store.read("quick", limit_bytes=1) == b"q"
        stalled.join(timeout=60)
        assert not stalled.is_alive()


def _ignore(store: Store, key: str) -> None:
    with pytest.raises(Unavailable):
        store.read(key, limit_bytes=1, deadline=Deadline.after(2.0))


@pytest.mark.fault(33)
@pytest.mark.parametrize("size_bytes", [1000, 17 * MIB], ids=["one request", "parts"])
def test_bytes_damaged_on_the_way_are_refused_and_sent_again(size_bytes, seaweed_env):
    data = os.urandom(size_bytes)
    with Proxy(seaweed_env.url) as proxy:
        proxy.on("PUT", "pack", flip_byte())
        store = open_store(seaweed_env.uri, environment=seaweed_env.behind(proxy.url).environment)
        store.put("pack", [data])
        assert read_ranges(store, "pack", [(0, size_bytes)]) == [data]


@pytest.mark.fault(33)
def test_bytes_always_damaged_never_become_an_object(seaweed_env):
    with Proxy(seaweed_env.url) as proxy:
        proxy.on("PUT", "manifest", flip_byte(), times=float("inf"))
        clock = FakeClock()
        store = open_store(seaweed_env.uri, environment=seaweed_env.behind(proxy.url).environment, clock=clock)
        with pytest.raises((Unavailable, OutcomeUnknown), match=r"run/manifest\.json"):
            store.put_if_absent("manifest.json", b"data", deadline=Deadline.after(60.0, clock))
    assert seaweed_env.keys() == []


def test_what_was_acknowledged_survives_the_servers_death(seaweed: Seaweed, seaweed_env):
    store = open_store(seaweed_env.uri, environment=seaweed_env.environment, call_timeout_s=150)
    acknowledged: list[str] = []

    def write() -> None:
        for number in range(60):
            key = f"manifests/{number:03d}.json"
            store.put_if_absent(key, key.encode())
            acknowledged.append(key)

    writer = threading.Thread(target=write)
    writer.start()
    wait_until(lambda: len(acknowledged) >= 15, what="15 objects")
    seaweed.kill()
    before = list(acknowledged)
    seaweed.start()
    assert {f"run/{key}" for key in before} <= set(seaweed_env.keys())
    writer.join(timeout=200)
    assert len(acknowledged) == 60
    for key in acknowledged:
        assert store.read(key, limit_bytes=100) == key.encode()


def test_the_environment_given_is_used_and_not_the_processs_own(s3_env, monkeypatch, tmp_path):
    with ScriptedServer(lambda request: Reset()) as wrong:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", wrong.url)
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        config = tmp_path / "config"
        config.write_text(
            "[profile research]\naws_access_key_id = PROFILEKEY\naws_secret_access_key = s\nregion = eu-west-3\n"
            f"services = here\n[services here]\ns3 =\n  endpoint_url = {s3_env.url}\n"
        )
        with Proxy(s3_env.url) as proxy:
            config.write_text(config.read_text().replace(s3_env.url, proxy.url))
            environment = {"AWS_PROFILE": "research", "AWS_CONFIG_FILE": str(config)}
            assert open_store(s3_env.uri, environment=environment).list("") == []
            authorization = proxy.seen[0].headers["authorization"]
        assert "PROFILEKEY" in authorization
        assert "eu-west-3" in authorization
        assert wrong.requests == []


def test_a_missing_object_is_missing_also_through_a_proxy(s3_env):
    with pytest.raises(NotFound, match=r"NoSuchKey"):
        open_store(s3_env.uri).read("none", limit_bytes=1)


LIVES = """
import os, sys
from spotckpt.store import open, s3
for body in sys.argv[2:]:
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0, body
        continue
    store = open.open_store(sys.argv[1])
    store.put("a", [b"parent"])
    exec(body)
    break
"""


def run_lives(uri: str, *bodies: str) -> subprocess.CompletedProcess[str]:
    """Processes that use a store and end, one after the other, with every warning an error."""
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", LIVES, uri, *bodies]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.fault(9)
def test_a_process_ends_without_a_hang_or_a_warning(s3_env):
    bodies = ["pass", "store.close(); store.read('a', limit_bytes=9)", "del store; import gc; gc.collect()"]
    done = run_lives(s3_env.uri, *bodies)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.fault(10)
def test_a_store_works_in_a_forked_child_and_in_its_parent(seaweed_env):
    """SeaweedFS keeps connections open; moto ends each, so that there would be none to share."""
    body = """
store.put("c", [b"common"])
child = os.fork()
for _ in range(50):
    # both at once: on a connection that they share, each would read the other's answers
    key, data = ("a", b"parent") if child else ("c", b"common")
    assert store.read(key, limit_bytes=9) == data
if child == 0:
    store.put("b", [b"child"])
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert store.read("b", limit_bytes=9) == b"child"
"""
    done = run_lives(seaweed_env.uri, body)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

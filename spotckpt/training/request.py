"""What a training asks for: its address and settings, put together from code, environment and command line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypedDict, cast

from spotckpt.address import Address, Metric, fill_template
from spotckpt.config import Best, Every, Keep, Settings, parse_seconds, parse_speed
from spotckpt.errors import AddressError, SettingError, UsageError, WorldSizeError
from spotckpt.notices.ec2 import choose_endpoint
from spotckpt.training.iterators import Resume


class Options(TypedDict, total=False):
    """The keywords of `resumable` and `open_run`; durations are seconds, a timedelta, or text as in "10min".

    Attributes:
        every: how often a snapshot is taken: a duration, or "500 steps".
        upload_every: at most how often a periodic one is uploaded: a duration; by default each is.
        upload_limit: the most that is uploaded in a second: bytes, or text as in "20MB/s"; by default as much as goes.
        overlap: whether weights and optimizer states are copied while the next forward and backward run, which must not
            change them; None: on CUDA, and where the CPU has a core to spare.
        keep_best: a metric; whenever it improves, the weights just evaluated are kept: "valid/top1:max".
        keep: what is kept in the store, as in "last=5, every=1000 steps, every=6h, best=valid/top1:max:3", and what
            `keep_best` took; other snapshots are deleted after later ones are committed. By default none is.
        stale_after: an attempt that shows no sign of life for this long is taken for dead.
        reserve: what of a notice's time is kept for a line that slows down, the release, and clocks that disagree.
        sigterm_grace: how long after SIGTERM the process may still work.
        call_timeout: the deadline of one request to the store.
        metadata_endpoint: where a private agent asks for notices instead of EC2's own address.
        takeover: True does not wait for an attempt that holds the run: it stops, with status 76, and what it has not
            committed by then is lost. For once, by hand: SPOTCKPT_TAKEOVER=1 does the same.
        init_from: the address of another run whose weights an empty run starts from.
        resume: how the data position is found again: "replay" reads the epoch's batches up to it, "skip" skips them at
            the sampler.
    """

    every: float | str | timedelta
    upload_every: float | str | timedelta
    upload_limit: float | str | None
    overlap: bool | None
    keep_best: str | None
    keep: str | None
    stale_after: float | str | timedelta
    reserve: float | str | timedelta
    sigterm_grace: float | str | timedelta
    call_timeout: float | str | timedelta
    metadata_endpoint: str
    takeover: bool
    init_from: str | None
    resume: Resume


@dataclass(frozen=True)
class Request:
    """One training, as asked for. `address` is None when spotckpt is disabled."""

    address: Address | None
    settings: Settings = field(default_factory=Settings)
    init_from: Address | None = None
    resume: Resume = "replay"
    arguments: Mapping[str, Any] = field(default_factory=dict)


def make_request(uri: str | None, arguments: Mapping[str, Any], options: Options) -> Request:
    """Checks everything that can be checked without a network.

    Args:
        uri: the address, or a template such as `s3://bucket/{trial}` that `arguments` fill.
        arguments: of the train function, by name.
        options: the keywords of the decorator.

    Raises:
        WorldSizeError: WORLD_SIZE is more than one.
        AddressError: there is no address, or it cannot be read.
        SettingError: an option is out of range.
    """
    check_world_size(os.environ)
    settings = make_settings(options)
    resume = options.get("resume", "replay")
    if resume not in ("replay", "skip"):
        raise SettingError(f"resume={resume!r} is not known", hint='it is "replay" or "skip"')
    if disabled(os.environ):
        return Request(None, settings, None, resume, arguments)
    if not uri:
        raise AddressError(
            "this training has no address", hint="give a URI to the decorator, to train.at(uri) or to SPOTCKPT_URI"
        )
    init_from = address_text(options.get("init_from"), given_to="init_from")
    return Request(
        Address.parse(fill_template(uri, arguments)),
        settings,
        Address.parse(init_from) if init_from else None,
        resume,
        arguments,
    )


def check_options(function: str, options: Mapping[str, object]) -> None:
    """Refuses keywords that nobody would read.

    Raises:
        SettingError: `function` has no such option.
    """
    known = sorted(Options.__annotations__)
    for name in options:
        if name not in known:
            similar = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {similar[0]}?" if similar else f"its options are {', '.join(known)}"
            raise SettingError(f"{function} has no option {name!r}", hint=hint)


def address_text(uri: object, *, given_to: str) -> str | None:
    """An address as it was given, a path too, as text; None stays None.

    Raises:
        UsageError: it is something else.
    """
    if uri is None or isinstance(uri, str):
        return uri
    if isinstance(uri, os.PathLike):
        return os.fsdecode(cast("os.PathLike[str]", uri))
    raise UsageError(
        f"{given_to} was given {uri!r:.60}, which is no address", hint="write it as in 's3://bucket/path' or a path"
    )


def make_settings(options: Options) -> Settings:
    """The options as checked settings."""
    endpoint = options.get("metadata_endpoint", "")
    if not isinstance(endpoint, str):
        raise SettingError(f"metadata_endpoint={endpoint!r} is not a URL", hint="leave it out for EC2's own")
    choose_endpoint(endpoint)  # else a private agent would fail by it, again and again
    limit = options.get("upload_limit")
    best = _metric(options.get("keep_best"))
    return Settings(
        every=Every.parse(options.get("every", 600.0)),
        upload_every_s=parse_seconds(options.get("upload_every", 0.0), name="upload_every"),
        upload_limit=0.0 if limit is None else parse_speed(limit, name="upload_limit"),
        overlap=options.get("overlap"),
        keep_best=best,
        keep=_keep(options.get("keep"), best),
        stale_after_s=parse_seconds(options.get("stale_after", 60.0), name="stale_after"),
        reserve_s=parse_seconds(options.get("reserve", Settings.reserve_s), name="reserve"),
        sigterm_grace_s=_sigterm_grace_s(options),
        call_timeout_s=parse_seconds(options.get("call_timeout", 60.0), name="call_timeout"),
        metadata_endpoint=endpoint,
        takeover=_takeover(options.get("takeover", False)) or _is_set(os.environ, "SPOTCKPT_TAKEOVER"),
    )


def _takeover(given: object) -> bool:
    if not isinstance(given, bool):  # "no" is true
        raise SettingError(f"takeover={given!r:.60} is not known", hint="it is True or False")
    return given


def _sigterm_grace_s(options: Options) -> float:
    """Who stops the process knows best how long it lets it work: the environment counts for more than the code."""
    known = os.environ.get("SPOTCKPT_SIGTERM_GRACE", "").strip()
    if known:
        return parse_seconds(known, name="SPOTCKPT_SIGTERM_GRACE")
    return parse_seconds(options.get("sigterm_grace", 10.0), name="sigterm_grace")


def _keep(given: object, best: Metric | None) -> Keep | None:
    if given is None:
        return None
    if not isinstance(given, str):
        raise SettingError(f"keep={given!r} is no text", hint='as in keep="last=5, best=valid/top1:max"')
    keep = Keep.parse(given)
    if best is None or best in (rule.metric for rule in keep.best):
        return keep
    return replace(keep, best=(*keep.best, Best(best)))  # what was snapshotted for its sake is not to be pruned


def _metric(keep_best: object) -> Metric | None:
    if keep_best is None or keep_best == "":
        return None
    try:
        return Metric.parse(keep_best if isinstance(keep_best, str) else "")
    except AddressError as error:
        raise SettingError(
            f"keep_best={keep_best!r} is not SET/NAME:min or SET/NAME:max", hint='as in keep_best="valid/top1:max"'
        ) from error


def check_world_size(environ: Mapping[str, str]) -> None:
    """One process only, for now.

    Raises:
        WorldSizeError: torchrun or another launcher started more than one.
    """
    size = environ.get("WORLD_SIZE", "1").strip() or "1"
    if size != "1":
        raise WorldSizeError(
            f"WORLD_SIZE={size}: this version saves trainings of one process only",
            hint="start one process, or set SPOTCKPT_DISABLED=1 to train without snapshots",
        )


def disabled(environ: Mapping[str, str]) -> bool:
    """Whether SPOTCKPT_DISABLED asks for plain loops."""
    return _is_set(environ, "SPOTCKPT_DISABLED")


def _is_set(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").strip().lower() not in ("", "0", "false", "no")

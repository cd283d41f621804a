"""Where a run lives and which of its snapshots is meant: `s3://bucket/path@step=1200`."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spotckpt.errors import AddressError

Mode = Literal["min", "max"]
Kind = Literal["newest", "step", "step_at_most", "best", "start", "id"]

_URI = re.compile(r"(?P<protocol>[a-z][a-z0-9+.-]*)://(?P<path>[^\x00]*)")
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}/|arn:")
_SNAPSHOT = re.compile(r"a[0-9]{4,}-n[0-9]{6,}-s[0-9]{8,}-[0-9a-f]{8}")
_SELECTOR_START = re.compile(r"@(?=step=|step<=|best=|start$|newest$|a[0-9]+-n)")
_SELECTOR_HINT = "use @newest, @step=N, @step<=N, @best=SET/METRIC:max, @start or @SNAPSHOT-ID"


@dataclass(frozen=True)
class Metric:
    """A metric to compare by: `valid/top1:max`."""

    set: str
    name: str
    mode: Mode

    @classmethod
    def parse(cls, text: str) -> Metric:
        """Reads `SET/NAME:min` or `SET/NAME:max`."""
        match = re.fullmatch(r"([^/:]+)/([^:]+):(min|max)", text)
        if match is None:
            raise AddressError(f"metric {text!r} is not SET/NAME:min or SET/NAME:max", hint="as in valid/top1:max")
        return cls(match[1], match[2], "min" if match[3] == "min" else "max")

    @property
    def path(self) -> str:
        """The metric's name in manifests: `valid/top1`."""
        return f"{self.set}/{self.name}"

    def __str__(self) -> str:
        return f"{self.path}:{self.mode}"


@dataclass(frozen=True)
class Selector:
    """Which snapshot of a run. `step` is set for the two step kinds, `metric` for best, `snapshot` for id."""

    kind: Kind = "newest"
    step: int = 0
    metric: Metric | None = None
    snapshot: str = ""

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Reads a selector without its `@`; the empty text is the newest."""
        if text in ("", "newest"):
            return NEWEST
        if text == "start":
            return cls("start")
        if match := re.fullmatch(r"step(<?)=([0-9]{1,18})", text):
            return cls("step_at_most" if match[1] else "step", step=int(match[2]))
        if text.startswith("best="):
            return cls("best", metric=Metric.parse(text.removeprefix("best=")))
        if _SNAPSHOT.fullmatch(text):
            return cls("id", snapshot=text)
        raise AddressError(f"selector @{text} is not known", hint=_SELECTOR_HINT)

    def __str__(self) -> str:
        match self.kind:
            case "step":
                return f"step={self.step}"
            case "step_at_most":
                return f"step<={self.step}"
            case "best":
                return f"best={self.metric}"
            case "id":
                return self.snapshot
            case _:
                return self.kind


NEWEST = Selector()


@dataclass(frozen=True)
class Address:
    """A run's URI, without a trailing slash, and a selector."""

    uri: str
    selector: Selector = NEWEST

    @classmethod
    def parse(cls, text: str) -> Address:
        """Reads `protocol://path[@selector]`; a plain path means `file://`.

        A local path becomes absolute: it is shown so, and the agent has another working directory.

        Raises:
            AddressError: the text has no path, an empty or `..` component, or an unknown selector.
        """
        uri, selector = _split(text)
        if "://" not in uri:
            uri = f"file://{_plain_path(uri)}"
        match = _URI.fullmatch(_absolute(uri))
        path = match["path"].rstrip("/") if match else ""
        if match is None:
            raise AddressError(f"run address {text!r} is no URI", hint="write it as s3://bucket/path, in lower case")
        if not path:
            raise AddressError(f"run address {text!r} has no path", hint="write it as s3://bucket/path")
        if "@" in path.rpartition("/")[2] or path != path.strip():
            raise AddressError(f"run address {text!r} ends in a stray '@' or a blank", hint=_SELECTOR_HINT)
        if any(part in ("", "..", ".") for part in path.removeprefix("/").split("/")):
            raise AddressError(f"run address {text!r} has an empty, '.' or '..' part", hint="write the plain path")
        if match["protocol"] in ("s3", "s3a") and "/" not in path:
            raise AddressError(
                f"run address {text!r} names a bucket only", hint=f"add a path: {uri.rstrip('/')}/my-run"
            )
        if match["protocol"] in ("s3", "s3a") and not _BUCKET.match(path):
            raise AddressError(
                f"run address {text!r} names no possible bucket", hint="letters, digits, '.', '-' and '_'"
            )
        return cls(f"{match['protocol']}://{path}", selector)

    def __str__(self) -> str:
        return self.uri if self.selector == NEWEST else f"{self.uri}@{self.selector}"


def _plain_path(text: str) -> str:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", text)
    if scheme:
        raise AddressError(f"run address {text!r} has one slash after {scheme[1]}:", hint=f"write {scheme[1]}://")
    return str(Path(text)) if text else ""  # without the `./` and the double slashes that a shell's users write


def _absolute(uri: str) -> str:
    path = uri.removeprefix("file://")
    if path == uri or not path or path.startswith("/"):
        return uri
    try:
        return f"file://{Path(path).absolute()}"
    except OSError as error:
        raise AddressError(
            f"run address {path!r} is relative to a directory that is gone", hint="write the whole path"
        ) from error


def _split(text: str) -> tuple[str, Selector]:
    found = _SELECTOR_START.search(text)
    if found:
        return text[: found.start()], Selector.parse(text[found.end() :])
    last = text.rpartition("/")[2]
    if "@" in last:
        raise AddressError(f"selector @{last.partition('@')[2]} is not known", hint=_SELECTOR_HINT)
    return text, NEWEST


def fill_template(template: str, values: Mapping[str, object]) -> str:
    """Replaces `{name}` by the argument of that name.

    Raises:
        AddressError: a name that is not an argument, or a value with a slash or nothing in it.
    """
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise AddressError(f"run address {template!r} is no template: {error}", hint="write {{ for a brace") from error
    for name in names:
        if name not in values:
            raise AddressError(
                f"run address {template!r} wants {{{name}}}, which is not an argument",
                hint=f"the arguments are {', '.join(sorted(values)) or 'none'}",
            )
        if not str(values[name]) or "/" in str(values[name]):
            raise AddressError(
                f"run address {template!r}: {name}={values[name]!r} cannot stand in a path",
                hint="use a plain word or number",
            )
    return template.format_map({name: str(values[name]) for name in names})

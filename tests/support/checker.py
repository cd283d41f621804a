"""An independent judge of what lies in a run's directory.

It shares no code with spotckpt: it reads files, or with plain fsspec, json, blake3 and safetensors, and derives by
itself which snapshot a restart must choose. It asserts

- I1: the newest restorable snapshot is at least the last acknowledged one,
- I2: every digest matches, every pack that is named exists, and no snapshot mixes bytes of two steps,
- I3: a snapshot whose commit has an unknown outcome is wholly there or not at all.

and of packs that several snapshots use: a snapshot names its own and its parent's only, each of which is at least half
its own tensors'.

and of the metric history: a snapshot names only its own segments and its parent's, in the parent's order, and of a
synthetic one the history holds what each of its steps logged, once.

For I2 the snapshots are marked: every number in every tensor of the snapshot of step s, and the value "step" of its
state tree, is s, but for the tensors whose numbers "marks" in the tree tells.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from blake3 import blake3
from safetensors.numpy import load as load_safetensors

ENVELOPE = re.compile(rb'\{"blake3":"([0-9a-f]{64})","body":(.*)\}', re.DOTALL)
SNAPSHOT_ID = re.compile(r"a(\d{4,})-n(\d{6,})-s(\d{8,})-([0-9a-f]{8})")
TOMBSTONE_KEY = re.compile(rf"pruned/({SNAPSHOT_ID.pattern})\.json")
SNAPSHOT_KEY = re.compile(rf"snapshots/({SNAPSHOT_ID.pattern})\.json")
ATTEMPT_KEY = re.compile(r"attempts/(\d{4,})(\.base|\.heartbeat)?\.json")


class Violation(AssertionError):
    """The store breaks the promise."""


class Broken(Exception):
    """An object is missing or is not what its digest says."""


@dataclass(frozen=True, order=True)
class Id:
    """A snapshot id, ordered by attempt and sequence."""

    attempt: int
    sequence: int
    step: int
    text: str

    @classmethod
    def parse(cls, text: str) -> Id:
        match = SNAPSHOT_ID.fullmatch(text)
        if match is None:
            raise Violation(f"{text!r} is no snapshot id")
        return cls(int(match[1]), int(match[2]), int(match[3]), text)

    def __str__(self) -> str:
        return self.text


@dataclass
class Bucket:
    """One run as it lies in the store; read once."""

    uri: str
    claims: dict[int, dict[str, Any]] = field(default_factory=dict)
    bases: dict[int, dict[str, Any]] = field(default_factory=dict)
    snapshots: list[Id] = field(default_factory=list)
    pruned: set[Id] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.fs, self.root = fsspec.core.url_to_fs(self.uri, **_options(self.uri))
        self.is_local = "file" in self.fs.protocol
        for key in self.keys("attempts"):
            self._read_attempt(key)
        self.pruned = {Id.parse(m[1]) for key in self.keys("pruned") if (m := TOMBSTONE_KEY.fullmatch(key))}
        self.snapshots = sorted(Id.parse(m[1]) for key in self.keys("snapshots") if (m := SNAPSHOT_KEY.fullmatch(key)))

    def keys(self, folder: str) -> list[str]:
        """Every key below the folder that is not hidden (a local store's temporary files begin with a dot)."""
        if self.is_local:
            found = os.walk(f"{self.root}/{folder}")
            paths = [f"{directory}/{name}" for directory, _, names in found for name in names]
        else:
            paths = self._find(folder)
        keys = [path[len(self.root.rstrip("/")) + 1 :] for path in paths]
        return [key for key in keys if not any(part.startswith(".") for part in key.split("/"))]

    def _find(self, folder: str) -> list[str]:
        try:
            return self.fs.find(f"{self.root}/{folder}")
        except FileNotFoundError:
            return []

    def bytes_of(self, key: str) -> bytes:
        if shared := re.fullmatch(r"forks/([0-9a-f]{16})/(packs/.*)", key):
            paths = {one["run_id"]: one["path"] for one in self.record("run.json")["forked_from"]}
            key = f"{paths[shared[1]]}/{shared[2]}"
        path = os.path.normpath(f"{self.root}/{key}")
        try:
            return Path(path).read_bytes() if self.is_local else self.fs.cat_file(path)
        except FileNotFoundError as error:
            raise Broken(f"{key} is missing") from error

    def record(self, key: str) -> dict[str, Any]:
        """The body of a self-verifying JSON object."""
        match = ENVELOPE.fullmatch(self.bytes_of(key))
        if match is None:
            raise Broken(f"{key} is not a record")
        if blake3(match[2]).hexdigest() != match[1].decode():
            raise Broken(f"{key} does not match its digest")
        return json.loads(match[2])

    def _read_attempt(self, key: str) -> None:
        match = ATTEMPT_KEY.fullmatch(key)
        if match is None:
            raise Violation(f"{key} is no attempt's key")
        if match[2] is None:
            self.claims[int(match[1])] = self.record(key)
        elif match[2] == ".base":
            self.bases[int(match[1])] = self.record(key)
        else:
            self.record(key)


def _options(uri: str) -> dict[str, Any]:
    """A client costs a second of CPU: one for each server, which these tell apart."""
    if not uri.startswith("s3://"):
        return {}
    names = {"key": "AWS_ACCESS_KEY_ID", "secret": "AWS_SECRET_ACCESS_KEY", "endpoint_url": "AWS_ENDPOINT_URL_S3"}
    return {"use_listings_cache": False, **{option: os.environ[name] for option, name in names.items()}}


def ancestors(bucket: Bucket, snapshot: Id) -> list[Id]:
    """What came before a snapshot, the last first: of its attempt, then what that attempt continued, and so on."""
    own = [s for s in bucket.snapshots if s.attempt == snapshot.attempt and s.sequence < snapshot.sequence]
    return sorted(own, reverse=True) + _before(bucket, snapshot.attempt)


def lineage(bucket: Bucket, attempt: int) -> list[Id]:
    """What a restart after `attempt` may choose from, first choice first."""
    if attempt == 0:
        return []
    if not _has_base(bucket, attempt):
        return _by_claims(bucket, attempt)
    own = [s for s in bucket.snapshots if s.attempt == attempt]
    return sorted(own, reverse=True) + _before(bucket, attempt)


def _before(bucket: Bucket, attempt: int) -> list[Id]:
    if attempt not in bucket.bases:
        raise Violation(f"attempt {attempt} committed a snapshot without having recorded its base")
    base = bucket.bases[attempt]["snapshot"]
    return [] if base is None else [Id.parse(base), *ancestors(bucket, Id.parse(base))]


def _has_base(bucket: Bucket, attempt: int) -> bool:
    """Whether it continues anything: one whose base was pruned meanwhile, and which committed nothing, does not."""
    if attempt not in bucket.bases or bucket.bases[attempt]["snapshot"] is None:
        return attempt in bucket.bases
    base = Id.parse(bucket.bases[attempt]["snapshot"])
    there = base in bucket.snapshots or base not in bucket.pruned
    return there or any(s.attempt == attempt for s in bucket.snapshots)


def _by_claims(bucket: Bucket, attempt: int) -> list[Id]:
    """The last attempts did not live to record a base: what their claims asked for, of what lay before them."""
    if any(s.attempt == attempt for s in bucket.snapshots):
        raise Violation(f"attempt {attempt} committed a snapshot without having recorded its base")
    recorded = max((number for number in bucket.bases if number < attempt and _has_base(bucket, number)), default=0)
    found = lineage(bucket, recorded)
    followed = bucket.bases[recorded]["consumed"] if recorded else []
    for number in range(recorded + 1, attempt + 1):
        selector = bucket.claims[number]["selector"]
        if selector in followed:
            found = lineage(bucket, recorded)
        elif selector != "newest":
            found = _selected(bucket, lineage(bucket, recorded), selector) or found
    return found


def _selected(bucket: Bucket, chain: list[Id], selector: str) -> list[Id]:
    match = re.fullmatch(r"step=(\d+)", selector)
    assert match, f"the checker does not know @{selector}"
    found = next((s for s in chain if s.step == int(match[1])), None)
    return [] if found is None else [found, *ancestors(bucket, found)]


def inspect(bucket: Bucket, snapshot: Id) -> None:
    """Reads every byte of a snapshot.

    Raises:
        Broken: an object is missing or damaged.
        Violation: all digests match, yet it holds values of another step, or refers to packs that may go.
    """
    manifest = bucket.record(f"snapshots/{snapshot}.json")
    if manifest["snapshot"] != str(snapshot) or manifest["step"] != snapshot.step:
        raise Broken(f"the manifest at {snapshot} is that of {manifest['snapshot']}")
    packs = {pack["key"]: _pack(bucket, pack) for pack in manifest["packs"]}
    parts = [_part(bucket, reference) for reference in manifest["parts"]]
    used = dict.fromkeys(packs, 0)
    for part in parts:
        _inspect_part(snapshot, part, packs, used)
    _check_history(bucket, manifest, is_synthetic="step" in parts[0]["tree"])
    _check_old_packs(bucket, manifest, used)


def _pack(bucket: Bucket, reference: dict[str, Any]) -> bytes:
    data = bucket.bytes_of(reference["key"])
    header = data[: reference["header_length"]]
    if len(data) != reference["length"] or blake3(header).hexdigest() != reference["header_digest"]:
        raise Broken(f"{reference['key']} is not the pack that its manifest names")
    return data


def _part(bucket: Bucket, reference: dict[str, Any]) -> dict[str, Any]:
    data = bucket.bytes_of(reference["key"])
    if len(data) != reference["length"] or blake3(data).hexdigest() != reference["digest"]:
        raise Broken(f"{reference['key']} is not the part that its manifest names")
    return bucket.record(reference["key"])


def _inspect_part(snapshot: Id, part: dict[str, Any], packs: dict[str, bytes], used: dict[str, int]) -> None:
    for name, _dtype, _shape, _stride, chunks in part["tensors"]:
        for pack, offset, length, _start, _sides, digest in chunks:
            key = part["packs"][pack]
            piece = packs[key][offset : offset + length]
            if len(piece) != length or blake3(piece).hexdigest() != digest:
                raise Broken(f"{name} in {key} does not match its digest")
            used[key] += length
    synthetic = "step" in part["tree"]  # every value says its step; in a real training only the run's own state does
    step = part["tree"]["step"] if synthetic else part["tree"]["run"]["step"]
    if step != snapshot.step:
        raise Violation(f"{snapshot} holds the values of step {step}")
    if synthetic:
        _check_marks(snapshot, part, packs)


def _check_marks(snapshot: Id, part: dict[str, Any], packs: dict[str, bytes]) -> None:
    arrays = [load_safetensors(packs[key]) for key in part["packs"]]
    marks = part["tree"].get("marks", {})
    for name, _dtype, _shape, _stride, ((pack, offset, length, *_),) in part["tensors"]:
        array = arrays[pack][name]
        if array.tobytes() != packs[part["packs"][pack]][offset : offset + length]:
            raise Violation(f"{snapshot}: {name} is not where its part says")
        if not np.all(array == marks.get(name, snapshot.step)):
            raise Violation(f"{snapshot} mixes steps: {name} holds {np.unique(array)}")


def _check_history(bucket: Bucket, manifest: dict[str, Any], *, is_synthetic: bool) -> None:
    rows = [row for reference in manifest["history"] for row in _rows(bucket, reference)]
    if is_synthetic and rows:
        steps = [step for name, step, _ in rows if name == "train/loss"]
        each = len(steps) // manifest["step"]
        if steps != list(range(each, each * (manifest["step"] + 1))):
            raise Violation(f"{manifest['snapshot']}: its curve has a gap, or a point twice: {steps[:3]}…{steps[-3:]}")
        if any(value != step // each for name, step, value in rows if name == "train/loss"):
            raise Violation(f"{manifest['snapshot']}: its curve has other values than were logged")
    old = [one for one in manifest["history"] if f"/{manifest['snapshot']}/" not in one["key"]]
    try:
        parent = bucket.record(f"snapshots/{manifest['parent']}.json")
    except Broken:
        return  # nobody can tell any more
    if old != parent["history"][: len(old)] or manifest["history"][: len(old)] != old:
        raise Violation(f"{manifest['snapshot']} goes on from segments that its parent does not begin with")


def _rows(bucket: Bucket, reference: dict[str, Any]) -> list[tuple[str, int, float]]:
    """(metric, step, value) of a segment, every byte checked."""
    data = bucket.bytes_of(reference["key"])
    if len(data) != reference["length"] or blake3(data).hexdigest() != reference["digest"]:
        raise Broken(f"{reference['key']} is not the segment that its manifest names")
    columns = load_safetensors(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    names = {int(ident): "/".join(name[:2]) for ident, name in json.loads(header["__metadata__"]["series"]).items()}
    found = [names[ident] for ident in columns["series"].tolist()]
    if len(found) != reference["rows"]:
        raise Violation(f"{reference['key']} has {len(found)} rows, and its manifest says {reference['rows']}")
    return list(zip(found, columns["step"].tolist(), columns["value"].tolist(), strict=True))


def _check_old_packs(bucket: Bucket, manifest: dict[str, Any], used: dict[str, int]) -> None:
    old = [pack for pack in manifest["packs"] if f"/{manifest['snapshot']}/" not in pack["key"]]
    try:
        parent = bucket.record(f"snapshots/{manifest['parent']}.json")
    except Broken:
        parent = {"packs": old}  # nobody can tell any more
    for pack in old:
        if pack not in parent["packs"]:
            raise Violation(f"{manifest['snapshot']} refers to {pack['key']}, which its parent does not name")
        if 2 * used[pack["key"]] < pack["length"] - pack["header_length"]:
            raise Violation(f"{manifest['snapshot']} keeps {pack['key']} for {used[pack['key']]} bytes of it")


def is_whole(bucket: Bucket, snapshot: Id) -> bool:
    """Whether every byte of it is there and matches."""
    try:
        inspect(bucket, snapshot)
    except Broken:
        return False
    return True


def newest_restorable(bucket: Bucket) -> Id | None:
    """What a plain restart must choose now; None is a fresh start."""
    if not bucket.claims:
        return None
    return next((s for s in lineage(bucket, max(bucket.claims)) if is_whole(bucket, s)), None)


def check(uri: str, acknowledged: Sequence[str], *, damaged: Collection[str] = ()) -> Id | None:
    """Asserts I1 to I3.

    Args:
        uri: the run.
        acknowledged: the ids for which the protocol said so to its caller, in that order, since the last rewind.
        damaged: ids that the test itself damaged: they need not be restorable.

    Returns:
        What a plain restart must choose.
    """
    bucket = Bucket(uri)
    _check_claims(bucket)
    for snapshot in bucket.snapshots:
        if str(snapshot) not in damaged:
            _check_whole(bucket, snapshot)
    newest = newest_restorable(bucket)
    _check_order(bucket, newest, [text for text in acknowledged if text not in damaged])
    return newest


def leftovers(uri: str) -> list[str]:
    """Packs, parts and segments that no snapshot names (I6)."""
    bucket = Bucket(uri)
    manifests = [bucket.record(f"snapshots/{one}.json") for one in bucket.snapshots]
    named = {
        entry["key"] for manifest in manifests for kind in ("packs", "parts", "history") for entry in manifest[kind]
    }
    return sorted(set(bucket.keys("packs")) - named)


def _check_claims(bucket: Bucket) -> None:
    if sorted(bucket.claims) != list(range(1, len(bucket.claims) + 1)):
        raise Violation(f"attempts are not numbered without a gap: {sorted(bucket.claims)}")
    for number, claim in bucket.claims.items():
        if claim["attempt"] != number:
            raise Violation(f"attempts/{number:04d}.json claims attempt {claim['attempt']}")


def _check_whole(bucket: Bucket, snapshot: Id) -> None:
    try:
        inspect(bucket, snapshot)
    except Broken as error:
        raise Violation(f"I2/I3: {snapshot} is committed and not whole: {error}") from error


def _check_order(bucket: Bucket, newest: Id | None, acknowledged: Sequence[str]) -> None:
    if not acknowledged:
        return
    last = Id.parse(acknowledged[-1])
    if newest is None:
        raise Violation(f"I1: {last} was acknowledged, and a restart would begin from scratch")
    chain = lineage(bucket, max(bucket.claims))
    if last not in chain or chain.index(newest) > chain.index(last):
        raise Violation(f"I1: {last} was acknowledged, and a restart would choose {newest} of {_show(chain)}")
    # what was pruned is missing by intent, and the record of it came first; but never the newest
    lost = [text for text in acknowledged if Id.parse(text) not in chain and Id.parse(text) not in bucket.pruned]
    if lost:
        raise Violation(f"I1: {lost} were acknowledged, and {newest} does not descend from them: {_show(chain)}")


def _show(chain: Iterable[Id]) -> str:
    return "[" + ", ".join(map(str, chain)) + "]"

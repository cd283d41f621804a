"""What an agent writes down of an attempt that it holds, so that the next agent can go on with it. No secrets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from spotckpt.config import Settings
from spotckpt.snapshot.losses import Lost


@dataclass(frozen=True)
class Token:
    """An attempt that this spool holds: enough for the next agent to go on with it.

    Attributes:
        uri: the run.
        run_id: its id.
        attempt: the number claimed.
        nonce: the claim's.
        highest: the attempt before it, 0 if none.
        based: whether the base record is written, so that snapshots may be committed.
        parent: what the next snapshot continues: the newest acknowledged one, else the base.
        last_committed: the newest acknowledged one of this attempt.
        next_sequence: of the next snapshot.
        next_generation: of the next grant.
        trainer_pid: the trainer, as seen in `pid_namespace` on the boot `boot_id`.
        trainer_start: its start time in clock ticks since boot.
        boot_id: see above.
        pid_namespace: see above.
        stale_after_s: the run's setting.
        call_timeout_s: the run's setting.
        upload_every_s: the run's setting.
        upload_limit: the run's setting.
        reserve_s: the run's setting.
        saved_at: when the newest acknowledged one was captured, seconds since boot.
        lost: see `Manifest`.
        keep: the run's setting, as text; empty is none.
    """

    uri: str
    run_id: str
    attempt: int
    nonce: str
    highest: int
    trainer_pid: int
    trainer_start: int
    boot_id: str
    pid_namespace: str
    stale_after_s: float
    call_timeout_s: float
    based: bool = False
    parent: str | None = None
    last_committed: str | None = None
    next_sequence: int = 0
    next_generation: int = 1
    upload_every_s: float = 0.0
    upload_limit: float = 0.0
    reserve_s: float = Settings.reserve_s
    saved_at: float = 0.0
    lost: Lost | None = None
    keep: str = ""

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        return json.dumps(asdict(self)).encode()


def read_token(path: Path) -> Token | None:
    """The token in that file; None if there is none that can be read."""
    try:
        fields = json.loads(path.read_bytes())
        lost = fields.pop("lost", None)
        return Token(**fields, lost=None if lost is None else Lost(**lost))
    except (OSError, ValueError, TypeError, AttributeError):
        return None

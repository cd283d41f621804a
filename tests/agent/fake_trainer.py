"""A trainer without torch: does what it is told on stdin, line by line, and reports on stdout.

    {"tag": 1, "do": "call", "op": "open", "fields": {...}}    a request as it is
    {"tag": 2, "do": "stage", "uri": ..., "step": 7}           slot, bytes, seal, nudge
    {"tag": 3, "do": "many", "uri": ..., "step": 7, "count": 9}
    {"tag": 4, "do": "connect"}                                hangs up and connects again, to a new agent if need be

Every number in the staged tensor is the step, so that a reader can tell one snapshot from another. With `frozen` there
are so many numbers more that never change.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

import numpy as np

from spotckpt.agent import paths
from spotckpt.agent.client import Client
from spotckpt.agent.protocol import error_fields
from spotckpt.agent.slots import Mappings, Slot
from spotckpt.errors import SpotckptError, StopTraining
from spotckpt.snapshot.pack import TensorSpec, layout
from spotckpt.snapshot.staged import Staged

FROZEN = 7
CALL_S = 120
"""More than anybody here waits for an answer."""
_WRITING = threading.Lock()


def tell(**fields: Any) -> None:
    with _WRITING:
        sys.stdout.write(json.dumps(fields) + "\n")
        sys.stdout.flush()


def describe(snapshot: str, step: int, numbers: int, reason: str = "periodic", frozen: int = 0) -> Staged:
    specs = (TensorSpec("weight", "F32", (numbers,)), TensorSpec("frozen", "F32", (frozen,)))
    return Staged(
        id=snapshot,
        step=step,
        epoch=0,
        reason=reason,
        created=time.time(),
        tree={"step": step, "marks": {"frozen": FROZEN}},
        specs=specs,
        data_bytes=layout(specs).data_bytes,
    )


class Trainer:
    def __init__(self) -> None:
        self.mappings = Mappings()
        self.client = self.connect()

    def connect(self) -> Client:
        def on_event(event: dict[str, Any]) -> None:
            tell(**event)

        if os.environ.get("FAKE_SPAWNS"):
            from spotckpt.agent.spawn import ensure_agent

            return ensure_agent(on_event=on_event, timeout=CALL_S)
        return Client.connect(paths.socket_path(paths.runtime_dir()), on_event=on_event, timeout=CALL_S)

    def obey(self, command: dict[str, Any]) -> None:
        tag = command["tag"]
        try:
            tell(tag=tag, reply=getattr(self, f"do_{command['do']}")(command))
        except (SpotckptError, StopTraining) as error:
            tell(tag=tag, **error_fields(error))

    def do_connect(self, command: dict[str, Any]) -> dict[str, Any]:
        self.client.close()
        self.client = self.connect()
        return {"agent_pid": self.client.agent_pid, "notice": self.client.notice}

    def do_call(self, command: dict[str, Any]) -> dict[str, Any]:
        fields = dict(command["fields"])
        if command["op"] in ("open", "attach"):
            own = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
            fields.setdefault("environment", own)
        return self.client.call(command["op"], timeout=CALL_S, **fields)

    def do_stage(self, command: dict[str, Any]) -> dict[str, Any]:
        uri, step, numbers = command["uri"], command["step"], command.get("numbers", 1000) + command.get("frozen", 0)
        reply = self.client.call(
            "slot", timeout=CALL_S, uri=uri, size_bytes=4 * numbers, step=step, wait_s=command.get("wait_s", 0)
        )
        if reply.get("busy"):
            return reply
        self.do_fill({**command, "slot": reply})
        if command.get("nudge", True):
            self.client.call("sealed", timeout=CALL_S, uri=uri, generation=reply["generation"])
        return reply

    def do_many(self, command: dict[str, Any]) -> dict[str, Any]:
        """Stages one snapshot after the other, each when the one before is committed."""
        for step in range(command["step"], command["step"] + command["count"]):
            self.do_stage({**command, "step": step, "wait_s": 60})
            ended = self.client.call("drain", timeout=CALL_S, uri=command["uri"], deadline_s=60)
            assert ended["acknowledged"], ended
        return {}

    def do_fill(self, command: dict[str, Any]) -> dict[str, Any]:
        """Without the agent."""
        slot, numbers, frozen = Slot.from_reply(command["slot"]), command.get("numbers", 1000), command.get("frozen", 0)
        data = np.frombuffer(self.mappings.open(slot), dtype="<f4", count=numbers + frozen)
        data[:numbers], data[numbers:] = command["step"], FROZEN
        if not command.get("tear"):
            slot.seal(describe(slot.id, command["step"], numbers, command.get("reason", "periodic"), frozen))
        return {}


def main() -> None:
    trainer = Trainer()
    tell(tag=0, reply={"pid": os.getpid(), "notice": trainer.client.notice, "agent_pid": trainer.client.agent_pid})
    for line in sys.stdin:
        threading.Thread(target=trainer.obey, args=(json.loads(line),), daemon=True).start()


if __name__ == "__main__":
    main()

"""Behaves to a drill as a training does, at once and without torch: 30 steps, written down, held where that is planned.

`stub.py STATUS STEP`: the first start ends with that status at that step, whatever signals come; the others go on after
it.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

folder, status, leaves_at = Path(os.environ["SPOTCKPT_PROBE"]), int(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
holds = json.loads((folder / "plan.json").read_text())["holds"]
is_first = folder.name == "start-1"
kept = {name: {} for name in ("generators", "locals", "tensors", "values")} | {
    f"no {name}": [] for name in ("generators", "locals", "tensors", "values")
}

with (folder / "records.jsonl").open("a", buffering=1) as records:
    for step in range(1 if is_first else leaves_at + 1, 31):
        records.write(json.dumps({"at": "step", "step": step, **kept}) + "\n")
        if step in holds:
            (folder / f"held-{step}").touch()
            while not (folder / f"go-{step}").exists():
                time.sleep(0.005)
        if is_first and step == leaves_at:
            sys.exit(status)
    records.write(json.dumps({"at": "end", "step": 30, **kept}) + "\n")

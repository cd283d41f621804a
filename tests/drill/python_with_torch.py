"""Stands for `python` in a drill's command: asks a test for a fork that has torch imported, and ends as that does.

`python -S -E python_with_torch.py SOCKET SCRIPT ARGUMENT...`; see `forks.py`, which answers. Nothing but the standard
library: it is to start at once.
"""

import json
import os
import socket
import sys
from pathlib import Path

with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    wanted = [sys.argv[2:], dict(os.environ), str(Path.cwd()), f"/proc/{os.getpid()}/fd/1"]
    server.sendall(json.dumps(wanted).encode() + b"\n")
    status = int(server.makefile().readline() or "1")
sys.exit(status if status >= 0 else 128 - status)

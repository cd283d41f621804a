"""`python -m spotckpt`."""

from __future__ import annotations

import sys

from spotckpt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

"""An idle agent has loaded nothing that it does not need: that is its memory and its start."""

from __future__ import annotations

import subprocess
import sys


def test_an_agent_starts_without_what_only_others_need() -> None:
    code = (
        "import sys, spotckpt.agent.__main__, spotckpt.agent.spawn;"
        "heavy = {'click', 'rich', 'torch', 'numpy', 'fsspec', 's3fs', 'botocore', 'boto3', 'aiohttp', 'asyncio',"
        " 'spotckpt.cli', 'spotckpt.training', 'spotckpt.store.s3', 'spotckpt.store.generic'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)

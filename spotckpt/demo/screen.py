"""The demo's narration: who says what and when, live on a terminal and plain in a pipe."""

from __future__ import annotations

import textwrap
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

_STYLES = {
    "demo": "bold",
    "bucket": "cyan",
    "plain": "blue",
    "trainer": "green",
    "agent": "magenta",
    "metadata": "yellow",
}
_SPEAKER_WIDTH = 11


class Screen:
    """Lines of `12.3 s  speaker  text`, folded to the width; safe to use from several threads.

    Everything said is also appended to `log_path`, when there is one.
    """

    def __init__(self, console: Console, *, log_path: Path | None = None) -> None:
        self._console = console
        self._log_path = log_path
        self._lock = threading.Lock()
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._began

    def chapter(self, title: str) -> None:
        """A heading, after an empty line."""
        self._print(Text(f"\n{title}", style="bold reverse" if self._console.is_terminal else ""))

    def say(self, speaker: str, text: str, *, style: str = "") -> None:
        """One line of a speaker; long ones are folded under themselves."""
        start = f"{self.seconds:6.1f} s  {speaker:<{_SPEAKER_WIDTH}}"
        room = self._console.width - len(start) - 1
        indent = " " * len(start)
        folded = textwrap.wrap(text, room, break_long_words=True, break_on_hyphens=False) or [""]
        line = Text(start, style=_STYLES.get(speaker.split(maxsplit=1)[0], "")) + Text(folded[0], style=style)
        for more in folded[1:]:
            line.append(f"\n{indent}{more}", style=style)
        self._print(line)

    def verbatim(self, text: str, *, style: str = "") -> None:
        """A line as it is, without time and speaker, cut at the width."""
        line = Text(text, style=style)
        line.truncate(self._console.width, overflow="ellipsis")
        self._print(line)

    def _print(self, text: Text) -> None:
        with self._lock:
            self._console.print(text, soft_wrap=True)
            if self._log_path is not None:
                with self._log_path.open("a") as log:
                    log.write(f"{text.plain}\n")

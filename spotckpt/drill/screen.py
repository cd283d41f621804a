"""The narration: who says what and when, live on a terminal and plain in a pipe."""

from __future__ import annotations

import textwrap
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.text import Text

_STYLES = {
    "demo": "bold",
    "drill": "bold",
    "bucket": "cyan",
    "plain": "blue",
    "trainer": "green",
    "agent": "magenta",
    "metadata": "yellow",
}
_SPEAKER_WIDTH = 11
_NAME_WIDTH = 16
_LEAST_ROOM = 20
"""For a text; a terminal that is narrower folds it itself."""


class Screen:
    """Lines of `12.3 s  speaker  text`, folded to the width; safe to use from several threads.

    Everything said is also appended to `log_path`, when there is one.

    Args:
        console: where it is shown.
        log_path: where it is written too.
        quiet: show nothing.
    """

    def __init__(self, console: Console, *, log_path: Path | None = None, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._log_path = log_path
        self._lock = threading.Lock()
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def chapter(self, title: str) -> None:
        """A heading, after an empty line."""
        self._print(Text(f"\n{title}", style="bold reverse" if self._console.is_terminal else ""))

    def say(self, speaker: str, text: str, *, style: str = "") -> None:
        """One line of a speaker; long ones are folded under themselves."""
        start = f"{self.seconds:6.1f} s  {speaker:<{_SPEAKER_WIDTH}}"
        room = max(_LEAST_ROOM, self._console.width - len(start) - 1)
        indent = " " * len(start)
        folded = textwrap.wrap(text, room, break_long_words=True, break_on_hyphens=False) or [""]
        line = Text(start, style=_STYLES.get(speaker.split(maxsplit=1)[0], "")) + Text(folded[0], style=style)
        for more in folded[1:]:
            line.append(f"\n{indent}{more}", style=style)
        self._print(line)

    def pairs(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Names and texts in two columns, folded under themselves."""
        for name, text in pairs:
            room = max(_LEAST_ROOM, self._console.width - _NAME_WIDTH - 1)
            folded = textwrap.wrap(text, room, break_long_words=True, break_on_hyphens=False) or [""]
            lines = f"\n{'':<{_NAME_WIDTH}}".join(folded)
            self._print(Text(f"  {name:<{_NAME_WIDTH - 2}}", style="dim") + Text(lines))

    def verbatim(self, text: str, *, style: str = "") -> None:
        """A line as it is, without time and speaker, cut at the width."""
        line = Text(text, style=style)
        line.truncate(self._console.width, overflow="ellipsis")
        self._print(line)

    def _print(self, text: Text) -> None:
        with self._lock:
            if not self._quiet:
                self._console.print(text, soft_wrap=True)
            if self._log_path is not None:
                with self._log_path.open("a") as log:
                    log.write(f"{text.plain}\n")

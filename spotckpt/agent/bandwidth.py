"""What the line carries, from what was really sent: also while something is being sent, and while nothing moves."""

from __future__ import annotations

from collections import deque

WINDOW_S = 5.0
"""How far back an upload under way is looked at: long for parts that arrive at once, short for a line that dies."""
BURST_S = 1.0
"""At first bytes only fill the kernel's buffers, which looks like a fast line; and at the end they only leave them."""
MEASURABLE_BYTES = 1 << 20
_APART_S = 0.1


class Bandwidth:
    """Bytes per second of one run's uploads. Times are seconds of any one clock."""

    def __init__(self) -> None:
        self._known: float | None = None
        self._began: float | None = None
        self._samples: deque[tuple[float, int]] = deque()

    def begin(self, now: float) -> None:
        """An upload begins."""
        self._began = now
        self._samples = deque([(now, 0)])

    def sent(self, now: float, total_bytes: int) -> None:
        """So many bytes of it have gone by now."""
        if self._began is None:
            return
        if len(self._samples) > 1 and now - self._samples[-2][0] < _APART_S:
            self._samples.pop()
        self._samples.append((now, total_bytes))
        while len(self._samples) > 2 and self._samples[1][0] <= now - WINDOW_S:
            self._samples.popleft()

    def end(self, now: float, *, whole: bool = True) -> None:
        """It has ended.

        Args:
            now: when.
            whole: all of it has arrived; else only what it showed on the way is believed.
        """
        if self._began is None:
            return
        last, total = self._samples[-1]
        seconds = now - self._began
        told = whole and seconds > 0 and (total >= MEASURABLE_BYTES or seconds >= BURST_S)
        rates = [total / seconds] if told else []
        # what little left us at last says nothing of a line on which the rest, long in the kernel's buffers, arrived
        lately = self._shown(last)
        if lately is not None and (not told or lately * min(WINDOW_S, seconds) >= MEASURABLE_BYTES):
            rates.append(lately)
        self._known = max(1.0, min(rates)) if rates else self._known
        self._began = None

    def estimate(self, now: float) -> float | None:
        """What it carries now, as far as is known; None before anything was measured. Positive."""
        shown = None if self._began is None else self._shown(now)
        if shown is None or self._began is None or self._known is None:
            return self._known if shown is None else shown
        # what an upload has shown so far weighs more the longer it lasts
        weight = min(1.0, (now - self._began - BURST_S) / WINDOW_S)
        return weight * shown + (1.0 - weight) * self._known

    def _shown(self, now: float) -> float | None:
        """By the upload under way, over the last seconds; None as long as it is in its first ones."""
        assert self._began is not None
        since = max(self._began + BURST_S, now - WINDOW_S)
        if now - since < BURST_S:
            return None
        return max(1.0, self._at(now) - self._at(since)) / (now - since)

    def _at(self, moment: float) -> float:
        """Bytes sent by then; between two samples, in proportion."""
        before = self._samples[0]
        for sample in self._samples:
            if sample[0] > moment:
                share = (moment - before[0]) / (sample[0] - before[0])
                return before[1] + share * (sample[1] - before[1])
            before = sample
        return float(before[1])

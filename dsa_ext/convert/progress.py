"""How far the run is, on stderr: a bar that is redrawn on a terminal, a line every tenth elsewhere."""

import sys
import time
from typing import TextIO

_WIDTH = 30  # characters of the bar
_INTERVAL = 0.1  # seconds between two drawings


def size(nbytes: float) -> str:
    """A number of bytes for people: "1.5 GiB"."""
    if nbytes < 1024:
        return f"{nbytes:.0f} bytes"
    units = ["KiB", "MiB", "GiB", "TiB"]
    while (nbytes := nbytes / 1024) >= 1024 and len(units) > 1:
        del units[0]
    return f"{nbytes:.1f} {units[0]}"


class Progress:
    """Counts bytes that were written towards `total`."""

    def __init__(self, total: int, stream: TextIO | None = None):
        self._total, self._stream = max(total, 1), sys.stderr if stream is None else stream
        self._bar = self._stream.isatty()
        self._done, self._tenths = 0, 0
        self._start = self._drawn = time.monotonic()
        self._open = False  # whether the cursor is behind a bar

    def advance(self, nbytes: int) -> None:
        self._done += nbytes
        now = time.monotonic()
        if self._bar:
            if now - self._drawn >= _INTERVAL or self._done >= self._total:
                self._drawn = now
                self._draw(self._text())
        elif (tenths := 10 * self._done // self._total) > self._tenths:
            self._tenths = tenths
            print(self._text(), file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """Say what happens now that no bytes count."""
        if self._bar:
            self._draw(f"{self._text()}, {text}")
        else:
            print(text, file=self._stream, flush=True)

    def finish(self) -> None:
        """Leave the line of the bar, also after a failure. May be called twice."""
        if self._open:
            print(file=self._stream, flush=True)
            self._open = False

    def _text(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-3)
        part = min(self._done / self._total, 1)
        bar = f"[{'#' * int(_WIDTH * part):<{_WIDTH}}] " if self._bar else ""
        rate = self._done / seconds
        left = "" if not rate or part == 1 else f", {(self._total - self._done) / rate:.0f} s left"
        return f"{bar}{part:4.0%} of {size(self._total)}, {size(rate)}/s{left}"

    def _draw(self, text: str) -> None:
        self._stream.write(f"\r{text}\x1b[K")  # the escape clears what a longer text left
        self._stream.flush()
        self._open = True

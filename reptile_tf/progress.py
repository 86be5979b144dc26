"""Logging and progress: a live line on a terminal, plain lines elsewhere."""

import contextlib
import io
import logging
import os
import sys
import time
from typing import Any

import tqdm

log = logging.getLogger("reptile_tf")


def _as_text(record: logging.LogRecord) -> bool:
    """Makes a record one line that every handler can write: a path may have line breaks, or an unknown encoding."""
    line = " ".join(record.getMessage().splitlines())
    record.msg, record.args = line.encode("utf-8", "backslashreplace").decode(), None
    return True


log.addFilter(_as_text)

SECONDS_BETWEEN_LINES = 10.0
_console: "_Console | None" = None


def show_progress() -> None:
    """Shows the library's log lines and the progress of long work on standard output, as the commands do.

    Without it, only warnings appear, through Python's logging.
    """
    global _console
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path or "±" may not be encodable
    if _console is not None:
        log.removeHandler(_console)
    _console = _Console()
    log.addHandler(_console)
    log.setLevel(logging.INFO)
    log.propagate = False


def hush() -> None:
    """Silences this process. In a cluster only one worker shows its output."""
    if _console is not None:
        _console.setLevel(logging.CRITICAL)


def _is_shown() -> bool:
    return _console is not None and _console.level < logging.CRITICAL


class _Console(logging.Handler):
    """Prints lines on standard output, above the live line if there is one.

    A closed pipe or a full disk does not stop a long run: a line on standard error reports it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        warning = "warning: " if record.levelno >= logging.WARNING else ""
        try:
            tqdm.tqdm.write(warning + record.getMessage(), file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            hush()
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discards the buffer's content
            with contextlib.suppress(OSError):
                print(f"cannot write to standard output ({error.strerror}): continuing without output", file=sys.stderr)


class Progress:
    """Counts towards a total and shows rate and time left.

    Args:
      what: title of the work.
      total: total number of units.
      done: number of units already done (in a resumed run).
      unit: name of a unit.
      silent: show nothing.
    """

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "it", silent: bool = False):
        self._silent = silent or not log.isEnabledFor(logging.INFO)
        self._what, self._total, self._done, self._unit = what, total, done, unit
        self._bar = None
        if _is_shown() and sys.stdout.isatty() and not silent:
            self._bar = tqdm.tqdm(desc=what, total=total, initial=done, unit=f" {unit}", file=sys.stdout, leave=False)
        self._said = time.monotonic()
        self._began: tuple[float, int] | None = None  # time and units at the first call of `advance`

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, units: int, note: str = "") -> None:
        """Adds finished units; `note` appears at the end of the line."""
        self._done += units
        if self._silent:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(units)
            return
        now = time.monotonic()
        self._began = self._began or (now, self._done)  # excludes the first units, whose time includes compilation
        if now - self._said < SECONDS_BETWEEN_LINES and self._done < self._total:
            return
        self._said = now
        parts = [f"{self._what} {self._done}/{self._total}"]
        if rate := (self._done - self._began[1]) / max(now - self._began[0], 1e-9):
            parts.append(f"{rate:.1f} {self._unit}/s" if rate >= 0.1 else f"{1 / rate:.0f} s/{self._unit}")
            parts.append(f"{_clock((self._total - self._done) / rate)} left")
        log.info("  ".join([*parts, note] if note else parts))


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"

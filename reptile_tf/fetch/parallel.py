"""Many small jobs on all cores, with progress; for the fetch script, so in plain Python."""

import concurrent.futures
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

_T = TypeVar("_T")
SECONDS_BETWEEN_LINES = 10.0  # in a log; on a terminal, one line is rewritten all the time


def in_parallel(what: str, work: Callable[[_T], object], jobs: Sequence[_T], before: int = 0) -> None:
    """Calls `work` with every job, in threads, and shows progress; stops at the first error or interruption.

    The first job is done alone, so that what is wrong with all of them is found before more is done.

    Args:
      what: what the jobs are, for the progress line.
      work: what to do; it returns nothing of use.
      jobs: its arguments.
      before: how many jobs were done earlier.

    Raises:
      Exception: whatever `work` raises.
    """
    if not jobs:
        return
    todo: queue.SimpleQueue[_T] = queue.SimpleQueue()
    for job in jobs:
        todo.put(job)
    stop = threading.Event()
    done: list[None] = []

    def worker() -> None:
        while not stop.is_set():
            try:
                job = todo.get_nowait()
            except queue.Empty:
                return
            work(job)
            done.append(None)

    progress = _Progress(what, before, before + len(jobs))
    try:
        work(todo.get_nowait())
        done.append(None)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                running = {pool.submit(worker) for _ in range(os.cpu_count() or 1)}
                while running:
                    ended, running = concurrent.futures.wait(
                        running, timeout=0.2, return_when=concurrent.futures.FIRST_EXCEPTION
                    )
                    for future in ended:
                        future.result()
                    progress.show(before + len(done), last=not running)
            finally:
                stop.set()
    finally:
        progress.close()


class _Progress:
    """Done, total, rate and time left: a live line on a terminal, plain lines in a log."""

    def __init__(self, what: str, done: int, total: int):
        self._what, self._before, self._total = what, done, total
        self._live, self._shown = sys.stdout.isatty(), False
        self._began = self._said = time.monotonic()

    def show(self, done: int, last: bool) -> None:
        now = time.monotonic()
        if not self._live and now - self._said < SECONDS_BETWEEN_LINES and not last:
            return
        self._said, self._shown = now, True
        rate = (done - self._before) / max(now - self._began, 1e-9)
        left = _clock((self._total - done) / rate) if rate else "?"
        line = f"{self._what} {done}/{self._total}  {rate:.1f}/s  {left} left"
        print(f"\r{line:<60}" if self._live else line, end="" if self._live else "\n", flush=True)

    def close(self) -> None:
        if self._live and self._shown:
            print(flush=True)


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"

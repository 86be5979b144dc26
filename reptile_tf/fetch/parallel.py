"""Runs many small jobs on all cores and shows progress. The fetch script uses it, so it needs only Python."""

import concurrent.futures
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

_T = TypeVar("_T")
SECONDS_BETWEEN_LINES = 10.0  # in a log; on a terminal, one line is updated continuously


def in_parallel(what: str, work: Callable[[_T], object], jobs: Sequence[_T], before: int = 0) -> None:
    """Calls `work` with every job, in threads, and shows progress; stops at the first error or interruption.

    The first job runs alone, so that an error common to all jobs is found early.

    Args:
      what: label of the progress line.
      work: function to call with each job; its result is ignored.
      jobs: the jobs.
      before: number of jobs done in an earlier run, counted in the progress line.

    Raises:
      Exception: any error of `work`.
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
    """Shows the jobs done, the total, the rate and the time left: a live line on a terminal, plain lines in a log."""

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

"""Waits for events instead of fixed times, since a busy machine may be many times slower than an idle one."""

import subprocess
import time
from collections.abc import Callable

import pytest

LIMIT = 600  # seconds; only ends a test that would otherwise hang


def until(happens: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Waits until `happens()` is true. If the process ends first or it takes too long, kills the process and fails."""
    deadline = time.monotonic() + LIMIT
    while not happens():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            said = ""
            if process is not None:
                process.kill()
                said = process.communicate()[0]
            pytest.fail(f"{'the process ended before' if ended else 'it takes too long'}: {said}")
        time.sleep(0.001)

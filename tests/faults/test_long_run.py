"""Tests that memory, file handles, threads, speed and disk space stay constant during long training.

FAULTS_META_ITERS is the number of meta-iterations (30,000 in `make faults`).
"""

import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
import waiting
from tools import TINY

from reptile_tf.checkpoint import KEEP, RunFolder

ROOT = pathlib.Path(__file__).parent.parent.parent
META_ITERS = int(os.environ.get("FAULTS_META_ITERS", "2500"))
WARM_UP = 700  # meta-iterations


def measured(pid: int) -> dict[str, float]:
    """Measures a process: resident KiB, file handles, threads, seconds of processor time."""
    status = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    spent = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return {
        "memory": int(status["VmRSS"].split()[0]),
        "handles": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(status["Threads"]),
        "seconds": sum(map(int, spent)) / os.sysconf("SC_CLK_TCK"),
    }


def size(path: pathlib.Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a checkpoint that was deleted in the meantime
        return 0


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="measures by Linux's /proc")
def test_a_long_run_takes_no_more_with_time(tmp_path, record_property):
    options = [f"--checkpoint={tmp_path / 'run'}", f"--meta-iters={META_ITERS}", "--save-interval=50"]
    command = [sys.executable, ROOT / "run_omniglot.py", *TINY, *options, "--eval-interval=100"]
    folder, samples, sizes = RunFolder(tmp_path / "run"), [], []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while True:
            done = max(folder.iterations(), default=0)
            if done >= META_ITERS or process.poll() is not None:
                break
            if done >= WARM_UP and (not samples or done > samples[-1]["done"]):
                samples.append({"done": done, "wall": time.monotonic()} | measured(process.pid))
                sizes.append(sum(map(size, folder.path.rglob("*"))))
            time.sleep(0.1)
        output = process.communicate(timeout=waiting.LIMIT)[0]
    assert process.returncode == 0, output
    assert len(samples) >= 8
    columns = {name: np.array([sample[name] for sample in samples]) for name in samples[0]}

    growth = columns["memory"].max() / columns["memory"].min() - 1
    # Processor time per meta-iteration, over 40 intervals. Other work on the machine can only increase it, so the
    # minimum of each half is the most accurate.
    marks = np.linspace(columns["done"][0], columns["done"][-1], 41)
    spent = np.diff(np.interp(marks, columns["done"], columns["seconds"])) / np.diff(marks)
    slower = spent[20:].min() / spent[:20].min() - 1
    rate = np.ptp(columns["done"]) / np.ptp(columns["wall"])
    memory, handles, threads = (f"{columns[n].min()} to {columns[n].max()}" for n in ("memory", "handles", "threads"))
    record_property(
        "counts",
        f"{META_ITERS} meta-iterations, {rate:.0f} a second; after the first {WARM_UP}: memory {memory} KiB "
        f"({100 * growth:.2f} %), handles {handles}, threads {threads}, processor time per meta-iteration "
        f"{100 * slower:+.1f} % in the second half, folder at most {max(sizes)} bytes",
    )
    assert growth < 0.02
    assert columns["threads"].min() == columns["threads"].max()
    assert columns["handles"].max() - columns["handles"].min() <= 2  # a checkpoint being written, and its folder
    assert abs(slower) < 0.05 or META_ITERS < 30_000  # short runs are too noisy to detect 5 %
    assert folder.iterations()[-1] == META_ITERS
    assert len(folder.iterations()) == KEEP
    validations = META_ITERS // 100
    # Each validation adds TensorBoard's events, and two rows of 24 bytes in each checkpoint.
    most = min(sizes) + validations * (400 + KEEP * 2 * 24) + 20_000
    assert np.median(sizes[len(sizes) // 2 :]) < most
    # When a checkpoint has just been written, the oldest is still there.
    assert max(sizes) < most + max(path.stat().st_size for path in folder.path.glob("checkpoint-*"))

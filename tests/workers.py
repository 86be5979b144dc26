"""Starts small runs of several processes on the loopback interface."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import waiting

from reptile_tf.checkpoint import RunFolder
from reptile_tf.launch import _free_ports

ROOT = pathlib.Path(__file__).parent.parent
# The meta-batch is divisible by neither two nor three, and evaluation leaves blocks partly empty.
TINY = [
    "--source=glyphs", "--filters=4", "--classes=3", "--shots=1", "--train-shots=4", "--inner-batch=6",
    "--inner-iters=3", "--meta-batch=5", "--meta-iters=20", "--save-interval=5", "--eval-interval=10",
    "--eval-tasks=5", "--eval-iters=2", "--eval-samples=7", "--meta-optimizer=adam",
]  # fmt: skip


def start(command, **environment):
    """Starts a process, with its errors merged into its output."""
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )


def launched(count, folder, *flags, script="tests/run_float64.py", restarts=0):
    """Starts the launcher with `count` workers."""
    options = ["--workers", str(count), "--restarts", str(restarts)]
    return start(["-m", "reptile_tf.launch", *options, script, *TINY, f"--checkpoint={folder}", *flags])


def cluster(count, *flags, script="run_omniglot.py"):
    """Starts workers without a launcher; returns them and their addresses. Flags may be functions of the index."""
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(count)]
    processes = []
    for index in range(count):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        own = [flag(index) if callable(flag) else flag for flag in flags]
        processes.append(start([script, *TINY, *own], TF_CONFIG=json.dumps(config)))
    return processes, addresses


def ended(process, code=0):
    """Waits for a process to end; returns its output lines without those that TensorFlow prints at its start."""
    try:
        output, _ = process.communicate(timeout=waiting.LIMIT)
    finally:
        process.kill()
    lines = [line for line in output.splitlines() if "0000 00:00:" not in line and "absl::InitializeLog" not in line]
    assert process.returncode == code, output
    assert "Traceback" not in output, output
    return lines


def state(folder):
    return RunFolder(folder).load().state


def assert_close(folder, expected):
    """Asserts that the states in two folders are equal, to a relative error of 1e-9."""
    ours, theirs = state(folder), state(expected)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert np.linalg.norm(ours[name] - value) <= 1e-9 * np.linalg.norm(value), name

"""Training as a real process: killed at any moment, and two of them in one folder.

FAULTS_KILLS is how often the driver kills (50 in `make faults`), FAULTS_SEED decides when.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from reptile_tf.checkpoint import RunFolder

ROOT = pathlib.Path(__file__).parent.parent.parent
KILLS = int(os.environ.get("FAULTS_KILLS", "4"))
SEED = int(os.environ.get("FAULTS_SEED", time.time_ns() % 2**32))  # other moments every time
SAVE_INTERVAL = 20
# Fast meta-iterations and many checkpoints: about a third of the time goes into writing them.
COMMAND = [
    sys.executable, str(ROOT / "run_omniglot.py"), "--source=glyphs", "--filters=4", "--classes=3", "--shots=1",
    "--inner-iters=1", f"--save-interval={SAVE_INTERVAL}", "--eval-interval=1000", "--eval-tasks=2", "--eval-samples=2",
    "--eval-iters=1",
]  # fmt: skip


def start(folder, meta_iters):
    command = [*COMMAND, f"--checkpoint={folder}", f"--meta-iters={meta_iters}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def newest(folder):
    return max(RunFolder(folder).iterations(), default=0)


def wait_for(folder, iteration, process):
    """Until a checkpoint of so many meta-iterations is there; kills a process that takes two minutes for it."""
    deadline = time.monotonic() + 120
    while newest(folder) < iteration:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(process.communicate()[0])
        time.sleep(0.001)


def ended(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def test_killed_at_random_moments_it_ends_with_the_same_weights(tmp_path):
    """It always resumes, loses one checkpoint interval at most, and never needs a hand."""
    meta_iters = SAVE_INTERVAL * 20 * (KILLS + 2)
    rng, folder = np.random.default_rng(SEED), tmp_path / "killed"
    print(f"FAULTS_SEED={SEED}")
    in_writing = 0
    for kill in range(KILLS):
        process, before = start(folder, meta_iters), newest(folder)
        wait_for(folder, before + SAVE_INTERVAL * int(rng.integers(1, 20)), process)
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        in_writing += any(folder.glob(".checkpoint*.part.npz"))
        resumed = re.search(r"going on from meta-iteration (\d+)", output)
        assert (int(resumed[1]) if resumed else 0) == before, f"kill {kill}: {output}"
    ended(start(folder, meta_iters))
    ended(start(tmp_path / "undisturbed", meta_iters))
    print(f"{KILLS} kills, {in_writing} of them while a checkpoint was being written")
    states = [RunFolder(path).load().state for path in (folder, tmp_path / "undisturbed")]
    for name, value in states[1].items():
        np.testing.assert_array_equal(states[0][name], value, err_msg=name)
    assert not list(folder.glob(".*.part*"))


@pytest.fixture
def running(tmp_path):
    """A run that has saved its first checkpoint."""
    process = start(tmp_path / "run", 10**7)
    wait_for(tmp_path / "run", 1, process)
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_and_a_dead_ones_lock_is_none(running, tmp_path):
    second = start(tmp_path / "run", 10**7)
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 1
    assert f"is in use by process {running.pid} on " in output.splitlines()[-1]
    assert "Traceback" not in output
    running.kill()
    running.wait()
    done = newest(tmp_path / "run")
    third = start(tmp_path / "run", 10**7)
    wait_for(tmp_path / "run", done + 1, third)
    third.kill()
    third.communicate()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    part = tmp_path / "run" / ".checkpoint-0000020.1.part.npz"
    part.parent.mkdir()
    part.write_bytes(b"PK half of it")
    ended(start(tmp_path / "run", 20))
    assert not part.exists()
    assert newest(tmp_path / "run") == 20

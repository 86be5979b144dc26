"""Tests of processes killed at random moments: training, fetching and preparing data; and of two in one folder.

FAULTS_KILLS is the number of kills (50 in `make faults`), and FAULTS_SEED the seed of their random moments.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import waiting
from PIL import Image
from tools import contents, leftovers

from reptile_tf.checkpoint import RunFolder

ZIPS = os.environ.get("OMNIGLOT_ZIPS")
ROOT = pathlib.Path(__file__).parent.parent.parent
KILLS = int(os.environ.get("FAULTS_KILLS", "4"))
SEED = int(os.environ.get("FAULTS_SEED", "0"))  # seed of the moments
SAVE_INTERVAL = 20
# Fast meta-iterations and many checkpoints, which take about a third of the time to write.
COMMAND = [
    sys.executable, str(ROOT / "run_omniglot.py"), "--source=glyphs", "--filters=4", "--classes=3", "--shots=1",
    "--inner-iters=1", f"--save-interval={SAVE_INTERVAL}", "--eval-interval=1000", "--eval-tasks=2", "--eval-samples=2",
    "--eval-iters=1",
]  # fmt: skip


# Runs a script that kills itself at the first checkpoint from argv[2] on: when a share of it, argv[3], is written, or
# argv[3] - 1 seconds later if that is 1 or more.
DIES = """
import os, pathlib, re, runpy, signal, sys, threading

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying(path, content):
    found = re.match(r"[.]checkpoint-([0-9]+)", path.name)
    if found and int(found[1]) >= int(iteration):
        if float(moment) < 1:
            real(path, content[: int(float(moment) * len(content))])
            die()
        threading.Timer(float(moment) - 1, die).start()
    return real(path, content)

script, iteration, moment, *arguments = sys.argv[1:]
real, pathlib.Path.write_bytes = pathlib.Path.write_bytes, dying
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


def start(folder, meta_iters, dies=()):
    """Starts a run; `dies` gives DIES its arguments: the meta-iteration and the moment at which it kills itself."""
    python, *command = COMMAND
    if dies:
        command = ["-c", DIES, command[0], *map(str, dies), *command[1:]]
    command = [python, *command, f"--checkpoint={folder}", f"--meta-iters={meta_iters}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def newest(folder):
    return max(RunFolder(folder).iterations(), default=0)


def wait_for(folder, iteration, process):
    """Waits for a checkpoint of this meta-iteration."""
    waiting.until(lambda: newest(folder) >= iteration, process)


def unfinished(folder):
    """Returns whether a checkpoint has been begun but not finished."""
    return any(name.startswith(".checkpoint") for name in os.listdir(folder))


def ended(process):
    output, _ = process.communicate(timeout=waiting.LIMIT)
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_killed_at_random_moments_training_ends_with_the_same_weights(tmp_path, record_property):
    """Training always resumes without intervention, and loses at most one checkpoint interval.

    Every second kill happens while a checkpoint is being written.
    """
    print(f"FAULTS_SEED={SEED}")
    meta_iters = SAVE_INTERVAL * 5 * (KILLS + 4)
    rng, folder = np.random.default_rng(SEED), tmp_path / "killed"
    in_writing = 0
    for kill in range(KILLS):
        before = newest(folder)
        iteration = before + SAVE_INTERVAL * int(rng.integers(1, 5))
        moment = 1 + rng.uniform(0, 0.05) if kill % 2 else rng.uniform()
        process = start(folder, meta_iters, dies=(iteration, moment))
        output, _ = process.communicate(timeout=waiting.LIMIT)
        assert process.returncode == -signal.SIGKILL, output
        in_writing += unfinished(folder)
        resumed = re.search(r"resuming from meta-iteration (\d+)", output)
        assert (int(resumed[1]) if resumed else 0) == before, f"kill {kill}: {output}"
    ended(start(folder, meta_iters))
    ended(start(tmp_path / "undisturbed", meta_iters))
    record_property("counts", f"{KILLS} kills, {in_writing} with a checkpoint unfinished (FAULTS_SEED={SEED})")
    assert in_writing >= KILLS // 2
    states = [RunFolder(path).load().state for path in (folder, tmp_path / "undisturbed")]
    for name, value in states[1].items():
        np.testing.assert_array_equal(states[0][name], value, err_msg=name)
    assert not leftovers(folder)


def killed_often(begin, complete, progress, total):
    """Repeatedly starts a process with `begin` and kills it at a random value of `progress()`, which counts to `total`.

    `complete` returns whether the result is complete, in which case the next process starts from nothing; it fails if
    the result is only partly in place. The last process may end. Returns the number of kills before completion.
    """
    print(f"FAULTS_SEED={SEED}")
    rng, cut_off = np.random.default_rng(SEED), 0
    for _ in range(KILLS):
        process, moment = begin(), rng.integers(total)
        waiting.until(lambda p=process, m=moment: progress() >= m or p.poll() is not None)
        time.sleep(rng.uniform(0, 0.005))  # so that kills do not only follow a change of progress
        process.kill()
        process.wait(timeout=waiting.LIMIT)
        cut_off += not complete()
    assert begin().wait(timeout=waiting.LIMIT) == 0
    assert complete()
    return cut_off


def make_photographs(folder):
    """Writes three sets of twelve classes with 20 images each."""
    rng = np.random.default_rng(0)
    for place in range(36):
        (folder / ("train", "val", "test")[place % 3] / f"n{place}").mkdir(parents=True)
        for number in range(20):
            image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
            image.save(folder / ("train", "val", "test")[place % 3] / f"n{place}" / f"{number}.jpg")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("data_set", ["miniimagenet", "omniglot"])
def test_fetching_killed_at_random_moments_puts_all_or_nothing_in_place(tmp_path, data_set, record_property):
    if data_set == "omniglot" and not ZIPS:
        pytest.skip("OMNIGLOT_ZIPS names no folder of Omniglot's archives")
    environment = os.environ | {"PYTHON": sys.executable}
    if data_set == "omniglot":
        environment["OMNIGLOT_URL"] = pathlib.Path(ZIPS).as_uri()
    else:
        environment["MINIIMAGENET_DIR"] = str(make_photographs(tmp_path / "photographs"))

    def begin(place):
        command = ["bash", ROOT / "fetch_data.sh", data_set, tmp_path / place]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    def begin_again():
        shutil.rmtree(target, ignore_errors=True)
        return begin("killed")

    def complete():
        if target.exists():
            assert contents(target) == expected
        return target.exists()

    def progress():
        """Returns the number of files, finished or not, without the download, which is kept."""
        return sum(len(names) for _, _, names in os.walk(tmp_path / "killed"))

    target = tmp_path / "killed" / data_set
    assert begin("whole").wait(timeout=waiting.LIMIT) == 0
    expected = contents(tmp_path / "whole" / data_set)
    cut_off = killed_often(begin_again, complete, progress, len(expected))
    assert {path.name for path in (tmp_path / "killed").iterdir()} - {".download"} == {data_set}
    record_property("counts", f"{KILLS} kills, {cut_off} before all was in place (FAULTS_SEED={SEED})")
    assert cut_off > 0


# Starts TensorFlow once. Then, for each line with a folder of photographs, it forks a process that prepares the folder,
# and prints its process id and later its exit code. The process appends a byte to the file in argv[1] for each image.
PREPARER = """
import os, sys
from PIL import Image
from reptile_tf.data import miniimagenet

def counting(*arguments, **options):
    os.write(count, b".")
    return real(*arguments, **options)

real, Image.open = Image.open, counting
for line in sys.stdin:
    count = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        miniimagenet.load(line.strip())
        os._exit(0)
    os.close(count)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Preparing:
    """A process that prepares photographs."""

    def __init__(self, preparer, folder):
        self._preparer = preparer
        print(folder, file=preparer.stdin, flush=True)
        self._child = int(preparer.stdout.readline())

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)

    def poll(self):
        """Returns None, since only the preparer is notified when it ends."""

    def wait(self, timeout):
        del timeout
        return int(self._preparer.stdout.readline())


def test_preparing_images_killed_at_random_moments_makes_the_same_store(tmp_path, record_property):
    """The same code makes Omniglot's store."""
    whole = make_photographs(tmp_path / "whole")
    killed = shutil.copytree(whole, tmp_path / "killed")
    opened = tmp_path / "opened"
    command = [sys.executable, "-c", PREPARER, str(opened)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as preparer:
        assert Preparing(preparer, whole).wait(None) == 0
        total = opened.stat().st_size
        assert total == 36 * 20
        expected = {path.name: path.read_bytes() for path in whole.glob("prepared*")}
        assert len(expected) == 2

        def begin():
            (killed / "prepared-84.json").unlink(missing_ok=True)
            return Preparing(preparer, killed)

        def complete():
            there = (killed / "prepared-84.json").exists()
            if there:
                assert {path.name: path.read_bytes() for path in killed.glob("prepared*")} == expected
            return there

        cut_off = killed_often(begin, complete, lambda: opened.stat().st_size, total)
        preparer.stdin.close()
    assert not leftovers(killed)
    record_property("counts", f"{KILLS} kills, {cut_off} before all was in place (FAULTS_SEED={SEED})")
    assert cut_off > 0


@pytest.fixture
def running(tmp_path):
    """A running process that has saved its first checkpoint."""
    process = start(tmp_path / "run", 10**7)
    wait_for(tmp_path / "run", 1, process)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_second_process_is_refused_and_a_dead_ones_lock_is_none(running, tmp_path):
    second = start(tmp_path / "run", 10**7)
    output, _ = second.communicate(timeout=waiting.LIMIT)
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


@pytest.mark.slow
def test_a_run_goes_on_when_nobody_listens(tmp_path):
    """The reader of its output ends early, as `head` does."""
    command = [*COMMAND, f"--checkpoint={tmp_path / 'run'}", "--meta-iters=40"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        error = process.stderr.read()
        assert process.wait(timeout=waiting.LIMIT) == 0, error
    assert "cannot write to standard output (Broken pipe): continuing without output" in error
    assert "Traceback" not in error
    assert newest(tmp_path / "run") == 40
    assert (tmp_path / "run" / "results.json").exists()


@pytest.mark.slow
def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    part = tmp_path / "run" / ".checkpoint-0000020.1.part.npz"
    part.parent.mkdir()
    part.write_bytes(b"PK half of it")
    ended(start(tmp_path / "run", 20))
    assert not part.exists()
    assert newest(tmp_path / "run") == 20

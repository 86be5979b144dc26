"""Tests of the launcher with real workers: equal results for any number, signals, failures, restarts, user errors."""

import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import waiting
from claims import claim
from workers import assert_close, ended, launched, start, state

from reptile_tf import launch
from reptile_tf.checkpoint import RunFolder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folders of undisturbed runs, by number of workers."""
    folders = {}
    for count in (1, 2):
        folders[count] = tmp_path_factory.mktemp("whole") / str(count)
        said = ended(launched(count, folders[count]))
        assert all(line.startswith("[0] ") for line in said), said  # only the chief prints
        assert len(list((folders[count] / "events").iterdir())) == 1, "and writes"
    return folders


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_workers_give_the_results_of_one(whole):
    """test_shares.py has other numbers of workers, and a test below trains with three."""
    assert_close(whole[2], whole[1])
    ours, expected = (RunFolder(whole[n]).load().history for n in (2, 1))
    np.testing.assert_array_equal(ours[:, [0, 2]], expected[:, [0, 2]])  # column 1 is the time
    ours, expected = results(whole[2]), results(whole[1])
    assert ours["workers"] == 2
    for name in ("train", "test", "train, transductive", "test, transductive"):
        assert ours[name] == pytest.approx(expected[name])
        assert ours[name]["tasks"] == 7


def wait_for_checkpoint(process, folder, iteration=1):
    waiting.until(lambda: max(RunFolder(folder).iterations(), default=0) >= iteration, process)


def worker(launcher, index):
    """Returns the process id of one of a launcher's workers."""
    children = pathlib.Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    of_index = f'"index": {index}'
    return next(int(pid) for pid in children if of_index in pathlib.Path(f"/proc/{pid}/environ").read_text())


def gone(pid):
    """Returns whether a process has ended. An orphan may remain as a zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
def test_workers_end_when_their_launcher_is_killed(tmp_path):
    launcher = launched(2, tmp_path / "run", "--meta-iters=1000000")
    wait_for_checkpoint(launcher, tmp_path / "run")
    workers = [worker(launcher, index) for index in (0, 1)]
    launcher.kill()
    waiting.until(lambda: all(map(gone, workers)))
    launcher.communicate()
    assert RunFolder(tmp_path / "run").load().iteration < 1000000


@pytest.mark.slow
def test_a_killed_worker_is_named_and_a_restart_ends_with_the_same_weights(whole, tmp_path):
    folder = tmp_path / "run"
    launcher = launched(2, folder, restarts=1)
    wait_for_checkpoint(launcher, folder)
    os.kill(worker(launcher, 1), signal.SIGKILL)
    said = ended(launcher)
    assert any(re.fullmatch(r"launch: worker 1 \(127.0.0.1:\d+\) was killed by SIGKILL; .*", line) for line in said)
    assert "launch: all 2 start again; restarts left: 0" in said
    assert any(re.fullmatch(r"\[0\] resuming from meta-iteration (5|10|15)", line) for line in said)
    for name, value in state(whole[2]).items():
        np.testing.assert_array_equal(state(folder)[name], value, err_msg=name)


@pytest.mark.slow
def test_a_signal_stops_all_and_another_number_of_workers_goes_on(whole, tmp_path):
    folder = tmp_path / "run"
    launcher = launched(3, folder)
    wait_for_checkpoint(launcher, folder)
    launcher.send_signal(signal.SIGTERM)
    said = ended(launcher, 143)
    done = max(RunFolder(folder).iterations())
    assert f"[0] stopped after {done} meta-iterations, saved in {folder}; run the same command again to resume" in said
    assert sum("stopped after" in line for line in said) == 1
    assert done < 20
    said = ended(launched(1, folder))
    assert f"[0] resuming from meta-iteration {done}" in said
    assert_close(folder, whole[1])


def test_a_bad_flag_gets_one_line_for_all_and_no_restart():
    said = ended(start(["-m", "reptile_tf.launch", "--workers=2", "--restarts=2", "run_omniglot.py", "--shots=0"]), 2)
    assert sum("--shots must be at least 1" in line for line in said) == 1
    assert not any("again" in line for line in said)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers=0", "run_omniglot.py"], "'0' is not a number, 1 or more"),
        (["--workers=2", "--restarts=-1", "run_omniglot.py"], "'-1' is not a number, 0 or more"),
        (["run_omniglot.py"], "required: --workers"),
        (["--workers=2"], "required: script"),
    ],
)
def test_a_bad_flag_of_the_launchers_own_is_named(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        launch.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_script_that_is_not_there_is_named(capsys):
    assert launch.main(["--workers=2", "nosuch.py"]) == 1
    assert capsys.readouterr().err == (
        "python -m reptile_tf.launch: no script nosuch.py: name one, such as run_omniglot.py\n"
    )


def test_each_worker_gets_its_gpu_and_too_few_are_refused(monkeypatch, tmp_path, capfd):
    script = tmp_path / "script.py"
    script.write_text("import os; print('GPU', os.environ['CUDA_VISIBLE_DEVICES'])")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc,6")
    assert launch.main(["--workers=2", str(script)]) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["[0] GPU 4", "[1] GPU GPU-abc"]
    assert launch.main(["--workers=4", str(script)]) == 1
    assert "--workers 4 need a GPU each, but there are 3: start 3 or fewer" in capfd.readouterr().err


def test_the_cores_are_divided():
    parts = [launch._part([2, 3, 5, 7, 8], index, 2) for index in range(2)]
    assert parts == [{2, 3}, {5, 7, 8}]
    assert [launch._part([0, 4], index, 3) for index in range(3)] == [{0}, {4}, {0}]


def test_the_first_failures_exit_code_is_the_launchers(tmp_path, capfd):
    """The other workers, which would run for long, are ended."""
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, pathlib, sys, time\n"
        "if json.loads(os.environ['TF_CONFIG'])['task']['index'] == 1: sys.exit(7)\n"
        f"time.sleep({waiting.LIMIT})\n"
        "pathlib.Path(__file__).with_name('ended by itself').touch()\n"
    )
    assert launch.main(["--workers=3", str(script)]) == 7
    assert not (tmp_path / "ended by itself").exists()
    assert re.search(r"launch: worker 1 \(127.0.0.1:\d+\) ended with exit code 7; the other", capfd.readouterr().err)


def test_the_same_failure_is_told_of_again_after_a_restart(tmp_path, capfd):
    """At the n-th start, worker n fails."""
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, pathlib, sys\n"
        "index = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
        "been = pathlib.Path(sys.argv[1]) / str(index)\n"
        "start = been.exists()\n"
        "been.touch()\n"
        "if index == start: print('lost', file=sys.stderr); sys.exit(75)\n"
    )
    assert launch.main(["--workers=2", "--restarts=1", str(script), str(tmp_path)]) == 75
    error = capfd.readouterr().err
    assert "[0] lost\n" in error
    assert "[1] lost\n" in error


def test_output_of_any_encoding_is_passed_on(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text("import sys; sys.stdout.buffer.write('1 ± 2'.encode() + bytes([255]))")
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert launch.main(["--workers=1", str(script)]) == 0
    assert out.buffer.getvalue() == "[0] 1 ± 2".encode() + b"\xff\n"


def test_a_terminal_that_goes_away_ends_the_workers(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text("import os, signal, time; os.kill(os.getppid(), signal.SIGHUP); time.sleep(1000)")
    old = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, also by the launcher
    try:
        assert launch.main(["--workers=1", str(script)]) == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, old)


def test_of_several_failures_the_one_by_a_signal_came_first(capsys):
    """The others only report it."""
    script = "import os, sys; sys.exit(7)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    workers = launch.Workers([sys.executable, "-c", ""], 2, launch.Output())
    workers.wait()
    workers.processes = [subprocess.Popen([sys.executable, "-c", text]) for text in script]
    for process in workers.processes:
        process.wait()
    assert launch.Workers.wait(workers) == 128 + signal.SIGKILL


# Actions of a worker in `script_of`.
MISTAKEN = "print('a mistake', file=sys.stderr); sys.exit({})"
TELLING = "sys.exit(75)"
DYING = "os.kill(os.getpid(), signal.SIGKILL)"


def script_of(path, *doing):
    """Writes a script in which each worker records its start and then performs its own action."""
    path.write_text(
        "import json, os, pathlib, signal, sys, time\n"
        "index = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
        "with open(pathlib.Path(__file__).parent / f'starts-{index}', 'a') as file: file.write('1')\n"
        f"exec({list(doing)}[index])\n"
    )
    return str(path)


def starts(folder):
    return [len((folder / f"starts-{index}").read_text()) for index in (0, 1)]


@pytest.mark.parametrize("code", [1, 2])
@pytest.mark.parametrize("late", ["0", "1"])
def test_a_mistake_is_not_repeated_even_if_another_worker_tells_of_a_loss_first(
    tmp_path, capfd, monkeypatch, code, late
):
    monkeypatch.setattr(launch, "GRACE", waiting.LIMIT)
    script = script_of(tmp_path / "script.py", TELLING, f"time.sleep({late}); {MISTAKEN.format(code)}")
    assert launch.main(["--workers=2", "--restarts=3", script]) == code
    assert starts(tmp_path) == [1, 1]
    error = capfd.readouterr().err
    assert "[1] a mistake\n" in error
    assert "again" not in error
    assert "code 75" not in error, "the one at fault is named, or none"


@pytest.mark.parametrize(
    ("doing", "code"), [((TELLING, TELLING), 75), (("sys.exit(7)", TELLING), 7), ((TELLING, DYING), 137)]
)
def test_a_loss_or_a_crash_is_restarted(tmp_path, capfd, monkeypatch, doing, code):
    monkeypatch.setattr(launch, "GRACE", waiting.LIMIT)
    script = script_of(tmp_path / "script.py", *doing)
    assert launch.main(["--workers=2", "--restarts=1", script]) == code
    assert "launch: all 2 start again; restarts left: 0\n" in capfd.readouterr().err


def test_a_worker_that_does_not_end_is_ended_after_another_told_of_its_loss(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(launch, "GRACE", 0.5)
    assert launch.main(["--workers=2", script_of(tmp_path / "script.py", TELLING, "time.sleep(1000)")]) == 75
    assert re.search(r"launch: worker 0 \(127.0.0.1:\d+\) ended with exit code 75; the oth", capfd.readouterr().err)


@pytest.mark.slow
def test_a_mistake_of_a_real_run_is_not_repeated(tmp_path):
    """Only the chief reports the mistake; the other worker loses its connection to it."""
    claim(RunFolder(tmp_path / "run"), {"benchmark": "another", "settings": {}, "split": {}})
    said = ended(launched(2, tmp_path / "run", restarts=2), 1)
    assert sum(f"{tmp_path}/run holds a run" in line for line in said) == 1
    assert not any("again" in line for line in said if line.startswith("launch: "))

"""The run script as a user runs it, on the built-in glyphs."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from matplotlib import image

from reptile_tf import cli, device

ROOT = pathlib.Path(__file__).parent.parent
TINY = [
    "--source=glyphs", "--classes=3", "--shots=1", "--train-shots=4", "--filters=4", "--inner-batch=6",
    "--inner-iters=2", "--meta-batch=2", "--meta-iters=60", "--save-interval=10", "--eval-interval=20",
    "--eval-tasks=4", "--eval-iters=2", "--eval-samples=40",
]  # fmt: skip


def command(folder, *arguments):
    return [sys.executable, str(ROOT / "run_omniglot.py"), *TINY, f"--checkpoint={folder}", *arguments]


def run(folder, *arguments):
    return subprocess.run(command(folder, *arguments), capture_output=True, text=True, cwd=folder.parent, check=False)


def newest(folder):
    with np.load(max(folder.glob("checkpoint-*.npz")), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files if name not in ("seconds", "history")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_run_says_where_it_runs_and_leaves_its_results(trained):
    folder, said = trained
    assert said.startswith("device: ")
    assert "mode: " in said.splitlines()[0]
    assert "threads: " in said.splitlines()[0]
    results = json.loads((folder / "results.json").read_text())
    for name in ("train", "test"):
        assert 0 < results[name]["accuracy"] <= 1
        assert 0 < results[name]["ci95"] < 1
        assert results[name]["tasks"] == 40
        assert f"{name} accuracy: {100 * results[name]['accuracy']:.2f} ± " in said
    assert results["settings"]["inner_iters"] == 2
    assert results["meta_iterations"] == 60
    assert results["seed"] == 0
    assert results["training_seconds"] > 0
    assert set(results["versions"]) == {"python", "reptile-tf", "tensorflow", "keras", "numpy"}
    for picture in ("learning_curve.png", "test_task.png"):
        assert len(np.unique(image.imread(folder / picture))) > 10
    assert list((folder / "events").glob("events.out.tfevents.*"))


def test_the_saved_model_has_the_trained_weights(trained):
    import keras

    model = keras.models.load_model(trained[0] / "model.keras")
    weights = np.concatenate([v.numpy().ravel() for v in model.trainable_variables])
    np.testing.assert_array_equal(weights, newest(trained[0])["state/phi"])


def test_a_run_killed_twice_ends_with_the_same_weights(trained, tmp_path):
    folder = tmp_path / "killed"
    for checkpoints in (1, 3):
        process = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        wanted = folder / f"checkpoint-{checkpoints * 10:07}.npz"
        while not wanted.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = run(folder)
    assert done.returncode == 0, done.stderr
    expected = newest(trained[0])
    ours = newest(folder)
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "stopped"
    process = subprocess.Popen(command(folder, "--meta-iters=100000"), stdout=subprocess.PIPE, text=True)
    while not list(folder.glob("checkpoint-*.npz")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode == 143
    done = int(newest(folder)["iteration"])
    assert f"stopped after {done} meta-iterations, saved in {folder}; the same command goes on" in said


def test_pretrained_takes_network_way_and_split_from_the_checkpoint(trained, tmp_path):
    folder, _ = trained
    arguments = ["--pretrained", "--source=glyphs", "--shots=2", "--transductive", "--eval-samples=6"]
    before = {p: p.read_bytes() for p in folder.glob("*.*")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_omniglot.py"), *arguments, f"--checkpoint={folder}"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "evaluation-2shot-transductive.json").read_text())
    assert results["settings"]["classes"] == 3
    assert results["settings"]["shots"] == 2
    assert all(path.read_bytes() == content for path, content in before.items())


# --- mistakes, in this process -----------------------------------------------------------------------------------


@pytest.fixture
def main(monkeypatch, capsys, tmp_path):
    """Runs the script's main function in an empty folder: (exit code, the error line)."""
    monkeypatch.setattr(device, "configure", lambda *_: (False, "device: as the tests have it"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = cli.main(["run_omniglot.py", *arguments], "What it does.", "omniglot")
        return code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--inner-iter=3"], 2, "Unknown command line flag 'inner_iter'"),
        (["--inner-iters=0"], 2, "--inner-iters must be at least 1"),
        (["--preset=nosuch"], 2, "unknown preset 'nosuch'"),
        (["--replacement", "--inner-batch=1000"], 2, "cannot be larger than the task"),
        ([], 1, "no Omniglot at data/omniglot; run: bash fetch_data.sh omniglot"),
        (["--source=glyphs", "--classes=2000"], 1, "2000 ways need 2000 classes"),
        (["--source=glyphs", "--shots=20"], 1, "has 20 images, but evaluation needs 21"),
        (["--source=glyphs", "--train-shots=21"], 1, "has 20 images, but training needs 21"),
        (["--pretrained"], 1, "no run in model_checkpoint"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(main, tmp_path, arguments, code, message):
    got, error = main(*arguments)
    assert got == code
    assert message in error
    assert error.startswith("run_omniglot.py: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_other_settings_for_a_trained_folder_are_refused(main, trained):
    folder = trained[0]
    before = {p: p.read_bytes() for p in folder.glob("*.*")}
    code, error = main(*TINY, f"--checkpoint={folder}", "--inner-iters=3", "--sgd")
    assert code == 1
    assert "--inner-iters 2 there, 3 here; --sgd False there, True here" in error
    assert {p: p.read_bytes() for p in folder.glob("*.*")} == before


def test_another_network_than_the_checkpoints_is_refused(main, trained):
    code, error = main("--pretrained", f"--checkpoint={trained[0]}", "--preset=omniglot-1shot-20way")
    assert code == 1
    assert "--classes 20 (it has 3)" in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_named(main, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, error = main("--source=glyphs", "--checkpoint=locked/run")
    assert code == 1
    assert "cannot use locked/run" in error

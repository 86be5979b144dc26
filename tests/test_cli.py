"""Tests of the run script as a user runs it, on the built-in glyphs."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import waiting
from matplotlib import image

import reptile_tf
from reptile_tf import evaluate, tasks
from reptile_tf.checkpoint import RunFolder
from reptile_tf.data import ImageClasses
from reptile_tf.errors import UserError
from reptile_tf.files import sealed

ROOT = pathlib.Path(__file__).parent.parent
TINY = [
    "--source=glyphs", "--classes=3", "--shots=1", "--train-shots=4", "--filters=4", "--inner-batch=6",
    "--inner-iters=2", "--meta-batch=2", "--meta-iters=400", "--save-interval=25", "--eval-interval=50",
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
    """The folder of a finished run, and its output."""
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
        assert f"; transductive: {100 * results[f'{name}, transductive']['accuracy']:.2f} ± " in said
    assert results["settings"]["inner_iters"] == 2
    assert results["meta_iterations"] == 400
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


def test_load_gives_the_trained_learner_back(trained):
    learner, saved = reptile_tf.load(trained[0]), newest(trained[0])
    for name, value in learner.state().items():
        np.testing.assert_array_equal(value, saved[f"state/{name}"], err_msg=name)
    weights = np.concatenate([v.numpy().ravel() for v in learner.model.trainable_variables])
    np.testing.assert_array_equal(weights, saved["state/phi"])


@pytest.mark.parametrize(
    ("of_config", "message"),
    [
        ({"problem": "chess", "network": None}, "'chess', is unknown: give the network as load"),
        ({"settings": {"depth": 3, "algorithm": "reptile"}}, "does not know.*depth"),
        ({"settings": []}, "does not know"),
    ],
)
def test_load_names_a_network_that_it_does_not_know(trained, tmp_path, of_config, message):
    (tmp_path / "config.json").write_text(sealed(RunFolder(trained[0]).config() | of_config))
    with pytest.raises(UserError, match=message):
        reptile_tf.load(tmp_path)


def wait_for(process, folder, iteration):
    """Waits until a running process has saved a checkpoint of `iteration` or later."""
    waiting.until(lambda: max(RunFolder(folder).iterations(), default=0) >= iteration, process)


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "stopped"
    process = subprocess.Popen(command(folder, "--meta-iters=100000"), stdout=subprocess.PIPE, text=True)
    wait_for(process, folder, 25)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode == 143
    done = int(newest(folder)["iteration"])
    assert f"stopped after {done} meta-iterations, saved in {folder}; run the same command again to resume" in said


@pytest.mark.slow
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
    assert f"test accuracy: {100 * results['test']['accuracy']:.2f} ± " in done.stdout
    assert f"; not transductive: {100 * results['test, not transductive']['accuracy']:.2f} ± " in done.stdout


@pytest.mark.slow
def test_the_other_ways_to_train_run_too(tmp_path):
    for number, arguments in enumerate((
        ["--mode=stacked"],
        ["--foml", "--foml-tail=1", "--in-turn", "--meta-optimizer=adam", "--replacement", "--eval-batch=3"],
    )):  # fmt: skip
        done = run(tmp_path / str(number), *arguments, "--meta-iters=4", "--eval-samples=2")
        assert done.returncode == 0, done.stderr
        assert ("XLA" in done.stdout) == ("--mode=stacked" in arguments)
        assert "test accuracy: " in done.stdout


# --- figures and messages, in this process -----------------------------------------------------------------------


@pytest.fixture
def rehearse(main, rehearsed, glyphs, monkeypatch):
    """Runs the script on a few glyphs, with the training and adaptation of `rehearsed`."""
    monkeypatch.setattr("reptile_tf.data.glyphs.load", lambda: glyphs)
    monkeypatch.setattr("reptile_tf.problems.omniglot.TRAINING_CHARACTERS", 30)

    def call(*arguments):
        assert main(*arguments) == (0, "")

    return call


def test_the_classes_of_training_are_turned_and_those_of_the_test_are_not(rehearse, monkeypatch):
    drawn = {"training_tasks": set(), "evaluation_tasks": set()}

    def noted(name, draw):
        return lambda classes, **options: drawn[name].add(classes.names) or draw(classes, **options)

    for name in drawn:
        monkeypatch.setattr(tasks, name, noted(name, getattr(tasks, name)))
    rehearse(*TINY, "--meta-iters=1", "--checkpoint=run")
    split = RunFolder("run").config()["split"]
    turned = tuple(name + turn for turn in ("", "@90", "@180", "@270") for name in split["train"])
    assert drawn == {"training_tasks": {turned}, "evaluation_tasks": {turned, tuple(split["test"])}}
    drawn["evaluation_tasks"].clear()
    rehearse("--pretrained", "--source=glyphs", "--eval-samples=2", "--checkpoint=run")
    assert drawn["evaluation_tasks"] == {turned, tuple(split["test"])}


def test_the_seed_decides_on_split_first_weights_and_tasks(rehearse, rehearsed):
    splits, weights = [], []
    for folder in ("0", "1"):
        rehearse(*TINY, "--meta-iters=1", "--eval-samples=2", f"--checkpoint={folder}", f"--seed={folder}")
        splits.append(RunFolder(folder).config()["split"])
        weights.append(newest(pathlib.Path(folder))["state/phi"])
    assert set(splits[0]["test"]) != set(splits[1]["test"])
    assert (weights[0] != weights[1]).any()
    (one, _), (other, _) = rehearsed[0]
    assert (one.minibatches != other.minibatches).any()


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--notransductive", {"test": 1.0, "test, transductive": 0.0}),
        ("--transductive", {"test": 0.0, "test, not transductive": 1.0}),
    ],
)
def test_the_results_name_the_way_that_was_asked_for_first(rehearse, flag, expected):
    rehearse(*TINY, flag, "--meta-iters=1", "--checkpoint=run")
    rehearse("--pretrained", flag, "--source=glyphs", "--shots=1", "--eval-samples=2", "--checkpoint=run")
    how = "-transductive" if flag == "--transductive" else ""
    for file in ("results.json", f"evaluation-1shot{how}.json"):
        results = json.loads(pathlib.Path("run", file).read_text())
        found = {name: value["accuracy"] for name, value in results.items() if name.startswith("test")}
        assert found == expected
        assert results["train"]["accuracy"] == results["test"]["accuracy"]


# --- user errors, in this process --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--inner-iter=3"], 2, "Unknown command line flag 'inner_iter'"),
        (["--inner-iters=0"], 2, "--inner-iters must be at least 1"),
        (["--preset=nosuch"], 2, "unknown preset 'nosuch'"),
        (["--replacement", "--inner-batch=1000"], 2, "cannot be larger than a task"),
        ([], 1, "no Omniglot at data/omniglot; run: bash fetch_data.sh omniglot"),
        (["--source=glyphs", "--classes=2000"], 1, "2000 ways need 2000 classes"),
        (["--source=glyphs", "--shots=20"], 1, "with the 21 images that evaluation (train) needs"),
        (["--source=glyphs", "--train-shots=21"], 1, "with the 21 images that training needs"),
        (["--source=glyphs", "--split=nosuch"], 1, "--split nosuch is neither shares, as in 64,16,20, nor a file"),
        (["--source=glyphs", "--split=background"], 1, "needs Omniglot's own alphabets: leave out --source glyphs"),
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
    assert "--inner-iters 2 there, 3 here; --inner-optimizer adam there, sgd here" in error
    assert {p: p.read_bytes() for p in folder.glob("*.*")} == before


def test_another_network_than_the_checkpoints_is_refused(main, trained):
    code, error = main("--pretrained", f"--checkpoint={trained[0]}", "--preset=omniglot-1shot-20way")
    assert code == 1
    assert "--learning-rate 0.0005 (it has 0.001)" in error


@pytest.mark.slow
@pytest.mark.parametrize("ways", [2, 5])
def test_an_evaluation_may_have_other_ways_than_the_training(main, trained, tmp_path, ways):
    shutil.copytree(trained[0], tmp_path / "run")
    flags = ["--source=glyphs", f"--classes={ways}", "--shots=1", "--eval-samples=4", "--eval-iters=2"]
    assert main("--pretrained", "--checkpoint=run", *flags) == (0, "")
    results = json.loads((tmp_path / "run" / f"evaluation-{ways}way-1shot.json").read_text())
    assert results["task"] == f"omniglot (glyphs), 1-shot {ways}-way"
    assert 0 < results["train"]["accuracy"] <= 1


@pytest.mark.slow
def test_pretrained_tests_on_the_checkpoints_own_split(main, trained, tmp_path, monkeypatch):
    """A newly drawn split would contain characters that the network was trained on."""
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    config = RunFolder(folder).config()
    config["split"] = {"train": config["split"]["test"], "test": config["split"]["train"]}
    (folder / "config.json").write_text(sealed(config))
    tested = {}

    def answers(learner, draw, count, progress, **options):
        tested[progress] = [name for name in draw.args[0].names if "@" not in name]
        return found(learner, draw, 2, **options)

    found = evaluate.answers
    monkeypatch.setattr("reptile_tf.evaluate.answers", answers)
    assert main("--pretrained", f"--checkpoint={folder}")[0] == 0
    assert tested == {"train tasks": config["split"]["train"], "test tasks": config["split"]["test"]}
    code, error = main("--pretrained", f"--checkpoint={folder}", "--seed=1")
    assert code == 1
    assert "--seed 1 (it has 0)" in error


@pytest.mark.parametrize("shape", [(14, 14, 1), (28, 20, 1), (28, 28, 3)])
def test_images_that_the_network_does_not_take_get_one_line_and_leave_nothing(main, tmp_path, monkeypatch, shape):
    images = ImageClasses.from_groups({str(i): np.zeros((6, *shape), np.uint8) for i in range(1300)})
    monkeypatch.setattr("reptile_tf.data.glyphs.load", lambda: images)
    code, error = main(*TINY)
    assert code == 1
    assert f"does not take images of {shape}" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("raised", [MemoryError(), tf.errors.ResourceExhaustedError(None, None, "OOM\nHint: none")])
def test_too_little_memory_gets_one_line(main, monkeypatch, raised):
    def steps(*_, **__):
        raise raised

    monkeypatch.setattr("reptile_tf.meta.MetaLearner.steps", steps)
    code, error = main(*TINY)
    assert code == 1
    assert "not enough memory; lower --meta-batch, --inner-batch or --filters" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_folder_may_have_a_name_that_is_no_text(main):
    folder = os.fsdecode(b"a\xff")
    code, error = main(*TINY, f"--checkpoint={folder}", "--meta-iters=2", "--eval-samples=2")
    assert (code, error) == (0, "")
    assert RunFolder(folder).iterations() == [2]
    assert list(RunFolder(folder).path.glob("events/*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_named(main, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, error = main("--source=glyphs", "--checkpoint=locked/run")
    assert code == 1
    assert "cannot use locked/run" in error

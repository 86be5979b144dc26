"""Small things that several test files share."""

import os
import pathlib
import shutil

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COVERAGE_PROCESS_START", None)  # lines are counted here, not in what tests start

from reptile_tf import backend

backend.import_quietly()

import keras
import numpy as np
import pytest
import tensorflow as tf
from made_imagenet import ImageNet
from mirrors import make_mirror

from reptile_tf import cli, data, device, feed, progress
from reptile_tf.evaluate import Evaluator
from reptile_tf.meta import MetaLearner
from reptile_tf.network import Predictions
from reptile_tf.problems.omniglot import PROBLEM

DEMO = pathlib.Path(__file__).parent.parent / "demo"
in_node = pytest.mark.skipif(
    shutil.which("node") is None or not (DEMO / "node_modules").is_dir(), reason="needs Node.js and npm ci in demo/"
)


def pytest_terminal_summary(terminalreporter):
    """Shows what tests have counted (`record_property`), also those that ran in other processes."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for _, value in report.user_properties:
                terminalreporter.write_line(f"{report.nodeid}: {value}")


@pytest.fixture
def float64():
    """Keras in float64, so that two ways to compute the same can be told from two that are not."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")  # Keras derives it from floatx once only
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def glyphs():
    """Forty small glyph classes of eight drawings."""
    return data.glyphs.load(classes=40, drawings=8)


@pytest.fixture(scope="session")
def small_model():
    """A function from ways to a two-block network of the paper's kind, the same weights every time."""

    def make(way=3):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.layers.Input((28, 28, 1))])
        for _ in range(2):
            model.add(keras.layers.Conv2D(4, 3, strides=2, padding="same"))
            model.add(keras.layers.BatchNormalization())
            model.add(keras.layers.ReLU())
        model.add(keras.layers.Flatten())
        model.add(keras.layers.Dense(way))
        return model

    return make


@pytest.fixture
def mirror(tmp_path):
    """A folder with made-up archives of Omniglot."""
    return make_mirror(tmp_path / "mirror")


@pytest.fixture
def source(tmp_path):
    """A made-up ImageNet."""
    return ImageNet(tmp_path / "imagenet")


@pytest.fixture
def root(tmp_path):
    """Where to fetch to."""
    return tmp_path / "data"


@pytest.fixture
def direct(monkeypatch):
    """A server on the loopback interface is asked without a proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(autouse=True)
def shown():
    """What the library logs goes to standard output, as in the commands."""
    progress.show_progress()


@pytest.fixture
def main(monkeypatch, capsys, tmp_path):
    """Runs the script's main function in an empty folder: (exit code, the error line)."""
    monkeypatch.setattr(device, "configure", lambda *_: device.Placement(False, {}, "device: as the tests have it"))
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", device.onednn())  # by which this process has imported TensorFlow
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = cli.main(["run_omniglot.py", *arguments], "What it does.", PROBLEM)
        return code, capsys.readouterr().err

    return call


@pytest.fixture
def rehearsed(monkeypatch):
    """Steps that do nothing, and adaptations that answer rightly one by one and wrongly together.

    Two lists, of what they are given: (tasks, meta-step) of each step, and the tasks of each round of adaptations.
    """
    steps, adaptations = [], []

    def logits(self, batch):
        adaptations.append(batch)
        right = np.eye(batch.query_y.shape[1], dtype=np.float32)[batch.query_y]
        return Predictions(right, 1 - right)

    def rehearse(self, batches, rates, **_):
        steps.extend(zip(batches, rates, strict=True))
        return 1.0

    monkeypatch.setattr(MetaLearner, "steps", rehearse)
    monkeypatch.setattr(Evaluator, "logits", logits)
    return steps, adaptations


@pytest.fixture
def one_by_one(monkeypatch):
    """Training compiles one meta-iteration a call, so that a test can count them."""
    monkeypatch.setattr(feed, "MOST", 1)


@pytest.fixture
def eagerly():
    """Runs tf.functions op by op."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def relative(ours, expected, before):
    """‖ours - expected‖ / ‖expected - before‖: how far off a step is, in steps."""
    return np.linalg.norm(ours - expected) / np.linalg.norm(expected - before)

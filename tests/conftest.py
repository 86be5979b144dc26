"""Fixtures and helpers that several test files share."""

import os
import pathlib
import shutil

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COVERAGE_PROCESS_START", None)  # measures coverage here, not in processes that tests start
if not pathlib.Path("/dev/nvidiactl").exists():
    # XLA's compiler for the CPU optimizes less and takes half as long; what the programs compute stays the same.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")

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
    """Shows what the tests have recorded with `record_property`, including those that ran in other processes."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for _, value in report.user_properties:
                terminalreporter.write_line(f"{report.nodeid}: {value}")


@pytest.fixture
def float64():
    """Sets Keras to float64, so that rounding errors cannot be confused with real differences."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")  # Keras derives the policy from floatx only once
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def glyphs():
    """Forty small glyph classes of eight drawings."""
    return data.glyphs.load(classes=40, drawings=8)


@pytest.fixture(scope="session")
def small_model():
    """A function that maps ways to a small network like the paper's, of one block, always with the same weights."""

    def make(way=3):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.layers.Input((28, 28, 1))])
        model.add(keras.layers.Conv2D(4, 3, strides=2, padding="same"))
        model.add(keras.layers.BatchNormalization())
        model.add(keras.layers.ReLU())
        model.add(keras.layers.Flatten())
        model.add(keras.layers.Dense(way))
        return model

    return make


@pytest.fixture
def mirror(tmp_path):
    """A folder with synthetic Omniglot archives."""
    return make_mirror(tmp_path / "mirror")


@pytest.fixture
def source(tmp_path):
    """A synthetic ImageNet."""
    return ImageNet(tmp_path / "imagenet")


@pytest.fixture
def root(tmp_path):
    """The folder to fetch data sets into."""
    return tmp_path / "data"


@pytest.fixture
def direct(monkeypatch):
    """Makes requests to the loopback interface bypass any proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(autouse=True)
def shown():
    """Sends the library's log to standard output, as the commands do."""
    progress.show_progress()


@pytest.fixture
def main(monkeypatch, capsys, tmp_path):
    """A function that runs the script's main function in an empty folder; returns the exit code and the error line."""
    monkeypatch.setattr(device, "configure", lambda *_: device.Placement(False, {}, "device: as the tests have it"))
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", device.onednn())  # as when this process imported TensorFlow
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = cli.main(["run_omniglot.py", *arguments], "What it does.", PROBLEM)
        return code, capsys.readouterr().err

    return call


@pytest.fixture
def rehearsed(monkeypatch):
    """Replaces steps by no-ops, and adaptations by results that are correct one by one and wrong transductively.

    Returns two lists of the calls' arguments: (tasks, meta-step) of each step, and the tasks of each adaptation.
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
    """Makes training compile one meta-iteration per call, so that a test can count them."""
    monkeypatch.setattr(feed, "MOST", 1)


@pytest.fixture
def eagerly():
    """Runs tf.functions eagerly."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def relative(ours, expected, before):
    """Returns the relative error of a step: ‖ours - expected‖ / ‖expected - before‖."""
    return np.linalg.norm(ours - expected) / np.linalg.norm(expected - before)

"""Tests that need a GPU. `make gpu` runs them and writes their measurements to docs/results/gpu.json.

With REPTILE_GPU_REHEARSAL=1 they run on the CPU instead, at tiny sizes, to test the code; no results are written.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from reptile_tf import feed, learners, problems, tasks
from reptile_tf.data import ImageClasses
from reptile_tf.settings import Settings

REHEARSAL = os.environ.get("REPTILE_GPU_REHEARSAL") == "1"
GPUS = len(tf.config.list_physical_devices("GPU"))
ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "docs/results/gpu.json"
PRESETS_TRIED = ["omniglot-1shot-5way", "omniglot-1shot-20way", "miniimagenet-1shot-5way"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (GPUS or REHEARSAL), reason="there is no GPU that TensorFlow can use"),
]


@pytest.fixture(autouse=True, scope="module")
def memory_grows():
    """Makes the memory on the GPU grow on demand, as in a run."""
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    tf.config.experimental.enable_tensor_float_32_execution(False)


def note(test, **figures):
    """Records measurements, with the GPU and the version of TensorFlow."""
    if not REHEARSAL:
        details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        known[test] = figures | {"gpu": details.get("device_name"), "tensorflow": tf.__version__}
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")


def make(preset):
    """Returns settings, a function that makes a stacked learner, and random images."""
    name = preset.split("-")[0]
    tiny = {"filters": 2, "meta_batch": 2, "inner_iters": 2} if REHEARSAL else {}
    settings, scale = Settings.preset(preset, **tiny), 1.0 if name == "omniglot" else 1 / 255

    def learner():
        keras.utils.set_random_seed(0)
        return learners.make_learner(problems.find(name).network(settings), settings, scale, True)

    rng = np.random.default_rng(0)
    image = (28, 28, 1) if name == "omniglot" else (84, 84, 3)
    groups = {str(i): rng.integers(0, 256, (20, *image), np.uint8) for i in range(40)}
    return settings, learner, ImageClasses.from_groups(groups, scale)


def step_of(preset):
    """Returns the change of phi in one meta-iteration, [weight], and phi before it."""
    settings, learner, classes = make(preset)
    one = learner()
    before = one.phi.numpy()
    one.step(tasks.training_tasks(classes, iteration=0, **settings.training_arguments()), 1.0)
    return one.phi.numpy() - before


@pytest.mark.parametrize("preset", PRESETS_TRIED)
@pytest.mark.parametrize(("floatx", "bound"), [("float32", 1e-2), ("float64", 1e-9)])
def test_a_meta_iteration_is_that_of_the_cpu(preset, floatx, bound, request):
    if floatx == "float64":
        request.getfixturevalue("float64")
    with tf.device("CPU:0"):
        expected = step_of(preset)
    ours = step_of(preset)
    difference = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
    note(f"step, {preset}, {floatx}", relative_difference_to_cpu=float(difference))
    assert difference <= bound


@pytest.mark.parametrize("preset", PRESETS_TRIED)
def test_the_rate_and_the_memory(preset, monkeypatch):
    if REHEARSAL:
        monkeypatch.setattr(feed.device, "gpu_memory", lambda: 10**12)
    settings, learner, classes = make(preset)
    images, numbered = feed.images_on_gpu(classes)
    assert images is not None
    one, rates = learner(), {}
    for at_once in (1, 2) if REHEARSAL else (1, 10, 100):
        drawn = [tasks.training_tasks(numbered, iteration=i, **settings.training_arguments()) for i in range(at_once)]
        one.steps(drawn, [0.1] * at_once, images=images)  # compiles
        began, calls = time.perf_counter(), 0
        while time.perf_counter() - began < (0.1 if REHEARSAL else 5.0):
            one.steps(drawn, [0.1] * at_once, images=images)
            calls += 1
        rates[at_once] = calls * at_once / (time.perf_counter() - began)
    peak = 0 if REHEARSAL else tf.config.experimental.get_memory_info("GPU:0")["peak"]
    bound = one.step_bytes(settings.inner_batch) + classes.images.nbytes
    note(f"rate, {preset}", meta_iterations_per_s=rates, peak_bytes=peak, estimated_bytes=bound)
    assert peak <= 2 * bound + 2**28
    assert one._meta_iterations.experimental_get_tracing_count() == len(rates)


def command(folder, meta_iters):
    """Returns the command for a short run on glyphs."""
    settings = f"--meta-iters={meta_iters} --save-interval=20 --eval-samples=20 --eval-iters=5 --eval-tasks=2".split()
    own = ["--device=cpu", "--mode=stacked", "--filters=2"] if REHEARSAL else ["--device=gpu"]
    preset = ["--preset=omniglot-1shot-5way", "--source=glyphs"]
    return ["run_omniglot.py", *preset, *settings, *own, f"--checkpoint={folder}"]


def run(*arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def last_checkpoint(folder):
    with np.load(max(folder.glob("checkpoint-*.npz"))) as arrays:
        return {name: arrays[name] for name in arrays.files if "/" in name or name == "phi"}


def test_a_run_that_is_killed_goes_on(tmp_path):
    meta_iters = 60 if REHEARSAL else 400
    run(*command(tmp_path / "whole", meta_iters))
    killed = subprocess.Popen([sys.executable, *command(tmp_path / "killed", meta_iters)], cwd=ROOT)
    while not list((tmp_path / "killed").glob("checkpoint-*.npz")):
        assert killed.poll() is None
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        killed.send_signal(signal.SIGKILL)
    killed.wait()
    run(*command(tmp_path / "killed", meta_iters))
    ours, expected = last_checkpoint(tmp_path / "killed"), last_checkpoint(tmp_path / "whole")
    same = all(np.array_equal(ours[name], value) for name, value in expected.items())
    note("kill and resume", bit_identical=same)
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-2, atol=1e-3, err_msg=name)


@pytest.mark.skipif(GPUS < 2 and not REHEARSAL, reason="there are fewer than two GPUs")
def test_two_processes_on_two_gpus_train_together(tmp_path):
    said = run("-m", "reptile_tf.launch", "--workers=2", *command(tmp_path / "run", 40))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["workers"] == 2
    note("two GPUs", said=said.splitlines()[0])

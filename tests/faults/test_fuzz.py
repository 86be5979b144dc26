"""Tests random command lines and data: each is either rejected in one line and leaves no files, or trains.

FAULTS_EXAMPLES is their number (5,000 in `make faults`), and FAULTS_SEED the random seed.
"""

import contextlib
import dataclasses
import io
import itertools
import os
import shutil
import signal
import time
from collections import Counter
from typing import NamedTuple

import hypothesis
import keras
import numpy as np
import pytest
import waiting
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from reptile_tf import cli, device, problems
from reptile_tf.data import ImageClasses, miniimagenet
from reptile_tf.problems import omniglot
from reptile_tf.settings import Settings

EXAMPLES = int(os.environ.get("FAULTS_EXAMPLES", "40"))
SEED = int(os.environ.get("FAULTS_SEED", "0"))  # seed of the examples
PARTS = 4 if EXAMPLES >= 1000 else 1  # long runs are shared by processes
SECONDS = waiting.LIMIT  # for one example; more is a hang
DIVERGED = "numbers are not finite", "produced non-finite values"  # can be detected only during a run

IMAGE = {"omniglot": (28, 28, 1), "miniimagenet": (84, 84, 3)}

# Values that may be valid and cause little work. Flags in WORK always get one, since their defaults train for hours.
GOOD = {
    "source": ["raw", "tfds", "glyphs"], "split": ["", "1,1", "2,1,1", "background", "nosuch"],
    "seed": ["0", "1", str(2**63), str(2**64 - 1)], "classes": ["2", "2", "3"],
    "shots": ["1", "2"], "train_shots": ["0", "1", "3"], "filters": ["1", "2"], "inner_batch": ["1", "2", "5"],
    "inner_iters": ["1", "2", "0x2"], "learning_rate": ["0", "1e-3", "1", "1e18", "1e-320"],
    "weight_decay": ["1", "0", "0.5", "1e9"], "foml_tail": ["0"],
    "meta_step": ["0", "-0.0", "0.5", "9e18"], "meta_step_final": ["0", "1"], "meta_batch": ["1", "2", " 1 "],
    "meta_iters": ["1"], "meta_optimizer": ["sgd", "adam"], "eval_batch": ["1", "4"], "eval_iters": ["0", "1"],
    "eval_samples": ["2", "2", "3"], "eval_interval": ["1", "7", str(2**63 - 1)], "eval_tasks": ["1", "2"],
    "checkpoint": ["run", "", "a b", "größe", "多", "$a$_$", "x/y"], "data_dir": ["", "$x^$", "多", "a\nb", "\udcff"],
    "save_interval": ["1", "10", str(2**63 - 1)], "mode": ["auto", "branches", "stacked"],
    "device": ["auto", "cpu"], "tf32": [],
    "replacement": [], "sequential": [], "transductive": [], "skip_bad_images": [],
}  # fmt: skip
WORK = [
    "classes", "shots", "filters", "inner_batch", "inner_iters", "meta_batch", "meta_iters", "eval_iters",
    "eval_samples", "eval_tasks",
]  # fmt: skip
ALGORITHMS = [
    [], ["--foml"], ["--maml", "--sgd"], ["--gradients=1"], ["--gradients", " 1,1"], ["--sgd"], ["--in-turn"],
    ["--algorithm=maml", "--inner-optimizer=sgd"], ["--algorithm", "foml"],
    ["--algorithm=partial-sum", "--gradients=1"],
]  # fmt: skip
# Values that are mostly invalid. Those that some flags accept cause little work.
ODD = [
    "0", "-1", "1.5", "nan", "inf", "-inf", "1e309", "", " ", "abc", "多", "３", "1\n2", "\udcff", "--", "0x", "0x3",
    "1e9", *map(str, (2**31, 2**63, 2**64, 10**12, 10**400)), "9" * 5000, "0x" + "f" * 5000, "True", "none", "1,2",
    "/dev/null/x",
]  # fmt: skip
NAMES = [field.name for field in dataclasses.fields(Settings)]
# Values that would take endless time or memory if they were not rejected.
HUGE = [f"--{f.name}={n}" for f in dataclasses.fields(Settings) if f.type is int for n in (2**31, 10**10, 10**12)]
CONTRADICTIONS = [
    "--foml", "--maml", "--sgd", "--gradients=2", "--gradients=1,0", "--gradients=" + "1" * 5000, "--foml-tail=1",
    "--algorithm=partial-sum", "--inner-optimizer=adam", "--replacement", "--inner-batch=1000",
    "--eval-batch=1000", "--pretrained",
]  # fmt: skip
NO_FLAGS = [
    "stray", "a\nb", "-", "--", "---", "--=", "--=1", "--nosuch", "--nosuch=1", "--noclasses", "--nosgd=1",
    "--sgd=maybe", "--classes", "--preset", "--undefok", "--flagfile", "--flagfile=nosuch", "--flagfile=/",
    "--inner-iter=3", "多", "\udcff", "--多=1", "--\n=1", "--preset=", "--preset=nosuch", "--preset=多\n",
]  # fmt: skip


@st.composite
def written(draw, name, value):
    """Draws the arguments that give a flag a value, or with None turn it on or off."""
    name = name.replace("_", "-") if draw(st.booleans()) else name
    if value is None:
        return [draw(st.sampled_from([f"--{name}", f"--no{name}", f"--{name}=true", f"--{name}=0"]))]
    return draw(st.sampled_from([[f"--{name}={value}"], [f"--{name}", value]]))


@st.composite
def command_lines(draw, problem, mistakes):
    """Draws flags that may be valid, with this number of mistakes among them. The last of repeated flags counts."""
    groups = [draw(st.sampled_from(ALGORITHMS))]
    for name, values in GOOD.items():
        if name not in problem.lacks and (name in WORK or draw(st.integers(0, 2)) == 0):
            groups.append(draw(written(name, draw(st.sampled_from(values or [None])))))
    if draw(st.integers(0, 3)) == 3:
        groups.append(["--preset=" + draw(st.sampled_from(list(problem.presets)))])
    for _ in range(mistakes):
        kind = draw(st.sampled_from(["odd", "odd", "huge", "contradiction", "no flag", "text"]))
        if kind == "odd":
            mistake = draw(written(draw(st.sampled_from(NAMES)), draw(st.sampled_from(ODD))))
        elif kind == "text":
            mistake = [draw(st.text())]
        else:
            lists = {"huge": HUGE, "contradiction": CONTRADICTIONS, "no flag": NO_FLAGS}
            mistake = [draw(st.sampled_from(lists[kind]))]
        groups.insert(draw(st.integers(0, len(groups))), mistake)
    return list(itertools.chain(*groups))


class Data(NamedTuple):
    """The numbers and the kind of synthetic images."""

    counts: dict[str, int]
    shape: tuple[int, int, int]
    brightest: int  # 0: all pixels are equal
    scale: float

    def images(self):
        rng = np.random.default_rng(0)
        groups = {n: rng.integers(0, self.brightest + 1, (c, *self.shape), np.uint8) for n, c in self.counts.items()}
        return ImageClasses.from_groups(groups, self.scale)


@st.composite
def data(draw, problem):
    """Draws 1 to 12 classes of 1 to 6 images, mostly as many as tasks need and of the network's size."""
    if problem.name == "omniglot":  # split by number
        names = [f"class {i}" for i in range(12 - draw(st.integers(0, 10)))]
    else:  # split by name
        sizes = [draw(st.sampled_from([4, 4, 4, 4, 3, 2, 1, 0])) for _ in range(3)]
        names = [f"{part}/{i}" for part, size in zip(miniimagenet.SETS, sizes, strict=True) for i in range(size)]
        names = names or ["train/0"]
    least = draw(st.sampled_from([3, 3, 3, 1]))
    counts = {name: draw(st.integers(least, 6)) for name in names}
    shape = IMAGE[problem.name]
    if draw(st.integers(0, 5)) == 5:
        shape = (draw(st.integers(1, 32)), draw(st.integers(1, 32)), draw(st.sampled_from([1, 3])))
    return Data(counts, shape, draw(st.sampled_from([0, 1, 255])), draw(st.sampled_from([1.0, 1 / 255])))


@st.composite
def cases(draw):
    """Draws a problem, a command line and data. The simplest case comes first, and trains."""
    problem = problems.find(draw(st.sampled_from(["omniglot", "omniglot", "omniglot", "miniimagenet"])))
    mistakes = draw(st.sampled_from([0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]))
    return problem, draw(command_lines(problem, mistakes)), draw(data(problem))


def text_stream(errors):
    return io.TextIOWrapper(io.BytesIO(), "utf-8", errors, write_through=True)


@pytest.fixture
def alarm():
    """Turns a hang into a failure."""

    def too_long(*_):
        pytest.fail(f"no end after {SECONDS} s")  # not an Exception, so that the script cannot handle it

    old = signal.signal(signal.SIGALRM, too_long)
    yield
    signal.signal(signal.SIGALRM, old)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_anything_is_refused_in_one_line_or_trains(part, tmp_path, monkeypatch, eagerly, alarm, record_property):
    """Runs eagerly, since compilation takes seconds. Stacked tasks are vectorized, but without XLA."""
    monkeypatch.setattr(
        device, "configure", lambda _, __, mode, ___: device.Placement(mode == "stacked", {}, "device: none")
    )
    monkeypatch.setattr(device, "cores", lambda: 1)  # fewer tasks side by side
    set_hypothesis_home_dir(tmp_path / "hypothesis")  # keeps it out of the repository
    work, outcomes = tmp_path / "work", Counter()

    def called(case):
        """Runs the script in an empty folder; returns the exit code, standard error and the files left behind."""
        problem, arguments, made_up = case
        images, output, error = made_up.images(), text_stream("strict"), text_stream("backslashreplace")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        with monkeypatch.context() as patch, contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
            patch.chdir(work)
            for load in ("omniglot.load_raw", "omniglot.load_tfds", "glyphs.load", "miniimagenet.load"):
                patch.setattr(f"reptile_tf.data.{load}", lambda *_, **__: images)
            patch.setattr(omniglot, "TRAINING_CHARACTERS", max(1, len(images) // 2))
            signal.alarm(SECONDS)
            try:
                code = cli.main(["run.py", *arguments], "What it does.", problem)
            finally:
                signal.alarm(0)
                keras.backend.clear_session(free_memory=False)
        return code, error.buffer.getvalue().decode(), {path.name for path in work.rglob("*")}

    @hypothesis.seed(SEED * PARTS + part)
    @hypothesis.settings(
        max_examples=EXAMPLES // PARTS, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(cases())
    def each(case):
        code, error, left = called(case)
        if code == 0:
            assert not error
            assert {"model.keras", "results.json"} <= left
            assert any(name.startswith("checkpoint-") for name in left)
        else:
            assert code in (1, 2)
            assert error.startswith("run.py: ")
            assert len(error.splitlines()) == 1
            assert not left or any(reason in error for reason in DIVERGED)
        outcomes[code] += 1

    print(f"FAULTS_SEED={SEED}")  # shown if the test fails
    began = time.monotonic()
    each()
    counts = f"{outcomes[0]} trained, {outcomes[2]} refused for flags, {outcomes[1]} for data"
    record_property("counts", f"{counts}, in {time.monotonic() - began:.0f} s (FAULTS_SEED={SEED})")
    assert outcomes[0] >= max(1, EXAMPLES // PARTS // 40)
    assert outcomes[1] >= EXAMPLES // PARTS // 100  # zero if there are only a few examples
    assert outcomes[2] >= EXAMPLES // PARTS // 10

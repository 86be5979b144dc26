"""Tests of experiments/: each script runs at a tiny size, and results that theory predicts are correct."""

import csv
import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pytest
import taylor  # of experiments/
import waiting

pytestmark = pytest.mark.slow
EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"
TINY = (
    *("--source=glyphs", "--filters=4", "--meta-iters=4", "--eval-samples=4", "--eval-interval=2", "--eval-tasks=2"),
    "--eval-iters=2",
)


def run(script, *arguments):
    command = [sys.executable, EXPERIMENTS / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=waiting.LIMIT, check=False)


@pytest.fixture
def here(monkeypatch, capsys):
    """A function that runs a script in this process; returns its exit code and what it wrote to stderr."""

    def run_here(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(EXPERIMENTS / script), run_name="__main__")
        return caught.value.code, capsys.readouterr().err

    return run_here


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "only"),
    [
        ("gradient_combinations", ["g1", "1of2(g1+g2)"]),
        ("inner_minibatches", ["separate-replacement-2"]),
        ("outer_optimizer", ["adam-0.001"]),
        ("adam_order", ["turn-seed1"]),
    ],
)
def test_an_experiment_at_a_tiny_size(name, only, tmp_path, here):
    own = f"--out={tmp_path}", f"--runs={tmp_path / 'runs'}", f"--only={','.join(only)}"
    assert here(f"{name}.py", *own, *TINY) == (0, "")
    found = rows(tmp_path / f"{name}.csv")
    assert [row["run"] for row in found if row["kind"] == "final"] == only
    assert {row["meta_iterations"] for row in found if row["kind"] == "validation"} == {"2", "4"}
    assert all(0 <= float(row["accuracy_percent"]) <= 100 for row in found)
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_maml_beside_reptile_at_a_tiny_size(tmp_path):
    own = (f"--out={tmp_path}", f"--runs={tmp_path / 'runs'}", "--only=maml-1,reptile-5", "--seconds=0.1", *TINY)
    done = run("maml.py", *own)
    assert done.returncode == 0, done.stderr
    maml, reptile = rows(tmp_path / "maml.csv")
    assert (maml["algorithm"], reptile["k"]) == ("maml", "5")
    assert float(maml["seconds"]) > 0
    assert float(reptile["memory_mib"]) > 1
    assert float(reptile["variance_untrained"]) > 0
    assert (tmp_path / "maml.png").stat().st_size > 10_000
    # Finished runs are reused, but only with the same settings.
    done = run("maml.py", *own, "--seed=1")
    assert done.returncode == 1
    assert "finished run with another seed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("wrong", "message"), [("--no-such-flag", "no_such_flag"), ("--only=g7", "no run 'g7'"), ("--jobs=0", "--jobs")]
)
def test_flags_that_are_none_are_refused_before_anything_runs(tmp_path, here, wrong, message):
    code, said = here("gradient_combinations.py", f"--runs={tmp_path / 'runs'}", f"--out={tmp_path}", wrong)
    assert code == 2
    assert message in said.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_the_sine_regression_learns_to_learn(tmp_path):
    done = run(
        "sine.py", "--meta-iters=6000", "--tasks=50", f"--out={tmp_path}", f"--runs={tmp_path / 'runs'}", "--watch"
    )
    assert done.returncode == 0, done.stderr
    error = {
        (row["network"], row["inner_steps"]): float(row["mean_squared_error"]) for row in rows(tmp_path / "sine.csv")
    }
    assert error["Reptile", "32"] < 0.7 * error["Reptile", "0"]
    assert error["Reptile", "32"] < error["joint training (k = 1)", "32"]
    assert (tmp_path / "sine.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def terms():
    x, y = taylor.draw_waves(0, 4)
    return x, y, taylor.two_terms(taylor.network(0), x, y)


@pytest.mark.parametrize("k", taylor.STEPS)
@pytest.mark.parametrize("name", taylor.THEORY)
def test_the_taylor_coefficients_are_the_papers(name, k, terms):
    """The error decreases with the rate, to far below the difference between any two algorithms' coefficients."""
    x, y, two = terms
    expected = np.array(taylor.THEORY[name].of_k(k))
    meta_gradient = taylor.ExpectedMetaGradient(taylor.THEORY[name], 0, k, x, y)
    errors = []
    for rate in (2.0**-12, 2.0**-14):
        found = taylor.fit(meta_gradient(rate), two, rate)
        errors.append(np.abs(np.array([found.avg_grad, found.avg_grad_inner]) / expected - 1))
    assert errors[0][1] < 0.03
    assert (errors[1] < errors[0] / 3).all()


def test_taylor_at_a_tiny_size(tmp_path, monkeypatch):
    monkeypatch.setattr(taylor, "STEPS", (2,))
    monkeypatch.setattr(sys, "argv", ["taylor.py", "--tasks=2", f"--out={tmp_path}"])
    assert taylor.main() == 0
    assert len(rows(tmp_path / "taylor.csv")) == len(taylor.RATES) * len(taylor.THEORY)
    assert (tmp_path / "taylor.png").stat().st_size > 10_000

"""Checks the paper's Taylor analysis (section 5.1) numerically: the terms of each algorithm's expected meta-gradient.

The inner optimizer is SGD with learning rate a. For minibatches that are i.i.d. within a task, the expectations over
tasks and minibatches are, up to O(a²):

  MAML              AvgGrad - 2(k-1)a · AvgGradInner
  first-order MAML  AvgGrad - (k-1)a · AvgGradInner
  Reptile / a       k · AvgGrad - ½k(k-1)a · AvgGradInner

A step along -AvgGrad = -E[g'_1] decreases the expected loss over tasks. A step along AvgGradInner = E[H'_2 g'_1]
increases the inner product between the gradients of different minibatches of a task. Here a task is a sine wave with
two minibatches, and the network is a small tanh perceptron in float64. All 2^k sequences of minibatches are computed,
so the expectations are exact over the drawn tasks. The package's own meta-gradients are fitted by the two terms (least
squares). As a tends to 0, the coefficient of AvgGradInner divided by a tends to the one in the formulas.

  python experiments/taylor.py        takes less than two minutes
"""

import argparse
import itertools
import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

import common
import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

import reptile_tf as rt
from reptile_tf import plots, tasks
from reptile_tf.meta_gradients import MetaGradient
from reptile_tf.progress import Progress, log

MINIBATCHES, SAMPLES = 2, 5  # minibatches per task, and samples per minibatch
RATES = tuple(2.0**-i for i in range(4, 13))
STEPS = (2, 3, 5)


class Theory(NamedTuple):
    """The paper's result for an algorithm.

    Attributes:
      meta_gradient: the algorithm's meta-gradient.
      apart: whether it takes the last minibatch separately.
      of_k: the coefficients of AvgGrad and a · AvgGradInner as a function of k.
    """

    meta_gradient: MetaGradient
    apart: bool
    of_k: Callable[[int], tuple[float, float]]


THEORY = {
    "MAML": Theory(rt.maml, True, lambda k: (1, -2 * (k - 1))),
    "first-order MAML": Theory(rt.foml, True, lambda k: (1, -(k - 1))),
    "Reptile": Theory(rt.reptile, False, lambda k: (k, -k * (k - 1) / 2)),
}


class Fit(NamedTuple):
    """The fitted coefficients of AvgGrad and a · AvgGradInner, and the relative residual norm."""

    avg_grad: float
    avg_grad_inner: float
    residual: float


def network(seed: int) -> keras.Model:
    """Builds a 1-8-1 tanh perceptron in float64, which is smooth enough for a Taylor series."""
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(8, activation="tanh", dtype="float64"), keras.layers.Dense(1, dtype="float64")]
    return keras.Sequential([keras.layers.Input((1,), dtype="float64"), *layers])


def draw_waves(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws tasks: x and y, float64 [task, sample, 1] each. Each minibatch consists of SAMPLES successive samples."""
    rng = tasks.generator(seed, tasks.TRAINING, 0, 0)
    x = rng.uniform(-2, 2, [count, MINIBATCHES * SAMPLES, 1])
    amplitude, phase = rng.uniform(0.1, 2, [count, 1, 1]), rng.uniform(0, 2 * np.pi, [count, 1, 1])
    return x, amplitude * np.sin(x + phase)


def two_terms(model: keras.Model, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Computes AvgGrad and AvgGradInner by automatic differentiation of the model alone: float64 [weight, 2].

    Since the minibatches are i.i.d. and of equal size, E[H'_2 g'_1] of a task is H g for the task's mean loss.
    """
    variables = model.trainable_variables
    total = 0.0
    for of_x, of_y in zip(x, y, strict=True):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                loss = common.mean_squared_error(of_y, model(of_x))
            gradient = inner.gradient(loss, variables)
            # H g is the gradient of ½ g·g.
            half_norm = sum(tf.reduce_sum(g * g) for g in gradient) / 2
        hessian_gradient = outer.gradient(half_norm, variables)
        total += np.stack([np.concatenate([np.ravel(t) for t in ts]) for ts in (gradient, hessian_gradient)], axis=1)
    return total / len(x)


class ExpectedMetaGradient:
    """The mean meta-gradient over tasks and all sequences of k minibatches, as a function of the learning rate a.

    SGD with learning rate 1 on a times the loss equals SGD with rate a on the loss, without compiling again for every
    a. It multiplies all meta-gradients by a, MAML's included, so the result is divided by a.
    """

    def __init__(self, theory: Theory, seed: int, k: int, x: np.ndarray, y: np.ndarray):
        self._rate = tf.Variable(1.0, dtype=tf.float64)
        sequences = np.array(list(itertools.product(range(MINIBATCHES), repeat=k)), np.int32)
        dealt = np.repeat(sequences[..., np.newaxis] * SAMPLES + np.arange(SAMPLES, dtype=np.int32), len(x), axis=0)
        parts = (dealt[:, :-1], dealt[:, -1:]) if theory.apart else (dealt,)
        self._tasks = tasks.Tasks(*(np.tile(array, (len(sequences), 1, 1)) for array in (x, y)), *parts)
        self._learner = rt.MetaLearner(
            network(seed),
            keras.optimizers.SGD(1.0),
            keras.optimizers.SGD(),
            meta_gradient=theory.meta_gradient,
            meta_batch=len(dealt),
            stacked=True,
            loss=lambda y, outputs: self._rate * common.mean_squared_error(y, outputs),
        )

    def __call__(self, rate: float) -> np.ndarray:
        """Returns the mean meta-gradient divided by the rate: float64 [weight]."""
        self._rate.assign(rate)
        return self._learner.meta_gradients(self._tasks).mean(0) / rate


def fit(meta_gradient: np.ndarray, terms: np.ndarray, rate: float) -> Fit:
    """Fits a meta-gradient, [weight], by the two terms, [weight, 2], with least squares."""
    terms = terms * [1, rate]
    coefficients, *_ = np.linalg.lstsq(terms, meta_gradient)
    left = np.linalg.norm(meta_gradient - terms @ coefficients) / np.linalg.norm(meta_gradient)
    return Fit(*map(float, coefficients), float(left))


def run(arguments: argparse.Namespace) -> None:
    """Fits all meta-gradients, and writes the CSV file and the figure."""
    x, y = draw_waves(arguments.seed, arguments.tasks)
    terms = two_terms(network(arguments.seed), x, y)
    rows = []
    with Progress("setting", len(THEORY) * len(STEPS), unit="setting") as progress:
        for (name, theory), k in itertools.product(THEORY.items(), STEPS):
            meta_gradient, (first, second) = ExpectedMetaGradient(theory, arguments.seed, k, x, y), theory.of_k(k)
            for rate in RATES:
                found = fit(meta_gradient(rate), terms, rate)
                rows.append(
                    {"algorithm": name, "k": k, "rate": rate}
                    | {"avg_grad": f"{found.avg_grad:.6f}", "theory_avg_grad": f"{first:g}"}
                    | {"avg_grad_inner": f"{found.avg_grad_inner:.6f}", "theory_avg_grad_inner": f"{second:g}"}
                    | {"residual": f"{found.residual:.2e}"}
                )
            log.info(
                f"{name}, k = {k}, a = {rate:.5f}: {found.avg_grad:.4f} AvgGrad "
                f"{found.avg_grad_inner:+.4f} a AvgGradInner (theory: {first:g} and {second:+g})"
            )
            progress.advance(1)
    common.write_csv(arguments.out / "taylor.csv", rows)
    figure = Figure(figsize=(10, 6), layout="constrained")
    draw(figure, rows)
    common.save(figure, arguments.out / "taylor.png")


def draw(figure: Figure, rows: list[dict]) -> None:
    """Draws the fitted coefficients of AvgGradInner against the rate, and their difference from the theory."""
    panels = figure.subplots(1, 2)
    colors = dict(zip(THEORY, (plots.BLUE, plots.ORANGE, plots.GREEN), strict=True))
    styles = dict(zip(STEPS, ("o-", "s--", "^:"), strict=False))
    for name, k in itertools.product(THEORY, STEPS):
        mine = [row for row in rows if (row["algorithm"], row["k"]) == (name, k)]
        found = np.array([float(row["avg_grad_inner"]) for row in mine])
        theory = float(mine[0]["theory_avg_grad_inner"])
        options = {"color": colors[name], "markersize": 4, "label": f"{name}, k = {k}"}
        panels[0].plot(RATES, found, styles[k], **options)
        panels[0].axhline(theory, color=colors[name], linewidth=0.6, alpha=0.6)
        panels[1].plot(RATES, np.abs(found / theory - 1), styles[k], **options)
    panels[1].plot(RATES, RATES, color=plots.GREY, linewidth=1, label="∝ a, for comparison")
    panels[0].set(ylabel="coefficient of a · AvgGradInner", title="fitted; thin lines: the paper's")
    panels[1].set(
        ylabel="relative difference from the paper's", yscale="log", title="the difference falls with the rate"
    )
    for axes in panels:
        axes.set(xscale="log", xlabel="learning rate of the inner loop, a")
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize=8)


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=common.HERE / "results", help="folder for CSV and figure")
    arguments = parser.parse_args()
    if arguments.tasks < 1 or not 0 <= arguments.seed < 2**32:
        parser.error("--tasks must be at least 1, --seed from 0 to 2**32 - 1")
    return common.guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())

"""Sine regression, the blog post's minimal example: learn to fit a sine wave from ten points.

A task is a wave y = A · sin(x + phase), with A in [0.1, 5] and phase in [0, 2π), on 50 points of [-5, 5]. The network
is a 1-64-64-1 tanh perceptron. The inner loop makes one pass over the 50 points in minibatches of ten, with SGD on the
mean squared error. Training takes 30,000 meta-iterations, with step size 0.1 → 0. A test fits ten fixed points of a new
wave in 32 steps.

  python experiments/sine.py              trains, tests on 1,000 new waves, draws the figure; about a minute and a half
  python experiments/sine.py --watch      redraws the figure every 1,000 meta-iterations

The tasks and the loss are defined here: `reptile_tf.meta_train` accepts any sampler of tasks and any loss. For
comparison, the same network is also trained jointly (k = 1: one step per task, which learns the mean of all waves), and
left untrained.
"""

import argparse
import functools
import math
import pathlib
import sys

import common
import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

import reptile_tf as rt
from reptile_tf import plots, tasks
from reptile_tf.inner_loop import Adaptation, InnerLoop
from reptile_tf.progress import log
from reptile_tf.train import Callback

X = np.linspace(-5, 5, 50, dtype=np.float32)[:, np.newaxis]
BATCH, INNER_RATE, META_STEP = 10, 0.02, 0.1
STEPS_BETWEEN, STEPS = 8, (0, 8, 16, 24, 32)
SIDE_BY_SIDE = 8


def make_model(seed: int) -> keras.Model:
    """Builds the untrained network, with the same weights for the same seed."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.layers.Input((1,))])
    for _ in range(2):
        model.add(keras.layers.Dense(64, activation="tanh"))
    model.add(keras.layers.Dense(1))
    return model


def wave(rng: np.random.Generator) -> np.ndarray:
    """Draws a random wave on the grid, float32 [50, 1]."""
    return rng.uniform(0.1, 5) * np.sin(X + rng.uniform(0, 2 * math.pi)).astype(np.float32)


def training_tasks(seed: int, steps: int, *, iteration: int, first: int, count: int) -> tasks.Tasks:
    """Draws tasks of a meta-iteration for `meta_train`, each with `steps` minibatches of one pass over the points."""
    waves, minibatches = [], []
    for task in range(first, first + count):
        rng = tasks.generator(seed, tasks.TRAINING, iteration, task)
        waves.append(wave(rng))
        minibatches.append(rng.permutation(len(X)).astype(np.int32).reshape(-1, BATCH)[:steps])
    return tasks.Tasks(np.stack([X] * count), np.stack(waves), np.stack(minibatches))


class Test:
    """Fits new waves from ten fixed points and compares the fit with the whole wave.

    Args:
      learner: the learner to test. Every call uses its current state and leaves it unchanged.
      seed: random seed of the points and the waves.
      count: number of waves.
    """

    def __init__(self, learner: rt.MetaLearner, seed: int, count: int):
        self.points = np.sort(tasks.generator(seed, tasks.EVALUATION, 1, 0).choice(len(X), BATCH, replace=False))
        self.waves = np.stack([wave(tasks.generator(seed, tasks.EVALUATION, 0, i)) for i in range(count)])
        inner = InnerLoop(learner.network, learner.inner_optimizer, SIDE_BY_SIDE)
        self._compiled = tf.function(
            lambda batch: inner.run(self._outputs_on_the_way, batch, learner.phi, learner.inner_state)[0]
        )

    @staticmethod
    def _outputs_on_the_way(adaptation: Adaptation, task: tasks.Tasks) -> tf.Tensor:
        outputs = [adaptation.outputs(task.x)]
        for first in STEPS[:-1]:
            adaptation.adapt(task, task.minibatches[:, first : first + STEPS_BETWEEN])
            outputs.append(adaptation.outputs(task.x))
        return tf.stack(outputs, axis=1)

    def fits(self, count: int | None = None) -> np.ndarray:
        """Returns the network's outputs after each number of steps in STEPS: float32 [wave, len(STEPS), 50, 1]."""
        fits = []
        for first in range(0, count or len(self.waves), SIDE_BY_SIDE):
            y = np.take(self.waves, range(first, first + SIDE_BY_SIDE), axis=0, mode="clip")  # pads the last batch
            minibatches = np.broadcast_to(self.points.astype(np.int32), (SIDE_BY_SIDE, STEPS[-1], BATCH))
            fits.append(self._compiled(tasks.Tasks(np.broadcast_to(X, y.shape), y, minibatches)).numpy())
        return np.concatenate(fits)[: count or len(self.waves)]

    def errors(self) -> np.ndarray:
        """Returns the mean squared error on the whole grid: [wave, len(STEPS)]."""
        return ((self.fits() - self.waves[:, np.newaxis]) ** 2).mean((2, 3))


def train(arguments: argparse.Namespace, steps: int, redraw: Callback | None) -> tuple[rt.MetaLearner, float]:
    """Meta-trains with `steps` inner steps, or resumes the run; returns the learner and the seconds of training."""
    settings = rt.Settings(
        seed=arguments.seed,
        inner_optimizer="sgd",
        learning_rate=INNER_RATE,
        inner_batch=BATCH,
        inner_iters=steps,
        meta_step=META_STEP,
        meta_step_final=0.0,
        meta_iters=arguments.meta_iters,
        eval_interval=1000,
    )
    folder = rt.RunFolder(arguments.runs / f"{steps}-steps")
    learner = rt.meta_train(
        make_model(arguments.seed),
        functools.partial(training_tasks, arguments.seed, steps),
        settings,
        folder=folder,
        loss=common.mean_squared_error,
        callback=redraw,
    )
    return learner, folder.load().seconds


def untrained(arguments: argparse.Namespace) -> tuple[rt.MetaLearner, float]:
    """Returns an untrained learner, and 0 seconds."""
    inner, outer = keras.optimizers.SGD(INNER_RATE), keras.optimizers.SGD()
    return rt.MetaLearner(make_model(arguments.seed), inner, outer, loss=common.mean_squared_error), 0.0


def draw(path: pathlib.Path, tests: dict[str, Test], errors: dict[str, np.ndarray]) -> None:
    """Draws how each network fits one new wave, and the errors of all networks against the number of steps."""
    figure = Figure(figsize=(4 * (len(tests) + bool(errors)), 4), layout="constrained")
    panels = figure.subplots(1, len(tests) + bool(errors), squeeze=False)[0]
    shades = [plots.GREY, *("#A6CEE3", plots.SKY, "#2F8FC4", plots.BLUE)]
    for axes, (name, test) in zip(panels, tests.items(), strict=False):
        axes.plot(X, test.waves[0], color="black", linewidth=1, label="true wave")
        for steps, fit, color in zip(STEPS, test.fits(1)[0], shades, strict=True):
            style = "--" if steps == 0 else "-"
            axes.plot(X, fit, color=color, linestyle=style, label=f"{steps} steps" if steps else "before")
        axes.plot(X[test.points], test.waves[0][test.points], "x", color=plots.ORANGE, label="the ten points")
        axes.set(title=name, xlabel="x", ylabel="y", ylim=(-8.5, 6))
        axes.legend(fontsize=7, loc="lower left", ncols=2)
    if errors:
        styles = zip(errors, (plots.BLUE, plots.ORANGE, plots.GREY), ("o-", "s--", "^:"), strict=True)
        for name, color, style in styles:
            panels[-1].plot(STEPS, errors[name].mean(0), style, color=color, label=name)
        panels[-1].set(xlabel="inner steps", ylabel="mean squared error", yscale="log", xticks=STEPS)
        panels[-1].set_yticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"], minor=False)
        panels[-1].minorticks_off()
        panels[-1].set_title(f"mean over {len(next(iter(errors.values()))):,} new waves")
        panels[-1].legend(fontsize=8)
        panels[-1].grid(alpha=0.3)
    plots.save(figure, path)


def run(arguments: argparse.Namespace) -> None:
    """Trains and tests all networks, and writes the CSV file and the figure."""
    common.make(arguments.out)
    csv, picture = (arguments.out / f"sine.{suffix}" for suffix in ("csv", "png"))
    tests, errors, rows = {}, {}, []
    for name, steps in (("Reptile", 5), ("joint training (k = 1)", 1), ("untrained", 0)):
        redraw = None
        if steps > 1 and arguments.watch:
            log.info(f"{picture} is drawn anew every 1,000 meta-iterations: open it in a viewer that reloads")

            def redraw(iteration: int, results: dict[str, float], learner: rt.MetaLearner, name: str = name) -> None:
                draw(picture, {name: Test(learner, arguments.seed, 1)}, {})

        learner, seconds = train(arguments, steps, redraw) if steps else untrained(arguments)
        tests[name] = Test(learner, arguments.seed, arguments.tasks)
        errors[name] = tests[name].errors()
        said = []
        for at, of_waves in zip(STEPS, errors[name].T, strict=True):
            mean, ci95 = of_waves.mean(), 1.96 * of_waves.std(ddof=1) / math.sqrt(len(of_waves))
            said.append(f"{mean:.3f} ± {ci95:.3f} after {at}")
            rows.append(
                {"network": name, "inner_steps": at, "mean_squared_error": f"{mean:.4f}", "ci95": f"{ci95:.4f}"}
            )
        log.info(f"{name}, {seconds:.0f} s of training: mean squared error {', '.join(said)} steps")
    common.write_csv(csv, rows)
    draw(picture, tests, errors)
    log.info(f"{picture} and {csv.name} are written")


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--meta-iters", type=int, default=30_000)
    parser.add_argument("--tasks", type=int, default=1000, help="number of new waves to test on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--watch", action="store_true", help="redraw the figure during training")
    parser.add_argument("--out", type=pathlib.Path, default=common.HERE / "results", help="folder for CSV and figure")
    parser.add_argument(
        "--runs",
        type=pathlib.Path,
        default=pathlib.Path("checkpoints/sine"),
        help="folder of the runs; the same command resumes what is there",
    )
    arguments = parser.parse_args()
    if arguments.meta_iters < 1 or arguments.tasks < 2 or not 0 <= arguments.seed < 2**32:
        parser.error("--meta-iters must be at least 1, --tasks at least 2, --seed from 0 to 2**32 - 1")
    return common.guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())

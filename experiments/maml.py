"""Compares MAML and its first-order variants with Reptile: accuracy, time, memory, and variance of the update.

All use the same network, tasks, inner SGD, outer Adam and evaluation, on Omniglot 5-way 1-shot:

  maml        k steps, then the gradient of the loss on ten images set aside, differentiated through the steps (second
              derivatives)
  fomaml      the same without second derivatives: the gradient at the adapted weights
  foml        the paper's first-order MAML without a query set: only the step on the last of k minibatches counts
  reptile     the steps on all k minibatches count
  joint       joint training, to which Reptile and foml reduce for k = 1

Each is trained for 400 meta-iterations. Afterwards, with nothing else running, its time, memory and update are measured
in a separate process. The figure's wall time is the number of meta-iterations times the measured time of one.

  python experiments/maml.py
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import common
import numpy as np
from matplotlib.figure import Figure

from reptile_tf import flags, plots
from reptile_tf.errors import UserError
from reptile_tf.progress import Progress, log

FLAGS = (
    "--classes 5 --shots 1 --train-shots 10 --inner-batch 10 --sgd --learning-rate 0.01 --meta-batch 5 "
    "--meta-optimizer adam --meta-step 0.001 --meta-iters 400 --transductive --eval-batch 5 --eval-iters 10 "
    "--eval-interval 50 --eval-tasks 40 --eval-samples 500"
)
STEPS = (1, 3, 5, 10)
ALGORITHMS = {
    "maml": (lambda k: f"--maml --foml-tail 2 --inner-iters {k + 1}", "MAML", plots.ORANGE, "o-"),
    "fomaml": (lambda k: f"--foml --foml-tail 2 --inner-iters {k + 1}", "MAML, first order", plots.GREEN, "s--"),
    "foml": (lambda k: f"--foml --inner-iters {k}", "FOML", plots.SKY, "^-."),
    "reptile": (lambda k: f"--inner-iters {k}", "Reptile", plots.BLUE, "D-"),
}
TASKS = 100  # number of tasks for measuring the variance
TRAINED = common.HERE.parent / "pretrained" / "omniglot-5way"
SHOWN = 5  # the k of the learning curves


def all_runs() -> dict[str, str]:
    """Returns the flags of each run. For k = 1, FOML and Reptile are both joint training, which runs only once."""
    runs = {"joint-1": f"{FLAGS} --inner-iters 1"}
    for k in STEPS:
        runs |= {
            f"{name}-{k}": f"{FLAGS} {own(k)}"
            for name, (own, *_) in ALGORITHMS.items()
            if k > 1 or name in ("maml", "fomaml")
        }
    return runs


def measure(own: list[str], seconds: float) -> dict[str, float]:
    """Measures the time, memory and variance of one setting's meta-iterations, in this process.

    Args:
      own: flags of run_omniglot.py.
      seconds: how long to time meta-iterations.

    Returns:
      "seconds": median time of a meta-iteration, including that for drawing its tasks.
      "memory_mib": peak increase of resident memory since before the first meta-iteration, including compilation.
      "variance_untrained" and "variance_trained": variance of the meta-gradient over TASKS tasks, divided by the
        squared norm of their mean, at random and at trained weights. It is about TASKS if the mean is only noise.
    """
    import keras

    import reptile_tf as rt
    from reptile_tf import device, learners, tasks
    from reptile_tf.problems.omniglot import PROBLEM

    settings, _ = flags.parse(["", *own], "", PROBLEM)
    stacked = device.configure(settings.meta_batch, settings.device, settings.mode, settings.tf32).stacked
    images, _ = PROBLEM.load(settings)
    classes = PROBLEM.for_training(PROBLEM.split(images, settings)["train"], settings)
    keras.utils.set_random_seed(settings.seed)
    learner = learners.make_learner(PROBLEM.network(settings), settings, classes.scale, stacked)

    def batch(iteration: int) -> tasks.Tasks:
        return tasks.training_tasks(classes, iteration=iteration, **settings.training_arguments())

    first, before = batch(0), _resident("VmRSS")
    _forget_peak()
    untrained = learner.state()
    learner.step(first, 1e-3)
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        began = time.perf_counter()
        learner.step(batch(len(times)), 1e-3)
        times.append(time.perf_counter() - began)
    found = {"seconds": statistics.median(times), "memory_mib": (_resident("VmHWM") - before) / 1024}
    batches = [batch(i) for i in range(TASKS // settings.meta_batch)]
    learner.restore(untrained)
    found["variance_untrained"] = _relative_variance(np.concatenate([learner.meta_gradients(b) for b in batches]))
    trained = rt.load(TRAINED)
    if trained.phi.shape != learner.phi.shape:  # a smaller network, to try out the script
        return found | {"variance_trained": float("nan")}
    learner.phi.assign(trained.phi)
    found["variance_trained"] = _relative_variance(np.concatenate([learner.meta_gradients(b) for b in batches]))
    return found


def _resident(what: str) -> float:
    """Returns this process's memory in KiB: now (VmRSS), or its peak since `_forget_peak` (VmHWM)."""
    with _only_on_linux():
        return float(pathlib.Path("/proc/self/status").read_text().split(f"{what}:")[1].split()[0])


def _forget_peak() -> None:
    with _only_on_linux():
        pathlib.Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def _only_on_linux() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"memory is measured by Linux's /proc/self, which cannot be used here: {error}") from error


def _relative_variance(gradients: np.ndarray) -> float:
    """Returns the variance of gradients, [task, weight], summed over the weights and divided by ‖their mean‖²."""
    gradients = gradients.astype(np.float64)
    return float(gradients.var(0, ddof=1).sum() / (gradients.mean(0) ** 2).sum())


def _measured(folder: pathlib.Path, name: str, own: list[str], seconds: float) -> dict[str, float]:
    """Runs `measure` in a separate process, and stores the result, so that an interrupted experiment can resume."""
    path, flags_ = folder / f"{name}.measured.json", [*own, "--seconds", str(seconds)]
    kept = json.loads(path.read_text()) if path.exists() else {}
    if kept.get("flags") != flags_:
        command = [sys.executable, __file__, "--measure", *flags_]
        done = subprocess.run(command, capture_output=True, text=True, env=common.ENVIRONMENT, check=False)
        if done.returncode:
            raise UserError(f"measuring {name} failed: {(done.stderr.splitlines() or ['?'])[-1]}")
        kept = {"flags": flags_, "found": json.loads(done.stdout.splitlines()[-1])}
        common.files.write_text(path, json.dumps(kept) + "\n")
    return kept["found"]


def run(arguments: argparse.Namespace, extra: list[str]) -> None:
    """Trains and measures all settings, and writes the CSV files and the figure."""
    runs = common.chosen(all_runs(), arguments.only)
    finished = common.run_all(arguments, runs, extra)
    rows = []
    with Progress("measurement", len(runs), unit="measurement") as progress:
        for one in finished:
            name, k = one.name.split("-")
            own = [*runs[one.name].split(), *extra]
            found = _measured(arguments.runs, one.name, own, arguments.seconds)
            row = {"algorithm": name, "k": int(k), "meta_iterations": one.results["meta_iterations"]}
            rows.append(row | common.percent(one.final) | {key: f"{value:.4g}" for key, value in found.items()})
            log.info(f"{one.name}: " + ", ".join(f"{key} {value}" for key, value in rows[-1].items()))
            progress.advance(1)
    common.write_csv(arguments.out / "maml_curves.csv", common.curve_rows(finished))
    common.write_csv(arguments.out / "maml.csv", rows)
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    draw(figure, finished, rows)
    common.save(figure, arguments.out / "maml.png")


def draw(figure: Figure, runs: list[common.Run], rows: list[dict[str, Any]]) -> None:
    """Draws the learning curves for one k, the variance, and the final accuracy, time and memory against k."""
    (by_iterations, by_time, variance), (accuracy, seconds, memory) = figure.subplots(2, 3)
    of = {f"{row['algorithm']}-{row['k']}": row for row in rows}
    curves = {f"{name}-{SHOWN}": (label, color, style[1:]) for name, (_, label, color, style) in ALGORITHMS.items()}
    curves["joint-1"] = ("joint training", plots.GREY, ":")
    for run in runs:
        if run.name in curves:
            label, color, style = curves[run.name]
            for axes, scale in ((by_iterations, 1.0), (by_time, float(of[run.name]["seconds"]))):
                common.draw_curves(axes, run, label, scale=scale, color=color, linestyle=style)
    if "joint-1" in of:
        of["reptile-1"] = of["foml-1"] = of["joint-1"]  # for k = 1 all three are the same
    for name, (_, label, color, style) in ALGORITHMS.items():
        line = {k: row for k in STEPS if (row := of.get(f"{name}-{k}"))}
        for axes, column in (
            (accuracy, "accuracy_percent"),
            (seconds, "seconds"),
            (memory, "memory_mib"),
            (variance, "variance_untrained"),
        ):
            axes.plot(
                list(line), [float(row[column]) for row in line.values()], style, color=color, label=label, markersize=5
            )
    held_out = "accuracy on held-out characters (%)"
    by_iterations.set(xlabel="meta-iteration", ylabel=held_out, title=f"k = {SHOWN}")
    by_time.set(xlabel="seconds of training", ylabel=held_out, title=f"k = {SHOWN}")
    accuracy.set(
        ylabel="accuracy on test characters (%)", title=f"after {rows[0]['meta_iterations']:,} meta-iterations"
    )
    seconds.set(ylabel="seconds per meta-iteration", title="time")
    memory.set(ylabel="MiB", title="peak memory added, compiling included")
    variance.set(ylabel="variance / ‖mean‖²", yscale="log", title=f"meta-gradient over {TASKS} tasks, untrained")
    for axes in (variance, accuracy, seconds, memory):
        axes.set(xlabel="inner steps, k", xticks=STEPS)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    by_iterations.legend(fontsize=8, loc="lower right")


def main() -> int:
    """Reads the command line; returns the exit code."""
    parser = common.parser(__doc__, "maml")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long to measure the time of each setting")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments, extra = parser.parse_known_args()
    if arguments.measure:
        return common.guarded(lambda: print(json.dumps(measure(extra, arguments.seconds))))
    return common.guarded(lambda: run(arguments, extra))


if __name__ == "__main__":
    sys.exit(main())

"""Code shared by the experiments: runs run_omniglot.py, one run per core, and writes tables and figures."""

import argparse
import concurrent.futures
import csv
import dataclasses
import io
import itertools
import json
import os
import pathlib
import queue
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from reptile_tf import backend

backend.import_quietly()

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from reptile_tf import configuration, device, files, flags, plots
from reptile_tf.checkpoint import RunFolder
from reptile_tf.distributed import tf_config
from reptile_tf.errors import UserError
from reptile_tf.evaluate import Accuracy
from reptile_tf.problems.omniglot import PROBLEM
from reptile_tf.progress import Progress, log, show_progress

HERE = pathlib.Path(__file__).resolve().parent
RUN_OMNIGLOT = HERE.parent / "run_omniglot.py"
# The committed results were computed with oneDNN off.
ENVIRONMENT = {"TF_ENABLE_ONEDNN_OPTS": "0"} | os.environ


class Run(NamedTuple):
    """A finished run.

    Attributes:
      name: the run's name in its experiment.
      results: the content of its results.json.
      history: float64 [task, 3], see `checkpoint.Checkpoint`.
    """

    name: str
    results: dict[str, Any]
    history: np.ndarray

    @property
    def final(self) -> Accuracy:
        """The accuracy on test characters, transductive if the run has that flag."""
        return Accuracy(**self.results["test"])

    def curve(self, points: int = 10) -> Iterable[tuple[float, Accuracy]]:
        """Returns the validation accuracy during training: up to `points` pairs of meta-iteration and mean accuracy."""
        return plots.curve(self.history, points)


def parser(doc: str, name: str) -> argparse.ArgumentParser:
    """Returns a parser for the flags that all experiments share."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("--out", type=pathlib.Path, default=HERE / "results", help="folder for the CSV and the figure")
    made.add_argument(
        "--runs",
        type=pathlib.Path,
        default=pathlib.Path("checkpoints") / name.replace("_", "-"),
        help="folder of the runs; finished ones are reused, unfinished ones resumed",
    )
    made.add_argument(
        "--jobs",
        type=int,
        default=device.cores(),
        help="runs at a time, one core each (default: all cores)",
    )
    made.add_argument("--only", type=lambda names: names.split(","), help="only the runs of these names: A,B,…")
    made.epilog = "Any other flag is passed to run_omniglot.py in all runs: --data-dir, --source, --meta-iters, …"
    return made


def main(doc: str, name: str, runs: dict[str, str], draw: Callable[[Figure, list[Run]], None]) -> int:
    """Runs an experiment that consists only of runs of run_omniglot.py; returns the exit code.

    Args:
      doc: the script's docstring, for --help.
      name: name of the experiment and its files.
      runs: flags of each run, by name.
      draw: draws the finished runs.
    """
    arguments, extra = parser(doc, name).parse_known_args()
    return guarded(lambda: _main(arguments, extra, name, runs, draw))


def guarded(work: Callable[[], None]) -> int:
    """Calls `work`, prints a user error as one line, and returns the exit code."""
    program = os.path.basename(sys.argv[0])
    show_progress()
    try:
        if tf_config.of_this_process().count > 1:
            raise UserError("experiments run on one host and join no cluster: leave TF_CONFIG out")
        work()
    except flags.FlagsError as error:
        print(f"{program}: {error.on_command_line} (see run_omniglot.py --help)", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"{program}: {error.on_command_line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue")
        return 130
    return 0


def _main(arguments, extra, name, runs, draw) -> None:
    finished = run_all(arguments, chosen(runs, arguments.only), extra)
    write_csv(arguments.out / f"{name}.csv", curve_rows(finished))
    figure = Figure(figsize=(8, 5), layout="constrained")
    draw(figure, finished)
    save(figure, arguments.out / f"{name}.png")
    for run in finished:
        log.info(f"{run.name}: {run.final}")


def chosen(runs: dict[str, str], only: Sequence[str] | None) -> dict[str, str]:
    """Returns the runs named in `only`, or all if it is None; raises FlagsError for an unknown name."""
    if only is None:
        return runs
    unknown = [name for name in only if name not in runs]
    if unknown:
        raise flags.FlagsError(f"--only: no run {unknown[0]!r}; there are: {', '.join(runs)}")
    return {name: runs[name] for name in only}


def run_all(arguments: argparse.Namespace, runs: dict[str, str], extra: Sequence[str]) -> list[Run]:
    """Runs run_omniglot.py for each of `runs`, several at a time on one core each. Finished runs are reused.

    Args:
      arguments: has `runs`, the folder that holds each run's folder NAME and its output NAME.log, and `jobs`, the
        number of simultaneous runs.
      runs: flags of each run, by name.
      extra: flags for all runs, which override those in `runs`.

    Raises:
      FlagsError: run_omniglot.py rejects the flags.
      UserError: a run failed, or its folder holds a finished run with other settings.
    """
    for own in runs.values():
        flags.parse([RUN_OMNIGLOT.name, *own.split(), *extra], "", PROBLEM)
    if arguments.jobs < 1:
        raise flags.FlagsError(f"--jobs must be at least 1, not {arguments.jobs}")
    make(arguments.runs)
    cores: queue.SimpleQueue = queue.SimpleQueue()
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    for core in itertools.islice(itertools.cycle(allowed), arguments.jobs):
        cores.put(core)

    def settle() -> None:
        core = cores.get()
        if core is not None:
            os.sched_setaffinity(0, {core})  # applies to this thread and the processes that it starts

    finished = []
    with (
        concurrent.futures.ThreadPoolExecutor(arguments.jobs, initializer=settle) as pool,
        Progress("run", len(runs), unit="run") as progress,
    ):
        for run in pool.map(lambda item: _run(arguments.runs, item[0], [*item[1].split(), *extra]), runs.items()):
            finished.append(run)
            progress.advance(1, f"{run.name}: {run.final}")
    return finished


def _run(folder: pathlib.Path, name: str, own: Sequence[str]) -> Run:
    run_folder, log = RunFolder(folder / name), folder / f"{name}.log"
    results = run_folder.path / "results.json"
    if not results.exists():
        command = [sys.executable, str(RUN_OMNIGLOT), *own, "--checkpoint", str(run_folder.path)]
        with open(log, "a") as output:
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=ENVIRONMENT, check=False)
        if done.returncode:
            lines = log.read_text().splitlines() or [f"exit code {done.returncode}"]
            raise UserError(f"run {name} failed: {lines[-1]} (all of it is in {log})")
    try:
        found = json.loads(results.read_text())
        recorded = {key: value for key, value in found["settings"].items() if key not in ("checkpoint", "data_dir")}
        there = configuration.todays_settings(recorded)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"cannot read {results} ({error!r}): move it away, and the run's last part is done anew"
        ) from error
    wanted = dataclasses.asdict(flags.parse([RUN_OMNIGLOT.name, *own], "", PROBLEM)[0])
    other = [key for key, value in there.items() if wanted.get(key) != value]
    if other:
        raise UserError(f"{run_folder.path} holds a finished run with another {other[0]}: choose another --runs")
    return Run(name, found, run_folder.load().history)


def curve_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns the rows of a CSV file: the learning curves on held-out characters, and the final accuracies."""
    rows = []
    for run in runs:
        validations = [("validation", at, accuracy) for at, accuracy in run.curve()]
        for kind, at, accuracy in [*validations, ("final", run.results["meta_iterations"], run.final)]:
            rows.append({"run": run.name, "kind": kind, "meta_iterations": round(at)} | percent(accuracy))
    return rows


def percent(accuracy: Accuracy) -> dict[str, Any]:
    """Returns an accuracy as columns of a CSV file."""
    return {
        "accuracy_percent": f"{100 * accuracy.accuracy:.2f}",
        "ci95_percent": f"{100 * accuracy.ci95:.2f}",
        "tasks": accuracy.tasks,
    }


def mean_squared_error(y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Returns the loss of the experiments with sine waves: maps two floatx [sample, 1] to a scalar."""
    return tf.reduce_mean((y - outputs) ** 2)


def write_csv(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows with the same columns to a CSV file."""
    make(path.parent)
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, text.getvalue())


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure and logs its path."""
    make(path.parent)
    plots.save(figure, path)
    log.info(f"{path} and {path.with_suffix('.csv').name} are written")


def draw_curves(axes: Any, run: Run, label: str = "", scale: float = 1.0, **style: Any) -> None:
    """Draws a run's held-out accuracy with its 95 % interval, against its meta-iterations times `scale`."""
    points = list(run.curve())
    at = scale * np.array([at for at, _ in points])
    mean, ci95 = (100 * np.array([getattr(accuracy, name) for _, accuracy in points]) for name in ("accuracy", "ci95"))
    (line,) = axes.plot(at, mean, label=label or run.name, **style)
    axes.fill_between(at, mean - ci95, mean + ci95, color=line.get_color(), alpha=0.12, linewidth=0)


def make(folder: pathlib.Path) -> None:
    """Creates a folder; raises UserError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot use {folder}: {error.strerror}") from error

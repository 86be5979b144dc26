"""Measures the cost of training with 100 to 100,000 classes: preparing them, drawing a task, and a meta-iteration.

  python benchmarks/classes.py                                            # random classes of 20 images, 28x28
  python benchmarks/classes.py --json docs/results/classes.json --picture docs/classes-scaling.png

For each number of classes, a separate process writes the images into a store, as a run does with decoded images, maps
it, draws tasks and trains the paper's network for Omniglot. The times of drawing and training are medians over rounds
in which the processes take turns, so that they are comparable on a machine whose speed drifts. The result is JSON with
one row per number of classes.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
import provenance

from reptile_tf import backend, files

IMAGES, SIZE = 20, 28  # images per class, and their height and width
PRESET = "omniglot-1shot-5way"
COLUMNS = ("seconds to prepare", "ms to sample a task", "ms of a meta-iteration", "own memory, MB")
DRAWN = 1000  # tasks per measurement


def made_up(folder: pathlib.Path, count: int):
    """Makes a store of `count` classes of random images; returns them and the seconds for writing and mapping."""
    from reptile_tf.data import cache

    rng = np.random.default_rng(0)
    hundred = rng.integers(0, 2, (100, IMAGES, SIZE, SIZE, 1), np.uint8)  # repeated, since content does not matter

    def fill(array: np.ndarray) -> tuple[dict[str, int], dict]:
        for number in range(count):
            array[number * IMAGES : (number + 1) * IMAGES] = hundred[number % 100]
        return {f"class {number}": IMAGES for number in range(count)}, {}

    began = time.perf_counter()
    shape = (count * IMAGES, SIZE, SIZE, 1)
    classes = cache.prepared(folder / "made-up.json", "made up", shape, fill).classes()
    return classes, time.perf_counter() - began


def worker(count: int, folder: pathlib.Path) -> None:
    """Runs in a separate process: prepares the classes, then answers each number of meta-iterations read with JSON."""
    from reptile_tf import device, learners, tasks
    from reptile_tf.problems.omniglot import PROBLEM
    from reptile_tf.settings import Settings

    settings = Settings.preset(PRESET)
    device.configure(settings.meta_batch)
    classes, seconds = made_up(folder, count)
    learner = learners.make_learner(PROBLEM.network(settings), settings, classes.scale)
    drawing = settings.training_arguments() | {"shots": 1, "batch": 5, "count": 1}
    training, done = settings.training_arguments(), 0

    def meta_iterations(number: int) -> None:
        nonlocal done
        for _ in range(number):
            learner.step(tasks.training_tasks(classes, iteration=done, **training), 0.1)
            done += 1

    def task(iteration: int) -> float:
        began = time.perf_counter()
        tasks.training_tasks(classes, iteration=iteration, **drawing)
        return 1000 * (time.perf_counter() - began)

    meta_iterations(3)  # compiles
    print(json.dumps(seconds), flush=True)
    for line in sys.stdin:
        sampled = statistics.median(task(iteration) for iteration in range(DRAWN))
        began = time.perf_counter()
        meta_iterations(int(line))
        trained = 1000 * (time.perf_counter() - began) / int(line)
        own = [row for row in pathlib.Path("/proc/self/status").read_text().splitlines() if row.startswith("RssAnon")]
        print(json.dumps([sampled, trained, int(own[0].split()[1]) * 1024 / 1e6]), flush=True)


def measured(counts: list[int], meta_iters: int, rounds: int, folder: pathlib.Path) -> dict[str, list[float]]:
    """Measures all; returns the values of COLUMNS by number of classes."""
    processes, prepared = {}, {}
    for count in counts:
        here = folder / str(count)
        here.mkdir()
        command = [sys.executable, __file__, "--worker", str(count), "--folder", str(here)]
        processes[count] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        prepared[count] = json.loads(processes[count].stdout.readline())
        print(f"{count:,} classes: prepared in {prepared[count]:.2f} s", flush=True)
    got: dict[int, list] = {count: [] for count in counts}
    for number in range(rounds):
        for count in counts if number % 2 else counts[::-1]:
            print(meta_iters, file=processes[count].stdin, flush=True)
            got[count].append(json.loads(processes[count].stdout.readline()))
    for process in processes.values():
        process.stdin.close()
        process.wait()
        process.stdout.close()
    rows = {}
    for count in counts:
        medians = [statistics.median(column) for column in zip(*got[count], strict=True)]
        rows[f"{count:,}"] = [round(prepared[count], 3), round(medians[0], 3), round(medians[1], 1), round(medians[2])]
    return rows


def draw(path: pathlib.Path, rows: dict[str, list[float]]) -> None:
    """Draws the first three columns against the number of classes."""
    from matplotlib.figure import Figure

    from reptile_tf import plots

    counts = [int(name.replace(",", "")) for name in rows]
    figure = Figure(figsize=(9, 3), layout="constrained")
    for index, axes in enumerate(figure.subplots(1, 3)):
        name, column = COLUMNS[index], [row[index] for row in rows.values()]
        axes.plot(counts, column, color=plots.BLUE, marker="o")
        axes.set(xscale="log", xlabel="classes", title=name)
        axes.grid(alpha=0.3)
        axes.set(**{"yscale": "log"} if index == 0 else {"ylim": (0, 1.5 * max(column))})
    plots.save(figure, path)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--meta-iters", type=int, default=5, help="meta-iterations per round")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=pathlib.Path, help="file to write the result to")
    parser.add_argument("--picture", type=pathlib.Path, help="PNG to draw")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    backend.import_quietly()
    if arguments.worker:
        worker(arguments.worker, arguments.folder)
        return
    with tempfile.TemporaryDirectory(dir=".") as folder:
        load = os.getloadavg()[0]
        rows = measured(arguments.classes, arguments.meta_iters, arguments.rounds, pathlib.Path(folder))
    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/classes.py", *sys.argv[1:]]),
        **provenance.of_now(),
        "load average before": round(load, 2),
        "images of a class": IMAGES,
        "columns": COLUMNS,
        "rows": rows,
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if arguments.json:
        files.write_text(arguments.json, text)
    if arguments.picture:
        draw(arguments.picture, rows)


if __name__ == "__main__":
    main()

"""Evaluates several training runs in every way: Omniglot's numbers in docs/results.md.

  python benchmarks/seeds.py pretrained/omniglot-5way checkpoints/seed1 --data-dir data/omniglot

Each run is evaluated with 1 and 5 shots, one by one and transductively, on 10,000 tasks of its test characters and of
its training characters. Each of these evaluations adds an entry to docs/results/seeds.json, and the same command goes
on with those that are missing. At the end, or with --rows, it prints the means over seeds and, where a seed was trained
both side by side and sequentially, their difference on the same tasks.

The interval of a mean over seeds covers the draw of tasks and the choice of characters, which each seed repeats: half
its width is √(Σ (c² + k²)) / n for n seeds, with the half-widths c and k of these two. What training itself adds shows
only in the spread between seeds; from three seeds on, Student's interval from that spread is printed, too, which covers
all three.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
import shlex
import sys
import time
from typing import Any

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the run script does

from reptile_tf import backend

backend.import_quietly()

import numpy as np
import provenance

import reptile_tf as rt
from reptile_tf import configuration, device, evaluate, files, tasks
from reptile_tf.checkpoint import RunFolder
from reptile_tf.errors import UserError
from reptile_tf.evaluate import Accuracy
from reptile_tf.problems.omniglot import PROBLEM
from reptile_tf.settings import Settings

PAPER = pathlib.Path(__file__).parent.parent / "docs" / "results" / "paper.json"
OUT = PAPER.with_name("seeds.json")
WAYS = ("one by one", "transductive")
STUDENT = {3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % points of Student's t distribution, by number of seeds


def settings_of(config: dict[str, Any], shots: int, count: int) -> Settings:
    """Returns the paper's evaluation settings for the ways of a run, with the run's seed."""
    trained = configuration.settings_of(config)
    preset = f"omniglot-{shots}shot-{trained.classes}way"
    kept = {name: getattr(trained, name) for name in ("seed", "sequential", "source")}
    return Settings.preset(preset, eval_samples=count, **kept)


def name_of(config: dict[str, Any]) -> str:
    """Returns a run's name, from what distinguishes it: "5-way, seed 0" or "5-way, seed 0, sequential"."""
    trained = configuration.settings_of(config)
    return f"{trained.classes}-way, seed {trained.seed}" + (", sequential" if trained.sequential else "")


def evaluated(path: pathlib.Path, shots: int, part: str, count: int, data_dir: str) -> dict[str, Any]:
    """Evaluates a run on one set of characters; returns an entry of the results.

    The entry has the accuracy in both ways, and the number of right answers in each task as a letter, a for none.
    """
    folder = RunFolder(path)
    config, checkpoint = folder.config(), folder.load()
    settings, whole = settings_of(config, shots, count), configuration.settings_of(config).meta_iters
    if checkpoint.iteration < whole:
        raise UserError(f"{path} is at meta-iteration {checkpoint.iteration:,} of {whole:,}: finish it first")
    learner = rt.load(path)
    images, _ = PROBLEM.load(dataclasses.replace(settings, data_dir=data_dir))
    where = {name: index for index, name in enumerate(images.names)}
    missing = [name for name in config["split"][part] if name not in where]
    if missing:
        raise UserError(f"{missing[0]} is not in {data_dir}, though {path} has it in its set {part}")
    classes = images.subset([where[name] for name in config["split"][part]])
    if part == "train":
        classes = PROBLEM.for_training(classes, settings)
    draw = functools.partial(tasks.evaluation_tasks, classes, **settings.evaluation_arguments())
    began = time.monotonic()
    both = evaluate.answers(learner, draw, count, progress=f"{shots}-shot, {part}")
    of_way = dict(zip(WAYS, (both.one_by_one, both.transductive), strict=True))
    right = {way: (answers.answers == answers.labels).sum(1) for way, answers in of_way.items()}
    return {
        "command": shlex.join(["python", "benchmarks/seeds.py", str(path), f"--data-dir={data_dir}"]),
        **provenance.of_now(),
        "seed": settings.seed,
        "trained by": {name: getattr(settings, name) for name in ("classes", "sequential", "seed")},
        "onednn": device.onednn(),
        "meta_iterations": checkpoint.iteration,
        "training_seconds": round(checkpoint.seconds),
        "evaluation_seconds": round(time.monotonic() - began),
        **{way: answers.accuracy()._asdict() for way, answers in of_way.items()},
        "right": {way: "".join(chr(ord("a") + number) for number in numbers) for way, numbers in right.items()},
    }


def mean(accuracies: list[dict[str, Any]]) -> tuple[float, float, float | None]:
    """Returns the mean over seeds in %, and half the widths of its intervals: by tasks and characters, and by seeds."""
    values = 100 * np.array([each["accuracy"] for each in accuracies])
    parts = [each[name] or 0.0 for each in accuracies for name in ("ci95", "ci95_classes")]
    student = STUDENT.get(len(values))
    spread = student * values.std(ddof=1) / math.sqrt(len(values)) if student else None
    return float(values.mean()), 100 * math.hypot(*parts) / len(values), spread


def difference(sequential: dict[str, Any], side_by_side: dict[str, Any], way: str) -> Accuracy:
    """Returns the mean difference in accuracy on the same tasks, with the interval of the paired difference."""
    ways = sequential["trained by"]["classes"]
    right = [np.frombuffer(each["right"][way].encode(), np.uint8).astype(int) for each in (sequential, side_by_side)]
    return Accuracy.of((right[0] - right[1]) / ways)


def tables(found: dict[str, dict[str, Any]]) -> str:
    """Returns the table of means over seeds, and that of paired differences if there are any, in Markdown."""
    papers = json.loads(PAPER.read_text())["accuracies"]
    groups: dict[tuple[str, str], dict[str, dict[str, dict[str, Any]]]] = {}
    for key, entry in found.items():
        run, shots, part = key.split("; ")
        ways, seed, *sequential = run.split(", ")
        seeds = groups.setdefault((f"{ways} {shots}", ", ".join(["", *sequential])), {}).setdefault(part, {})
        seeds[seed.removeprefix("seed ")] = entry
    means, gaps = [], []
    for (task, how), parts in groups.items():
        for way, suffix in zip(WAYS, ("", ", transductive"), strict=True):
            paper = "{:.2f} ± {:.2f}".format(*papers[f"Omniglot, {task}{suffix}"])
            cells = [_cell([entry[way] for entry in parts.get(part, {}).values()]) for part in ("test", "train")]
            of_seeds = {seed: entry[way]["accuracy"] for seed, entry in parts.get("test", {}).items()}
            each = ", ".join(f"{100 * accuracy:.2f} (seed {seed})" for seed, accuracy in sorted(of_seeds.items()))
            means.append(f"| {task}{suffix}{how} | {paper} | {cells[0]} | {each} | {cells[1]} |")
            others = groups.get((task, ""), {}).get("test", {}) if how else {}
            for seed in sorted(others.keys() & of_seeds.keys()):
                gap = difference(parts["test"][seed], others[seed], way)
                gaps.append(f"| {task}{suffix}, seed {seed} | {100 * gap.accuracy:+.2f} ± {100 * gap.ci95:.2f} |")
    head = ["| | paper | mean over seeds | each seed | training characters |", "|---|---|---|---|---|"]
    paired = ["", "| | sequential minus side by side |", "|---|---|", *gaps] if gaps else []
    return "\n".join([*head, *means, *paired])


def _cell(accuracies: list[dict[str, Any]]) -> str:
    if not accuracies:
        return "–"
    value, interval, spread = mean(accuracies)
    return f"{value:.2f} ± {interval:.2f}" + ("" if spread is None else f" (by the seeds' spread ± {spread:.2f})")


def main() -> None:
    """Reads the command line, evaluates what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=pathlib.Path, help="folders of finished runs")
    parser.add_argument("--data-dir", default="data/omniglot", help="Omniglot")
    parser.add_argument("--tasks", type=int, default=10_000, help="number of tasks of each evaluation")
    parser.add_argument("--out", type=pathlib.Path, default=OUT, help="the file of results")
    parser.add_argument("--rows", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    if arguments.tasks < 2:
        parser.error("--tasks must be at least 2")
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if not arguments.rows:
        rt.show_progress()
        device.configure(device.cores(), "auto", "auto", False)
        for part, shots, path in itertools.product(("test", "train"), (1, 5), arguments.runs):
            key = f"{name_of(RunFolder(path).config())}; {shots}-shot; {part}"
            if key in found and found[key][WAYS[0]]["tasks"] != arguments.tasks:
                raise UserError(f"{arguments.out} has {key} with another number of tasks: choose another --out")
            if key not in found:
                print(key, flush=True)
                found[key] = evaluated(path, shots, part, arguments.tasks, arguments.data_dir)
                files.write_text(arguments.out, json.dumps(found, indent=1) + "\n")
    print(tables(found))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"seeds.py: {error.on_command_line}")

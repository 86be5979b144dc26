"""Meta-iterations per second with oneDNN's operations on and off, by processes that take turns.

  python benchmarks/onednn.py --preset omniglot-1shot-5way

The last line is JSON: medians over rounds of both, and of their ratio, with its range.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import provenance

from reptile_tf import backend, problems
from reptile_tf.settings import Settings


def worker(preset: str) -> None:
    """One process: answers each line on its input, a number of meta-iterations, with how many it did per second."""
    backend.import_quietly()
    import numpy as np

    from reptile_tf import data, device, learners, tasks

    settings, problem = Settings.preset(preset), problems.find(preset.split("-")[0])
    device.configure(settings.meta_batch)
    if problem.name == "omniglot":
        classes = data.glyphs.load(classes=200)
    else:  # noise costs the same as photographs
        rng = np.random.default_rng(0)
        groups = {str(label): rng.integers(0, 256, (20, 84, 84, 3), np.uint8) for label in range(50)}
        classes = data.ImageClasses.from_groups(groups, scale=1 / 255)
    learner = learners.make_learner(problem.network(settings), settings, classes.scale)
    batches = [tasks.training_tasks(classes, iteration=i, **settings.training_arguments()) for i in range(20)]

    def rate(count: int) -> float:
        began = time.perf_counter()
        for i in range(count):
            learner.step(batches[i % 20], 0.1)
        return count / (time.perf_counter() - began)

    rate(3)  # compiles
    print(device.onednn(), flush=True)
    for line in sys.stdin:
        print(rate(int(line)), flush=True)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    presets = [preset for name in ("omniglot", "miniimagenet") for preset in problems.find(name).presets]
    parser.add_argument("--preset", default="omniglot-1shot-5way", choices=presets)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--meta-iters", type=int, default=40, help="of each round")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.preset)
        return
    processes, rates = {}, {"0": [], "1": []}
    for on in rates:
        command = [sys.executable, __file__, "--worker", "--preset", arguments.preset]
        environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": on}
        processes[on] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        if processes[on].stdout.readline().strip() != on:
            sys.exit("this TensorFlow cannot turn oneDNN on and off, or a process has ended and said why above")
    for number in range(arguments.rounds):
        for on in rates if number % 2 else reversed(rates):
            print(arguments.meta_iters, file=processes[on].stdin, flush=True)
            rates[on].append(float(processes[on].stdout.readline()))
    for process in processes.values():
        process.stdin.close()
        process.wait()
        process.stdout.close()
    ratios = [on / off for on, off in zip(rates["1"], rates["0"], strict=True)]
    result = {
        "command": " ".join(["python benchmarks/onednn.py", *sys.argv[1:]]),
        **provenance.of_now(),
        "on_per_s": round(statistics.median(rates["1"]), 2),
        "off_per_s": round(statistics.median(rates["0"]), 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "load average after": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

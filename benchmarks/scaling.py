"""Compares two workers with one core each to one worker with two cores, on one machine.

  python benchmarks/scaling.py --meta-batches 4 16 --rounds 5

Both setups are started together and take turns, so that the ratio is meaningful on a machine whose speed drifts: while
one is measured, the other waits. The last line is JSON. For each meta-batch it has the meta-iterations per second of
both setups and their ratio (median and range over the rounds). For the two workers it also has the bytes that each
contributes to the exchange of a meta-iteration, the milliseconds of an exchange without any other work, and those of an
exchange during training, including the wait for the slower worker. Finally it has the times of exchanges of other sizes
without any other work, for two and three workers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from reptile_tf import backend

PRESET = "omniglot-1shot-5way"


def worker(meta_batch: int) -> None:
    """Runs in a separate process: builds a learner, then answers each input line, STEPS or "alone", with JSON."""
    backend.import_quietly()
    import numpy as np
    import tensorflow as tf

    from reptile_tf import data, device, learners, tasks
    from reptile_tf.distributed import cluster, tf_config
    from reptile_tf.problems.omniglot import PROBLEM
    from reptile_tf.settings import Settings

    settings = Settings.preset(PRESET, meta_batch=meta_batch)
    where = tf_config.of_this_process()
    device.configure(-(-meta_batch // where.count))
    workers = cluster.join(where)
    classes = data.glyphs.load(classes=200)
    model = PROBLEM.network(settings)
    learner = learners.make_learner(model, settings, classes.scale, cluster=workers)
    learners.take_from_chief(learner, 0)
    first, count = learner.share
    mine = settings.training_arguments() | {"first": first, "count": max(1, count)}
    batches = [tasks.training_tasks(classes, iteration=i, **mine) for i in range(20)]
    spent, sizes, add = [], [], workers.sum

    def timed_sum(value, **options):
        value.numpy()  # waits for the preceding work
        began = time.perf_counter()
        total = add(value, **options)
        spent.append(time.perf_counter() - began)
        sizes.append(value.shape.num_elements() * value.dtype.size)
        return total

    if where.count > 1:  # with one worker the sum is part of the compiled step
        workers.sum = timed_sum
    for i in range(3):
        learner.step(batches[i], 0.1)
    print("ready", flush=True)

    def alone(floats: int) -> float:
        """Returns the median time of 100 consecutive exchanges, in milliseconds."""
        vector = tf.zeros([floats])
        spent.clear()
        for _ in range(100):
            timed_sum(vector)
        return round(float(np.median(spent)) * 1000, 2)

    own = sizes[-1] if sizes else 0
    for line in sys.stdin:
        if line == "alone\n":
            print(
                json.dumps({floats: alone(floats) for floats in (1, 10_000, 113_221, own // 4, 1_000_000)}), flush=True
            )
            continue
        alone_ms = alone(own // 4) if own else 0.0
        spent.clear()
        steps, began = int(line), time.perf_counter()
        for i in range(steps):
            learner.step(batches[i % 20], 0.1)
        seconds = time.perf_counter() - began
        got = {"rate": steps / seconds, "alone_ms": alone_ms, "bytes": own}
        print(json.dumps(got | {"ms": float(np.mean(spent)) * 1000 if spent else 0.0}), flush=True)


class Group:
    """Processes that run `worker`, with two cores divided among them."""

    def __init__(self, count: int, meta_batch: int):
        from reptile_tf.launch import _free_ports, _part

        addresses, all_cores = [f"127.0.0.1:{port}" for port in _free_ports(count)], os.sched_getaffinity(0)
        cores = sorted(all_cores)[:2]
        self.processes = []
        for index in range(count):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            os.sched_setaffinity(0, _part(cores, index, count))
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, "--worker", str(meta_batch)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=os.environ | {"TF_CONFIG": json.dumps(config)},
                )
            )
        os.sched_setaffinity(0, all_cores)
        for process in self.processes:
            while (line := process.stdout.readline()) != "ready\n":
                if not line:
                    raise RuntimeError("a worker has ended, and said why above")

    def measure(self, what: int | str) -> list[dict[str, float]]:
        """Returns each worker's measurements, over `what` meta-iterations or, if it is "alone", of exchanges alone."""
        for process in self.processes:
            print(what, file=process.stdin, flush=True)
        return [json.loads(process.stdout.readline()) for process in self.processes]

    def end(self) -> None:
        """Ends the workers."""
        for process in self.processes:
            process.stdin.close()
            process.wait()
            process.stdout.close()


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meta-batches", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="approximate seconds per measurement")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker)
        return
    summary: dict[str, Any] = {"preset": PRESET, "rounds": args.rounds, "meta_batches": {}}
    for meta_batch in args.meta_batches:
        groups = {"one": Group(1, meta_batch), "two": Group(2, meta_batch)}
        steps = max(5, round(args.seconds * groups["one"].measure(5)[0]["rate"]))
        rounds = []
        for number in range(args.rounds):
            order = list(groups) if number % 2 == 0 else list(groups)[::-1]
            got = {name: groups[name].measure(steps) for name in order}
            rounds.append(got)
            print(
                f"meta-batch {meta_batch}, round {number + 1}: 1 worker x 2 cores {got['one'][0]['rate']:.2f}, "
                f"2 workers x 1 core {got['two'][0]['rate']:.2f} meta-iterations/s",
                flush=True,
            )
        for group in groups.values():
            group.end()
        ratios = [got["two"][0]["rate"] / got["one"][0]["rate"] for got in rounds]
        of_two = [one for got in rounds for one in got["two"]]
        summary["meta_batches"][meta_batch] = {
            "one_per_s": round(statistics.median(got["one"][0]["rate"] for got in rounds), 2),
            "two_per_s": round(statistics.median(got["two"][0]["rate"] for got in rounds), 2),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
            "exchange_alone_ms": round(statistics.median(one["alone_ms"] for one in of_two), 2),
            "exchange_in_training_ms": round(statistics.median(one["ms"] for one in of_two), 2),
            "exchange_bytes": rounds[0]["two"][0]["bytes"],
        }
    for count in (2, 3):
        group = Group(count, count)
        summary[f"exchange_alone_ms_of_{count}_workers_by_floats"] = group.measure("alone")[0]
        group.end()
    print(json.dumps(summary))


if __name__ == "__main__":
    main()

"""Measures meta-iterations and evaluated tasks per second, compared with loops that a user would write in PyTorch.

  pip install -e .[bench]
  python benchmarks/speed.py --preset omniglot-1shot-5way

All train with the preset and evaluate on the same tasks, taking turns in every round, so that the ratios are meaningful
on a machine whose speed drifts. This package classifies the queries both transductively and one by one, PyTorch only in
the requested way. The PyTorch loops run the tasks of a meta-batch one after another:

  eager     torch.optim.Adam, the network uncompiled
  compiled  fused Adam, torch.compile of the loss; needs a C++ compiler on a CPU
  graphs    like compiled, replayed as CUDA graphs (with --device gpu)

Each uses the number of threads (one or all cores) and the memory format of images that are fastest in a first test. The
last line is JSON: train_ratio and eval_ratio are the medians over the rounds of this package's rate divided by that of
the best PyTorch loop, with ranges.
"""

import argparse
import copy
import itertools
import json
import os
import pathlib
import statistics
import sys
import time
from typing import NamedTuple

from reptile_tf import backend, problems
from reptile_tf.settings import Settings

if any(problems.find(name).onednn and name in " ".join(sys.argv) for name in problems.names()):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
backend.import_quietly()

import numpy as np
import provenance
import tensorflow as tf
import torch
from torch import nn

from reptile_tf import data, device, feed, learners, tasks
from reptile_tf.data import ImageClasses
from reptile_tf.evaluate import Evaluator
from reptile_tf.meta import MetaLearner


def omniglot_network(way: int) -> nn.Module:
    """Builds the same network as `reptile_tf.models.omniglot`."""
    blocks = []
    for channels in (1, 64, 64, 64):
        blocks += [nn.Conv2d(channels, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(256, way))


def miniimagenet_network(way: int) -> nn.Module:
    """Builds the same network as `reptile_tf.models.miniimagenet`."""
    blocks = []
    for channels in (3, 32, 32, 32):
        blocks += [
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.ReLU(),
        ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(1152, way))


def photographs() -> ImageClasses:
    """Makes classes of noise in the shape of Mini-ImageNet's images, since the pixels do not affect the speed."""
    rng = np.random.default_rng(0)
    groups = {str(label): rng.integers(0, 256, (20, 84, 84, 3), np.uint8) for label in range(50)}
    return ImageClasses.from_groups(groups, scale=1 / 255)


# The PyTorch network and the images of each problem.
THEIRS = {
    "omniglot": (omniglot_network, lambda: data.glyphs.load(classes=200)),
    "miniimagenet": (miniimagenet_network, photographs),
}


class Setup(NamedTuple):
    """The options of a PyTorch loop.

    Attributes:
      kind: "eager", "compiled" or "graphs".
      threads: number of threads per operation.
      channels_last: whether images and kernels are stored channels-last.
    """

    kind: str
    threads: int
    channels_last: bool

    def __str__(self) -> str:
        return f"{self.kind}, {self.threads} threads, {'NHWC' if self.channels_last else 'NCHW'}"


class TorchReptile:
    """Reptile as a user would write it in PyTorch."""

    def __init__(self, network: nn.Module, settings: Settings, scale: float, setup: Setup, place: str):
        self.settings = settings
        self.scale = scale
        self.setup = setup
        self.place = place
        self.format = torch.channels_last if setup.channels_last else torch.contiguous_format
        self.network = network.to(place, memory_format=self.format)
        fused = setup.kind != "eager"
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=settings.learning_rate, betas=(0.0, 0.999), fused=fused
        )

        def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(self.network(x), y, reduction="sum")

        mode = {"compiled": "default", "graphs": "reduce-overhead"}.get(setup.kind)
        self.loss = torch.compile(loss, mode=mode) if mode else loss

    def adapt(self, x: torch.Tensor, y: torch.Tensor, minibatches: torch.Tensor) -> None:
        """Runs the inner loop on one task."""
        for samples in minibatches:
            self.optimizer.zero_grad()
            self.loss(x[samples], y[samples]).backward()
            self.optimizer.step()

    def step(self, batch: tasks.Tasks, meta_step: float) -> None:
        """Runs one meta-iteration."""
        torch.set_num_threads(self.setup.threads)
        before = [p.detach().clone() for p in self.network.parameters()]
        total = [torch.zeros_like(p) for p in before]
        for x, y, minibatches in zip(batch.x, batch.y, batch.minibatches, strict=True):
            with torch.no_grad():
                for p, start in zip(self.network.parameters(), before, strict=True):
                    p.copy_(start)
            self.adapt(self.images(x), self.integers(y), self.integers(minibatches))
            for sum_, p in zip(total, self.network.parameters(), strict=True):
                sum_ += p.detach()
        with torch.no_grad():
            for p, start, sum_ in zip(self.network.parameters(), before, total, strict=True):
                p.copy_(start + meta_step * (sum_ / len(batch.x) - start))
        self.finish()

    def evaluate(self, batch: tasks.EvalTasks) -> np.ndarray:
        """Returns the predictions for the queries of each task, int [task, query]."""
        torch.set_num_threads(self.setup.threads)
        network, optimizer = (copy.deepcopy(s.state_dict()) for s in (self.network, self.optimizer))
        predictions = []
        for x, y, minibatches, query in zip(*batch.support[:3], batch.query_x, strict=True):
            self.adapt(self.images(x), self.integers(y), self.integers(minibatches))
            with torch.no_grad():
                if self.settings.transductive:
                    logits = self.network(self.images(query))
                else:
                    each = [torch.cat([self.images(x), self.images(q[None])]) for q in query]
                    logits = torch.stack([self.network(one)[-1] for one in each])
            predictions.append(logits.argmax(-1).cpu().numpy())
            self.network.load_state_dict(network)
            self.optimizer.load_state_dict(optimizer)
        return np.stack(predictions)

    def images(self, array: np.ndarray) -> torch.Tensor:
        """Scales uint8 [sample, height, width, channel] and converts it to float32 [sample, channel, height, width]."""
        image = torch.as_tensor(array).to(self.place).permute(0, 3, 1, 2).float() * self.scale
        return image.contiguous(memory_format=self.format)

    def integers(self, array: np.ndarray) -> torch.Tensor:
        """Returns labels or indices as int64 on the device."""
        return torch.as_tensor(array).long().to(self.place)

    def finish(self) -> None:
        """Waits for the GPU, if there is one, to finish."""
        if self.place == "cuda":
            torch.cuda.synchronize()


class Ours:
    """Runs this package's meta-iterations as a training run does, several per call."""

    def __init__(self, learner: MetaLearner, classes: ImageClasses, settings: Settings):
        images, drawable = feed.images_on_gpu(classes)
        arguments = settings.training_arguments()
        first = tasks.training_tasks(drawable, iteration=0, **arguments)
        size = sum(np.asarray(array).nbytes for array in first)
        self.at_once = max(1, min(feed.MOST if images is not None else 16, feed.BYTES // size))
        self._batches = [tasks.training_tasks(drawable, iteration=i, **arguments) for i in range(self.at_once)]
        self._learner = learner
        self._images = images

    def step(self) -> None:
        """Runs `at_once` meta-iterations."""
        self._learner.steps(self._batches, [0.1] * self.at_once, images=self._images)


def rate(work, units: int, seconds: float) -> float:
    """Calls `work`, which does `units` units, with 0, 1, 2, … for at least `seconds`; returns the units per second."""
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        work(calls)
        calls += 1
    return calls * units / (time.perf_counter() - began)


def fastest(kind: str, make, training: list[tasks.Tasks], seconds: float, gpu: bool) -> TorchReptile:
    """Returns a PyTorch loop of this kind, with the threads and the memory format that train fastest."""
    rates = {}
    for threads, channels_last in itertools.product([1] if gpu else sorted({1, device.cores()}), (False, True)):
        theirs = make(Setup(kind, threads, channels_last))
        for _ in range(2):  # compile and warm up
            theirs.step(training[0], 0.1)
        rates[theirs] = rate(lambda i, theirs=theirs: theirs.step(training[i % len(training)], 0.1), 1, seconds)
        print(f"PyTorch {theirs.setup}: {rates[theirs]:.2f} meta-iterations/s", flush=True)
    return max(rates, key=rates.get)


def summary(rates: dict[str, list[float]], ours: str = "ours") -> dict[str, object]:
    """Returns the median of each, and the median and range over the rounds of the ratio of ours to the best other."""
    medians = {name: statistics.median(each) for name, each in rates.items()}
    best = max((name for name in rates if name != ours), key=medians.get)
    ratios = [a / b for a, b in zip(rates[ours], rates[best], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "best": best,
        "per_s": {name: round(median, 2) for name, median in medians.items()},
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preset",
        default="omniglot-1shot-5way",
        choices=[preset for each in map(problems.find, problems.names()) for preset in each.presets],
    )
    parser.add_argument("--transductive", action="store_true", help="PyTorch evaluates transductively")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0, help="seconds per measurement")
    parser.add_argument("--mode", default="auto", choices=("auto", "branches", "stacked"))
    parser.add_argument(
        "--sequential", "--in-turn", action="store_true", help="tasks one after another, as the PyTorch loops"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--against", default="", help="kinds of PyTorch loops, with commas (default: all)")
    parser.add_argument("--write", type=pathlib.Path, help="JSON file of results by preset, to be added to")
    args = parser.parse_args()

    name, gpu = args.preset.split("-")[0], args.device == "gpu"
    settings = Settings.preset(
        args.preset,
        transductive=args.transductive,
        mode=args.mode,
        sequential=args.sequential,
        device=args.device,
    )
    stacked, record, line = device.configure(1 if settings.sequential else settings.meta_batch, args.device)
    network, load = THEIRS[name]
    classes = load()
    model = problems.find(name).network(settings)
    learner = learners.make_learner(model, settings, classes.scale, stacked)
    evaluator = Evaluator(learner)
    training = [tasks.training_tasks(classes, iteration=i, **settings.training_arguments()) for i in range(20)]
    arguments = settings.evaluation_arguments()
    testing = [
        tasks.evaluation_tasks(classes, first=i * evaluator.tasks, count=evaluator.tasks, **arguments) for i in range(5)
    ]

    def make(setup: Setup) -> TorchReptile:
        return TorchReptile(network(settings.classes), settings, classes.scale, setup, "cuda" if gpu else "cpu")

    print(f"{args.preset}; ours: {line}; PyTorch {torch.__version__}; {provenance.processor()}", flush=True)
    kinds = args.against.split(",") if args.against else ["eager", "compiled", *(["graphs"] if gpu else [])]
    rivals = [fastest(kind, make, training, min(2.0, args.seconds), gpu) for kind in kinds]
    ours = Ours(learner, classes, settings)
    contests = {
        "train": {"ours": (lambda i: ours.step(), ours.at_once)}
        | {str(r.setup): (lambda i, r=r: r.step(training[i % len(training)], 0.1), 1) for r in rivals},
        "eval": {"ours": (lambda i: evaluator.logits(testing[i % len(testing)]), evaluator.tasks)}
        | {str(r.setup): (lambda i, r=r: r.evaluate(testing[i % len(testing)]), evaluator.tasks) for r in rivals},
    }
    for contest in contests.values():  # compile and warm up
        for work, _ in contest.values():
            work(0)
    rates = {what: {name: [] for name in contest} for what, contest in contests.items()}
    for number in range(args.rounds):
        for what, contest in contests.items():
            for name, (work, units) in contest.items():
                rates[what][name].append(rate(work, units, args.seconds))
            unit = "meta-iterations" if what == "train" else "tasks"
            said = "; ".join(f"{name} {each[-1]:.2f}" for name, each in rates[what].items())
            print(f"round {number + 1} {what}: {said} {unit}/s", flush=True)
    results = {
        "command": " ".join(["python benchmarks/speed.py", *sys.argv[1:]]),
        **provenance.of_now(),
        **record,
        "rounds": args.rounds,
        "versions": {"tensorflow": tf.__version__, "torch": torch.__version__},
    }
    for what, each in rates.items():
        results |= {f"{what}_{key}": value for key, value in summary(each).items()}
    if args.write:
        known = json.loads(args.write.read_text()) if args.write.exists() else {}
        key = args.preset + (", transductive" if args.transductive else "")
        args.write.write_text(json.dumps(known | {key: results}, indent=1) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()

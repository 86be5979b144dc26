"""Meta-iterations and evaluated tasks per second, beside the PyTorch loop that a user would write instead.

  pip install -e .[bench]
  python benchmarks/speed.py --preset omniglot-1shot-5way

Both train by the preset and evaluate on the same tasks, round after round in turn, so that the ratio holds on a machine
whose speed drifts. Ours classifies the queries both ways, PyTorch only the way that is asked for. The last line is
JSON: train_ratio and eval_ratio are the medians over rounds of ours / PyTorch's. The PyTorch loop is eager and
straightforward: channels last, torch.optim.Adam, the tasks of a meta-batch one after another; it gets one thread or all
cores, whichever is faster at the start.
"""

import argparse
import copy
import json
import os
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from reptile_tf.settings import DEFAULTS, PRESETS, WITH_ONEDNN, Settings

if any(name in argument for argument in sys.argv for name in WITH_ONEDNN):  # as the run script does
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
import torch
from torch import nn

from reptile_tf import data, device, tasks, train
from reptile_tf.benchmarks import BENCHMARKS
from reptile_tf.data import ImageClasses
from reptile_tf.evaluate import Evaluator


def omniglot_network(way: int) -> nn.Module:
    """The same network as `reptile_tf.models.omniglot`."""
    blocks = []
    for channels in (1, 64, 64, 64):
        blocks += [nn.Conv2d(channels, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(256, way))


def miniimagenet_network(way: int) -> nn.Module:
    """The same network as `reptile_tf.models.miniimagenet`."""
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
    """Noise in the shape of Mini-ImageNet: real pixels or not, the work is the same."""
    rng = np.random.default_rng(0)
    groups = {str(label): rng.integers(0, 256, (20, 84, 84, 3), np.uint8) for label in range(50)}
    return ImageClasses.from_groups(groups, scale=1 / 255)


# Network and images by benchmark.
THEIRS = {
    "omniglot": (omniglot_network, lambda: data.glyphs.load(classes=200)),
    "miniimagenet": (miniimagenet_network, photographs),
}


class TorchReptile:
    """Reptile as one writes it in PyTorch."""

    def __init__(self, network: nn.Module, settings: Settings, scale: float):
        self.settings = settings
        self.scale = scale
        self.network = network.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate, betas=(0.0, 0.999))

    def adapt(self, x: torch.Tensor, y: torch.Tensor, minibatches: torch.Tensor) -> None:
        """The inner loop on one task."""
        for samples in minibatches:
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.network(x[samples]), y[samples], reduction="sum").backward()
            self.optimizer.step()

    def step(self, batch: tasks.Tasks, meta_step: float) -> None:
        """One meta-iteration."""
        before = [p.detach().clone() for p in self.network.parameters()]
        total = [torch.zeros_like(p) for p in before]
        for x, y, minibatches in zip(batch.x, batch.y, batch.minibatches, strict=True):
            with torch.no_grad():
                for p, start in zip(self.network.parameters(), before, strict=True):
                    p.copy_(start)
            self.adapt(self.images(x), torch.as_tensor(y).long(), torch.as_tensor(minibatches))
            for sum_, p in zip(total, self.network.parameters(), strict=True):
                sum_ += p.detach()
        with torch.no_grad():
            for p, start, sum_ in zip(self.network.parameters(), before, total, strict=True):
                p.copy_(start + meta_step * (sum_ / len(batch.x) - start))

    def evaluate(self, batch: tasks.EvalTasks) -> np.ndarray:
        """The predictions for the queries of each task, int [task, query]."""
        network, optimizer = (copy.deepcopy(s.state_dict()) for s in (self.network, self.optimizer))
        predictions = []
        for x, y, minibatches, query in zip(*batch.support[:3], batch.query_x, strict=True):
            self.adapt(self.images(x), torch.as_tensor(y).long(), torch.as_tensor(minibatches))
            with torch.no_grad():
                if self.settings.transductive:
                    logits = self.network(self.images(query))
                else:
                    each = [torch.cat([self.images(x), self.images(q[None])]) for q in query]
                    logits = torch.stack([self.network(one)[-1] for one in each])
            predictions.append(logits.argmax(-1).numpy())
            self.network.load_state_dict(network)
            self.optimizer.load_state_dict(optimizer)
        return np.stack(predictions)

    def images(self, array: np.ndarray) -> torch.Tensor:
        """uint8 [sample, height, width, channel] to float32 [sample, channel, height, width], channels last."""
        image = torch.as_tensor(array).permute(0, 3, 1, 2).float() * self.scale
        return image.contiguous(memory_format=torch.channels_last)


def rate(work, units: int, seconds: float) -> float:
    """How many units per second `work` does; it is called, with 0, 1, 2, …, for at least `seconds`."""
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        work(calls)
        calls += 1
    return calls * units / (time.perf_counter() - began)


def faster_threads(work) -> int:
    """How many threads make `work` faster: one, or one per core."""
    rates = {}
    for threads in (1, os.cpu_count()):
        torch.set_num_threads(threads)
        rates[threads] = max(rate(work, 1, 2.0) for _ in range(2))
    return max(rates, key=rates.get)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preset", default="omniglot-1shot-5way", choices=[p for presets in PRESETS.values() for p in presets]
    )
    parser.add_argument("--transductive", action="store_true", help="PyTorch evaluates transductively")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--mode", default="auto", choices=("auto", "branches", "stacked"))
    parser.add_argument("--in-turn", action="store_true", help="tasks one after another, as the PyTorch loop")
    args = parser.parse_args()

    name = args.preset.split("-")[0]
    settings = Settings(
        **(DEFAULTS[name] | PRESETS[name][args.preset]),
        transductive=args.transductive,
        mode=args.mode,
        in_turn=args.in_turn,
    )
    stacked, _, line = device.configure(settings, 1 if settings.in_turn else settings.meta_batch)
    network, load = THEIRS[name]
    classes = load()
    model = BENCHMARKS[name].network(settings.classes, settings.filters)
    learner = train.make_learner(model, settings, classes.scale, stacked)
    evaluator = Evaluator(learner)
    theirs = TorchReptile(network(settings.classes), settings, classes.scale)
    training = [tasks.training_tasks(classes, iteration=i, **settings.training_arguments()) for i in range(20)]
    arguments = settings.evaluation_arguments()
    testing = [
        tasks.evaluation_tasks(classes, first=i * evaluator.tasks, count=evaluator.tasks, **arguments) for i in range(5)
    ]
    contests = {
        "train": (
            lambda i: learner.step(training[i % len(training)], 0.1),
            lambda i: theirs.step(training[i % len(training)], 0.1),
            1,
        ),
        "eval": (
            lambda i: evaluator.logits(testing[i % len(testing)]),
            lambda i: theirs.evaluate(testing[i % len(testing)]),
            evaluator.tasks,
        ),
    }
    for ours, torchs, _ in contests.values():  # compile and warm up
        ours(0)
        torchs(0)
    threads = faster_threads(contests["train"][1])
    torch.set_num_threads(threads)
    print(f"{args.preset}; ours: {line}; PyTorch {torch.__version__}: {threads} threads", flush=True)
    rates = {name: [] for name in contests}
    for number in range(args.rounds):
        for name, (ours, torchs, units) in contests.items():
            pair = rate(ours, units, args.seconds), rate(torchs, units, args.seconds)
            rates[name].append(pair)
            unit = "meta-iterations" if name == "train" else "tasks"
            print(
                f"round {number + 1} {name}: ours {pair[0]:.2f}, PyTorch {pair[1]:.2f} {unit}/s, "
                f"ratio {pair[0] / pair[1]:.2f}",
                flush=True,
            )
    summary = {"preset": args.preset, "transductive": args.transductive, "rounds": args.rounds}
    for name, pairs in rates.items():
        summary |= {
            f"{name}_ratio": round(statistics.median(a / b for a, b in pairs), 2),
            f"{name}_per_s": round(statistics.median(a for a, _ in pairs), 2),
            f"{name}_per_s_pytorch": round(statistics.median(b for _, b in pairs), 2),
        }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()

r"""Lake's one-shot classification: a network trained on the background alphabets, beside people and other models.

20 runs of 20-way classification within an alphabet: one training drawing of each of 20 characters, and 20 test
drawings by another person. All are from ten of Omniglot's evaluation alphabets, so the network must have been trained
on the background alphabets alone:

  python run_omniglot.py --preset omniglot-1shot-20way --split background --meta-iters 60000 \
    --checkpoint checkpoints/background-20way
  python experiments/lake_one_shot.py --runs-zip data/all_runs.zip --checkpoint checkpoints/background-20way

all_runs.zip is in Omniglot's repository, in python/one-shot-classification:

  curl --create-dirs -Lo data/all_runs.zip \
    https://github.com/brendenlake/omniglot/raw/master/python/one-shot-classification/all_runs.zip

The network adapts to the 20 training drawings as in its run's evaluation. It classifies the test drawings one by one,
as people do, and in one batch (transductive). The output is lake_one_shot.json and lake_one_shot.png.

With --baseline no network is needed: each test drawing gets the class at the smallest modified Hausdorff distance.
That must give the 38.8 % of errors that Omniglot's repository says, and so checks how the runs are read. The output is
lake_one_shot_baseline.json.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
import time
from typing import Any, NamedTuple

import common
import numpy as np
from matplotlib.figure import Figure

from reptile_tf import configuration, files, learners, plots
from reptile_tf.checkpoint import RunFolder
from reptile_tf.data import omniglot
from reptile_tf.errors import UserError
from reptile_tf.evaluate import Accuracy
from reptile_tf.fetch import archive
from reptile_tf.meta import MetaLearner
from reptile_tf.origin import TWO_VALUES
from reptile_tf.progress import Progress, log
from reptile_tf.state import NotFiniteError

sys.path.append(str(common.HERE.parent / "benchmarks"))
import provenance

RUNS, WAYS = 20, 20
WAY_OUT = f"get it from {archive.OMNIGLOT_URL}/one-shot-classification/all_runs.zip"
TRAIN = "run_omniglot.py --preset omniglot-1shot-20way --split background"
# Published errors in %, each under a protocol of its own. People chose among the 20 training drawings. BPL learned from
# the strokes of the background alphabets. The siamese network (Koch, Zemel, Salakhutdinov 2015) learned from distorted
# copies as well. The authors of the report trained the prototypical network (Snell, Swersky, Zemel 2017).
SCIENCE = "Lake, Salakhutdinov, Tenenbaum 2015, Science 350, 1332-1338"
REPORT = "Lake, Salakhutdinov, Tenenbaum 2019, Current Opinion in Behavioral Sciences 29, 97-104"
PUBLISHED = {
    "BPL, trained on strokes": (3.3, SCIENCE),
    "people": (4.5, SCIENCE),
    "siamese network, with distorted copies": (8.0, REPORT),
    "prototypical network": (13.7, REPORT),
    "modified Hausdorff distance": (38.8, "Omniglot's repository, demo_classification.py"),
}


class Run(NamedTuple):
    """One run.

    Attributes:
      training: bool [class, 105, 105], one drawing of each class, False for ink.
      test: bool [query, 105, 105].
      labels: int [query], the classes of the test drawings.
    """

    training: np.ndarray
    test: np.ndarray
    labels: np.ndarray


def read(path: pathlib.Path) -> list[Run]:
    """Reads all_runs.zip; nothing is unpacked to the disk, and only entries of the names expected are read.

    Raises:
      UserError: it cannot be read, lacks an entry, or holds something else there.
    """
    numbers = range(1, WAYS + 1)
    names = [
        (
            [f"run{run:02d}/training/class{i:02d}.png" for i in numbers],
            [f"run{run:02d}/test/item{i:02d}.png" for i in numbers],
            f"run{run:02d}/class_labels.txt",
        )
        for run in range(1, RUNS + 1)
    ]
    content = {}
    try:
        with archive.opened(path) as opened:
            entries = {entry.filename: entry for entry in archive.bounded(opened.infolist())}
            for training, test, labels in names:
                for name in (*training, *test, labels):
                    if name not in entries:
                        raise archive.FetchError(f"it has no {name}")
                    archive.check_kind(entries[name])
                    content[name] = archive.unpacked(opened, entries[name])
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}); {WAY_OUT}") from error
    except archive.FetchError as error:
        raise UserError(f"{path} is not Omniglot's all_runs.zip: {error}; {WAY_OUT}") from error

    def drawings(names: list[str]) -> np.ndarray:
        decoded = [omniglot.decode_png(content[name], name, WAY_OUT) for name in names]
        for name, drawing in zip(names, decoded, strict=True):
            if drawing.all():
                raise UserError(f"{path} has a drawing without ink, {name}; {WAY_OUT}")
        return np.stack(decoded)

    runs = []
    for training, test, labels in names:
        pairs = [line.split() for line in content[labels].decode(errors="replace").splitlines()]
        class_of = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
        if len(pairs) != len(test) or class_of.keys() != set(test) or not set(class_of.values()) <= set(training):
            raise UserError(f"{path}: {labels} does not give each test drawing its class; {WAY_OUT}")
        runs.append(Run(drawings(training), drawings(test), np.array([training.index(class_of[t]) for t in test])))
    return runs


def hausdorff(a: np.ndarray, b: np.ndarray) -> float:
    """The modified Hausdorff distance (Dubuisson, Jain 1994) between two sets of points, float64 [point, 2] each."""
    # |a - b|² = -2ab + |a|² + |b|² as one product of matrices, which takes a fifth of the time of their sum.
    left = np.column_stack([-2 * a, (a**2).sum(1), np.ones(len(a))])
    right = np.column_stack([b, np.ones(len(b)), (b**2).sum(1)])
    squared = left @ right.T
    return max(float(np.sqrt(squared.min(axis).clip(0)).mean()) for axis in (0, 1))


def ink(drawing: np.ndarray) -> np.ndarray:
    """Where the ink of a drawing, bool [105, 105], is: float64 [point, 2], from the mean of the points."""
    points = np.argwhere(~drawing).astype(np.float64)
    return points - points.mean(0)


def nearest(run: Run) -> np.ndarray:
    """The class that is nearest to each test drawing, int [query]."""
    training, test = ([ink(drawing) for drawing in part] for part in run[:2])
    return np.array([np.argmin([hausdorff(a, b) for b in training]) for a in test])


def load(path: pathlib.Path) -> tuple[MetaLearner, dict[str, Any]]:
    """The learner of a finished run on the background alphabets, and what to record of its training.

    Raises:
      UserError: there is none in the folder; or it saw, or may have seen, other classes, or is not finished.
    """
    folder = RunFolder(path)
    config = folder.config()
    names = config["split"].get("train", [])
    if not names:
        raise UserError(f"{path} does not say which classes it was trained on: train with {TRAIN}")
    others = [name for name in names if omniglot.part_of(name) != "images_background"]
    if others:
        raise UserError(
            f"{path} was trained on {len(others)} classes that are not of Omniglot's background alphabets, such as "
            f"{others[0]}: train with {TRAIN}"
        )
    if began := config["settings"].get("init_from"):
        raise UserError(f"{path} began with the weights of {began}, which may have seen test characters: train anew")
    learner, checkpoint, settings = learners.load(path), folder.load(), configuration.settings_of(config)
    if checkpoint.iteration < settings.meta_iters:
        raise UserError(
            f"{path} is at meta-iteration {checkpoint.iteration:,} of {settings.meta_iters:,}: run its command again "
            "to finish it"
        )
    shape, origin = learner.network.facts.input_shape, learner.origin
    if len(shape) != 3 or shape[0] != shape[1] or shape[2] != 1 or (origin.white, origin.paper) != (TWO_VALUES, 1):
        raise UserError(f"{path} was not trained on drawings of 0 for ink and 1 for paper: train with {TRAIN}")
    ways = learner.network.facts.output_shape[-1]
    if ways < WAYS:
        log.warning(f"the network was trained for {ways} ways: it gets {WAYS} outputs, see reptile_tf/heads.py")
    training = {"ways": ways, "meta_iterations": checkpoint.iteration, "seconds": round(checkpoint.seconds)}
    return learner, training | {"settings": config["settings"]}


def answers(learner: MetaLearner, run: Run, seed: int) -> dict[str, np.ndarray]:
    """The adapted network's classes of the test drawings, int [query], in both settings.

    Raises:
      UserError: it produces non-finite values, or cannot have so many outputs.
    """
    size = learner.network.facts.input_shape[0]
    training, test = (omniglot.reduced(part, size)[..., np.newaxis].astype(np.uint8) for part in run[:2])
    try:
        logits = learner.adapt(training, np.arange(len(training)), seed=seed).predictions(test)
    except NotFiniteError as error:
        raise UserError("the adaptation produced non-finite values: the network is damaged") from error
    except ValueError as error:
        raise UserError(str(error)) from error
    if not all(np.isfinite(each).all() for each in logits):
        raise UserError("the adapted network produced non-finite values: the network is damaged")
    return {"one by one": logits.one_by_one.argmax(-1), "transductive": logits.transductive.argmax(-1)}


def error_rate(runs: list[Run], given: list[np.ndarray]) -> dict[str, Any]:
    """The mean error over runs with its 95 % interval, from the classes given, int [query] each."""
    by_run = np.array([(classes != run.labels).mean() for run, classes in zip(runs, given, strict=True)])
    mean = Accuracy.of(by_run)
    found = {"error_percent": round(100 * mean.accuracy, 2), "ci95_percent": round(100 * mean.ci95, 2)}
    return found | {"runs": mean.tasks, "error_percent_by_run": (100 * by_run).round(2).tolist()}


def run(arguments: argparse.Namespace) -> None:
    """Classifies, writes JSON and picture."""
    try:
        where = provenance.of_now()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError("the results name the commit: run this in a git checkout") from error
    if arguments.baseline:
        name, about = "lake_one_shot_baseline", {"seed": None}  # nothing is drawn at random

        def classify(number: int, run: Run) -> dict[str, np.ndarray]:
            return {"modified Hausdorff distance": nearest(run)}

    else:
        learner, training = load(arguments.checkpoint)
        name, about = "lake_one_shot", {"seed": arguments.seed, "adaptation": learner.origin.evaluation()}
        about["training"] = training

        def classify(number: int, run: Run) -> dict[str, np.ndarray]:
            return answers(learner, run, arguments.seed + number)

    runs = read(arguments.runs_zip)
    common.make(arguments.out)
    found, began = [], time.perf_counter()
    with Progress("one-shot classification", len(runs), unit="run") as progress:
        for number, each in enumerate(runs):
            found.append(classify(number, each))
            progress.advance(1)
    errors = {way: error_rate(runs, [classes[way] for classes in found]) for way in found[0]}
    for way, error in errors.items():
        log.info(f"{way}: {error['error_percent']:.2f} ± {error['ci95_percent']:.2f} % errors ({error['runs']} runs)")
    result = {
        "task": f"one-shot classification of Lake et al. 2015: {RUNS} runs of {WAYS} ways within an alphabet",
        "command": shlex.join(["python", "experiments/lake_one_shot.py", *sys.argv[1:]]),
        **where,
        "seconds": round(time.perf_counter() - began, 1),
        "errors": errors,
        **about,
    }
    path = arguments.out / f"{name}.json"
    files.write_text(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if not arguments.baseline:
        figure = Figure(figsize=(9, 4), layout="constrained")
        draw(figure, result)
        plots.save(figure, path.with_suffix(".png"))
    log.info(f"{path} {'is' if arguments.baseline else 'and the figure are'} written")


def draw(figure: Figure, result: dict[str, Any]) -> None:
    """The errors beside the published ones."""
    axes = figure.add_subplot(xlabel="errors (%)")
    trained = f"Reptile after {result['training']['meta_iterations']:,} meta-iterations on the background alphabets"
    figure.suptitle(f"{RUNS} runs of {WAYS} ways within an alphabet; {trained}", fontsize=10)
    ours = {f"Reptile, {way}": error for way, error in result["errors"].items()}
    means, intervals = ([error[f"{name}_percent"] for error in ours.values()] for name in ("error", "ci95"))
    axes.barh(list(ours), means, xerr=intervals, color=plots.BLUE, label="here, with 95 % interval", capsize=3)
    sources = dict.fromkeys(source for _, source in PUBLISHED.values())
    for source, color in zip(sources, (plots.GREY, plots.SKY, plots.ORANGE), strict=True):
        of_source = {name: error for name, (error, by) in PUBLISHED.items() if by == source}
        axes.barh(list(of_source), list(of_source.values()), color=color, label=source)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", fontsize=7)


def main() -> int:
    """Reads the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--runs-zip", type=pathlib.Path, required=True, metavar="FILE", help="all_runs.zip of Omniglot's repository"
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--checkpoint",
        type=pathlib.Path,
        metavar="FOLDER",
        help=f"folder of a finished run on the background alphabets; a network for fewer than {WAYS} ways gets more "
        "outputs (reptile_tf/heads.py); refused if it was trained on any other class",
    )
    which.add_argument("--baseline", action="store_true", help="the modified Hausdorff distance instead of a network")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first run's minibatches; each run adds 1")
    parser.add_argument(
        "--out", type=pathlib.Path, default=common.HERE / "results", help="folder for the JSON and the figure"
    )
    arguments = parser.parse_args()
    if not 0 <= arguments.seed < 2**32:
        parser.error("--seed must be from 0 to 2**32 - 1")
    return common.guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())

"""What the run scripts share: training, evaluation, results."""

import contextlib
import dataclasses
import json
import math
import pathlib
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from typing import Any

import keras
import tensorflow as tf

from reptile_tf import checks, cluster, device, files, place, plots, tasks, train
from reptile_tf.benchmarks import BENCHMARKS, Benchmark, Sets
from reptile_tf.checkpoint import Checkpoint, RunFolder
from reptile_tf.data import ImageClasses
from reptile_tf.errors import UserError
from reptile_tf.evaluate import Evaluator, meta_test_in_both_ways
from reptile_tf.meta import MetaLearner
from reptile_tf.progress import say
from reptile_tf.settings import Settings, SettingsError, flag, names_of


def run(settings: Settings, chosen: frozenset[str], benchmark: Benchmark) -> None:
    """Trains (unless `settings.pretrained`), evaluates and writes the results; as one of a cluster's, by TF_CONFIG.

    Args:
      settings: of the run.
      chosen: the names of the settings that the user chose.
      benchmark: what to run on.

    Raises:
      UserError: something the user can put right.
      train.Interrupted: SIGINT or SIGTERM while training.
    """
    folder = RunFolder(settings.checkpoint)
    try:
        with contextlib.ExitStack() as held:
            _run(folder, settings, chosen, benchmark, held)
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        line = next(iter(str(error).splitlines()), "")
        flags = "--eval-batch or --filters" if settings.pretrained else "--meta-batch, --inner-batch or --filters"
        raise UserError(f"not enough memory; lower {flags} ({line})") from error
    except OSError as error:  # such as no handles left, or a disk that is gone
        raise UserError(f"cannot go on: {error}") from error


def _run(
    folder: RunFolder,
    settings: Settings,
    chosen: frozenset[str],
    benchmark: Benchmark,
    held: contextlib.ExitStack,
) -> None:
    """`run`; `held` gets the folder's lock."""
    where = place.of_this_process()
    if where.count > 1 and settings.in_turn and not settings.pretrained:
        raise UserError("--in-turn passes Adam's state from task to task, on one worker: leave it out, or TF_CONFIG")
    side_by_side = 1 if settings.in_turn else math.ceil(settings.meta_batch / where.count)
    placement = device.configure(settings, device.cores() if settings.pretrained else side_by_side)
    stacked = placement.stacked
    workers = cluster.join(where)
    workers.agree("flags", settings.determining_results())
    workers.agree("mode", "stacked" if stacked else "branches")  # GPUs and CPUs give other sizes of blocks
    if settings.pretrained:
        config = json.loads(workers.text_from_chief(lambda: json.dumps(folder.config())))
        settings = _of_network_in(folder, config, settings, chosen, benchmark)
    say(placement.line)
    images, name = benchmark.load(settings)
    say(f"{name}: {len(images):,} classes, {images.counts.sum():,} images")
    workers.agree("images", [images.names, images.counts.tolist()], patient=True)
    if settings.pretrained:
        sets = _split_of(config, images)
        sets["train"] = benchmark.for_training(sets["train"])
        learner, checkpoint = _restored(folder, settings, benchmark, stacked, workers)
        if workers.is_chief:
            say(f"{folder.path}: trained for {checkpoint.iteration} meta-iterations")
    else:
        sets = benchmark.split(images, settings.seed)
        _check_enough(sets, settings)  # before a network of so many ways is made
        keras.utils.set_random_seed(settings.seed % 2**32)
        model = benchmark.network(settings.classes, settings.filters)
        checks.classifier(model, images.images.shape[1:], settings.classes)
        if workers.is_chief:
            split = {part: list(classes.names) for part, classes in sets.items()}
            config = {"benchmark": benchmark.name, "settings": settings.determining_weights(), "split": split}
            held.enter_context(folder.claimed(config))
        say(f"training; checkpoints and TensorBoard events go to {folder.path}")
        sets["train"] = benchmark.for_training(sets["train"])
        held_out = sets[benchmark.held_out]
        learner = train.meta_train(
            model, sets["train"], settings, held_out=held_out, folder=folder, stacked=stacked, cluster=workers
        )
        checkpoint = folder.load() if workers.is_chief else None

    description = _description(settings, name, placement)
    say(f"evaluating {description['task']}")
    evaluator, began = Evaluator(learner), time.monotonic()
    results = {}
    for part, classes in sets.items():
        both = meta_test_in_both_ways(learner, classes, settings, evaluator=evaluator, progress=f"{part} tasks")
        asked, other = both[settings.transductive], both[not settings.transductive]
        way = "not transductive" if settings.transductive else "transductive"
        say(f"{part} accuracy: {asked}; {way}: {other}")
        results |= {part: asked._asdict(), f"{part}, {way}": other._asdict()}
    if not workers.is_chief:
        return
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    results |= {
        "meta_iterations": checkpoint.iteration,
        "training_seconds": checkpoint.seconds,
        "evaluation_seconds": time.monotonic() - began,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "workers": workers.count,
    } | description
    how = f"{settings.shots}shot{'-transductive' if settings.transductive else ''}"
    file = f"evaluation-{how}.json" if settings.pretrained else "results.json"
    files.write_text(folder.path / file, json.dumps(results, indent=1) + "\n")
    if not settings.pretrained:
        with files.replacing(folder.path / "model.keras") as part:
            learner.model.save(part)
        if len(checkpoint.history):
            plots.learning_curve(folder.path / "learning_curve.png", checkpoint.history, name)
        batch = tasks.evaluation_tasks(sets["test"], **settings.evaluation_arguments(), count=evaluator.tasks)
        logits = evaluator.logits(batch)[settings.transductive][0]
        plots.adapted_task(folder.path / "test_task.png", batch, tf.nn.softmax(logits).numpy())
    say(f"{file} is in {folder.path}" + ("" if settings.pretrained else ", with model.keras and the pictures"))


def load(path: str | pathlib.Path) -> MetaLearner:
    """The trained learner in a run's folder, with its optimizers' moments, ready to `adapt` or to be evaluated.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    folder = RunFolder(path)
    config = folder.config()
    try:
        benchmark, settings = BENCHMARKS[config["benchmark"]], Settings(**config["settings"])
    except (KeyError, SettingsError, TypeError) as error:
        raise UserError(f"{folder.path} holds a network that this version does not know: {error!r}") from error
    return _restored(folder, settings, benchmark, stacked=False)[0]


def _restored(
    folder: RunFolder,
    settings: Settings,
    benchmark: Benchmark,
    stacked: bool,
    workers: cluster.Cluster = cluster.ALONE,
) -> tuple[MetaLearner, Checkpoint | None]:
    """The learner of the folder's newest checkpoint, its model too; the checkpoint is for the chief only."""
    checkpoint = folder.load() if workers.is_chief else None
    if checkpoint is None and workers.is_chief:
        raise UserError(f"no checkpoint in {folder.path} yet: train first")
    model = benchmark.network(settings.classes, settings.filters)
    learner = train.make_learner(model, settings, benchmark.scale, stacked, workers)
    if checkpoint:
        train.restore(learner, checkpoint)
    if workers.count > 1:
        train.take_from_chief(learner, 0)
    learner.update_model()
    return learner, checkpoint


def _check_enough(sets: Sets, settings: Settings) -> None:
    """Raises UserError unless the tasks asked for can be drawn."""
    for classes in sets.values():
        tasks.check_enough(classes, settings.classes, settings.shots + 1, "evaluation")
    tasks.check_enough(sets["train"], settings.classes, settings.images_per_class, "training")


def _of_network_in(
    folder: RunFolder, config: dict[str, Any], settings: Settings, chosen: frozenset[str], benchmark: Benchmark
) -> Settings:
    """`settings`, but all that determines weights as in the folder; refuses a choice of another network."""
    if config["benchmark"] != benchmark.name:
        raise UserError(f"{folder.path} holds a network for {config['benchmark']}, not for {benchmark.name}")
    trained = config["settings"]
    fixed = names_of(fixed=True)
    wrong = [n for n in fixed if n in chosen and getattr(settings, n) != trained.get(n, getattr(settings, n))]
    if wrong:
        asked = ", ".join(f"{flag(name)} {getattr(settings, name)} (it has {trained[name]})" for name in wrong)
        raise UserError(f"{folder.path} holds another network than asked for: {asked}; leave these flags out")
    try:
        return dataclasses.replace(settings, **trained)
    except (SettingsError, TypeError) as error:
        raise UserError(f"these flags do not go with {folder.path}: {error}") from error


def _split_of(config: dict[str, Any], images: ImageClasses) -> Sets:
    """The classes by the checkpoint's own split, so that test classes are never ones that it was trained on."""
    split = config["split"]
    where = {name: i for i, name in enumerate(images.names)}
    missing = [name for names in split.values() for name in names if name not in where]
    if missing:
        raise UserError(f"{len(missing)} classes of the checkpoint's split are not here, {missing[0]} for one")
    return {name: images.subset([where[n] for n in names]) for name, names in split.items()}


def _description(settings: Settings, name: str, placement: device.Placement) -> dict[str, Any]:
    """What must stand beside a number: settings, versions, machine (this worker's part of it) and commit."""
    transductive = " transductive" if settings.transductive else ""
    gpus = len(tf.config.get_visible_devices("GPU"))
    return {
        "task": f"{name}, {settings.shots}-shot {settings.classes}-way{transductive}",
        "seed": settings.seed,
        "settings": dataclasses.asdict(settings),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("reptile-tf", "tensorflow", "keras", "numpy")},
        "machine": {"processor": platform.machine(), "cores": device.cores(), "gpus": gpus} | placement.record,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The git commit of the code that runs, with "+" if it was changed since; None outside a checkout."""
    here = pathlib.Path(__file__).resolve()
    commands = (
        ["ls-files", "--error-unmatch", here.name],  # fails if this is a copy installed in somebody else's repository
        ["rev-parse", "--short=10", "HEAD"],
        ["status", "--porcelain", "--untracked-files=no"],
    )
    try:
        _, commit, changes = (
            subprocess.run(
                ["git", *command], cwd=here.parent, capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changes else "")

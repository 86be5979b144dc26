"""A run, from settings to results: prepare, train (or restore), evaluate, write the results."""

import contextlib
import dataclasses
import functools
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

from reptile_tf import breakdown, checks, configuration, device, evaluate, files, heads, learners, plots, tasks, train
from reptile_tf.checkpoint import Checkpoint, RunFolder
from reptile_tf.data import ImageClasses
from reptile_tf.distributed import cluster, tf_config
from reptile_tf.errors import UserError
from reptile_tf.evaluate import Evaluator
from reptile_tf.meta import MetaLearner
from reptile_tf.problems import Problem, Sets
from reptile_tf.progress import log
from reptile_tf.settings import Settings, SettingsError, flag, names_of


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The inputs of training and evaluation.

    Attributes:
      problem: the problem to learn.
      folder: the run's folder.
      settings: the run's settings; with --pretrained, the trained network's where the network depends on them.
      workers: the cluster, seen from this worker.
      placement: device and mode.
      name: name of the images in the results.
      images: all classes.
      split: the classes by set, as recorded in the folder.
      ways: number of ways for which the network is trained.
    """

    problem: Problem
    folder: RunFolder
    settings: Settings
    workers: cluster.Cluster
    placement: device.Placement
    name: str
    images: ImageClasses
    split: Sets
    ways: int

    @functools.cached_property
    def sets(self) -> Sets:
        """The classes by set, with "train" augmented as for training. Use only after `checks.classifier`."""
        return self.split | {"train": self.problem.for_training(self.split["train"], self.settings)}


def run(settings: Settings, chosen: frozenset[str], problem: Problem) -> None:
    """Trains (unless `settings.pretrained`), evaluates and writes the results. TF_CONFIG makes it part of a cluster.

    Args:
      settings: settings of the run.
      chosen: names of the settings that the user chose.
      problem: the problem to train on.

    Raises:
      UserError: something that the user can correct.
      train.Interrupted: SIGINT or SIGTERM arrived during training.
    """
    try:
        with contextlib.ExitStack() as held:  # the folder's lock
            prepared = _prepare(settings, chosen, problem)
            if settings.pretrained:
                learner, checkpoint = _restore(prepared)
            else:
                learner, checkpoint = _train(prepared, held)
            evaluator = Evaluator.of(learner, settings.eval_samples)
            results, records = _evaluate(prepared, learner, evaluator)
            if checkpoint is not None:  # the chief's
                _write(prepared, learner, evaluator, checkpoint, results, records)
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        line = next(iter(str(error).splitlines()), "")
        flags = "--eval-batch or --filters" if settings.pretrained else "--meta-batch, --inner-batch or --filters"
        raise UserError(f"not enough memory; lower {flags} ({line})") from error
    except OSError as error:  # for example too many open files, or a disk that was unmounted
        raise UserError(f"cannot continue: {error}") from error


def _prepare(settings: Settings, chosen: frozenset[str], problem: Problem) -> Prepared:
    """Joins the cluster, places the work, loads the images and splits them."""
    folder = RunFolder(settings.checkpoint)
    where = tf_config.of_this_process()
    if where.count > 1 and settings.sequential and not settings.pretrained:
        raise UserError(
            "--sequential passes Adam's state from task to task, so it needs a single worker: leave it out, or unset "
            "TF_CONFIG"
        )
    side_by_side = 1 if settings.sequential else math.ceil(settings.meta_batch / where.count)
    placement = device.configure(
        device.cores() if settings.pretrained else side_by_side, settings.device, settings.mode, settings.tf32
    )
    workers = cluster.join(where)
    workers.agree("flags", settings.determining_results())
    workers.agree("mode", "stacked" if placement.stacked else "branches")  # programs of both modes cannot exchange
    ways = settings.classes
    if settings.pretrained:
        config = json.loads(workers.text_from_chief(lambda: json.dumps(folder.config())))
        settings = _of_network_in(folder, config, settings, chosen, problem)
        ways = config["settings"].get("classes", settings.classes)
        configuration.begun_with(config, device.onednn())
    log.info(placement.line)
    images, name = problem.load(settings)
    log.info(f"{name}: {len(images):,} classes, {images.counts.sum():,} images")
    workers.agree("images", [images.names, images.counts.tolist()], patient=True)
    if settings.pretrained:
        split = _split_of(config, images)
    else:
        split = problem.split(images, settings)
        _check_enough(split, settings)  # before the network is built, which for too many ways would be huge
    return Prepared(problem, folder, settings, workers, placement, name, images, split, ways)


def _train(prepared: Prepared, held: contextlib.ExitStack) -> tuple[MetaLearner, Checkpoint | None]:
    """Trains, and returns the learner and, on the chief, the last checkpoint. `held` keeps the folder locked."""
    folder, settings, images = prepared.folder, prepared.settings, prepared.images
    keras.utils.set_random_seed(settings.seed % 2**32)
    model = prepared.problem.network(settings)
    if settings.init_from and not folder.iterations():  # a resumed run takes its weights from the checkpoint
        learners.set_weights(model, settings.init_from)
    checks.classifier(model, images.images.shape[1:], settings.classes)
    if prepared.workers.is_chief:
        config = configuration.of_run(prepared.problem, settings, model, images, prepared.split)
        held.enter_context(folder.claimed(config))
    log.info(f"training; checkpoints and TensorBoard events go to {folder.path}")
    learner = train.meta_train(
        model,
        prepared.sets["train"],
        settings,
        held_out=prepared.sets.get("val", prepared.sets["test"]),
        folder=folder,
        stacked=prepared.placement.stacked,
        cluster=prepared.workers,
    )
    return learner, folder.load() if prepared.workers.is_chief else None


def _restore(prepared: Prepared) -> tuple[MetaLearner, Checkpoint | None]:
    """Returns the learner in the folder and, on the chief, its checkpoint."""
    folder, settings = prepared.folder, prepared.settings
    model = prepared.problem.network(dataclasses.replace(settings, classes=prepared.ways))
    learner = learners.make_learner(
        model, settings, prepared.images.scale, prepared.placement.stacked, prepared.workers
    )
    checkpoint = learners.restore_from(folder, learner)
    if checkpoint is not None:
        log.info(f"{folder.path}: trained for {checkpoint.iteration} meta-iterations")
    if settings.classes != prepared.ways:
        log.info(f"{folder.path}: trained with {prepared.ways} classes, evaluated with {settings.classes}")
    try:
        return heads.with_outputs(learner, settings.classes), checkpoint
    except ValueError as error:  # a problem's custom network may not end in a dense layer
        raise UserError(f"--classes {settings.classes}: {error}") from error


def _evaluate(
    prepared: Prepared, learner: MetaLearner, evaluator: Evaluator
) -> tuple[dict[str, Any], dict[str, breakdown.Record]]:
    """Returns both settings' accuracies on each set of classes, with a description, and the held-out sets' answers."""
    settings, began = prepared.settings, time.monotonic()
    results = _description(prepared)
    log.info(f"evaluating {results['task']}")
    records = {}
    for part, classes in prepared.sets.items():
        classes = tasks.with_enough(classes, settings.classes, settings.shots + 1, f"evaluation ({part})")
        draw = functools.partial(tasks.evaluation_tasks, classes, **settings.evaluation_arguments())
        both = evaluate.answers(
            learner,
            draw,
            settings.eval_samples,
            evaluator=evaluator,
            progress=f"{part} tasks",
            transductive=settings.transductive,
        )
        asked, other = (both[way].accuracy() for way in (settings.transductive, not settings.transductive))
        way = "not transductive" if settings.transductive else "transductive"
        log.info(f"{part} accuracy: {asked}; {way}: {other}")
        results |= {part: asked._asdict(), f"{part}, {way}": other._asdict()}
        if part != "train":
            records[part] = breakdown.Record(classes, draw, both[settings.transductive], settings.transductive)
    results |= {"evaluation_seconds": time.monotonic() - began, "workers": prepared.workers.count}
    return results, records


def _write(
    prepared: Prepared,
    learner: MetaLearner,
    evaluator: Evaluator,
    checkpoint: Checkpoint,
    results: dict[str, Any],
    records: dict[str, breakdown.Record],
) -> None:
    """Writes the results, in total and by class, and after training also the model and the pictures."""
    folder, settings = prepared.folder, prepared.settings
    unit = 1 if sys.platform == "darwin" else 1024  # bytes per unit of ru_maxrss
    results |= {
        "meta_iterations": checkpoint.iteration,
        "training_seconds": checkpoint.seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }
    how = f"{settings.shots}shot{'-transductive' if settings.transductive else ''}"
    if settings.classes != prepared.ways:
        how = f"{settings.classes}way-{how}"
    file, by_class = "results.json", "classes.json"
    if settings.pretrained:
        file, by_class = f"evaluation-{how}.json", f"classes-{how}.json"
    for name, content in (
        (file, results),
        (by_class, {part: breakdown.as_json(record) for part, record in records.items()}),
    ):
        files.write_text(folder.path / name, json.dumps(content, indent=1) + "\n")
    if not settings.pretrained:
        with files.replacing(folder.path / "model.keras") as part:
            learners.save_model(learner, part)
        if len(checkpoint.history):
            plots.learning_curve(folder.path / "learning_curve.png", checkpoint.history, prepared.name)
        breakdown.confusion_matrix(folder.path / "confusion.png", records["test"])
        breakdown.tasks(folder.path, records["test"], evaluator)
    log.info(f"{file} is in {folder.path}" + ("" if settings.pretrained else ", with model.keras and the pictures"))


def _check_enough(sets: Sets, settings: Settings) -> None:
    """Raises UserError unless there are enough classes and images for the tasks."""
    for part, classes in sets.items():
        tasks.check_enough(classes, settings.classes, settings.shots + 1, f"evaluation ({part})")
    tasks.check_enough(sets["train"], settings.classes, settings.images_per_class, "training")


def _of_network_in(
    folder: RunFolder, config: dict[str, Any], settings: Settings, chosen: frozenset[str], problem: Problem
) -> Settings:
    """Returns `settings` with all that determine the weights replaced by the folder's.

    Raises:
      UserError: the user chose settings of another network.
    """
    if config["problem"] != problem.name:
        raise UserError(f"{folder.path} holds a network for {config['problem']}, not for {problem.name}")
    trained = config["settings"]
    fixed = names_of(fixed=True)
    wrong = [n for n in fixed if n in chosen and getattr(settings, n) != trained.get(n, getattr(settings, n))]
    if wrong:
        asked = ", ".join(f"{flag(name)} {getattr(settings, name)} (it has {trained[name]})" for name in wrong)
        raise UserError(f"{folder.path} holds a network with other settings: {asked}; leave these flags out")
    kept = {"classes": settings.classes} if "classes" in chosen else {}
    try:
        return dataclasses.replace(settings, **(trained | kept))
    except (SettingsError, TypeError) as error:
        raise UserError(
            f"these flags do not fit the network in {folder.path}: {getattr(error, 'on_command_line', error)}"
        ) from error


def _split_of(config: dict[str, Any], images: ImageClasses) -> Sets:
    """Splits the classes as the run in the folder did, so that no training class is among the test classes."""
    split = config["split"]
    where = {name: i for i, name in enumerate(images.names)}
    missing = [name for names in split.values() for name in names if name not in where]
    if missing:
        raise UserError(f"{len(missing)} classes of the run are missing here, such as {missing[0]}: use its images")
    return {name: images.subset([where[n] for n in names]) for name, names in split.items()}


def _description(prepared: Prepared) -> dict[str, Any]:
    """Returns what reproduces the results: settings, versions, this worker's machine and the commit."""
    settings, lacking = prepared.settings, prepared.problem.lacks
    transductive = " transductive" if settings.transductive else ""
    gpus = len(tf.config.get_visible_devices("GPU"))
    return {
        "task": f"{prepared.name}, {settings.shots}-shot {settings.classes}-way{transductive}",
        "seed": settings.seed,
        "settings": {name: value for name, value in dataclasses.asdict(settings).items() if name not in lacking},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("reptile-tf", "tensorflow", "keras", "numpy")},
        "machine": {"processor": platform.machine(), "cores": device.cores(), "gpus": gpus} | prepared.placement.record,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Returns the git commit of the running code, with "+" if files have changed since; None outside a checkout."""
    here = pathlib.Path(__file__).resolve()
    commands = (
        ["ls-files", "--error-unmatch", here.name],  # fails for a copy installed inside another repository
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

"""A run, from settings to results: prepare, train (or restore), evaluate, write."""

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
import numpy as np
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
    """What training and evaluation begin with.

    Attributes:
      problem: what is learned.
      folder: of the run.
      settings: with --pretrained, those of the trained network where it depends on them.
      workers: of the cluster, this one among them.
      placement: where and how it runs.
      name: of the images in results.
      images: all classes.
      split: the classes by set, as the checkpoint keeps them.
      ways: that the network is trained for.
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
        """The classes by set, "train" as trained on; to be asked for once the network is known to take the images."""
        return self.split | {"train": self.problem.for_training(self.split["train"], self.settings)}


def run(settings: Settings, chosen: frozenset[str], problem: Problem) -> None:
    """Trains (unless `settings.pretrained`), evaluates and writes the results; as one of a cluster's, by TF_CONFIG.

    Args:
      settings: of the run.
      chosen: the names of the settings that the user chose.
      problem: what to train on.

    Raises:
      UserError: something the user can put right.
      train.Interrupted: SIGINT or SIGTERM while training.
    """
    try:
        with contextlib.ExitStack() as held:  # the folder's lock
            prepared = _prepare(settings, chosen, problem)
            if settings.pretrained:
                learner, checkpoint = _restore(prepared)
            else:
                learner, checkpoint = _train(prepared, held)
            evaluator = Evaluator(learner)
            results, records = _evaluate(prepared, learner, evaluator)
            if checkpoint is not None:  # the chief's
                _write(prepared, learner, evaluator, checkpoint, results, records)
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        line = next(iter(str(error).splitlines()), "")
        flags = "--eval-batch or --filters" if settings.pretrained else "--meta-batch, --inner-batch or --filters"
        raise UserError(f"not enough memory; lower {flags} ({line})") from error
    except OSError as error:  # such as no handles left, or a disk that is gone
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
    workers.agree("mode", "stacked" if placement.stacked else "branches")  # GPUs and CPUs give other sizes of blocks
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
        _check_enough(split, settings)  # before a network of so many ways is made
    return Prepared(problem, folder, settings, workers, placement, name, images, split, ways)


def _train(prepared: Prepared, held: contextlib.ExitStack) -> tuple[MetaLearner, Checkpoint | None]:
    """The trained learner, and for the chief the last checkpoint; the folder stays locked while `held` is open."""
    folder, settings, images = prepared.folder, prepared.settings, prepared.images
    keras.utils.set_random_seed(settings.seed % 2**32)
    model = prepared.problem.network(settings)
    if settings.init_from and not folder.iterations():  # else the checkpoint has them
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
    """The learner in the folder, and for the chief its checkpoint."""
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
    except ValueError as error:  # of a problem's own network
        raise UserError(f"--classes {settings.classes}: {error}") from error


def _evaluate(
    prepared: Prepared, learner: MetaLearner, evaluator: Evaluator
) -> tuple[dict[str, Any], dict[str, breakdown.Record]]:
    """The accuracies on each set of classes, both ways, and what they are of; the answers on each held-out set."""
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
    """The results, as a whole and by class; after training the model and the pictures, too."""
    folder, settings = prepared.folder, prepared.settings
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
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
        breakdown.tasks(folder.path / "test_task.png", records["test"], evaluator, np.arange(1))
        breakdown.worst_tasks(folder.path / "worst_tasks.png", records["test"], evaluator)
    log.info(f"{file} is in {folder.path}" + ("" if settings.pretrained else ", with model.keras and the pictures"))


def _check_enough(sets: Sets, settings: Settings) -> None:
    """Raises UserError unless the tasks asked for can be drawn."""
    for part, classes in sets.items():
        tasks.check_enough(classes, settings.classes, settings.shots + 1, f"evaluation ({part})")
    tasks.check_enough(sets["train"], settings.classes, settings.images_per_class, "training")


def _of_network_in(
    folder: RunFolder, config: dict[str, Any], settings: Settings, chosen: frozenset[str], problem: Problem
) -> Settings:
    """`settings`, but all that determines weights as in the folder; refuses a choice of another network."""
    if config["problem"] != problem.name:
        raise UserError(f"{folder.path} holds a network for {config['problem']}, not for {problem.name}")
    trained = config["settings"]
    fixed = names_of(fixed=True)
    wrong = [n for n in fixed if n in chosen and getattr(settings, n) != trained.get(n, getattr(settings, n))]
    if wrong:
        asked = ", ".join(f"{flag(name)} {getattr(settings, name)} (it has {trained[name]})" for name in wrong)
        raise UserError(f"{folder.path} holds another network than asked for: {asked}; leave these flags out")
    kept = {"classes": settings.classes} if "classes" in chosen else {}
    try:
        return dataclasses.replace(settings, **(trained | kept))
    except (SettingsError, TypeError) as error:
        raise UserError(
            f"these flags do not go with {folder.path}: {getattr(error, 'on_command_line', error)}"
        ) from error


def _split_of(config: dict[str, Any], images: ImageClasses) -> Sets:
    """The classes by the checkpoint's own split, so that test classes are never ones that it was trained on."""
    split = config["split"]
    where = {name: i for i, name in enumerate(images.names)}
    missing = [name for names in split.values() for name in names if name not in where]
    if missing:
        raise UserError(f"{len(missing)} classes of the checkpoint's split are not here, {missing[0]} for one")
    return {name: images.subset([where[n] for n in names]) for name, names in split.items()}


def _description(prepared: Prepared) -> dict[str, Any]:
    """What must stand beside a number: settings, versions, machine (this worker's part of it) and commit."""
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

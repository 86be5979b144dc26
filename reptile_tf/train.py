"""The training loop: schedule, validation, checkpoints, resume."""

import contextlib
import os
import pathlib
import re
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reptile_tf import checks, configuration, feed, tasks
from reptile_tf.checkpoint import Checkpoint, RunFolder
from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.distributed.cluster import ALONE, Cluster
from reptile_tf.errors import UserError
from reptile_tf.evaluate import Accuracy, Evaluator, accuracy_by_task
from reptile_tf.learners import make_learner, restore, take_from_chief
from reptile_tf.meta import MetaLearner
from reptile_tf.progress import Progress, log
from reptile_tf.settings import Settings
from reptile_tf.state import NotFiniteError

# The running accuracy is that of so many tasks of the latest validations.
RUNNING_TASKS = 100
_NOT_FINITE = "numbers are not finite at meta-iteration"


class Interrupted(Exception):
    """A signal ended training; what was done is in the folder, if there is one, and in the model.

    Attributes:
      signal: its number.
      done: the meta-iterations done.
    """

    def __init__(self, signal: int, done: int):
        super().__init__(f"signal {signal} after {done} meta-iterations")
        self.signal = signal
        self.done = done


def meta_train(
    model: keras.Model,
    classes: ImageClasses,
    settings: Settings,
    *,
    held_out: ImageClasses | None = None,
    folder: RunFolder | None = None,
    stacked: bool = False,
    cluster: Cluster = ALONE,
) -> MetaLearner:
    """Meta-trains a classifier.

    Args:
      model: a built Keras model from images to one logit per way; it receives the result.
      classes: what training tasks are drawn from.
      settings: the paper's hyperparameters.
      held_out: classes to validate on; without them there is no learning curve.
      folder: where checkpoints go and come from; without it nothing is written. Only the chief of a cluster uses it.
        It is locked meanwhile, and refused if it holds a run with other settings or classes.
      stacked: see `MetaLearner`.
      cluster: the workers that train together, from `cluster.join`.

    Returns:
      The learner, to be evaluated; its model is the one given.

    Raises:
      UserError: too few classes or images; a model for other images or ways; a folder of another run, or one that
        cannot be used; a loss that is not finite; another worker is gone.
      Interrupted: SIGINT or SIGTERM, here or on another worker; what was done is in the folder and the model.
    """
    learner, checkpoint = make_learner(model, settings, classes.scale, stacked, cluster), None
    folder = folder if cluster.is_chief else None
    tasks.check_enough(classes, settings.classes, settings.images_per_class, "training")
    checks.classifier(model, classes.images.shape[1:], settings.classes)
    for part in filter(None, (classes, held_out)):
        if same := part.without_variety():
            log.warning(f"all images of a class are the same in {len(same)} of {len(part)}, such as {same[0]}")
    with contextlib.ExitStack() as held:
        if folder is not None:
            if not folder.is_claimed:
                split = {"train": classes} | ({} if held_out is None else {"held out": held_out})
                config = configuration.of_run(None, settings, model, classes, split)
                held.enter_context(folder.claimed(config))
            checkpoint = folder.load()
        if checkpoint is None:
            checkpoint = Checkpoint(0, 0.0, learner.state(), np.zeros([0, 3]))
        elif checkpoint.iteration:
            log.info(f"going on from meta-iteration {checkpoint.iteration}")
        restore(learner, checkpoint)
        if cluster.count > 1:
            checkpoint = checkpoint._replace(iteration=take_from_chief(learner, checkpoint.iteration))
        try:
            if checkpoint.iteration < settings.meta_iters:
                _train(learner, classes, settings, held_out, folder, checkpoint)
        finally:
            learner.update_model()
    return learner


def _train(
    learner: MetaLearner,
    classes: ImageClasses,
    settings: Settings,
    held_out: ImageClasses | None,
    folder: RunFolder | None,
    checkpoint: Checkpoint,
) -> None:
    done, history, cluster = checkpoint.iteration, list(checkpoint.history), learner.cluster
    first, count = learner.share
    mine = settings.training_arguments() | {"first": first, "count": max(count, 1)}
    began = time.monotonic() - checkpoint.seconds
    validate = None
    if held_out is not None:
        tasks.check_enough(held_out, settings.classes, settings.shots + 1, "evaluation")
        evaluator = Evaluator(learner, at_most=-(-settings.eval_tasks // cluster.count))

        def validate(iteration: int) -> np.ndarray:
            accuracies = accuracy_by_task(
                learner,
                held_out,
                settings,
                count=settings.eval_tasks,
                stream=tasks.MONITORING,
                iteration=iteration,
                evaluator=evaluator,
            )
            return accuracies[settings.transductive]

    def save() -> None:
        if folder is not None:
            rows = np.array(history).reshape(-1, 3)
            folder.save(Checkpoint(done, time.monotonic() - began, learner.state(), rows))

    images, drawable = None, classes
    if learner.network.stacked:
        images, drawable = feed.images_on_gpu(classes)
        log.info(
            f"memory of a meta-iteration: {learner.step_bytes(settings.inner_batch) / 1e9:.1f} GB by a high estimate"
        )

    def draw(iteration: int) -> tasks.Tasks:
        return tasks.training_tasks(drawable, iteration=iteration, **mine)

    every = settings.eval_interval if validate else settings.meta_iters
    alone = [1] if cluster.count > 1 else []  # the exchange is between compiled calls
    note = ""
    with (
        _signals(cluster) as caught,
        _events(folder, done) as events,
        feed.Feed(draw, done, settings.meta_iters, every, settings.save_interval, *alone) as fed,
        Progress("meta-iteration", settings.meta_iters, done) as progress,
    ):
        while done < settings.meta_iters and not cluster.stopping:
            # A call ends where there is something to do.
            ends = (settings.meta_iters - done, *(n - done % n for n in (every, settings.save_interval)))
            batches = fed.take(min(ends))
            rates = [settings.schedule(done + i) for i in range(len(batches))]
            called = time.monotonic()
            try:
                norm = learner.steps(batches, rates, room=fed.room, images=images)
            except NotFiniteError as error:
                at = done + error.done
                message = _diverged(error, at, folder) if cluster.is_chief else f"{_NOT_FINITE} {at + 1}: it stops"
                raise UserError(message) from error
            fed.took(len(batches), time.monotonic() - called)
            done += len(batches)
            if validate and (done % settings.eval_interval == 0 or done == settings.meta_iters):
                accuracies = validate(done)
                history += [(done, time.monotonic() - began, accuracy) for accuracy in accuracies]
                running = Accuracy.of(np.array(history[-RUNNING_TASKS:])[:, 2])
                note = f"held-out accuracy {running}"
                events(done, accuracy=accuracies.mean(), running_accuracy=running.accuracy, meta_gradient_norm=norm)
            if done % settings.save_interval == 0:
                save()
            progress.advance(len(batches), note)
        if done % settings.save_interval:
            save()
    if stopping := cluster.stopping or next(iter(caught), 0):  # one may have come after the last exchange
        raise Interrupted(stopping, done)


def _diverged(error: NotFiniteError, done: int, folder: RunFolder | None) -> str:
    # Not the state at hand: it is finite, but may have run away already.
    kept = [i for i in folder.iterations() if i <= done] if folder is not None else []
    last = (
        f"the last good checkpoint, of meta-iteration {kept[-1]}, is kept in {folder.path}" if kept else "none is saved"
    )
    return f"{_NOT_FINITE} {done + 1} ({error}): training stops, {last}; lower --learning-rate or --meta-step"


@contextlib.contextmanager
def _signals(cluster: Cluster) -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them, so that the meta-iteration at hand can end."""
    if threading.current_thread() is not threading.main_thread():  # where signals are not ours to take
        yield cluster.caught
        return
    caught = cluster.caught = []
    old = {n: signal.signal(n, lambda number, _: caught.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        cluster.caught = []  # another training with the same workers is not to end
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _events(folder: RunFolder | None, done: int) -> Iterator:
    """A function that writes named scalars of a step to TensorBoard events, after `done` steps.

    A run that was killed may have written later steps, which come again: TensorBoard is told to drop the old ones. For
    that tf.summary has no function, so the events are written as the records that they are.
    """
    if folder is None:
        yield lambda step, **scalars: None
        return
    path = folder.path / "events"

    @contextlib.contextmanager
    def told() -> Iterator[None]:
        try:
            yield
        except tf.errors.OpError as error:
            reason = error.message.splitlines()[0].rpartition("; ")[2]
            raise UserError(f"cannot write TensorBoard events to {path}: {reason}") from error

    def put(step: int, **what: Any) -> None:
        with told():
            writer.write(tf.compat.v1.Event(wall_time=time.time(), step=step, **what).SerializeToString())
            writer.flush()  # what comes before a checkpoint does not come again

    def write(step: int, **scalars: float) -> None:
        # Not tensors, as tf.summary's: TensorBoard's EventAccumulator does not drop those.
        values = [tf.compat.v1.Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        put(step, summary=tf.compat.v1.Summary(value=values))

    with told():
        tf.io.gfile.makedirs(os.fsencode(path))
        writer = tf.io.TFRecordWriter(os.fsencode(path / _events_name(path)))
    with contextlib.closing(writer):
        put(0, file_version="brain.Event:2")
        put(done + 1, session_log=tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START))
        yield write


def _events_name(path: pathlib.Path) -> str:
    """A name after those in the folder, even if the clock was set back: TensorBoard reads files in order of names."""
    found = [re.match(r"events\.out\.tfevents\.(\d{10})\.", file.name) for file in path.iterdir()]
    number = max([int(time.time()), *(int(name[1]) + 1 for name in found if name)])
    return f"events.out.tfevents.{number:010}.v2"

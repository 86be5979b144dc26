"""The training loop: learning rate schedule, validation, checkpoints and resuming."""

import contextlib
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from reptile_tf import checks, configuration, evaluate, events, feed, origin, tasks
from reptile_tf.checkpoint import Checkpoint, RunFolder
from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.distributed.cluster import ALONE, Cluster
from reptile_tf.errors import UserError
from reptile_tf.evaluate import Accuracy, Evaluator
from reptile_tf.learners import make_learner, restore, set_fixed, take_from_chief
from reptile_tf.meta import MetaLearner
from reptile_tf.network import Loss, cross_entropy
from reptile_tf.origin import Origin
from reptile_tf.progress import Progress, log
from reptile_tf.settings import Settings
from reptile_tf.state import NotFiniteError
from reptile_tf.tasks import Tasks

# The running accuracy is the mean over this number of the latest validation tasks.
RUNNING_TASKS = 100
_NOT_FINITE = "numbers are not finite at meta-iteration"


class Interrupted(Exception):
    """Raised when a signal has ended training. The folder, if there is one, and the model hold the progress so far.

    Attributes:
      signal: number of the signal.
      done: number of finished meta-iterations.
    """

    def __init__(self, signal: int, done: int):
        super().__init__(f"signal {signal} after {done} meta-iterations")
        self.signal = signal
        self.done = done


# Called as sampler(iteration=…, first=…, count=…), returns tasks `first` to `first + count - 1` of a meta-iteration. It
# must be a pure function of these numbers, so that a run can be resumed, or divided among workers.
Sampler = Callable[..., Tasks]
# Called with the number of finished meta-iterations, the results by name, and the learner.
Callback = Callable[[int, dict[str, float], MetaLearner], None]


def meta_train(
    model: keras.Model,
    classes: ImageClasses | Sampler,
    settings: Settings,
    *,
    held_out: ImageClasses | None = None,
    folder: RunFolder | None = None,
    stacked: bool = False,
    cluster: Cluster = ALONE,
    loss: Loss = cross_entropy,
    callback: Callback | None = None,
) -> MetaLearner:
    """Meta-trains a model on tasks drawn from classes, or on the tasks of a sampler (paper, algorithms 1 and 2).

    Args:
      model: a built Keras model, which receives the learned weights. With image classes, it maps a batch of images to
        one logit per way.
      classes: classes from which training tasks are drawn; those with too few images are left out. Or a `Sampler` of
        tasks of any kind, which then determines ways, shots and minibatches instead of the settings.
      settings: the paper's hyperparameters.
      held_out: classes for validation; without them there is no learning curve.
      folder: folder for checkpoints, from which an interrupted run resumes; without it nothing is written. Only the
        chief of a cluster uses it. It is locked during training.
      stacked: see `MetaLearner`.
      cluster: the workers that train together, from `cluster.join`.
      loss: see `MetaLearner`; the folder records its name.
      callback: called on every worker after every `eval_interval` meta-iterations and at the end. Its results are
        "meta_gradient_norm" and, with held-out classes, "accuracy" and "running_accuracy" (from 0 to 1).

    Returns:
      The trained learner, whose `model` is the model passed in.

    Raises:
      ValueError: `classes` is of another type, the sampler returns something other than `Tasks`, or `held_out` has
        images of another range or scale.
      UserError: there are too few classes or images; the model does not fit the images or ways; the folder cannot be
        used, or holds a run with other settings, classes or loss; a value is not finite; another worker has stopped.
      Interrupted: SIGINT or SIGTERM arrived, here or on another worker. The folder and the model hold the progress.
    """
    if not isinstance(classes, ImageClasses) and not callable(classes):
        raise ValueError(
            "classes must be ImageClasses, which ImageClasses.from_groups makes of arrays, or a function that draws "
            f"tasks, not {type(classes).__name__}"
        )
    given = classes if isinstance(classes, ImageClasses) else None
    scale = 1.0 if given is None else given.scale
    learner = make_learner(model, settings, scale, stacked, cluster, loss)
    learner.origin = Origin.of_run(settings, origin.pixels(given))
    folder = folder if cluster.is_chief else None
    split: dict[str, ImageClasses] = {}
    images = None
    if isinstance(classes, ImageClasses):
        split = {"train": classes} | ({} if held_out is None else {"held out": held_out})
        drawable = tasks.with_enough(classes, settings.classes, settings.images_per_class, "training")
        checks.classifier(model, classes.images.shape[1:], settings.classes)
        if stacked:
            images, drawable = feed.images_on_gpu(drawable)
        sampler: Sampler = functools.partial(tasks.training_tasks, drawable, **settings.training_arguments())
    else:
        sampler = functools.partial(_copies, classes)
    if held_out is not None:
        checks.prepared_alike(learner.origin, learner.scale, held_out)
        held_out = tasks.with_enough(held_out, settings.classes, settings.shots + 1, "validation")
    for part in split.values():
        if same := part.without_variety():
            log.warning(f"all images of a class are the same in {len(same)} of {len(part)}, such as {same[0]}")
    with contextlib.ExitStack() as held:
        checkpoint = None
        if folder is not None:
            if not folder.is_claimed:
                config = configuration.of_run(None, settings, model, given, split, loss)
                held.enter_context(folder.claimed(config))
            checkpoint = folder.load()
        if checkpoint is None:
            checkpoint = Checkpoint(0, 0.0, learner.state(), np.zeros([0, 3]))
        else:
            if checkpoint.iteration:
                log.info(f"resuming from meta-iteration {checkpoint.iteration}")
            if set_fixed(model, checkpoint):
                known, learner = learner.origin, make_learner(model, settings, scale, stacked, cluster, loss)
                learner.origin = known
        restore(learner, checkpoint)
        if cluster.count > 1:
            checkpoint = checkpoint._replace(iteration=take_from_chief(learner, checkpoint.iteration))
        try:
            if checkpoint.iteration < settings.meta_iters:
                validate = None if held_out is None else _validation(learner, held_out, settings)
                _train(learner, sampler, images, settings, validate, folder, checkpoint, callback)
        finally:
            learner.update_model()
    return learner


def _copies(sampler: Sampler, **numbers: int) -> Tasks:
    """Returns copies of a sampler's arrays, which it may fill again before they are used."""
    drawn = sampler(**numbers)
    return tf.nest.map_structure(np.array, drawn) if isinstance(drawn, Tasks) else drawn


def _validation(learner: MetaLearner, classes: ImageClasses, settings: Settings) -> Callable[[int], np.ndarray]:
    """Returns a function from the number of finished meta-iterations to each validation task's accuracy, [task]."""
    evaluator = Evaluator.of(learner, settings.eval_tasks)

    def validate(iteration: int) -> np.ndarray:
        draw = functools.partial(
            tasks.evaluation_tasks,
            classes,
            stream=tasks.MONITORING,
            iteration=iteration,
            **settings.evaluation_arguments(),
        )
        both = evaluate.answers(learner, draw, settings.eval_tasks, evaluator=evaluator)
        return both[settings.transductive].by_task()

    return validate


def _train(
    learner: MetaLearner,
    sampler: Sampler,
    images: tf.Tensor | None,
    settings: Settings,
    validate: Callable[[int], np.ndarray] | None,
    folder: RunFolder | None,
    checkpoint: Checkpoint,
    callback: Callback | None,
) -> None:
    done, history, cluster = checkpoint.iteration, list(checkpoint.history), learner.cluster
    first, count = learner.share
    began = time.monotonic() - checkpoint.seconds

    def save() -> None:
        if folder is not None:
            rows = np.array(history).reshape(-1, 3)
            folder.save(Checkpoint(done, time.monotonic() - began, learner.state(), rows))

    if learner.network.stacked:
        gigabytes = learner.step_bytes(settings.inner_batch) / 1e9
        log.info(f"a meta-iteration needs at most {gigabytes:.1f} GB of memory (a high estimate)")

    def draw(iteration: int) -> Tasks:
        drawn = sampler(iteration=iteration, first=first, count=max(count, 1))
        if not isinstance(drawn, Tasks):
            raise ValueError(f"the function that draws tasks must return rt.tasks.Tasks, not {type(drawn).__name__}")
        return drawn

    every = settings.eval_interval if validate or callback else settings.meta_iters
    alone = [1] if cluster.count > 1 else []  # workers can only exchange between compiled calls
    note = ""
    with (
        _signals(cluster) as caught,
        events.writing(None if folder is None else folder.path / "events", done) as write,
        feed.Feed(draw, done, settings.meta_iters, every, settings.save_interval, *alone) as fed,
        Progress("meta-iteration", settings.meta_iters, done) as progress,
    ):
        while done < settings.meta_iters and not cluster.stopping:
            # Each call ends at the next validation or checkpoint.
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
            if done % every == 0 or done == settings.meta_iters:
                results = {"meta_gradient_norm": norm}
                if validate:
                    accuracies = validate(done)
                    history += [(done, time.monotonic() - began, accuracy) for accuracy in accuracies]
                    running = Accuracy.of(np.array(history[-RUNNING_TASKS:])[:, 2])
                    note = f"held-out accuracy {running}"
                    results |= {"accuracy": float(accuracies.mean()), "running_accuracy": running.accuracy}
                write(done, **results)
                if callback:
                    callback(done, results, learner)
            if done % settings.save_interval == 0:
                save()
            progress.advance(len(batches), note)
        if done % settings.save_interval:
            save()
    if stopping := cluster.stopping or next(iter(caught), 0):  # a signal may have come after the last exchange
        raise Interrupted(stopping, done)


def _diverged(error: NotFiniteError, done: int, folder: RunFolder | None) -> str:
    # The current state is not saved: it is finite, but may already have diverged.
    kept = [i for i in folder.iterations() if i <= done] if folder is not None else []
    last = (
        f"the last good checkpoint, of meta-iteration {kept[-1]}, is kept in {folder.path}"
        if folder and kept
        else "none is saved"
    )
    return f"{_NOT_FINITE} {done + 1} ({error}): training stops, {last}; lower --learning-rate or --meta-step"


@contextlib.contextmanager
def _signals(cluster: Cluster) -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that the current meta-iteration can end before the program does."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield cluster.caught
        return
    caught = cluster.caught = []
    old = {n: signal.signal(n, lambda number, _: caught.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        cluster.caught = []  # must not stop a later training with the same cluster
        for number, handler in old.items():
            signal.signal(number, handler)

"""Learners by their settings, and out of a run's folder."""

import pathlib
from typing import Any

import keras
import numpy as np

from reptile_tf import configuration, tfjs
from reptile_tf.checkpoint import Checkpoint, RunFolder
from reptile_tf.distributed.cluster import ALONE, Cluster
from reptile_tf.errors import UserError
from reptile_tf.meta import MetaLearner
from reptile_tf.meta_gradients import BY_NAME, MetaGradient, partial_sum
from reptile_tf.network import Loss, cross_entropy
from reptile_tf.progress import log
from reptile_tf.settings import Settings


def load(path: str | pathlib.Path, model: keras.Model | None = None, loss: Loss | None = None) -> MetaLearner:
    """The trained learner in a run's folder, with its optimizers' moments, ready to `adapt` or to be evaluated.

    Args:
      path: of the folder, which a run script or `meta_train` has written.
      model: a built model like the one trained; needed only where Keras cannot rebuild that safely (a Lambda, a layer
        without get_config). It receives the result.
      loss: what the learner was trained with, where that was not the default.

    Raises:
      UserError: there is none, it cannot be read, or the model or the loss is another one.
    """
    folder = RunFolder(path)
    config = folder.config()
    try:
        settings = None if "learner" in config else configuration.settings_of(config)
        model = configuration.network_of(config, model)
        if settings is None:
            learner = _saved(config["learner"], model, configuration.scale_of(config))
        else:
            loss = configuration.loss_of(config, loss)
            learner = make_learner(model, settings, configuration.scale_of(config), loss=loss)
        learner.origin = configuration.origin_of(config)
    except UserError as error:
        raise UserError(f"{folder.path}: {error.on_command_line}") from error
    restore_from(folder, learner)
    return learner


def set_weights(model: keras.Model, path: str | pathlib.Path) -> None:
    """Sets a model's weights to those that the run in a folder has learned.

    Raises:
      UserError: there is none, or its network has other weights.
    """
    learner = load(path)
    try:
        model.set_weights(learner.model.get_weights())
    except ValueError as error:
        raise UserError(f"--init-from {path}: its network has other weights than this one") from error
    log.info(f"starting from the weights in {path}")


def save(learner: MetaLearner, path: str | pathlib.Path) -> None:
    """Writes a learner made by itself, moments and all, into a folder for `load`.

    What `meta_train` or a run script trained is in its own folder already.

    Args:
      learner: with a stock meta-gradient and loss.
      path: of a new folder, or of one that this has written for a learner like it.

    Raises:
      ValueError: its loss or meta-gradient is the user's own.
      UserError: the folder is another's, or cannot be written to.
    """
    config, folder = configuration.of_learner(learner), RunFolder(path)
    with folder.claimed(config):
        folder.save(Checkpoint(0, 0.0, learner.state(), np.zeros([0, 3])))


def save_model(learner: MetaLearner, path: pathlib.Path) -> None:
    """Writes a learner's model as a .keras file, which the browser demo opens too, optimizer and moments included."""
    learner.model.save(path)
    try:
        tfjs.add_to(path, learner)
    except UserError as error:
        log.info(f"the model does not open in the browser demo: {error}")


def _saved(options: dict[str, Any], model: keras.Model, scale: float) -> MetaLearner:
    """The learner that `configuration.of_learner` describes, untrained."""
    options = dict(options)
    try:
        optimizers = [keras.optimizers.deserialize(options.pop(f"{which}_optimizer")) for which in ("inner", "outer")]
        algorithm = BY_NAME[options.pop("meta_gradient")]
        return MetaLearner(model, *optimizers, meta_gradient=algorithm, scale=scale, **options)
    except Exception as error:  # what a user's schedule raises; what of the text is not as it was written
        raise UserError(f"the learner cannot be made again: {next(iter(str(error).splitlines()), error)}") from error


def restore_from(folder: RunFolder, learner: MetaLearner) -> Checkpoint | None:
    """Sets a learner, and its model, to a folder's newest checkpoint, which only the chief of a cluster reads.

    Returns:
      The checkpoint, for the chief.

    Raises:
      UserError: there is none, or it does not fit the learner.
    """
    workers = learner.cluster
    checkpoint = folder.load() if workers.is_chief else None
    if checkpoint is None and workers.is_chief:
        raise UserError(f"no checkpoint in {folder.path} yet: train first")
    if checkpoint:
        restore(learner, checkpoint)
    if workers.count > 1:
        take_from_chief(learner, 0)
    learner.update_model()
    return checkpoint


def make_learner(
    model: keras.Model,
    settings: Settings,
    scale: float,
    stacked: bool = False,
    cluster: Cluster = ALONE,
    loss: Loss = cross_entropy,
) -> MetaLearner:
    """The learner that `settings` describe."""
    if settings.inner_optimizer == "sgd":
        inner = keras.optimizers.SGD(settings.learning_rate)
    else:
        inner = keras.optimizers.Adam(settings.learning_rate, beta_1=0.0, beta_2=0.999, epsilon=1e-8)
    return MetaLearner(
        model,
        inner,
        keras.optimizers.Adam() if settings.meta_optimizer == "adam" else keras.optimizers.SGD(),
        meta_gradient=_meta_gradient(settings),
        meta_batch=settings.meta_batch,
        sequential=settings.sequential,
        stacked=stacked,
        weight_decay=settings.weight_decay,
        scale=scale,
        loss=loss,
        cluster=cluster,
    )


def _meta_gradient(settings: Settings) -> MetaGradient:
    if settings.algorithm == "partial-sum":
        return partial_sum(settings.inner_gradients)
    return BY_NAME[settings.algorithm]


def restore(learner: MetaLearner, checkpoint: Checkpoint) -> None:
    """Sets the learner to a checkpoint; raises UserError if it is of another network or optimizer."""
    try:
        learner.restore(checkpoint.state)
    except ValueError as error:
        raise UserError(f"the checkpoint does not fit: {error}") from error


def take_from_chief(learner: MetaLearner, iteration: int) -> int:
    """Sets all workers' learners to the chief's; returns its meta-iteration. Only the chief needs a checkpoint."""
    state = learner.state()
    chiefs, *values = learner.cluster.from_chief([np.array(iteration), *state.values()])
    learner.restore(dict(zip(state, values, strict=True)))
    return int(chiefs)

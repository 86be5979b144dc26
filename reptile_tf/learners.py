"""Makes learners from settings, and loads and saves them in run folders."""

import pathlib
from typing import Any

import keras
import numpy as np

from reptile_tf import configuration, fixed_weights, tfjs
from reptile_tf.checkpoint import Checkpoint, RunFolder
from reptile_tf.distributed.cluster import ALONE, Cluster
from reptile_tf.errors import UserError
from reptile_tf.meta import MetaLearner
from reptile_tf.meta_gradients import BY_NAME, MetaGradient, partial_sum
from reptile_tf.network import Loss, cross_entropy
from reptile_tf.progress import log
from reptile_tf.settings import Settings


def load(path: str | pathlib.Path, model: keras.Model | None = None, loss: Loss | None = None) -> MetaLearner:
    """Loads the trained learner of a run, with its optimizers' moments, ready to `adapt` or to be evaluated.

    Args:
      path: the run's folder, written by a run script, `meta_train` or `save`.
      model: a built model with the trained model's architecture, which receives the learned weights. Needed only if
        Keras cannot rebuild the trained model safely (it has a Lambda, or a layer without get_config).
      loss: the loss that the learner was trained with, if it was not the default.

    Returns:
      The learner, on one worker and not stacked.

    Raises:
      UserError: there is no run in the folder, it cannot be read, or the model or the loss is not the run's.
    """
    folder = RunFolder(path)
    config = folder.config()
    try:
        settings = None if "learner" in config else configuration.settings_of(config)
        model = configuration.network_of(config, model)
        checkpoint = folder.load()
        if checkpoint is None:
            raise UserError("no checkpoint yet: train first")
        set_fixed(model, checkpoint)
        if settings is None:
            learner = _saved(config["learner"], model, configuration.scale_of(config))
        else:
            loss = configuration.loss_of(config, loss)
            learner = make_learner(model, settings, configuration.scale_of(config), loss=loss)
        learner.origin = configuration.origin_of(config)
    except UserError as error:
        raise UserError(f"{folder.path}: {error.on_command_line}") from error
    restore(learner, checkpoint)
    learner.update_model()
    return learner


def set_weights(model: keras.Model, path: str | pathlib.Path) -> None:
    """Sets a model's weights to those that the run in a folder has learned.

    Raises:
      UserError: there is no run in the folder, or its network has weights of other shapes.
    """
    learner = load(path)
    try:
        model.set_weights(learner.model.get_weights())
    except ValueError as error:
        raise UserError(f"--init-from {path}: its network has other weights than this one") from error
    log.info(f"starting from the weights in {path}")


def save(learner: MetaLearner, path: str | pathlib.Path) -> None:
    """Writes a learner, with its optimizers' moments, to a folder from which `load` reads it.

    This is for learners constructed directly. Run scripts, and `meta_train` with a folder, write their own.

    Args:
      learner: a learner with a stock meta-gradient and loss.
      path: a new folder, or one to which `save` has written a learner with the same configuration.

    Raises:
      ValueError: the loss or the meta-gradient is custom, or the model or an optimizer was changed since.
      UserError: the folder holds something else, or cannot be written to.
    """
    config, folder = configuration.of_learner(learner), RunFolder(path)
    with folder.claimed(config):
        folder.save(Checkpoint(0, 0.0, learner.state(), np.zeros([0, 3])))


def save_model(learner: MetaLearner, path: pathlib.Path) -> None:
    """Writes a learner's model to a .keras file. The optimizer's moments are added for the browser demo."""
    learner.model.save(path)
    try:
        tfjs.add_to(path, learner)
    except UserError as error:
        log.info(f"the model does not open in the browser demo: {error}")


def _saved(options: dict[str, Any], model: keras.Model, scale: float) -> MetaLearner:
    """Returns the learner that `configuration.of_learner` describes, untrained."""
    options = dict(options)
    try:
        optimizers = [keras.optimizers.deserialize(options.pop(f"{which}_optimizer")) for which in ("inner", "outer")]
        if excluded := options.pop("excluded_from_decay", ()):
            optimizers[0].exclude_from_weight_decay([model.trainable_variables[i] for i in excluded])
        algorithm = BY_NAME[options.pop("meta_gradient")]
        return MetaLearner(model, *optimizers, meta_gradient=algorithm, scale=scale, **options)
    except Exception as error:  # a user's schedule may raise anything, and the file may have been edited
        raise UserError(f"the learner cannot be rebuilt: {next(iter(str(error).splitlines()), error)}") from error


def restore_from(folder: RunFolder, learner: MetaLearner) -> Checkpoint | None:
    """Sets a learner and its model to a folder's newest checkpoint. In a cluster only the chief reads the folder.

    Returns:
      The checkpoint on the chief, None on other workers.

    Raises:
      UserError: there is no checkpoint, or it does not fit the learner.
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


def set_fixed(model: keras.Model, checkpoint: Checkpoint) -> bool:
    """Sets the weights of a model that are not trained, before a learner is made of it.

    Returns:
      Whether a learner that was made before computes with other constants now: the statistics of a Normalization.

    Raises:
      UserError: the checkpoint is from a model with other weights.
    """
    try:
        return fixed_weights.assign(model, checkpoint.state)
    except ValueError as error:
        raise UserError(f"the checkpoint does not fit: {error}") from error


def make_learner(
    model: keras.Model,
    settings: Settings,
    scale: float,
    stacked: bool = False,
    cluster: Cluster = ALONE,
    loss: Loss = cross_entropy,
) -> MetaLearner:
    """Returns an untrained learner as described by `settings`."""
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
    """Sets the learner to a checkpoint; raises UserError if that is from another network or optimizer."""
    try:
        learner.restore(checkpoint.state)
    except ValueError as error:
        raise UserError(f"the checkpoint does not fit: {error}") from error


def take_from_chief(learner: MetaLearner, iteration: int) -> int:
    """Copies the state of the chief's learner to all workers, and returns the chief's `iteration`.

    Raises:
      UserError: this worker's model has other statistics in a Normalization layer; or another worker has stopped.
    """
    state = learner.state()
    chiefs, *values = learner.cluster.from_chief([np.array(iteration), *state.values()])
    try:
        learner.restore(dict(zip(state, values, strict=True)))
    except ValueError as error:
        raise UserError(f"this worker's model differs from the chief's: {error}") from error
    return int(chiefs)

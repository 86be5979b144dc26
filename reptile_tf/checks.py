"""Checks of the tasks, optimizers and models that a user passes in."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from reptile_tf.data.image_classes import ImageClasses, check_dtype
from reptile_tf.errors import UserError
from reptile_tf.examine import in_one_line
from reptile_tf.network import Network, cross_entropy
from reptile_tf.origin import MOST_CLASSES, Origin
from reptile_tf.tasks import Tasks

# Stock optimizers that update each weight independently, so that a flat vector of all weights gives the same result.
# (LAMB, Muon and Adafactor do not; schedule-free AdamW keeps weights in its state.)
ELEMENTWISE = (
    keras.optimizers.SGD,
    keras.optimizers.Adam,
    keras.optimizers.AdamW,
    keras.optimizers.Nadam,
    keras.optimizers.Adamax,
    keras.optimizers.RMSprop,
    keras.optimizers.Adagrad,
    keras.optimizers.Adadelta,
    keras.optimizers.Lion,
    keras.optimizers.Ftrl,
)


def inner_optimizer(optimizer: keras.Optimizer, network: Network) -> None:
    """Raises ValueError unless an inner optimizer is elementwise, has not stepped, and runs in a graph.

    For an embedding, Keras squares and clips the gradient of each token before it sums over repeated tokens. A flat
    vector has only the sum, so optimizers that do either are rejected.
    """
    _elementwise(optimizer, "inner")
    of_sums = type(optimizer) in (keras.optimizers.SGD, keras.optimizers.Lion)
    if network.facts.sparse and (not of_sums or optimizer.clipvalue or optimizer.loss_scale_factor):
        raise ValueError(
            f"{network.facts.sparse[0]} has a sparse gradient, which {type(optimizer).__name__} treats token by token: "
            "use SGD or Lion (no clipvalue, no loss_scale_factor), or freeze that layer"
        )
    rate = optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        try:
            rate.get_config()
            tf.function(rate.__call__, autograph=False).get_concrete_function(tf.TensorSpec([], tf.int64))
        except Exception as error:  # a user's schedule may raise anything
            raise ValueError(
                f"the learning-rate schedule {type(rate).__name__} must run in a graph and have get_config: write it "
                f"with keras.ops ({in_one_line(error)})"
            ) from error
    elif not isinstance(rate, keras.Variable):
        raise ValueError("the inner optimizer's learning rate must be a number or a LearningRateSchedule")


def outer_optimizer(optimizer: keras.Optimizer) -> None:
    """Raises ValueError unless an outer optimizer is elementwise, has not stepped, and has no schedule."""
    _elementwise(optimizer, "outer")
    if isinstance(optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        raise ValueError("each step sets the outer optimizer's learning rate to its meta-step: give it no schedule")
    if getattr(optimizer, "_exclude_from_weight_decay", None) or getattr(
        optimizer, "_exclude_from_weight_decay_pattern", None
    ):
        raise ValueError("the outer optimizer sees one vector of all weights: exclude none from its weight decay")


def _elementwise(optimizer: keras.Optimizer, which: str) -> None:
    if type(optimizer) not in ELEMENTWISE:
        names = ", ".join(kind.__name__ for kind in ELEMENTWISE)
        raise ValueError(f"the {which} optimizer must be elementwise: one of {names}, not {type(optimizer).__name__}")
    for setting in ("clipnorm", "global_clipnorm", "use_ema", "gradient_accumulation_steps"):
        if getattr(optimizer, setting):
            raise ValueError(f"the {which} optimizer must be elementwise: unset {setting}")
    if int(optimizer.iterations):
        raise ValueError(f"the {which} optimizer has already taken steps: give a new one")


def tasks(network: Network, given: Tasks, count: int | None = None, images: tf.Tensor | None = None) -> Tasks:
    """Checks tasks, and returns them with labels converted to int32.

    Args:
      network: the network that adapts to the tasks.
      given: the tasks to check.
      count: required number of tasks; None allows any number.
      images: [image, ...] if the tasks' inputs are indices into them.

    Raises:
      ValueError: the inputs are not real numbers, or do not have the model's input shape; the numbers of targets and
        inputs, or of tasks and their minibatches, differ; the network has no output for a label; a minibatch index is
        out of range; or there are random layers, but no seeds.
    """
    if count not in (None, len(given.x)):
        raise ValueError(f"{count} tasks run side by side, so give {count}, not {len(given.x)}")
    if images is not None:
        x = np.asarray(given.x)
        if x.ndim != 2 or x.dtype.kind not in "iu" or not 0 <= x.min() <= x.max() < len(images):
            raise ValueError(f"inputs must be indices [task, sample] of {len(images)} images")
        given = given._replace(x=x.astype(np.int32, copy=False))
    check_dtype(np.asarray(given.x).dtype, "inputs")
    inputs(network, given.x.shape[2:] if images is None else images.shape[1:])
    if np.shape(given.y)[:2] != given.x.shape[:2]:
        raise ValueError(f"{given.x.shape[1]} inputs need as many labels, not {list(np.shape(given.y)[1:])}")
    indices = {"minibatches": given.minibatches} | ({} if isinstance(given.query, tuple) else {"query": given.query})
    for what, dealt in indices.items():
        if np.ndim(dealt) != 3 or len(dealt) != len(given.x):
            raise ValueError(f"{what} must be indices [{len(given.x)} tasks, step, sample], not {np.shape(dealt)}")
        if dealt.size and not 0 <= dealt.min() <= dealt.max() < given.x.shape[1]:
            raise ValueError(f"{what} must index {given.x.shape[1]} samples, not {dealt.min()} to {dealt.max()}")
    if network.facts.random:
        seed = np.asarray(given.seed)
        if seed.shape != (len(given.x), 2) or seed.dtype.kind not in "iu":
            raise ValueError("the model has random layers: give the tasks a seed, integers [task, 2]")
    return given._replace(y=labels(given.y, network.facts.output_shape[-1])) if network.loss is cross_entropy else given


def prepared_alike(origin: Origin, scale: float, classes: ImageClasses) -> None:
    """Raises ValueError if classes have another range or scale than those that a learner was trained on.

    Samples with a scale of 1 are accepted, because the learner's own scale applies to them. Of many classes it examines
    the first image of some.
    """
    if classes.scale not in (1, scale):
        raise ValueError(
            f"these samples are to be multiplied by {classes.scale:g}, but those trained on by {scale:g}: prepare both "
            "alike, or give the learner's scale by dataclasses.replace"
        )
    if origin.white is not None:
        some = range(0, len(classes), -(-len(classes) // MOST_CLASSES) or 1)
        images = [image for index in some for image in classes.of_class(index, slice(1))]
        origin.check(np.array([[image.min(), image.max()] for image in images]))


def inputs(network: Network, shape: Sequence[int]) -> None:
    """Raises ValueError unless inputs have the model's input shape; Keras does not reject all others."""
    wanted = network.facts.input_shape

    def fits(axes: Sequence[int | None]) -> bool:
        return len(shape) == len(axes) and all(axis in (None, ours) for ours, axis in zip(shape, axes, strict=True))

    if not fits(wanted):
        # If so, the first axis of a single input was taken for the batch.
        way_out = "; give a single one as x[None]" if fits(wanted[1:]) else ""
        raise ValueError(f"the model does not take inputs of {tuple(shape)}: it is made for {wanted}{way_out}")


def labels(y: np.ndarray, ways: int) -> np.ndarray:
    """Converts labels to int32 [task, sample]; raises ValueError unless they are integers from 0 to `ways` - 1."""
    y = np.asarray(y)
    if y.ndim == 3 and y.shape[-1] == ways:
        raise ValueError("labels must be integers, one per sample, not one-hot rows: give labels.argmax(-1)")
    if y.ndim != 2 or y.dtype.kind not in "iufb":
        raise ValueError(f"labels must be integers, one per sample, not {y.dtype} of shape {y.shape[1:]}")
    if y.dtype.kind == "f" and not (whole := np.isfinite(y) & (y == np.round(y))).all():
        raise ValueError(f"labels must be integers, not {y[~whole][0]}")
    if y.size and not 0 <= y.min() <= y.max() < ways:
        raise ValueError(
            f"labels must be from 0 to {ways - 1}, because the network has {ways} outputs, but these are from "
            f"{int(y.min())} to {int(y.max())}"
        )
    return y if y.dtype == np.int32 else y.astype(np.int32)


def names(y: np.ndarray, samples: int, ways: int) -> np.ndarray:
    """Checks the labels [sample] of a support set; raises ValueError unless they are names or integers."""
    if y.ndim == 2 and y.shape[-1] == ways:
        raise ValueError("labels must be one per sample, not one-hot rows: give labels.argmax(-1)")
    if y.shape != (samples,):
        raise ValueError(f"{samples} inputs need as many labels, not {list(y.shape)}")
    if y.dtype.kind == "O" and all(isinstance(label, str) for label in y):
        y = y.astype(str)
    if y.dtype.kind == "f" and not (whole := np.isfinite(y) & (y == np.round(y))).all():
        raise ValueError(f"labels must be names or integers: {y[~whole][0]} is neither")
    if y.dtype.kind not in "iufbU":
        raise ValueError(f"labels must be names or integers, not {y.dtype}")
    return y


def classifier(model: keras.Model, image: tuple[int, ...], way: int) -> None:
    """Raises UserError unless the model maps images of this shape to `way` logits."""
    # Keras accepts other sizes if the layers after the convolutions fit. A subclassed model has no input_shape.
    wanted = getattr(model, "input_shape", (None, *image))[1:]
    if len(wanted) != len(image) or any(ours not in (None, theirs) for ours, theirs in zip(wanted, image, strict=True)):
        raise UserError(f"the model does not take images of {image}: it is made for {wanted}")
    try:
        # Only a call reveals a wrong number of channels, and it works for models of any kind.
        outputs = tuple(model(tf.zeros((1, *image))).shape[1:])
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        raise UserError(f"the model does not take images of {image}: {str(error).splitlines()[0]}") from error
    if outputs != (way,):
        raise UserError(f"the model's output for an image has shape {outputs}, but {way} ways need ({way},)")

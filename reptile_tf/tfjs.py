"""Exports a trained learner to TensorFlow.js, so that a browser can adapt it to new tasks.

  python -m reptile_tf.tfjs --checkpoint model_checkpoint --out demo/model
  python -m reptile_tf.tfjs --classifier classifier.keras --out classifier     # model.json and weights.bin alone

The export consists of three pairs of files:

- model.json and weights.bin: a LayersModel for `tf.loadLayersModel`.
- learner.json and moments.bin: the inner optimizer with its step count and second moments.
- reference.json and reference.bin: ten inner steps computed by Keras, against which any host can check its own.

Each .json lists the name, shape and dtype of every array in its .bin file, in order, in TensorFlow.js's format
(`tf.io.decodeWeights`).

The tensorflowjs package cannot be used: it does not install beside TensorFlow 2.21, and TensorFlow.js cannot load its
exports of Keras 3 models.
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from reptile_tf import backend, files, tfjs_layers
from reptile_tf.errors import UserError

if TYPE_CHECKING:
    import keras

    from reptile_tf.meta import MetaLearner

REFERENCE_STEPS = 10
MOST_STEPS = 30  # limit of the demo


def export(learner: "MetaLearner", out: str | os.PathLike, inner_steps: int = 10) -> None:
    """Writes a learner's six files. Existing files are replaced only after all new ones have been written.

    Args:
      learner: a learner whose model is a chain of stock layers from image to logits, and whose inner optimizer is the
        paper's Adam or plain SGD.
      out: the folder to write to, created if it does not exist.
      inner_steps: number of inner steps on a new task, recorded for the host.

    Raises:
      UserError: TensorFlow.js would compute a layer or the optimizer differently, or the folder cannot be written to.
    """
    model, moments, contents = _of_learner(learner, inner_steps)
    reference = _reference(model, learner, moments)
    contents["reference.json"] = _json(
        {"steps": REFERENCE_STEPS, "arrays": _pack(contents, "reference.bin", reference)}
    )
    _write(pathlib.Path(out), contents)


def export_classifier(model: "keras.Model", out: str | os.PathLike) -> None:
    """Writes a model that is used without further adaptation, such as `learner.adapt(…).model()`.

    The files are model.json and weights.bin. `predict` returns the same in TensorFlow.js as in Keras. For the other
    argument and the errors see `export`.
    """
    _write(pathlib.Path(out), _of_model(model))


def add_to(path: str | os.PathLike, learner_or_model: Any) -> None:
    """Adds a folder tfjs/ to a .keras file, so that the browser demo can open it. Keras ignores that folder.

    Args:
      path: the .keras file.
      learner_or_model: the learner whose model the file holds, or a model that is used without further adaptation.

    Raises:
      UserError: see `export`; the file is left unchanged.
    """
    is_learner = hasattr(learner_or_model, "phi")
    steps = min(learner_or_model.origin.steps, MOST_STEPS) if is_learner else 0
    contents = _of_learner(learner_or_model, steps)[2] if is_learner else _of_model(learner_or_model)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(f"tfjs/{name}"), content)


def _of_model(model: "keras.Model") -> dict[str, bytes]:
    """Returns the content of a model's files by name; raises UserError if the model cannot be exported."""
    import keras

    if not isinstance(model, keras.Sequential):
        raise UserError("only a keras.Sequential model exports: a chain of layers")
    contents: dict[str, bytes] = {}
    variables = {_name(variable): variable.numpy() for variable in model.variables}
    manifest = [{"paths": ["weights.bin"], "weights": _pack(contents, "weights.bin", variables)}]
    network = {"class_name": "Sequential", "config": {"name": model.name, "layers": tfjs_layers.described(model)}}
    contents["model.json"] = _json(
        {
            "format": "layers-model",
            "generatedBy": "reptile_tf",
            "convertedBy": None,
            "modelTopology": {"keras_version": "2.0", "backend": "tensorflow", "model_config": network},
            "weightsManifest": manifest,
        }
    )
    return contents


def _of_learner(
    learner: "MetaLearner", inner_steps: int
) -> tuple["keras.Sequential", list[np.ndarray], dict[str, bytes]]:
    """Returns the exported model, its second moments, and the learner's files by name, except the reference."""
    try:
        learner.network.as_made.check()
    except ValueError as error:
        raise UserError(str(error)) from error
    _check_trainable(learner.model)
    _check_loss(learner)
    model, kept = _without_idle_biases(learner.model)
    weights = [value for value, keep in zip(learner.network.unflatten(learner.phi), kept, strict=True) if keep]
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        variable.assign(value)
    optimizer, moments = _optimizer_of(learner, kept)
    names = [_name(variable) for variable in model.trainable_variables]
    contents = _of_model(model)
    contents["learner.json"] = _json(
        {
            "ways": model.output_shape[-1],
            "filters": getattr(model.layers[0], "filters", None),
            "inner_steps": inner_steps,
            "scale": learner.network.scale,
            "paper": learner.origin.paper,
            "weight_decay": learner.weight_decay,
            "optimizer": optimizer,
            "moments": _pack(contents, "moments.bin", dict(zip(names, moments, strict=True)) if moments else {}),
        }
    )
    return model, moments, contents


def _without_idle_biases(model: "keras.Model") -> tuple["keras.Model", list[bool]]:
    """Copies a model without the biases of convolutions that a batch norm follows, which subtracts any constant.

    The gradient of such a bias is only rounding error, which differs between hosts and which Adam turns into drift.

    Returns:
      The copy, with its weights not yet set, and for each trainable weight of `model` whether the copy has it.
    """
    import keras

    from reptile_tf.layers import idle_biases

    if not isinstance(model, keras.Sequential):
        raise UserError("only a keras.Sequential model exports: a chain of layers")
    idle_layers = idle_biases(model)
    idle = [layer in idle_layers for layer in model.layers]
    copy = keras.Sequential([keras.layers.Input(model.input_shape[1:])], name=model.name)
    for layer, unbiased in zip(model.layers, idle, strict=True):
        copy.add(type(layer).from_config(layer.get_config() | ({"use_bias": False} if unbiased else {})))
    kept = [
        not (unbiased and variable is getattr(layer, "bias", None))
        for layer, unbiased in zip(model.layers, idle, strict=True)
        for variable in layer.trainable_variables
    ]
    return copy, kept


def _name(variable: "keras.Variable") -> str:
    """Returns TensorFlow.js's name of a weight, such as LAYER/kernel."""
    return "/".join(variable.path.split("/")[-2:])


def _check_trainable(model: "keras.Model") -> None:
    """Raises UserError if a layer is frozen: the browser adapts all weights, and its batch norm uses the batch."""
    for layer in model._flatten_layers(include_self=False):
        if layer.variables and not layer.trainable:
            raise UserError(f"layer {layer.name} is frozen, which does not export: the browser adapts all weights")


def _check_loss(learner: "MetaLearner") -> None:
    """Raises UserError if the browser would minimize another loss, or take other steps."""
    from reptile_tf.network import cross_entropy

    if learner.network.loss is not cross_entropy:
        raise UserError("a custom loss does not export: the browser has the sum of cross-entropies")
    for layer in learner.model._flatten_layers():
        for name, value in vars(layer).items():
            if value is not None and name.endswith(("_regularizer", "_constraint")):
                raise UserError(f"layer {layer.name} has {name}, which does not export")


def _optimizer_of(learner: "MetaLearner", kept: list[bool]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Returns the inner optimizer's settings and, for Adam, its second moments in the order of the exported weights."""
    import keras

    from reptile_tf.inner_loop import has_only

    optimizer = learner.inner_optimizer
    kind, config = type(optimizer).__name__.lower(), optimizer.get_config()
    of_adam = {"beta_1": 0.0} | {name: config.get(name) for name in ("beta_2", "epsilon")}
    if not has_only(optimizer, keras.optimizers.SGD) and not has_only(optimizer, keras.optimizers.Adam, **of_adam):
        raise UserError(
            "the inner optimizer does not export: only SGD and Adam with beta_1 = 0 do, with a number as learning rate "
            "and no other setting"
        )
    # The shortest decimal of the float32 value: 0.001, not 0.0010000000474974513.
    settings = {"name": kind, "learning_rate": float(str(np.float32(config["learning_rate"])))}
    if kind == "sgd":
        return settings, []
    # With beta_1 = 0 the first moment is the current gradient, so it is not exported.
    iterations, _, second = learner.inner_state
    moments = [m.numpy() for m, keep in zip(learner.network.unflatten(second), kept, strict=True) if keep]
    settings |= {"beta_2": config["beta_2"], "epsilon": config["epsilon"], "step": int(iterations)}
    return settings, moments


def _reference(model: "keras.Model", learner: "MetaLearner", moments: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Runs ten inner steps in stock Keras on scribbles, one per class; returns the inputs and the expected outputs.

    It runs in float64, because Keras's float32 error (about 1e-4 at logits of 12) exceeds that of an accurate host.
    """
    import keras
    import tensorflow as tf

    from reptile_tf.network import cross_entropy

    exact = keras.Sequential([keras.layers.Input(model.input_shape[1:], dtype="float64")])
    for layer in model.layers:
        exact.add(type(layer).from_config(layer.get_config() | {"dtype": "float64"}))
    exact.set_weights(model.get_weights())
    model = exact
    optimizer = type(learner.inner_optimizer).from_config(learner.inner_optimizer.get_config())
    optimizer.build(model.trainable_variables)
    if moments:
        optimizer.iterations.assign(learner.inner_state[0])
        for slot, value in zip(optimizer._velocities, moments, strict=True):
            slot.assign(value)

    way = model.output_shape[-1]
    support, query = np.split(_scribbles(way + 1, model.input_shape[1:]), [way])
    batch = np.concatenate([support, query])
    arrays = {"support": support, "query": query, "logits_before": model(batch, training=True).numpy()}
    for _ in range(REFERENCE_STEPS):
        for variable in model.trainable_variables if learner.weight_decay != 1 else ():
            variable.assign(variable * learner.weight_decay)
        with tf.GradientTape() as tape:
            loss = cross_entropy(tf.range(way), model(support, training=True))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    arrays["logits_after"] = model(batch, training=True).numpy()
    return arrays | {f"after/{_name(variable)}": variable.numpy() for variable in model.trainable_variables}


def _scribbles(count: int, shape: Sequence[int]) -> np.ndarray:
    """Draws random lines, 0 on 1, always the same: float32 [count, *shape]. Noise would not resemble drawings."""
    height, width, channels = shape
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        image = Image.new("L", (width, height), 255)
        points = rng.uniform(0.15, 0.85, [6, 2]) * [width, height]
        ImageDraw.Draw(image).line([tuple(point) for point in points], 0, max(1, width // 20))
        images.append(np.repeat(np.asarray(image)[..., np.newaxis] / 255, channels, -1))
    return np.stack(images).astype(np.float32)


def _pack(contents: dict[str, bytes], file: str, arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Adds `arrays` to `contents` as one file of little-endian float32; returns their names, shapes and dtypes."""
    contents[file] = b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in arrays.values())
    return [{"name": name, "shape": list(array.shape), "dtype": "float32"} for name, array in arrays.items()]


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value) + "\n").encode()


def _write(out: pathlib.Path, contents: dict[str, bytes]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot use {out} as --out: {error.strerror}") from error
    with contextlib.ExitStack() as stack:
        for name, content in contents.items():
            stack.enter_context(files.replacing(out / name)).write_bytes(content)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 1 after a user error, 2 (by SystemExit) after a bad flag."""
    parser = argparse.ArgumentParser(
        prog="python -m reptile_tf.tfjs",
        description="Export a trained run for TensorFlow.js.",
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", help="folder of a run, as the run scripts leave it")
    what.add_argument("--classifier", help="a classifier that reptile_tf.classify saved, to be used as it is")
    parser.add_argument("--out", required=True, help="folder to write the model to")
    parser.add_argument("--inner-steps", type=_steps, default=10, help="inner steps on a new task (default: 10)")
    arguments = parser.parse_args(argv)
    try:
        backend.check()
        backend.import_quietly()
        from reptile_tf import learners

        if arguments.classifier:
            export_classifier(_saved(arguments.classifier), arguments.out)
        else:
            export(learners.load(arguments.checkpoint), arguments.out, arguments.inner_steps)
    except UserError as error:
        print(f"{parser.prog}: {error.on_command_line}", file=sys.stderr)
        return 1
    print(f"the model is in {arguments.out}")
    return 0


def _saved(path: str) -> "keras.Model":
    """Loads the model in a .keras file; raises UserError if it is missing or Keras cannot load it safely."""
    import keras

    try:
        return keras.saving.load_model(path)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot load {path} as a Keras model: {str(error).splitlines()[0]}") from error


def _steps(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of steps, 0 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())

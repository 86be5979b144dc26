"""Export of a trained learner for TensorFlow.js, which can adapt it to new tasks in a browser.

  python -m reptile_tf.tfjs --checkpoint model_checkpoint --out demo/model
  python -m reptile_tf.tfjs --classifier classifier.keras --out classifier     # model.json and weights.bin alone

writes model.json and weights.bin, a LayersModel for `tf.loadLayersModel`; learner.json and moments.bin, the inner
optimizer with its step count and second moments; reference.json and reference.bin, ten inner steps as Keras takes
them, by which any host can check itself. In every pair the .json lists name, shape and dtype of each array in the .bin,
in the order in which they lie there, as TensorFlow.js does (`tf.io.decodeWeights`).

The tensorflowjs package is no help here: it does not install beside TensorFlow 2.21, and what it writes of a Keras 3
model TensorFlow.js does not load.
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
MOST_STEPS = 30  # that the demo takes


def export(learner: "MetaLearner", out: str | os.PathLike, inner_steps: int = 10) -> None:
    """Writes a learner's six files; all of them are written before the first takes its place.

    Args:
      learner: its model is a chain of stock layers from image to logits, its inner optimizer the paper's Adam, or SGD.
      out: the folder, made if it does not exist.
      inner_steps: inner steps on a new task, for the host's information.

    Raises:
      UserError: a layer or optimizer that TensorFlow.js would compute differently; a folder that cannot be written to.
    """
    model, moments, contents = _of_learner(learner, inner_steps)
    reference = _reference(model, learner, moments)
    contents["reference.json"] = _json(
        {"steps": REFERENCE_STEPS, "arrays": _pack(contents, "reference.bin", reference)}
    )
    _write(pathlib.Path(out), contents)


def export_classifier(model: "keras.Model", out: str | os.PathLike) -> None:
    """Writes a model to be used as it is, `learner.adapt(…).model()` say: model.json and weights.bin.

    Its ordinary `predict` gives in TensorFlow.js what it gives in Keras. Arguments and errors are those of `export`.
    """
    _write(pathlib.Path(out), _of_model(model))


def add_to(path: str | os.PathLike, learner_or_model: Any) -> None:
    """Adds to a .keras file what the browser demo needs to open it, in a folder tfjs/; Keras passes over it.

    Args:
      path: of the file.
      learner_or_model: the learner whose model it holds, or a model to be used as it is.

    Raises:
      UserError: as `export`; the file is as it was.
    """
    is_learner = hasattr(learner_or_model, "phi")
    steps = min(learner_or_model.origin.steps, MOST_STEPS) if is_learner else 0
    contents = _of_learner(learner_or_model, steps)[2] if is_learner else _of_model(learner_or_model)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(f"tfjs/{name}"), content)


def _of_model(model: "keras.Model") -> dict[str, bytes]:
    """The files of a model by name; raises UserError if it does not export."""
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
    """The exported model, its moments, and the files of a learner by name, the reference apart."""
    _check_trainable(learner.model)
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
    """A copy of a model whose convolutions have no bias where a batch norm follows, which takes any constant off again.

    Such a bias has a gradient of zero but for rounding, which differs from host to host; Adam would make drift of it.

    Returns:
      The copy, its weights still unset, and for each trainable weight of `model` whether the copy has it.
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
    """TensorFlow.js's name of a weight: LAYER/kernel and the like."""
    return "/".join(variable.path.split("/")[-2:])


def _check_trainable(model: "keras.Model") -> None:
    """Raises UserError unless the browser, which adapts all weights and has batch norm use the batch, does the same."""
    for layer in model._flatten_layers(include_self=False):
        if layer.variables and not layer.trainable:
            raise UserError(f"layer {layer.name} is frozen, which does not export: the browser adapts all weights")


def _optimizer_of(learner: "MetaLearner", kept: list[bool]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The inner optimizer's settings and, for Adam, its second moments in the order of the exported weights."""
    kind, config = type(learner.inner_optimizer).__name__.lower(), learner.inner_optimizer.get_config()
    # Without the digits that float32 adds: 0.001, not 0.0010000000474974513.
    settings = {"name": kind, "learning_rate": float(str(np.float32(config["learning_rate"])))}
    if kind == "sgd" and not config["momentum"]:
        return settings, []
    if kind != "adam" or config["beta_1"] or config["amsgrad"] or config["weight_decay"]:
        raise UserError("the inner optimizer does not export: only plain SGD and Adam with beta_1 = 0 do")
    # With beta_1 = 0 the first moment is the gradient at hand, so there is none to ship.
    iterations, _, second = learner.inner_state
    moments = [m.numpy() for m, keep in zip(learner.network.unflatten(second), kept, strict=True) if keep]
    settings |= {"beta_2": config["beta_2"], "epsilon": config["epsilon"], "step": int(iterations)}
    return settings, moments


def _reference(model: "keras.Model", learner: "MetaLearner", moments: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Ten inner steps on scribbles, one a class, by stock Keras: what goes in and what must come out.

    In float64: float32 in Keras is off by some 1e-4 where logits are 12, more than a host that computes well.
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
    """Images of random lines, 0 on 1, the same every time: float32 [count, *shape]. Noise is nothing like a drawing."""
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
    """Adds little-endian float32 `arrays` to `contents` as one file; returns their names and shapes."""
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
    """Runs the command line; returns the exit code: 0, 1 after a user's mistake, 2 (by SystemExit) after a bad flag."""
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
    """The model in a .keras file; raises UserError if there is none, or Keras cannot load it safely."""
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

"""Tests of the export for TensorFlow.js, and of the browser's results against Python's.

Tests in Node need demo/node_modules (`npm ci` there). Tests on real drawings need OMNIGLOT_DIR.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import waiting
from conftest import DEMO, in_node, relative

from reptile_tf import (
    ImageClasses,
    RunFolder,
    Settings,
    UserError,
    learners,
    load,
    meta_train,
    models,
    tasks,
    tfjs,
)
from reptile_tf.data import omniglot
from reptile_tf.evaluate import Accuracy, Evaluator
from reptile_tf.problems.omniglot import PROBLEM

TINY = {
    "classes": 3, "shots": 1, "train_shots": 4, "filters": 4, "inner_batch": 6, "inner_iters": 3, "meta_batch": 1,
    "meta_iters": 100, "eval_samples": 2,
}  # fmt: skip

on_omniglot = pytest.mark.skipif("OMNIGLOT_DIR" not in os.environ, reason="needs OMNIGLOT_DIR")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, glyphs):
    """The folder of a short run on glyphs."""
    folder, settings = RunFolder(tmp_path_factory.mktemp("tfjs") / "run"), Settings(**TINY)
    keras.utils.set_random_seed(0)
    with folder.claimed({"problem": "omniglot", "settings": settings.determining_weights(), "split": {}}):
        meta_train(models.omniglot(3, 4), glyphs, settings, folder=folder)
    return folder.path


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("tfjs") / "made" / "model"
    assert tfjs.main([f"--checkpoint={trained}", f"--out={out}", "--inner-steps=7"]) == 0
    return out


def arrays(folder, file, specs):
    """Returns the arrays in a .bin file, by name."""
    values = np.fromfile(folder / file, "<f4")
    ends = np.cumsum([np.prod(spec["shape"], dtype=int) for spec in specs])
    assert ends[-1] == len(values)
    assert all(spec["dtype"] == "float32" for spec in specs)
    parts = np.split(values, ends[:-1])
    return {spec["name"]: part.reshape(spec["shape"]) for spec, part in zip(specs, parts, strict=True)}


def reference(folder):
    return arrays(folder, "reference.bin", json.loads((folder / "reference.json").read_text())["arrays"])


def described(folder):
    return json.loads((folder / "learner.json").read_text())


def weights(folder):
    return arrays(
        folder, "weights.bin", json.loads((folder / "model.json").read_text())["weightsManifest"][0]["weights"]
    )


def test_weights_and_moments_are_the_learners(trained, exported):
    learner = load(trained)
    phi = learner.update_model().trainable_variables
    count, _, second = learner.inner_state
    moments = arrays(exported, "moments.bin", described(exported)["moments"])
    ours = weights(exported)
    for variable, moment in zip(phi, learner.network.unflatten(second), strict=True):
        name = "/".join(variable.path.split("/")[-2:])
        if name.startswith("conv") and name.endswith("bias"):  # before a batch norm
            assert name not in ours
            continue
        np.testing.assert_array_equal(ours[name], variable.numpy())
        np.testing.assert_array_equal(moments.pop(name), moment.numpy())
    assert not moments
    assert described(exported)["optimizer"]["step"] == int(count) == 300


def test_it_says_what_the_page_needs(exported):
    said = described(exported)
    assert {name: said[name] for name in ("ways", "filters", "inner_steps", "scale")} == {
        "ways": 3, "filters": 4, "inner_steps": 7, "scale": 1.0
    }  # fmt: skip
    assert said["optimizer"]["learning_rate"] == 0.001
    assert said["optimizer"]["epsilon"] == 1e-8


def test_the_reference_is_what_the_learner_does(trained, exported):
    """The reference uses stock Keras; the learner uses one flat vector and fused layers."""
    expected, learner = reference(exported), load(trained)
    adapted = learner.adapt(expected["support"], np.arange(3), steps=10, batch=3).model()
    batch = np.concatenate([expected["support"], expected["query"]])
    np.testing.assert_allclose(adapted(batch, training=True), expected["logits_after"], atol=1e-3)
    kernel = adapted.get_layer("conv2").kernel.numpy()
    assert relative(kernel, expected["after/conv2/kernel"], weights(exported)["conv2/kernel"]) < 1e-3


def in_javascript(folder):
    """Returns the results of the browser's code for an exported model."""
    done = subprocess.run(
        ["node", "test/steps.js", folder], cwd=DEMO, capture_output=True, text=True, timeout=waiting.LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@in_node
def test_the_browser_computes_what_keras_does(exported):
    ours, expected = in_javascript(exported), reference(exported)
    np.testing.assert_allclose(ours["before"], expected["logits_before"], atol=1e-4)
    np.testing.assert_allclose(ours["after"], expected["logits_after"], atol=1e-4)
    assert np.abs(expected["logits_after"] - expected["logits_before"]).max() > 0.1
    for name, values in ours["weights"].items():
        np.testing.assert_allclose(values, expected[f"after/{name}"].ravel(), atol=1e-4)
    assert len(set(ours["tensors"])) == 1


@pytest.mark.slow
@in_node
@pytest.mark.parametrize("kind", ["miniimagenet", "sgd, weight decay, a model of one's own"])
def test_other_models_too(kind, tmp_path, small_model):
    if kind == "miniimagenet":
        keras.utils.set_random_seed(0)
        settings = Settings(**(TINY | {"meta_iters": 5}))
        draw = np.random.default_rng(0).integers
        groups = {str(i): draw(0, 256, [5, 84, 84, 3], np.uint8) for i in range(4)}
        learner = meta_train(models.miniimagenet(3, 4), ImageClasses.from_groups(groups, scale=1 / 255), settings)
    else:
        settings = Settings(**(TINY | {"inner_optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 0.99}))
        learner = learners.make_learner(small_model(), settings, scale=1.0)
    tfjs.export(learner, tmp_path)
    ours, expected, before = in_javascript(tmp_path), reference(tmp_path), weights(tmp_path)
    np.testing.assert_allclose(ours["before"], expected["logits_before"], atol=1e-3)
    for name, values in ours["weights"].items():
        # The error is relative to the step: Adam's first steps after short training are large, and so is the rounding.
        assert relative(np.reshape(values, before[name].shape), expected[f"after/{name}"], before[name]) < 0.05, name


def test_an_interrupted_export_leaves_the_old_files(trained, exported, tmp_path, monkeypatch):
    out = shutil.copytree(exported, tmp_path / "model")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    written = []

    def full(path, content):
        written.append(path)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        path.touch()

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        tfjs.export(load(trained), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_mistakes_are_one_line(trained, tmp_path, capsys):
    (tmp_path / "file").touch()
    for checkpoint, out, said in ((tmp_path, tmp_path, "no run in"), (trained, tmp_path / "file", "as --out")):
        assert tfjs.main([f"--checkpoint={checkpoint}", f"--out={out}"]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("flags", [[], ["--checkpoint=a"], ["--inner-steps=-1"], ["--colour=red"]])
def test_bad_flags_exit_with_2(flags):
    done = subprocess.run(
        [sys.executable, "-m", "reptile_tf.tfjs", *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "usage: python -m reptile_tf.tfjs" in done.stderr


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (keras.layers.LayerNormalization(name="odd"), "odd is a LayerNormalization, which does not export"),
        (keras.layers.Conv2D(2, 3, dilation_rate=2, name="odd"), "odd: dilation_rate=.* does not export"),
        (keras.layers.Conv2D(2, 3, activation="gelu", name="odd"), "odd: activation 'gelu' does not export"),
        (keras.layers.ReLU(max_value=6, name="odd"), "odd: max_value=6"),
    ],
)
def test_layers_that_would_compute_differently_are_refused(layer, message, tmp_path):
    model = keras.Sequential([keras.layers.Input((8, 8, 1)), keras.layers.Conv2D(2, 3), layer])
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(3))
    learner = learners.make_learner(model, Settings(**TINY), scale=1.0)
    with pytest.raises(UserError, match=message):
        tfjs.export(learner, tmp_path)
    assert not list(tmp_path.iterdir())


def learner_of(folder):
    """Rebuilds the learner in an exported folder."""
    said = described(folder)
    settings = Settings(
        classes=said["ways"], filters=said["filters"], shots=1, learning_rate=said["optimizer"]["learning_rate"]
    )
    learner = learners.make_learner(models.omniglot(settings.classes, settings.filters), settings, said["scale"])
    phi, moments = weights(folder), arrays(folder, "moments.bin", said["moments"])
    names = ["/".join(variable.path.split("/")[-2:]) for variable in learner.model.trainable_variables]

    def flat(values):  # biases before a batch norm are missing
        shapes = [variable.shape for variable in learner.model.trainable_variables]
        return learner.network.flatten([values.get(n, np.zeros(s)) for n, s in zip(names, shapes, strict=True)])

    learner.phi.assign(flat(phi))
    learner.inner_state[0].assign(said["optimizer"]["step"])
    learner.inner_state[2].assign(flat(moments))
    return learner, said["inner_steps"]


def predicted_in_javascript(pixels, folder):
    """Returns the classes that the browser's code predicts for the queries, int [task, query].

    Args:
      pixels: uint8 [task, 2 * way, …], the support drawings of each task followed by its queries.
      folder: folder for the files that pass them to Node.
    """
    (folder / "tasks.bin").write_bytes(pixels.astype(np.uint8).tobytes())
    (folder / "tasks.json").write_text(json.dumps({"ways": pixels.shape[1] // 2, "tasks": len(pixels)}))
    done = subprocess.run(["node", "test/tasks.js", folder], cwd=DEMO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
@in_node
@on_omniglot
@pytest.mark.parametrize(("way", "least"), [(2, 0.9), (4, 0.75), (5, 0.65)])
def test_the_demos_model_serves_other_numbers_of_classes(way, least, tmp_path):
    """The tasks are of test characters. `least` is well below the accuracy for DEMO_TASKS=200."""
    classes = PROBLEM.split(omniglot.load_raw(os.environ["OMNIGLOT_DIR"]), Settings())["test"]
    count = int(os.environ.get("DEMO_TASKS", "16"))
    batch = tasks.evaluation_tasks(classes, way=way, shots=1, batch=way, steps=0, seed=0, count=count)
    predicted = predicted_in_javascript(np.concatenate([batch.support.x, batch.query_x], axis=1), tmp_path)
    accuracy = Accuracy.of((predicted == np.arange(way)).mean(-1))
    print(f"{way} classes: {accuracy}")
    assert accuracy.accuracy > least


@pytest.mark.slow
@in_node
@on_omniglot
def test_the_demos_model_classifies_real_drawings_as_python_does(tmp_path):
    """Compares tasks of test characters. DEMO_TASKS is their number (500 take minutes)."""
    count = int(os.environ.get("DEMO_TASKS", "16"))
    learner, steps = learner_of(DEMO / "model")
    classes = PROBLEM.split(omniglot.load_raw(os.environ["OMNIGLOT_DIR"]), Settings())["test"]
    evaluator, way = Evaluator(learner), learner.model.output_shape[-1]
    expected, pixels = [], []
    for first in range(0, count, evaluator.tasks):
        batch = tasks.evaluation_tasks(
            classes, way=way, shots=1, batch=way, steps=steps, seed=0, first=first, count=evaluator.tasks
        )
        expected += list(evaluator.logits(batch).one_by_one.argmax(-1))
        pixels.append(np.concatenate([batch.support.x, batch.query_x], axis=1))
    predicted, expected = predicted_in_javascript(np.concatenate(pixels)[:count], tmp_path), np.array(expected)[:count]
    ours, pythons = (Accuracy.of((p == np.arange(way)).mean(-1)) for p in (predicted, expected))
    print(f"TensorFlow.js {ours}, Python {pythons}")
    assert (predicted == expected).mean() >= 0.98
    assert abs(ours.accuracy - pythons.accuracy) <= pythons.ci95
    assert ours.accuracy > (0.95 if count >= 500 else 0.8)  # a few tasks are only a rough check

"""Tests of problems: a module defines one, and a run's folder records enough to load it and to reject any other."""

import dataclasses
import pathlib
import re
import sys

import keras
import numpy as np
import pytest

import reptile_tf as rt
from reptile_tf import cli, configuration, device, problems
from reptile_tf.checkpoint import RunFolder
from reptile_tf.errors import UserError
from reptile_tf.settings import Settings

ROOT = pathlib.Path(__file__).parent.parent
# The complete code of a new problem.
MODULE = '''
"""Stripes: which of two edges of a small picture is bright."""

import keras
import numpy as np
import reptile_tf as rt
from reptile_tf.problems import Problem


class Stripes(Problem):
    name = "stripes"
    presets = {"stripes-fast": {"shots": 1, "classes": 2, "train_shots": 3, "inner_iters": 2, "meta_iters": 4}}

    def network(self, settings):
        return keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(settings.classes)])

    def load(self, settings):
        draw = np.random.default_rng(0).integers
        return rt.ImageClasses.from_groups({f"c{i}": draw(0, 256, (4, 6, 6, 1), np.uint8) for i in range(8)}), "stripes"

    def split(self, classes, settings):
        return dict(zip(("train", "test"), classes.split(5, settings.seed), strict=True))


PROBLEM = Stripes()
'''
SETTINGS = Settings(
    classes=2, shots=1, train_shots=3, inner_batch=2, inner_iters=2, meta_iters=3, eval_iters=4, eval_batch=2
)


@pytest.fixture
def stripes(tmp_path, monkeypatch):
    """A problem in addition to the package's own."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "stripes.py").write_text(MODULE)
    monkeypatch.setattr(problems, "__path__", [*problems.__path__, str(tmp_path / "modules")])
    yield problems.find("stripes")
    sys.modules.pop("reptile_tf.problems.stripes")


def test_a_new_problem_is_a_module_of_twenty_lines(stripes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(device, "configure", lambda *_: device.Placement(False, {}, "device: as the tests have it"))
    assert len([line for line in MODULE.splitlines() if line.strip()]) <= 20
    assert Settings.preset("stripes-fast", seed=3).meta_iters == 4
    folder = tmp_path / "run"
    tiny = ["--preset=stripes-fast", "--eval-samples=3", "--eval-iters=2", "--eval-batch=2", f"--checkpoint={folder}"]
    code = cli.main(["run_stripes.py", *tiny], "What it does.", stripes)
    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    assert re.search(r"stripes: 8 classes, 32 images.*test accuracy: ", said.out, re.S)
    assert rt.load(folder).model.output_shape == (None, 2)
    assert cli.main(["run_stripes.py", *tiny, "--source=raw"], "What it does.", stripes) == 2  # a flag of Omniglot


def small(units=3, **dense):
    return keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(units, "relu", **dense),
         keras.layers.Dense(2)]
    )  # fmt: skip


@pytest.fixture
def classes():
    draw = np.random.default_rng(0).integers
    return rt.ImageClasses.from_groups({f"c{i}": draw(0, 256, (4, 6, 6, 1), np.uint8) for i in range(6)}, 1 / 255)


def test_what_the_library_trained_is_loaded_by_its_folder(classes, tmp_path):
    trained = rt.meta_train(small(), classes, SETTINGS, folder=rt.RunFolder(tmp_path / "run"))
    loaded = rt.load(tmp_path / "run")
    for name, value in trained.state().items():
        np.testing.assert_array_equal(loaded.state()[name], value, err_msg=name)
    assert loaded.network.scale == trained.network.scale == 1 / 255
    config = RunFolder(tmp_path / "run").config()
    assert config["images"] == {"shape": [6, 6, 1], "dtype": "uint8", "scale": 1 / 255}
    assert config["evaluation"] == {"shots": 1, "transductive": False, "eval_batch": 2, "eval_iters": 4}
    assert configuration.settings_of(config).eval_iters == 4


def test_a_folder_takes_the_same_network_by_whatever_names(classes, tmp_path):
    folder = tmp_path / "run"
    rt.meta_train(small(), classes, SETTINGS, folder=rt.RunFolder(folder))
    rt.meta_train(small(), classes, SETTINGS, folder=rt.RunFolder(folder))  # the layers have other names


def described(*layers):
    model = keras.Sequential([keras.Input((6,)), *layers])
    return {"network": configuration._network(model)["network"], "keras": keras.__version__}


def test_a_layer_may_be_named_as_an_activation_is():
    """Keras gives the first softmax or elu layer of a process such a name."""
    one, other, another = (
        described(keras.layers.Dense(2, activation), keras.layers.Softmax(name=name))
        for activation, name in (("softmax", "softmax"), ("softmax", "softmax_1"), ("relu", "softmax_1"))
    )
    assert configuration._other_network(one, other) == []
    assert configuration._other_network(one, another) == ["the run's network has other layers than this one"]
    assert configuration._other_network(one, another | {"keras": "0"}) == []  # other versions may use other terms


def test_a_lambda_may_move_in_its_file():
    one = described(keras.layers.Lambda(lambda x: 2 * x), keras.layers.Dense(2))
    other = described(keras.layers.Lambda(lambda x: 2 * x), keras.layers.Dense(2))
    assert one != other
    assert configuration._other_network(one, other) == []
    assert configuration._other_network(one, described(keras.layers.Dense(2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, c, s: (small(activity_regularizer="l2"), c, s), "other layers"),
        (lambda m, c, s: (m, dataclasses.replace(c, scale=1.0), s), "images of scale 0.0039.* there, 1.0 here"),
        (lambda m, c, s: (m, c.subset(range(5)), s), "of other classes"),
        (lambda m, c, s: (m, c, dataclasses.replace(s, seed=1)), "seed 0 there, 1 here"),
        (lambda m, c, s: (m, c, dataclasses.replace(s, algorithm="foml")), "algorithm reptile there, foml here"),
    ],
)
def test_a_folder_refuses_another_run(classes, tmp_path, change, message):
    rt.meta_train(small(), classes, SETTINGS, folder=rt.RunFolder(tmp_path))
    model, other, settings = change(small(), classes, SETTINGS)
    with pytest.raises(UserError, match=message):
        rt.meta_train(model, other, settings, folder=rt.RunFolder(tmp_path))


def test_a_network_that_keras_cannot_rebuild_safely_is_asked_for(classes, tmp_path):
    def make():
        return keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Lambda(lambda x: 2 * x), *small().layers])

    trained = rt.meta_train(make(), classes, SETTINGS, folder=rt.RunFolder(tmp_path))
    with pytest.raises(UserError, match=r"cannot rebuild the run's network .*give it as load\(folder, model=…\)"):
        rt.load(tmp_path)
    np.testing.assert_array_equal(rt.load(tmp_path, model=make()).phi, trained.phi)
    with pytest.raises(UserError, match="the run's network has other layers"):
        rt.load(tmp_path, model=small(4))


def learner(**options):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.01, 10, 0.5)
    inner = keras.optimizers.RMSprop(schedule, momentum=0.5)
    return rt.MetaLearner(
        small(), inner, keras.optimizers.Adam(), meta_batch=2, weight_decay=0.5, scale=0.25, **options
    )


def test_a_learner_made_by_itself_is_saved_and_goes_on_where_it_was(classes, tmp_path):
    def step(of, iteration):
        arguments = dataclasses.replace(SETTINGS, meta_batch=2, algorithm="foml").training_arguments()
        of.step(rt.tasks.training_tasks(classes, iteration=iteration, **arguments), 0.01)

    saved = learner(meta_gradient=rt.foml)
    step(saved, 0)
    rt.save(saved, tmp_path / "learner")
    rt.save(saved, tmp_path / "learner")  # again
    loaded = rt.load(tmp_path / "learner")
    for each in (saved, loaded):
        step(each, 1)
    for name, value in saved.state().items():
        np.testing.assert_array_equal(loaded.state()[name], value, err_msg=name)
    with pytest.raises(UserError, match="other optimizers or options"):
        rt.save(learner(), tmp_path / "learner")
    with pytest.raises(UserError, match="other layers"):
        rt.save(rt.MetaLearner(small(4), keras.optimizers.SGD(), keras.optimizers.SGD()), tmp_path / "learner")
    for own in ({"loss": lambda y, outputs: 0.0 * outputs[0, 0]}, {"meta_gradient": rt.partial_sum([1])}):
        with pytest.raises(ValueError, match=r"save learner.state\(\)"):
            rt.save(learner(**own), tmp_path / "own")


def test_folders_of_earlier_versions_load():
    old = RunFolder(ROOT / "pretrained" / "omniglot-5way")
    assert '"benchmark": "omniglot"' in (old.path / "config.json").read_text()
    settings = configuration.settings_of(old.config())
    assert (settings.algorithm, settings.inner_optimizer, settings.sequential) == ("reptile", "adam", False)
    assert (settings.eval_batch, settings.eval_iters) == (5, 50)
    assert rt.load(old.path).network.scale == 1.0


def test_what_an_earlier_version_called_its_settings_is_understood():
    from reptile_tf import files

    old = {"foml": False, "maml": True, "sgd": True, "in_turn": True, "gradients": "", "classes": 2}
    config = configuration.parsed(files.sealed({"benchmark": "omniglot", "settings": old, "split": {}}))
    expected = {"algorithm": "maml", "inner_optimizer": "sgd", "sequential": True, "gradients": "", "classes": 2}
    assert config["settings"] == expected
    old = {"gradients": "1", "foml": False}
    config = configuration.parsed(files.sealed({"benchmark": "omniglot", "settings": old, "split": {}}))
    assert config["settings"]["algorithm"] == "partial-sum"

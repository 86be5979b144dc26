"""Tests of the training loop: resuming, crashes, interruption, divergence, and learning."""

import dataclasses
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from claims import claim
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator

from reptile_tf import learners, models, tasks
from reptile_tf.checkpoint import KEEP, Checkpoint, RunFolder
from reptile_tf.distributed.cluster import ALONE, Cluster
from reptile_tf.errors import UserError
from reptile_tf.evaluate import meta_test
from reptile_tf.meta import MetaLearner
from reptile_tf.meta_gradients import foml, maml, reptile
from reptile_tf.network import cross_entropy
from reptile_tf.settings import Settings
from reptile_tf.train import Interrupted, meta_train

SETTINGS = Settings(
    classes=3, shots=1, train_shots=4, inner_batch=5, inner_iters=2, meta_batch=2, meta_iters=11, meta_step=1.0,
    meta_step_final=0.0, save_interval=4, eval_interval=3, eval_tasks=2, eval_iters=2,
)  # fmt: skip


class Crash(BaseException):
    """Simulates a power failure, which no handler of the package may catch."""


@pytest.fixture
def at_step(monkeypatch, one_by_one):
    """A function that makes the n-th step, counted over all runs of the test, call another function first."""

    def do(number, function):
        steps, count = MetaLearner.steps, [0]

        def counting(self, *arguments, **options):
            count[0] += 1
            if count[0] == number:
                function()
            return steps(self, *arguments, **options)

        monkeypatch.setattr(MetaLearner, "steps", counting)

    return do


def run(small_model, glyphs, folder, settings=SETTINGS):
    return meta_train(small_model(), glyphs, settings, held_out=glyphs, folder=RunFolder(folder)).state()


@pytest.fixture(scope="module")
def whole(small_model, glyphs, tmp_path_factory):
    """The folder and the state of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(small_model, glyphs, folder)


def crash():
    raise Crash


def assert_equal(ours, expected):
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_a_run_that_crashed_goes_on_to_the_same_weights(whole, small_model, glyphs, tmp_path, at_step):
    folder = tmp_path / "crashed"
    at_step(7, crash)
    with pytest.raises(Crash):
        run(small_model, glyphs, folder)
    assert RunFolder(folder).iterations() == [4]
    assert_equal(run(small_model, glyphs, folder), whole[1])
    ours, theirs = (RunFolder(path).load().history for path in (folder, whole[0]))
    np.testing.assert_array_equal(ours[:, [0, 2]], theirs[:, [0, 2]])  # column 1 is the time


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first_and_the_run_goes_on_to_the_same_weights(
    whole, small_model, glyphs, tmp_path, at_step, number
):
    folder = tmp_path / "stopped"
    at_step(6, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted) as caught:
        run(small_model, glyphs, folder)
    assert (caught.value.signal, caught.value.done) == (number, 6)
    assert RunFolder(folder).iterations()[-1] == 6
    assert_equal(run(small_model, glyphs, folder), whole[1])


def points(folder):
    """Returns each tag's steps and values, checked to be equal in TensorBoard's library and in its pages."""
    read = event_accumulator.EventAccumulator(str(folder / "events")).Reload()
    tags = read.Tags()["scalars"]
    assert sorted(tags) == ["accuracy", "meta_gradient_norm", "running_accuracy"]
    found = {tag: [(point.step, point.value) for point in read.Scalars(tag)] for tag in tags}
    for tag in tags:
        assert shown(folder, tag) == found[tag]
    return found


def shown(folder, tag):
    read = plugin_event_accumulator.EventAccumulator(str(folder / "events")).Reload()
    return [(point.step, tf.make_ndarray(point.tensor_proto).item()) for point in read.Tensors(tag)]


@pytest.mark.slow
def test_tensorboard_shows_each_step_once_after_crashes(small_model, glyphs, tmp_path, at_step):
    """One validation is at the checkpoint's step; one is between it and the crash, and is written by several runs."""
    folder, settings = tmp_path / "crashed", dataclasses.replace(SETTINGS, eval_interval=2)
    for steps in (8, 4):  # both crash before meta-iteration 8; the second resumes from 4
        at_step(steps, crash)
        with pytest.raises(Crash):
            run(small_model, glyphs, folder, settings)
        assert RunFolder(folder).iterations() == [4]
        assert [step for step, _ in points(folder)["accuracy"]] == [2, 4, 6]
    for path in (folder, tmp_path / "undisturbed"):
        run(small_model, glyphs, path, settings)
    assert len(list((folder / "events").iterdir())) == 3
    assert [step for step, _ in points(folder)["accuracy"]] == [2, 4, 6, 8, 10, 11]
    assert points(folder) == points(tmp_path / "undisturbed")


@pytest.mark.slow
def test_tensorboard_drops_what_tf_summary_wrote_after_the_checkpoint(small_model, glyphs, tmp_path, at_step):
    """An earlier version wrote tensors; here its clock was also ahead."""
    folder = tmp_path / "run"
    at_step(6, crash)
    with pytest.raises(Crash):
        run(small_model, glyphs, folder)
    (ours,) = (folder / "events").iterdir()
    with tf.summary.create_file_writer(str(folder / "events")).as_default():
        for step in (3, 6):
            tf.summary.scalar("old", step, step)
    (theirs,) = set((folder / "events").iterdir()) - {ours}
    theirs.rename(folder / "events" / "events.out.tfevents.9000000000.host.1.0.v2")
    run(small_model, glyphs, folder)
    assert [step for step, _ in points(folder)["accuracy"]] == [3, 6, 9, 11]
    assert shown(folder, "old") == [(3, 3.0)]


def test_a_finished_run_does_not_train_again(whole, small_model, glyphs, at_step):
    at_step(1, crash)
    assert_equal(run(small_model, glyphs, whole[0]), whole[1])


def test_only_the_newest_checkpoints_stay(small_model, glyphs, tmp_path):
    folder = tmp_path / "run"
    run(small_model, glyphs, folder, dataclasses.replace(SETTINGS, save_interval=2))
    assert RunFolder(folder).iterations() == [10, 11]
    assert KEEP == 2


def test_divergence_stops_and_names_the_last_good_checkpoint(small_model, glyphs, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    schedule = Settings.schedule
    monkeypatch.setattr(Settings, "schedule", lambda self, i: np.inf if i == 5 else schedule(self, i))
    with pytest.raises(UserError, match="at meta-iteration 6 .*good checkpoint, of meta-iteration 4, is"):
        run(small_model, glyphs, folder)
    kept = RunFolder(folder).load()
    assert kept.iteration == 4
    assert all(np.isfinite(value).all() for value in kept.state.values())


def test_a_checkpoint_of_another_network_is_refused(whole, glyphs):
    other = keras.Sequential([keras.layers.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    with pytest.raises(UserError, match="the run's network has other layers than this one"):
        meta_train(other, glyphs, SETTINGS, held_out=glyphs, folder=RunFolder(whole[0]))


def test_a_folder_of_other_settings_or_classes_is_refused(whole, small_model, glyphs):
    for change in ({"seed": 7}, {"learning_rate": 0.5}, {"sequential": True}):
        (name,) = change
        with pytest.raises(UserError, match=f"holds a run with other settings: {name} .* there"):
            run(small_model, glyphs, whole[0], dataclasses.replace(SETTINGS, **change))
    with pytest.raises(UserError, match="of other classes"):
        meta_train(small_model(), glyphs.subset([3, 2, 1]), SETTINGS, held_out=glyphs, folder=RunFolder(whole[0]))


def test_a_model_for_other_images_or_ways_is_refused(small_model, glyphs):
    with pytest.raises(UserError, match=r"output for an image has shape \(4,\), but 3 ways need \(3,\)"):
        meta_train(small_model(4), glyphs, SETTINGS)
    with pytest.raises(UserError, match=r"does not take images of \(14, 14, 1\)"):
        meta_train(small_model(3), dataclasses.replace(glyphs, images=glyphs.images[:, ::2, ::2]), SETTINGS)
    with pytest.raises(UserError, match=r"does not take images of \(27, 26, 1\): it is made for \(28, 28, 1\)"):
        meta_train(small_model(3), dataclasses.replace(glyphs, images=glyphs.images[:, 1:, 2:]), SETTINGS)


class Subclassed(keras.Model):
    """A subclassed model around a network, whose structure Keras does not know."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def call(self, x, training=False):
        return self.network(x, training=training)


def test_a_subclassed_model_is_trained_or_refused_like_any_other(small_model, glyphs):
    with pytest.raises(UserError, match=r"output for an image has shape \(4,\), but 3 ways need \(3,\)"):
        meta_train(built(Subclassed(small_model(4))), glyphs, SETTINGS)
    model = built(Subclassed(small_model()))
    before = [weight.copy() for weight in model.get_weights()]
    meta_train(model, glyphs, dataclasses.replace(SETTINGS, meta_iters=1))
    assert any((new != old).any() for new, old in zip(model.get_weights(), before, strict=True))


def built(model):
    model(np.zeros([1, 28, 28, 1]))
    return model


@pytest.mark.slow
def test_training_learns(glyphs):
    settings = dataclasses.replace(
        SETTINGS, meta_iters=200, meta_batch=4, inner_iters=5, learning_rate=5e-3, eval_iters=10, eval_samples=100
    )
    keras.utils.set_random_seed(1)
    model = models.omniglot(3, filters=8)
    untrained = meta_test(learners.make_learner(model, settings, glyphs.scale), glyphs, settings)
    trained = meta_test(meta_train(model, glyphs, settings), glyphs, settings)
    assert trained.accuracy - trained.ci95 > untrained.accuracy + untrained.ci95


# --- settings ----------------------------------------------------------------------------------------------------


def test_steps_get_the_tasks_and_the_rate_of_the_settings(small_model, glyphs, rehearsed):
    settings = dataclasses.replace(SETTINGS, meta_iters=4, eval_batch=6, eval_iters=7)
    meta_train(small_model(), glyphs, settings, held_out=glyphs)
    assert [rate for _, rate in rehearsed[0]] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    for batch, _ in rehearsed[0]:
        assert batch.x.shape[:2] == (2, 3 * 4)
        assert batch.minibatches.shape == (2, 2, 5)
        assert batch.query == ()
    for batch in rehearsed[1]:
        assert batch.support.x.shape[1] == 3 * 1
        assert batch.support.minibatches.shape[1:] == (7, 6)


def test_first_order_maml_gets_the_query_images_of_the_settings(small_model, glyphs, rehearsed):
    for tail, steps, query in ((0, 1, 5), (2, 1, 3 * 2)):
        rehearsed[0].clear()
        meta_train(small_model(), glyphs, dataclasses.replace(SETTINGS, algorithm="foml", foml_tail=tail, meta_iters=1))
        ((batch, _),) = rehearsed[0]
        assert batch.x.shape[1] == 3 * 4
        assert batch.minibatches.shape == (2, steps, 5)
        assert batch.query.shape == (2, 1, query)


def test_no_two_tasks_of_a_run_are_drawn_alike(small_model, glyphs, rehearsed, monkeypatch):
    """This covers training, its validations and the final evaluation."""
    drawn, generator = [], tasks.generator

    def noted(*numbers):
        drawn.append(generator(*numbers).random())
        return generator(*numbers)

    monkeypatch.setattr(tasks, "generator", noted)
    learner = meta_train(small_model(), glyphs, SETTINGS, held_out=glyphs)
    in_training = len(drawn)
    meta_test(learner, glyphs, dataclasses.replace(SETTINGS, eval_samples=30))
    assert in_training >= 11 * 2 + 4 * 2
    assert len(drawn) >= in_training + 30
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(("transductive", "accuracy"), [(False, 1.0), (True, 0.0)])
def test_looks_are_in_the_way_that_the_settings_ask_for(
    small_model, glyphs, rehearsed, tmp_path, capsys, transductive, accuracy
):
    run(small_model, glyphs, tmp_path / "run", dataclasses.replace(SETTINGS, transductive=transductive))
    history = RunFolder(tmp_path / "run").load().history
    assert history[:, 0].tolist() == [3, 3, 6, 6, 9, 9, 11, 11]
    assert (history[:, 2] == accuracy).all()
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"held-out accuracy {100 * accuracy:.2f} ± 0.00 % (8 tasks)" in last


@pytest.fixture
def made(monkeypatch):
    """A function that returns the optimizers and options with which `make_learner` makes a learner from settings."""
    cluster = Cluster()

    def make(**settings):
        given = learners.make_learner("a model", Settings(**settings), 0.25, stacked=True, cluster=cluster)
        model, inner, outer, options = given
        assert (model, options.pop("scale"), options.pop("stacked")) == ("a model", 0.25, True)
        assert options.pop("cluster") is cluster
        assert options.pop("loss") is cross_entropy
        return inner, outer, options

    monkeypatch.setattr(learners, "MetaLearner", lambda *given, **options: (*given, options))
    return make


def test_a_learner_is_what_the_settings_say(made):
    inner, outer, options = made(learning_rate=0.5, meta_batch=3, weight_decay=0.75, sequential=True)
    assert options == {"meta_gradient": reptile, "meta_batch": 3, "weight_decay": 0.75, "sequential": True}
    papers = keras.optimizers.Adam(0.5, beta_1=0.0, beta_2=0.999, epsilon=1e-8, name=inner.name)
    assert type(inner) is keras.optimizers.Adam
    assert inner.get_config() == papers.get_config()
    assert type(outer) is keras.optimizers.SGD
    inner, outer, options = made(learning_rate=0.5, inner_optimizer="sgd", algorithm="maml", meta_optimizer="adam")
    assert options == {"meta_gradient": maml, "meta_batch": 1, "weight_decay": 1.0, "sequential": False}
    assert type(inner) is keras.optimizers.SGD
    assert inner.get_config() == keras.optimizers.SGD(0.5, name=inner.name).get_config()
    assert type(outer) is keras.optimizers.Adam


def test_the_meta_gradient_is_the_one_asked_for(made, monkeypatch):
    monkeypatch.setattr(learners, "partial_sum", lambda terms: ("sum of", terms))
    for settings, expected in (
        ({}, reptile),
        ({"algorithm": "foml"}, foml),
        ({"algorithm": "maml", "inner_optimizer": "sgd"}, maml),
        ({"gradients": "1,3"}, ("sum of", {1, 3})),
    ):
        assert made(**settings)[-1]["meta_gradient"] == expected


# --- the folder --------------------------------------------------------------------------------------------------


CONFIG = {
    "problem": "omniglot",
    "settings": {"classes": 5, "inner_iters": 20},
    "split": {"train": ["a"], "test": ["b"]},
}


def test_a_folder_with_other_settings_is_refused_with_the_differences(tmp_path):
    folder = RunFolder(tmp_path / "run")
    claim(folder, CONFIG)
    claim(folder, CONFIG)
    before = (folder.path / "config.json").read_bytes()
    other = CONFIG | {"settings": {"classes": 20, "inner_iters": 20}}
    with pytest.raises(UserError, match=r"other settings: classes 5 there, 20 here\. Choose another"):
        claim(folder, other)
    with pytest.raises(UserError, match="other classes"):
        claim(folder, CONFIG | {"split": {"train": ["b"], "test": ["a"]}})
    assert (folder.path / "config.json").read_bytes() == before


def test_a_folder_in_which_nothing_was_saved_is_free_for_other_settings(tmp_path):
    """A run that diverges at once leaves such a folder."""
    folder = RunFolder(tmp_path / "run")
    claim(folder, CONFIG, saved=False)
    (folder.path / "events").mkdir()
    claim(folder, CONFIG | {"settings": {"classes": 20}}, saved=False)
    assert folder.config()["settings"] == {"classes": 20}
    (folder.path / "config.json").write_text('{"mine": 1}')  # not written by a run
    with pytest.raises(UserError, match="no run in .*cannot read config.json"):
        claim(folder, CONFIG)
    assert (folder.path / "config.json").read_text() == '{"mine": 1}'


def test_settings_that_are_newer_than_a_run_had_their_defaults(tmp_path):
    folder = RunFolder(tmp_path / "run")
    claim(folder, CONFIG)
    claim(folder, CONFIG | {"settings": CONFIG["settings"] | {"gradients": ""}})
    with pytest.raises(UserError, match="algorithm reptile there, maml here"):
        claim(folder, CONFIG | {"settings": CONFIG["settings"] | {"algorithm": "maml"}})


def test_a_checkpoint_holds_the_moments_of_both_optimizers(small_model, tmp_path):
    settings = dataclasses.replace(SETTINGS, meta_optimizer="adam")
    one, other = (learners.make_learner(small_model(), settings, 1.0) for _ in range(2))
    rng = np.random.default_rng(0)
    state = {name: rng.uniform(1, 9, value.shape).astype(value.dtype) for name, value in one.state().items()}
    # Each Adam has its number of steps and both moments; the batch norm its moving averages.
    assert list(state) == [
        "phi",
        *(f"{name}/{i}" for name in ("inner", "outer") for i in range(3)),
        "fixed/0",
        "fixed/1",
    ]
    one.restore(state)
    folder = RunFolder(tmp_path)
    folder.save(Checkpoint(1, 1.0, one.state(), np.zeros([0, 3])))
    learners.restore(other, folder.load())
    assert_equal(other.state(), state)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a run's folder .it holds thesis.tex"):
        claim(RunFolder(tmp_path), CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot use .*file/run as checkpoint"):
        claim(RunFolder(tmp_path / "file" / "run"), CONFIG)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match="no run in .*; name its folder with checkpoint"):
        RunFolder(tmp_path).config()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot read .*config.json"):
        RunFolder(tmp_path).config()


def test_a_training_in_a_thread_leaves_the_main_threads_signals_alone(small_model, glyphs):
    caught = ALONE.caught
    with ThreadPoolExecutor(1) as pool:
        pool.submit(meta_train, small_model(), glyphs, dataclasses.replace(SETTINGS, meta_iters=1)).result()
    assert ALONE.caught is caught

"""Tests that several meta-iterations per call give the same result as one per call, whatever their number."""

import keras
import numpy as np
import pytest

from reptile_tf import device, feed, tasks, train
from reptile_tf.checkpoint import RunFolder
from reptile_tf.meta import MetaLearner
from reptile_tf.meta_gradients import maml, partial_sum, reptile
from reptile_tf.settings import Settings
from reptile_tf.state import NotFiniteError

RATES = [1.0, 0.8, 0.6, 0.4, 0.2]
KINDS = {
    "branches": {},
    "stacked": {"stacked": True},
    "sequential": {"sequential": True},
    "stacked MAML": {"stacked": True, "meta_gradient": maml},
    "outer Adam": {"outer": keras.optimizers.Adam},
    "partial sum, stacked": {"stacked": True, "meta_gradient": partial_sum((2,))},
}
SLOW = ("stacked", "stacked MAML", "partial sum, stacked")
SETTINGS = Settings(
    classes=3, shots=1, train_shots=3, inner_batch=3, inner_iters=2, meta_batch=2, meta_iters=12, eval_interval=6,
    eval_tasks=2, eval_iters=2, save_interval=4, learning_rate=1e-2,
)  # fmt: skip


def learner(model, outer=keras.optimizers.SGD, meta_gradient=reptile, **options):
    inner = keras.optimizers.SGD(1e-2) if meta_gradient is maml else keras.optimizers.Adam(1e-2, beta_1=0.0)
    return MetaLearner(model, inner, outer(), meta_gradient=meta_gradient, meta_batch=2, **options)


def drawn(classes, iteration, query=False, steps=3):
    return tasks.training_tasks(
        classes, way=3, shots=3, batch=4, steps=steps, query=query, seed=7, iteration=iteration, count=2
    )


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in KINDS])
def test_many_at_once_are_as_one_by_one_bit_for_bit(float64, small_model, glyphs, kind):
    options = KINDS[kind]
    query, steps = (True, 2) if options.get("meta_gradient") is maml else (False, 3)  # MAML compiles long, by its steps
    batches = [drawn(glyphs, i, query, steps) for i in range(5)]
    single, many = learner(small_model(), **options), learner(small_model(), **options)
    norms = [single.step(batch, rate) for batch, rate in zip(batches, RATES, strict=True)]
    assert many.steps(batches[:2], RATES[:2], room=4) == norms[1]
    assert many.steps(batches[2:], RATES[2:], room=4) == norms[4]
    assert many._meta_iterations.experimental_get_tracing_count() == 1
    assert_same(many.state(), single.state())


@pytest.mark.slow
@pytest.mark.parametrize("stacked", [False, True])
def test_none_follows_one_that_is_not_finite(float64, small_model, glyphs, stacked):
    batches = [drawn(glyphs, i) for i in range(5)]
    single, many = (learner(small_model(), stacked=stacked) for _ in range(2))
    for batch, rate in zip(batches[:2], RATES, strict=False):
        single.step(batch, rate)
    with pytest.raises(NotFiniteError) as caught:
        many.steps(batches, [*RATES[:2], np.nan, *RATES[3:]])
    assert caught.value.done == 2
    assert "phi" in caught.value.where
    assert_same(many.state(), single.state())
    for one in single, many:  # both can continue
        one.step(batches[2], 0.5)
    assert_same(many.state(), single.state())


@pytest.mark.slow
@pytest.mark.parametrize("stacked", [False, True])
def test_images_that_lie_on_the_device_are_taken_by_number(float64, small_model, glyphs, stacked):
    turned = glyphs.with_rotations()
    images, numbered = turned.numbered()
    sent, picked = (learner(small_model(), stacked=stacked) for _ in range(2))
    sent.steps([drawn(turned, i) for i in range(2)], RATES[:2])
    batches = [drawn(numbered, i) for i in range(2)]
    assert batches[0].x.shape == (2, 9)
    picked.steps(batches, RATES[:2], images=images)
    assert_same(picked.state(), sent.state())
    with pytest.raises(ValueError, match=r"indices \[task, sample\] of 100 images"):
        picked.steps(batches, RATES[:2], images=images[:100])
    with pytest.raises(ValueError, match="indices"):
        picked.steps([drawn(turned, 0)], RATES[:1], images=images)


def run(model, glyphs, folder=None, **options):
    held = None if folder is None else RunFolder(folder)
    return train.meta_train(model, glyphs, SETTINGS, **{"held_out": glyphs, "folder": held} | options)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1e-9, 1e9], ids=["one a call", "as many as may be"])
def test_a_run_is_the_same_whatever_a_call_takes(small_model, glyphs, monkeypatch, one_by_one, seconds):
    expected = run(small_model(), glyphs).state()
    monkeypatch.setattr(feed, "MOST", 128)
    monkeypatch.setattr(feed, "SECONDS", seconds)
    steps, calls = MetaLearner.steps, []

    def counting(self, batches, *arguments, **options):
        calls.append(len(batches))
        return steps(self, batches, *arguments, **options)

    monkeypatch.setattr(MetaLearner, "steps", counting)
    learner = run(small_model(), glyphs)
    assert_same(learner.state(), expected)
    # Training stops to validate at 6 and 12, and to save at 4 and 8. The rate is known after the second call.
    assert calls == ([1] * 12 if seconds < 1 else [1, 1, 2, 2, 2, 4])
    assert learner._meta_iterations.experimental_get_tracing_count() == 1


@pytest.mark.slow
def test_a_run_that_ends_within_a_call_goes_on_to_the_same_weights(small_model, glyphs, monkeypatch, tmp_path):
    monkeypatch.setattr(feed, "SECONDS", 1e9)
    expected, steps = run(small_model(), glyphs).state(), MetaLearner.steps

    def failing(self, batches, *arguments, **options):
        steps(self, batches, *arguments, **options)
        if len(batches) == 2:  # the steps are done, but not saved
            raise KeyboardInterrupt

    monkeypatch.setattr(MetaLearner, "steps", failing)
    with pytest.raises(KeyboardInterrupt):
        run(small_model(), glyphs, tmp_path / "run")
    monkeypatch.setattr(MetaLearner, "steps", steps)
    assert_same(run(small_model(), glyphs, tmp_path / "run").state(), expected)


def test_the_error_counts_the_meta_iterations_of_the_call(small_model, glyphs, monkeypatch):
    monkeypatch.setattr(feed, "SECONDS", 1e9)
    monkeypatch.setattr(Settings, "schedule", lambda self, i: np.inf if i == 10 else 0.1)
    with pytest.raises(train.UserError, match="not finite at meta-iteration 11 "):
        run(small_model(), glyphs)


def feed_of(draw, last, *stops):
    return feed.Feed(draw, 3, last, *stops)


def numbers(at_most):
    """Returns a sampler whose tasks contain their iteration's number."""
    return lambda i: tasks.Tasks(np.full(at_most, i, np.uint8), np.zeros(0), np.zeros(0))


def test_a_call_is_a_seconds_work_and_none_is_left_out():
    with feed_of(numbers(1), 60, 30, 20) as fed:
        assert fed.room == 20
        taken = []
        for seconds in (60.0, 0.1, 0.5, 4.0, 10.0, 0.01):  # the first call includes compilation
            taken.append([batch.x[0] for batch in fed.take(25)])
            fed.took(len(taken[-1]), seconds)
        assert list(map(len, taken)) == [1, 1, 10, 20, 5, 1]
        assert np.concatenate(taken).tolist() == list(range(3, 3 + sum(map(len, taken))))


def test_a_calls_tasks_are_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(feed, "BYTES", 1000)
    with feed_of(numbers(300), 40) as fed:
        assert fed.room == 3
    with feed_of(numbers(3000), 40) as fed:
        assert fed.room == 1


def test_what_goes_wrong_while_drawing_ahead_is_raised_where_it_is_taken():
    def draw(i):
        if i == 5:
            raise OSError("the disk is gone")
        return numbers(1)(i)

    with feed_of(draw, 40) as fed:
        fed.take(1)
        fed.take(1)
        with pytest.raises(OSError, match="the disk is gone"):
            fed.take(1)


@pytest.mark.slow
def test_images_go_to_a_gpu_that_has_room(glyphs, small_model, monkeypatch, capsys):
    """The CPU stands in for the GPU, since TensorFlow places operations there if there is no other device."""
    expected = run(small_model(), glyphs, held_out=None, stacked=True).state()
    size = glyphs.images.nbytes
    monkeypatch.setattr(device, "gpu_memory", lambda: int(size / feed.SHARE))
    capsys.readouterr()
    assert_same(run(small_model(), glyphs, held_out=None, stacked=True).state(), expected)
    assert "are on the GPU" in capsys.readouterr().out
    monkeypatch.setattr(device, "gpu_memory", lambda: int(size / feed.SHARE) - 8)
    assert_same(run(small_model(), glyphs, held_out=None, stacked=True).state(), expected)
    assert "are sent to the GPU task by task" in capsys.readouterr().out


def test_the_memory_of_a_step_is_estimated_by_what_it_keeps(small_model):
    """It exceeds the layers' outputs, and is proportional to the numbers of samples and tasks."""
    outputs = 2 * 14 * 14 * 4 + 14 * 14 * 4 + 2 * 7 * 7 * 4 + 7 * 7 * 4 + 3  # convolution, norm, ReLU, twice; dense
    inner = keras.optimizers.SGD(1e-2)
    one, two = (MetaLearner(small_model(), inner, keras.optimizers.SGD(), meta_batch=n, stacked=True) for n in (1, 2))
    assert two.step_bytes(10) == 2 * one.step_bytes(10)
    for_a_sample = (one.step_bytes(30) - one.step_bytes(10)) / 20
    assert 2 * 4 * outputs < for_a_sample < 20 * 4 * outputs
    assert one.step_bytes(1) > 3 * 4 * one.network.size

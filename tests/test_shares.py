"""Tests that workers, here threads, share a meta-batch and an evaluation with the same result as one worker."""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf

from reptile_tf import device, tasks
from reptile_tf.distributed.cluster import ALONE, Cluster, _Workers
from reptile_tf.errors import UserError
from reptile_tf.evaluate import answers
from reptile_tf.meta import MetaLearner
from reptile_tf.settings import Settings
from reptile_tf.tasks import training_tasks


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("tasks", [1, 5, 16])
def test_each_task_has_one_worker(count, tasks):
    class Worker(Cluster):
        def __init__(self, index):
            super().__init__()
            self.index, self.count = index, count

    shares = [Worker(index).share(tasks) for index in range(count)]
    assert [first + i for first, many in shares for i in range(many)] == list(range(tasks))
    assert max(many for _, many in shares) - min(many for _, many in shares) <= 1


class Threads(Cluster):
    """A cluster whose workers are threads of this process."""

    from_chief = _Workers.from_chief

    def __init__(self, index, barrier, given):
        super().__init__()
        self.index, self.count, self._barrier, self._given = index, len(given), barrier, given

    def sum(self, value, patient=False):
        self._given[self.index] = value
        self._barrier.wait()
        total = tf.add_n(self._given)
        self._barrier.wait()
        return total


def by_threads(count, work):
    """Calls `work` with each worker's cluster, for `count` workers in threads; returns the results."""
    barrier, given = threading.Barrier(count), [None] * count

    def guarded(worker):
        try:
            return work(worker)
        except BaseException:
            barrier.abort()  # otherwise the others would wait forever
            raise

    with ThreadPoolExecutor(count) as pool:
        done = [pool.submit(guarded, Threads(index, barrier, given)) for index in range(count)]
    errors = [future.exception() for future in done if future.exception()]
    if errors:
        raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
    return [future.result() for future in done]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("meta_batch", "stacked", "inner"),
    [
        (5, False, keras.optimizers.Nadam),
        pytest.param(1, False, keras.optimizers.Adam, marks=pytest.mark.slow),
        pytest.param(4, True, keras.optimizers.SGD, marks=pytest.mark.slow),
    ],
)
def test_all_workers_end_where_one_would(float64, small_model, glyphs, meta_batch, stacked, inner):
    """Three workers share a meta-batch that is not divisible by three, or that leaves two of them without a task."""

    def learn(cluster):
        learner = MetaLearner(
            model, inner(0.01), keras.optimizers.Adam(), meta_batch=meta_batch, stacked=stacked, cluster=cluster
        )
        first, count = learner.share
        for iteration in range(3):
            batch = training_tasks(
                glyphs, way=3, shots=4, batch=5, steps=3, seed=0, iteration=iteration, first=first, count=max(count, 1)
            )
            norm = learner.step(batch, 0.01)
        return learner.state() | {"norm": norm}

    model = small_model()
    expected = learn(ALONE)
    for ours in by_threads(3, learn):
        for name, value in expected.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("chief", [1, 2])
def test_workers_with_other_numbers_of_cores_share_an_evaluation(float64, monkeypatch, small_model, glyphs, chief):
    """In the last round one worker has no task."""
    own = threading.local()
    monkeypatch.setattr(device, "cores", lambda: getattr(own, "cores", 2))

    def evaluate(cluster):
        if cluster.count > 1:
            own.cores = chief if cluster.is_chief else 3 - chief
        learner = MetaLearner(model, keras.optimizers.Adam(0.01), keras.optimizers.SGD(), cluster=cluster)
        return [of.by_task() for of in answers(learner, draw, settings.eval_samples)]

    model = small_model()
    settings = Settings(classes=3, shots=2, eval_batch=4, eval_iters=3, eval_samples=10, train_shots=4)
    draw = functools.partial(tasks.evaluation_tasks, glyphs, **settings.evaluation_arguments())
    expected = evaluate(ALONE)
    for ours in by_threads(2, evaluate):
        np.testing.assert_array_equal(ours, expected)


def test_an_adaptation_that_is_not_finite_ends_all(monkeypatch, small_model, glyphs):
    monkeypatch.setattr(device, "cores", lambda: 1)

    def evaluate(cluster):
        learner = MetaLearner(model, keras.optimizers.SGD(3e38), keras.optimizers.SGD(), cluster=cluster)
        with pytest.raises(UserError, match="adaptation to . of . tasks produced non-finite values; low"):
            answers(learner, draw, settings.eval_samples)

    model = small_model()
    settings = Settings(classes=3, shots=2, eval_batch=4, eval_iters=5, eval_samples=3, train_shots=4)
    draw = functools.partial(tasks.evaluation_tasks, glyphs, **settings.evaluation_arguments())
    evaluate(ALONE)
    by_threads(2, evaluate)

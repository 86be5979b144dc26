"""Tests of a run's figures."""

import functools

import keras
import numpy as np
import pytest
from matplotlib import image

from reptile_tf import breakdown, evaluate, plots, tasks
from reptile_tf.data import ImageClasses
from reptile_tf.meta import MetaLearner


@pytest.mark.parametrize("name", ["photographs of $x^$", "photographs of 图", "photographs of \udcff"])
def test_a_data_set_may_have_any_name(tmp_path, name):
    history = np.array([[100, 1.0, 0.5], [100, 1.0, 0.75], [200, 2.0, 0.75], [200, 2.0, 1.0]])
    plots.learning_curve(tmp_path / "plain.png", history, "")
    plots.learning_curve(tmp_path / "named.png", history, name)
    plain, named = (image.imread(tmp_path / file) for file in ("plain.png", "named.png"))
    assert plain.shape == named.shape
    assert (plain != named).any()


def photographs(height, width):
    """Twelve classes of two photographs each."""
    rng = np.random.default_rng(0)
    return ImageClasses.from_groups({f"{i}": rng.integers(256, size=[2, height, width, 3]) for i in range(12)})


@pytest.mark.parametrize(("way", "height", "width"), [(5, 20, 20), (3, 20, 40), (12, 16, 8)])
def test_photographs_of_any_proportions_are_drawn(tmp_path, way, height, width):
    drawing = {"way": way, "shots": 1, "batch": 2, "steps": 1, "seed": 0}
    task = tasks.evaluation_tasks(photographs(height, width), **drawing, count=1)
    wrong = np.roll(np.eye(way), 1, axis=0)
    pictures = []
    for name, shown in (("right", np.eye(way)), ("wrong", wrong), ("both", None)):
        drawn = [(task, np.eye(way)), (task, wrong)] if shown is None else [(task, shown)]
        plots.adapted_tasks(tmp_path / f"{name}.png", drawn)
        pictures.append(image.imread(tmp_path / f"{name}.png"))
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()
    assert abs(pictures[2].shape[0] - 2 * pictures[0].shape[0]) <= 1  # pixels


@pytest.mark.parametrize("at_most", [1, 3, 8])
def test_the_tasks_drawn_are_the_first_and_the_worst_with_the_answers_that_were_counted(
    tmp_path, glyphs, small_model, monkeypatch, at_most
):
    learner = MetaLearner(small_model(), keras.optimizers.SGD(0.01), keras.optimizers.SGD())
    drawing = {"way": 3, "shots": 2, "batch": 4, "steps": 2, "seed": 0}
    draw = functools.partial(tasks.evaluation_tasks, glyphs, **drawing)
    evaluator = evaluate.Evaluator(learner, at_most=at_most)
    found = evaluate.answers(learner, draw, 8, evaluator=evaluator).one_by_one
    drawn = {}
    monkeypatch.setattr(plots, "adapted_tasks", lambda path, shown: drawn.update({path.name: shown}))
    breakdown.tasks(tmp_path, breakdown.Record(glyphs, draw, found, transductive=False), evaluator)
    worst = np.argsort(found.by_task(), kind="stable")[:3]
    for name, numbers in (("test_task.png", [0]), ("worst_tasks.png", worst)):
        assert len(drawn[name]) == len(numbers)
        for (task, probabilities), number in zip(drawn[name], numbers, strict=True):
            np.testing.assert_array_equal(task.classes[0], found.classes[number])
            np.testing.assert_array_equal(probabilities.argmax(1), found.answers[number])
            np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)

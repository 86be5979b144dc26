"""Breaks an evaluation down by class and by task, as JSON and as pictures."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from reptile_tf import plots
from reptile_tf.data.image_classes import ImageClasses
from reptile_tf.evaluate import Answers, Evaluator
from reptile_tf.tasks import EvalTasks

WORST_TASKS = 3
MOST_CLASSES = 25  # a larger confusion matrix is hard to read


class Record(NamedTuple):
    """The evaluation on one set of classes.

    Attributes:
      classes: the classes from which tasks were drawn.
      draw: draws the tasks again, see `evaluate.answers`.
      answers: the answers to their queries.
      transductive: whether the queries were classified in one batch.
    """

    classes: ImageClasses
    draw: Callable[..., EvalTasks]
    answers: Answers
    transductive: bool


def as_json(record: Record) -> dict[str, Any]:
    """Returns the accuracy of each class, the confusions between classes, and the worst tasks.

    Returns:
      "classes": {name: {"accuracy", "queries"}}, the worst first; "confusions": [{"class", "taken_for", "times",
      "of"}], the most frequent first, where "of" counts the queries whose task had both classes; "worst_tasks":
      [{"task", "accuracy", "classes", "answers"}] with the task's number, by which it can be drawn again.
    """
    names, answers = record.classes.names, record.answers
    pairs, times, of = answers.pairs()
    right = pairs[:, 0] == pairs[:, 1]
    classes = [
        (names[number], {"accuracy": int(times) / int(of), "queries": int(of)})
        for number, times, of in zip(pairs[right, 0], times[right], of[right], strict=True)
    ]
    wrong = np.flatnonzero(~right & (times > 0))
    confusions = [
        {"class": names[pairs[i, 0]], "taken_for": names[pairs[i, 1]], "times": int(times[i]), "of": int(of[i])}
        for i in wrong[np.argsort(-times[wrong], kind="stable")]
    ]
    by_task = answers.by_task()
    worst = [
        {
            "task": int(task),
            "accuracy": float(by_task[task]),
            "classes": [names[number] for number in answers.classes[task][answers.labels[task]]],
            "answers": [names[number] for number in answers.classes[task][answers.answers[task]]],
        }
        for task in _worst(answers)
    ]
    return {
        "classes": dict(sorted(classes, key=lambda item: item[1]["accuracy"])),
        "confusions": confusions,
        "worst_tasks": worst,
    }


def confusion_matrix(path: pathlib.Path, record: Record) -> None:
    """Draws the confusion matrix of the classes with the lowest accuracy, at most 25."""
    pairs, times, of = record.answers.pairs()
    right = pairs[:, 0] == pairs[:, 1]
    order = np.argsort(times[right] / of[right], kind="stable")[:MOST_CLASSES]
    shown = np.sort(pairs[right, 0][order])
    shares = np.full([len(shown)] * 2, np.nan)  # of classes that never met
    both = np.isin(pairs, shown).all(1)
    shares[tuple(np.searchsorted(shown, pairs[both]).T)] = times[both] / of[both]
    plots.confusion(path, [record.classes.names[number] for number in shown], shares)


def tasks(folder: pathlib.Path, record: Record, evaluator: Evaluator) -> None:
    """Draws the first task in test_task.png, and those with the lowest accuracy, at most three, in worst_tasks.png.

    The samples must be images.
    """
    drawn = [record.draw(first=int(number), count=1) for number in (0, *_worst(record.answers))]
    shown = []
    for start in range(0, len(drawn), evaluator.tasks):
        some = drawn[start : start + evaluator.tasks]
        filled = some + some[-1:] * (evaluator.tasks - len(some))  # the compiled program takes a fixed number
        logits = evaluator.logits(tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *filled))
        probabilities = tf.nn.softmax(logits[record.transductive]).numpy()
        shown += list(zip(some, probabilities[: len(some)], strict=True))
    plots.adapted_tasks(folder / "test_task.png", shown[:1])
    plots.adapted_tasks(folder / "worst_tasks.png", shown[1:])


def _worst(answers: Answers) -> np.ndarray:
    return np.argsort(answers.by_task(), kind="stable")[:WORST_TASKS]

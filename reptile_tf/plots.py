"""Draws the figures of a run: its learning curve, adapted test tasks and the confusion matrix."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from reptile_tf import files
from reptile_tf.evaluate import Accuracy
from reptile_tf.tasks import EvalTasks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, SKY, GREEN, GREY = "#0072B2", "#D55E00", "#56B4E9", "#009E73", "#777777"


def curve(history: np.ndarray, points: int) -> list[tuple[float, Accuracy]]:
    """Groups the validations into at most `points` points; returns the mean meta-iteration and accuracy of each.

    Args:
      history: float64 [task, 3], see `checkpoint.Checkpoint`.
      points: maximum number of points.
    """
    validations = np.unique(history[:, 0])
    groups = np.array_split(validations, min(points, len(validations)))
    return [(group.mean(), Accuracy.of(history[np.isin(history[:, 0], group), 2])) for group in groups]


def learning_curve(path: pathlib.Path, history: np.ndarray, what: str) -> None:
    """Draws validation accuracy against meta-iterations. Each point averages several validations, with a 95 % interval.

    Args:
      path: the PNG file to write.
      history: float64 [task, 3], see `checkpoint.Checkpoint`.
      what: name of the data set, for the title.
    """
    figure = _figure(7, 4)
    axes = figure.add_subplot(xlabel="meta-iteration", ylabel="accuracy on held-out classes (%)")
    axes.set_title(f"{_plain(what)}, mean and 95 % interval", parse_math=False)
    validations = len(np.unique(history[:, 0]))
    # Few enough points for the intervals to be narrow, many enough for a curve.
    points = curve(history, np.clip(validations // 5, min(10, validations), 40))
    at = np.array([at for at, _ in points])
    mean, ci95 = (100 * np.array([getattr(accuracy, name) for _, accuracy in points]) for name in ("accuracy", "ci95"))
    axes.fill_between(at, np.maximum(mean - ci95, 0), np.minimum(mean + ci95, 100), color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(at, mean, color=BLUE, marker=".")
    axes.grid(alpha=0.3)
    save(figure, path)


def adapted_tasks(path: pathlib.Path, tasks: Sequence[tuple[EvalTasks, np.ndarray]]) -> None:
    """Draws tasks one below another: a row per class with its support images, its query and the query's probabilities.

    Args:
      path: the PNG file to write.
      tasks: pairs of an `EvalTasks` of images, whose first task is drawn, and the probabilities of that task's queries
        after adaptation, float [query, class]. At most five support images per class are shown.
    """
    way, shots = tasks[0][1].shape[1], tasks[0][0].support.x.shape[1] // tasks[0][1].shape[1]
    figure = _figure(1.1 * min(shots, 5) + 5.5, (0.9 * way + 0.7) * len(tasks))
    for part, (task, probabilities) in zip(figure.subfigures(len(tasks), squeeze=False)[:, 0], tasks, strict=True):
        _adapted_task(part, task, probabilities)
    save(figure, path)


def confusion(path: pathlib.Path, names: Sequence[str], shares: np.ndarray) -> None:
    """Draws a confusion matrix.

    Args:
      path: the PNG file to write.
      names: names of the classes.
      shares: float [class, answer], the share of the queries of `class` that were classified as `answer`, among the
        tasks that contained both classes; nan if no task did.
    """
    side = 2.5 + 0.28 * len(names)
    figure = _figure(side + 1, side)
    axes = figure.add_subplot(xlabel="answer", ylabel="class")
    drawn = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    if len(names) <= 12:
        for row, column in zip(*np.nonzero(np.isfinite(shares)), strict=True):
            share = shares[row, column]
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", color=color, ha="center", va="center", fontsize=7)
    plain = [_plain(name)[-24:] for name in names]
    axes.set_xticks(range(len(names)), plain, rotation=90, fontsize=7, parse_math=False)
    axes.set_yticks(range(len(names)), plain, fontsize=7, parse_math=False)
    figure.colorbar(drawn, shrink=0.8).set_label("% of queries of tasks with both", fontsize=8)
    save(figure, path)


def _figure(width: float, height: float) -> "Figure":
    """Makes a figure, in inches. Matplotlib is imported here, so that it takes no memory during training."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _adapted_task(figure: "SubFigure", tasks: EvalTasks, probabilities: np.ndarray) -> None:
    way = probabilities.shape[1]
    support = tasks.support.x[0].reshape(way, -1, *tasks.support.x.shape[2:])[:, :5]
    shots = support.shape[1]
    grid = figure.subplots(way, shots + 2, squeeze=False, width_ratios=[1] * (shots + 1) + [3])
    for label, row in enumerate(grid):
        for shot, axes in enumerate(row[:shots]):
            _show(axes, support[label, shot])
        _show(row[shots], tasks.query_x[0, label])
        right = probabilities[label].argmax() == tasks.query_y[0, label]
        colors = [GREY] * way
        colors[tasks.query_y[0, label]] = BLUE
        bars = row[-1].bar(np.arange(way) + 1, 100 * probabilities[label], color=colors)
        bars[probabilities[label].argmax()].set_edgecolor("black")
        row[-1].set(ylim=(0, 100), xticks=np.arange(way) + 1 if way <= 10 else [], yticks=[0, 50, 100])
        row[-1].tick_params(labelsize=7)
        row[-1].set_ylabel("%", fontsize=8)
        row[shots].set_xlabel("right" if right else "wrong", color=BLUE if right else ORANGE, fontsize=8, labelpad=1)
        row[0].set_ylabel(f"class {label + 1}", fontsize=8)
    grid[0, 0].set_title("support", fontsize=9)
    grid[0, shots].set_title("query", fontsize=9)
    grid[0, -1].set_title("probability of each class (blue: the true one)", fontsize=9)


def _plain(text: str) -> str:
    """Returns `text` in ASCII, since the font lacks some characters that folder names may contain."""
    return text.encode("ascii", "backslashreplace").decode()


def _show(axes: "Axes", image: np.ndarray) -> None:
    gray = image.shape[-1] == 1
    axes.imshow(image[..., 0] if gray else image, cmap="gray" if gray else None, vmin=0, vmax=image.max() or 1)
    axes.set(xticks=[], yticks=[])


def save(figure: "Figure", path: pathlib.Path) -> None:
    """Writes the figure as a PNG file, atomically."""
    with files.replacing(path) as part:
        figure.savefig(part, dpi=110)

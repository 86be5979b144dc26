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
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, SKY, GREEN, GREY = "#0072B2", "#D55E00", "#56B4E9", "#009E73", "#777777"
MOST_NUMBERS = 12  # a matrix with more rows shows colours alone


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
    side = 0.6 if way <= MOST_NUMBERS else 0.35  # of a row
    figure = _figure(side * (min(shots, 5) + way) + 3, (side * way + 1) * len(tasks))
    for axes, (task, probabilities) in zip(figure.subplots(len(tasks), squeeze=False)[:, 0], tasks, strict=True):
        _adapted_task(axes, task, probabilities)
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
    if len(names) <= MOST_NUMBERS:
        _numbers(axes, shares, 0, 0)
    plain = [_plain(name)[-24:] for name in names]
    axes.set_xticks(range(len(names)), plain, rotation=90, fontsize=7, parse_math=False)
    axes.set_yticks(range(len(names)), plain, fontsize=7, parse_math=False)
    figure.colorbar(drawn, shrink=0.8).set_label("% of queries of tasks with both", fontsize=8)
    save(figure, path)


def _figure(width: float, height: float) -> "Figure":
    """Makes a figure, in inches. Matplotlib is imported here, so that it takes no memory during training."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _adapted_task(axes: "Axes", task: EvalTasks, probabilities: np.ndarray) -> None:
    """Draws images and probabilities in units of a row: row `label` is from y = label to label + 1."""
    way = probabilities.shape[1]
    support = task.support.x[0].reshape(way, -1, *task.support.x.shape[2:])[:, :5]
    shots = support.shape[1]
    _show(axes, support, 0)
    _show(axes, task.query_x[0][:, np.newaxis], shots + 0.5)
    first = shots + 2.0  # where the probabilities begin
    axes.imshow(100 * probabilities, cmap="Blues", vmin=0, vmax=100, extent=(first, first + way, way, 0))
    if way <= MOST_NUMBERS:
        _numbers(axes, probabilities, first + 0.5, 0.5)
    for row, (label, answer) in enumerate(zip(task.query_y[0], probabilities.argmax(1), strict=True)):
        verdict, color = ("right", BLUE) if label == answer else ("wrong", ORANGE)
        x, y = first + answer + 0.03, row + 0.03
        axes.plot([x, x + 0.94, x + 0.94, x, x], [y, y, y + 0.94, y + 0.94, y], color=color)
        axes.text(first + way + 0.2, row + 0.5, verdict, color=color, va="center", fontsize=8)
    names = [f"{label + 1}" for label in range(way)]
    above = {shots / 2: "support", shots + 1: "query", first + way / 2: "probability of each class (%)"}
    axes.set(xlim=(0, first + way + 1.5), ylim=(way, 0))
    axes.set_yticks(np.arange(way) + 0.5, [f"class {name}" for name in names], fontsize=8)
    axes.set_xticks(np.arange(way) + first + 0.5, names, fontsize=8)
    for x, text in above.items():
        axes.text(x, -0.15, text, ha="center", fontsize=9)
    axes.tick_params(length=0)
    axes.set_frame_on(False)


def _numbers(axes: "Axes", shares: np.ndarray, left: float, top: float) -> None:
    """Writes shares, from 0 to 1, in the cells of a matrix in %; the first cell's centre is at (left, top)."""
    for row, column in zip(*np.nonzero(np.isfinite(shares)), strict=True):
        share = shares[row, column]
        color = "white" if share > 0.5 else "black"
        place = left + column, top + row
        axes.text(*place, f"{100 * share:.0f}", color=color, ha="center", va="center", fontsize=7)


def _plain(text: str) -> str:
    """Returns `text` in ASCII, since the font lacks some characters that folder names may contain."""
    return text.encode("ascii", "backslashreplace").decode()


def _show(axes: "Axes", images: np.ndarray, left: float) -> None:
    """Draws images [row, column, height, width, channel], each in a square of side 1, from x = left on."""
    gray, (rows, columns, height, width) = images.shape[-1] == 1, images.shape[:4]
    highest = 255 if images.dtype == np.uint8 and not gray else images.max() or 1
    side = max(height, width) + 2 * max(1, max(height, width) // 20)  # a frame, and square even if the image is not
    around = [((side - size) // 2, (side - size + 1) // 2) for size in (height, width)]
    framed = np.pad(images / highest, [(0, 0), (0, 0), *around, (0, 0)], constant_values=0.85)
    sheet = framed.swapaxes(1, 2).reshape(rows * side, columns * side, -1)
    extent = (left, left + columns, rows, 0)
    axes.imshow(sheet[..., 0] if gray else sheet, cmap="gray" if gray else None, vmin=0, vmax=1, extent=extent)


def save(figure: "Figure", path: pathlib.Path) -> None:
    """Writes the figure as a PNG file, atomically."""
    with files.replacing(path) as part:
        figure.savefig(part, dpi=110)

"""The pictures of a run: its learning curve, and one test task after adaptation."""

import pathlib

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from reptile_tf import files
from reptile_tf.evaluate import Accuracy
from reptile_tf.tasks import EvalTasks

# Okabe and Ito's colours, which the colour-blind tell apart.
BLUE, ORANGE, SKY, GREEN, GREY = "#0072B2", "#D55E00", "#56B4E9", "#009E73", "#777777"


def curve(history: np.ndarray, points: int) -> list[tuple[float, Accuracy]]:
    """Averages the validations over at most so many points: mean meta-iteration and accuracy of each.

    Args:
      history: float64 [task, 3], see `checkpoint.Checkpoint`.
      points: how many.
    """
    validations = np.unique(history[:, 0])
    groups = np.array_split(validations, min(points, len(validations)))
    return [(group.mean(), Accuracy.of(history[np.isin(history[:, 0], group), 2])) for group in groups]


def learning_curve(path: pathlib.Path, history: np.ndarray, what: str) -> None:
    """Draws validation accuracy against meta-iterations, each point a mean of several with its 95 % interval.

    Args:
      path: of the PNG.
      history: float64 [task, 3], see `checkpoint.Checkpoint`.
      what: the data set, for the title.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="meta-iteration", ylabel="accuracy on held-out classes (%)")
    # A data set may be named after its folder: not every letter is in the font, and dollar signs mean no formula.
    what = what.encode("ascii", "backslashreplace").decode()
    axes.set_title(f"{what}, mean and 95 % interval", parse_math=False)
    validations = len(np.unique(history[:, 0]))
    # Few enough points for the intervals to be narrow, many enough for a curve.
    points = curve(history, np.clip(validations // 5, min(10, validations), 40))
    at = np.array([at for at, _ in points])
    mean, ci95 = (100 * np.array([getattr(accuracy, name) for _, accuracy in points]) for name in ("accuracy", "ci95"))
    axes.fill_between(at, np.maximum(mean - ci95, 0), np.minimum(mean + ci95, 100), color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(at, mean, color=BLUE, marker=".")
    axes.grid(alpha=0.3)
    save(figure, path)


def adapted_task(path: pathlib.Path, tasks: EvalTasks, probabilities: np.ndarray) -> None:
    """Draws the first of `tasks`: a row per class with its support images, its query and the query's probabilities.

    Args:
      path: of the PNG.
      tasks: uint8 images; at most five support images of a class are shown.
      probabilities: float [query, class], of the first task's queries after adaptation.
    """
    way = probabilities.shape[1]
    support = tasks.support.x[0].reshape(way, -1, *tasks.support.x.shape[2:])[:, :5]
    shots = support.shape[1]
    figure = Figure(figsize=(1.1 * shots + 5.5, 0.9 * way + 0.7), layout="constrained")
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
    save(figure, path)


def _show(axes: matplotlib.axes.Axes, image: np.ndarray) -> None:
    gray = image.shape[-1] == 1
    axes.imshow(image[..., 0] if gray else image, cmap="gray" if gray else None, vmin=0, vmax=image.max() or 1)
    axes.set(xticks=[], yticks=[])


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a PNG, whole or not at all."""
    with files.replacing(path) as part:
        figure.savefig(part, dpi=110)

"""Compares outer optimizers: the paper's interpolation, and Adam (the blog post's alternative).

Plain interpolation, phi ← phi + eps · mean(W - phi), is a step of SGD on the meta-gradient phi - W. Both get the same
number of meta-iterations and tasks on Omniglot 5-way 1-shot. The step size is annealed to 0, from 1 for interpolation
(as in the paper), and from 0.001 and 0.003 for Adam.

  python experiments/outer_optimizer.py
"""

import sys

import common
from matplotlib.figure import Figure

from reptile_tf import plots

FLAGS = "--preset omniglot-1shot-5way --transductive --meta-iters 2000 --eval-interval 50 --eval-samples 500"
RUNS = {
    "interpolation": "",
    "adam-0.001": "--meta-optimizer adam --meta-step 0.001 --meta-step-final 0",
    "adam-0.003": "--meta-optimizer adam --meta-step 0.003 --meta-step-final 0",
}
STYLES = {
    "interpolation": ("interpolation, step size from 1", plots.BLUE, "-"),
    "adam-0.001": ("Adam, learning rate from 0.001", plots.ORANGE, "--"),
    "adam-0.003": ("Adam, learning rate from 0.003", plots.GREEN, "-."),
}


def draw(figure: Figure, runs: list[common.Run]) -> None:
    """Draws the held-out accuracy against meta-iterations."""
    axes = figure.add_subplot(
        xlabel="meta-iteration",
        ylabel="accuracy on held-out characters (%)",
        title="Omniglot 5-way 1-shot, transductive: mean and 95 % interval",
    )
    for run in runs:
        label, color, style = STYLES[run.name]
        common.draw_curves(
            axes, run, f"{label}: {100 * run.final.accuracy:.1f} % in the end", color=color, linestyle=style
        )
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    sys.exit(common.main(__doc__, "outer_optimizer", {name: f"{FLAGS} {own}" for name, own in RUNS.items()}, draw))

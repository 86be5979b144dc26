"""Does it matter that Adam's moments pass from task to task within a meta-batch?

The original code runs the tasks of a meta-batch one after another and never resets the inner Adam's second moments, so
each task starts with the moments of the previous one. By default this package runs the tasks side by side from the same
moments, and averages the final moments; `--sequential` follows the original. Both are trained on Omniglot 5-way 1-shot
with three seeds (for split, weights and tasks), for 5,000 meta-iterations with the step size annealed to 0.

  python experiments/adam_order.py
"""

import sys

import common
import numpy as np
from matplotlib.figure import Figure

from reptile_tf import plots

FLAGS = "--preset omniglot-1shot-5way --transductive --meta-iters 5000 --eval-samples 500"
SEEDS = (0, 1, 2)
MODES = {"side": ("side by side (default)", ""), "turn": ("one after another", "--sequential")}


def draw(figure: Figure, runs: list[common.Run]) -> None:
    """Draws each seed's accuracy with its interval, and the mean over the seeds."""
    axes = figure.add_subplot(ylabel="accuracy on test characters (%)", xticks=SEEDS, xlabel="seed")
    length = runs[0].results["meta_iterations"]
    axes.set_title(f"Omniglot 5-way 1-shot, transductive, {length:,} meta-iterations", fontsize=10)
    for (mode, (label, _)), color, marker, shift in zip(
        MODES.items(), (plots.BLUE, plots.ORANGE), ("o", "s"), (-0.08, 0.08), strict=True
    ):
        mine = [run for run in runs if run.name.startswith(mode)]
        if not mine:
            continue
        accuracy = 100 * np.array([run.final.accuracy for run in mine])
        ci95 = 100 * np.array([run.final.ci95 for run in mine])
        mean = f"{accuracy.mean():.2f} ± {np.linalg.norm(ci95) / len(mine):.2f} %"
        axes.errorbar(
            [run.results["settings"]["seed"] + shift for run in mine],
            accuracy,
            ci95,
            fmt=marker,
            color=color,
            capsize=4,
            label=f"{label}: {mean} over the seeds",
        )
        axes.axhline(accuracy.mean(), color=color, linestyle="--", linewidth=1)
    axes.legend()
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    runs = {f"{mode}-seed{seed}": f"{FLAGS} --seed {seed} {own}" for seed in SEEDS for mode, (_, own) in MODES.items()}
    sys.exit(common.main(__doc__, "adam_order", runs, draw))

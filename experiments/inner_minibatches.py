"""Compares ways to choose the inner loop's minibatches (paper, section 6.2 and figure 4 on first-order MAML).

In first-order MAML only the last minibatch counts. It comes from the same shots as the others ("shared tail"), or from
shots set aside for it ("separate tail", --foml-tail). Minibatches are either dealt out, so that they overlap only after
all shots have been used (here after five steps, or four with a separate tail), or drawn with replacement. The result is
the final accuracy of all four variants, and of Reptile, against the number of inner steps, on Omniglot 5-way 5-shot
with ten training shots, minibatches of ten and Adam as the inner optimizer.

  python experiments/inner_minibatches.py                         1,000 meta-iterations: 18 runs, half an hour
  python experiments/inner_minibatches.py --meta-iters 100000 --runs checkpoints/minibatches-100000 --out full
                                                                  the length of the paper's other runs

The paper's finding: with a shared tail, first-order MAML falls far behind once it has seen its last minibatch before.
"""

import sys

import common
from matplotlib.figure import Figure

from reptile_tf import plots

FLAGS = "--preset omniglot-5shot-5way --meta-iters 1000 --eval-samples 200"
STEPS = (2, 4, 8)
ALGORITHMS = {
    "reptile": ("Reptile", "", plots.BLUE),
    "shared": ("first-order MAML, shared tail", "--foml", plots.ORANGE),
    "separate": ("first-order MAML, separate tail", "--foml --foml-tail 2", plots.GREEN),
}
DEALING = {"dealt": ("dealt out", "", "o-"), "replacement": ("with replacement", "--replacement", "s--")}


def draw(figure: Figure, runs: list[common.Run]) -> None:
    """Draws the final accuracy against the number of inner steps, with one line per variant."""
    axes = figure.add_subplot(
        xlabel="inner steps, k", ylabel="accuracy on test characters (%)", xticks=STEPS, title="Omniglot 5-way 5-shot"
    )
    finals = {run.name: run.final for run in runs}
    shift = -0.1
    for algorithm, (label, _, color) in ALGORITHMS.items():
        for dealing, (how, _, style) in DEALING.items():
            line = {k: finals[name] for k in STEPS if (name := f"{algorithm}-{dealing}-{k}") in finals}
            axes.errorbar(
                [k + shift for k in line],  # so that intervals do not hide each other
                [100 * final.accuracy for final in line.values()],
                [100 * final.ci95 for final in line.values()],
                fmt=style,
                color=color,
                capsize=3,
                label=f"{label}, {how}",
            )
            shift += 0.04
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    runs = {
        f"{algorithm}-{dealing}-{k}": f"{FLAGS} --inner-iters {k} {own} {how}"
        for k in STEPS
        for algorithm, (_, own, _) in ALGORITHMS.items()
        for dealing, (_, how, _) in DEALING.items()
    }
    sys.exit(common.main(__doc__, "inner_minibatches", runs, draw))

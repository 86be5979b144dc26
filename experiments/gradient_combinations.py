"""Which inner gradients make a good meta-gradient (paper, section 6.1 and figure 3)?

With SGD as the inner optimizer, a step on minibatch j moves the weights by -lr · g_j. First-order MAML uses only the
last of the k gradients, Reptile the sum of all. This experiment compares ten combinations on Omniglot 5-shot 5-way,
with minibatches that share no image.

  python experiments/gradient_combinations.py                         4,000 meta-iterations
  python experiments/gradient_combinations.py --meta-iters 40000 --runs checkpoints/combinations-40000 --out full
                                                                      the paper's length; takes ten times as long

The paper's finding: g1 alone learns nothing useful, and the more terms, the faster the learning.
"""

import sys

import common
from matplotlib.figure import Figure

from reptile_tf import plots

# The commands for the paper's figure, except for the length and the validation on held-out characters.
FLAGS = (
    "--classes 5 --shots 5 --sgd --inner-batch 25 --learning-rate 0.003 --meta-step-final 0 --meta-batch 1 "
    "--eval-batch 25 --eval-iters 5 --meta-iters 4000 --eval-interval 100 --eval-tasks 20 --eval-samples 1000"
)


def _flags(k: int, terms: str, meta_step: float) -> str:
    return f"{FLAGS} --inner-iters {k} --train-shots {5 * k} --gradients {terms} --meta-step {meta_step}"


def combinations() -> dict[str, str]:
    """Returns the flags of each curve, by name."""
    runs = {"g1": _flags(1, "1", 0.25)}
    for k in (2, 3, 4):
        terms, plus = ",".join(map(str, range(1, k + 1))), "+".join(f"g{j}" for j in range(1, k + 1))
        runs[f"g{k}"] = _flags(k, str(k), 0.25)
        runs[plus] = _flags(k, terms, 0.25)
        runs[f"1of{k}({plus})"] = _flags(k, terms, 0.25 / k)
    return runs


def draw(figure: Figure, runs: list[common.Run]) -> None:
    """Draws accuracy against meta-iterations, with one panel per kind of combination."""
    panels = figure.subplots(1, 3, sharey=True)
    kinds = ("one gradient", "sum of the first k", "mean of the first k")
    for axes, kind in zip(panels, kinds, strict=True):
        axes.set(title=kind, xlabel="meta-iteration")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy on held-out characters (%)")
    colors = dict(zip((1, 2, 3, 4), (plots.GREY, plots.ORANGE, plots.SKY, plots.BLUE), strict=True))
    styles = dict(zip((1, 2, 3, 4), (":", "--", "-.", "-"), strict=True))
    for run in runs:
        k = run.results["settings"]["inner_iters"]
        kind = 2 if run.name.startswith("1of") else 1 if "+" in run.name else 0
        # g1 is drawn in every panel, since it is also the sum and the mean of the first gradient.
        for panel in range(3) if k == 1 else [kind]:
            label = run.name if panel == kind else "g1"
            common.draw_curves(
                panels[panel],
                run,
                label.replace(f"1of{k}(", f"1/{k} (" if k > 1 else ""),
                color=colors[k],
                linestyle=styles[k],
            )
    for axes in panels:
        axes.legend(loc="lower left", fontsize=8)


if __name__ == "__main__":
    sys.exit(common.main(__doc__, "gradient_combinations", combinations(), draw))

"""Tests that training reproduces, in float64, recorded trajectories of the original TensorFlow 1 code."""

import json
import os
import pathlib

import keras
import numpy as np
import pytest

from reptile_tf import models
from reptile_tf.evaluate import Evaluator
from reptile_tf.meta import MetaLearner
from reptile_tf.meta_gradients import foml, reptile
from reptile_tf.tasks import EvalTasks, Tasks

HERE = pathlib.Path(__file__).parent / "golden"
ELSEWHERE = os.environ.get("REPTILE_GOLDEN")
TOLERANCE = {"sgd": 1e-6, "adam": 1e-4}  # Adam in the original code has a float32 rate and epsilon


class Golden:
    """A recorded file with two meta-iterations and one evaluation."""

    def __init__(self, name: str):
        path = HERE / f"{name}.npz"
        if not path.exists():
            if not ELSEWHERE:
                pytest.skip("REPTILE_GOLDEN names no folder of more golden trajectories")
            path = pathlib.Path(ELSEWHERE) / path.name
        self.arrays = np.load(path, allow_pickle=False)
        self.config = json.loads(str(self.arrays["config"]))

    def weights(self, stage: int) -> list[np.ndarray]:
        return [self.arrays[f"w{stage}_{i:02}"] for i in range(len(self.arrays["names"]))]

    def images(self, name: str) -> np.ndarray:
        """Reshapes images to one pool per task: [task, sample, height, width, channel]."""
        images = self.arrays[name]
        size = (84, 84, 3) if "mini" in self.config else (28, 28, 1)
        return images.reshape(len(images), -1, *size)

    def training(self, iteration: int) -> Tasks:
        x, y = self.images(f"x{iteration}"), self.arrays[f"y{iteration}"]
        tasks, steps, size = y.shape
        minibatches = np.tile(np.arange(steps * size, dtype=np.int32).reshape(steps, size), (tasks, 1, 1))
        y, tail = y.reshape(tasks, -1), ()
        if "tail" in self.config:
            tail_y = self.arrays[f"tail_y{iteration}"]
            tail = np.tile(np.arange(tail_y.shape[1], dtype=np.int32) + y.shape[1], (tasks, 1, 1))
            x, y = np.concatenate([x, self.images(f"tail_x{iteration}")], 1), np.concatenate([y, tail_y], 1)
        elif self.config["algo"] == "foml":
            minibatches, tail = minibatches[:, :-1], minibatches[:, -1:]
        return Tasks(x, y.astype(np.int32), minibatches, tail)

    def evaluation(self) -> EvalTasks:
        support_x, support_y = self.images("eval_train_x"), self.arrays["eval_train_y"]
        x, y = self.images("eval_x"), self.arrays["eval_y"]
        where = [[np.flatnonzero((support_x[0] == image).all((1, 2, 3)))[0] for image in step] for step in x]
        minibatches = np.array(where, np.int32)
        np.testing.assert_array_equal(support_y[0][minibatches], y)
        support = Tasks(support_x, support_y.astype(np.int32), minibatches[np.newaxis])
        return EvalTasks(support, self.images("eval_test_x"), self.arrays["eval_test_y"])

    def learner(self, **options) -> MetaLearner:
        network = models.miniimagenet if "mini" in self.config else models.omniglot
        model = network(self.config["classes"])
        for variable, value in zip(model.trainable_variables, self.weights(0), strict=True):
            variable.assign(value)
        if self.config["opt"] == "adam":
            inner = keras.optimizers.Adam(self.config["lr"], beta_1=0.0, beta_2=0.999, epsilon=1e-8)
        else:
            inner = keras.optimizers.SGD(self.config["lr"])
        return MetaLearner(
            model,
            inner,
            keras.optimizers.SGD(),
            meta_gradient=foml if self.config["algo"] == "foml" else reptile,
            meta_batch=self.config["T"],
            weight_decay=self.config["wd"],
            scale=1 / 255 if "mini" in self.config else 1.0,
            **options,
        )


def assert_weights_agree(golden: Golden, learner: MetaLearner, stage: int) -> None:
    """Asserts ‖ours - golden‖ <= tolerance · ‖golden - before‖ for every variable except the biases of convolutions."""
    ours = learner.network.unflatten(learner.phi)
    tolerance = TOLERANCE[golden.config["opt"]]
    for name, w, now, before in zip(
        golden.arrays["names"], ours, golden.weights(stage), golden.weights(stage - 1), strict=True
    ):
        if "conv" in str(name) and "bias" in str(name):
            continue  # its gradient is only rounding error
        assert np.linalg.norm(w - now) <= tolerance * np.linalg.norm(now - before), name


QUICK = [("reptile_sgd", {"sequential": False}), ("reptile_adam", {"sequential": True})]
# run_modes.py compares stacked with branches for each algorithm and network.
SLOW = [
    ("reptile_sgd", {"sequential": True}),
    ("reptile_decay_sgd", {"stacked": True}),
    ("foml_sgd", {"sequential": False}),
    ("foml_tail_sgd", {"sequential": False}),
    ("mini_sgd", {"sequential": False}),
]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_weights_and_logits_follow_the_original(float64, name, options):
    golden = Golden(name)
    learner = golden.learner(**options)
    for iteration, meta_step in enumerate(golden.config["meta"]):
        learner.step(golden.training(iteration), meta_step)
        assert_weights_agree(golden, learner, iteration + 1)
    for transductive, key in ((True, "transductive"), (False, "non_transductive")):
        logits = Evaluator(learner, at_most=1).logits(golden.evaluation())[transductive][0]
        expected = golden.arrays[f"eval_logits_{key}"]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE[golden.config["opt"]])
        np.testing.assert_array_equal(logits.argmax(-1), golden.arrays[f"eval_pred_{key}"])

"""Tests of the programs for XLA on a GPU: the presets lower, stay on the device and have no superfluous operations.

Without a GPU, this is the last stage of compilation that can be tested.
"""

import re

import pytest
import tensorflow as tf
from tensorflow.python.eager.polymorphic_function import compiler_ir
from tensorflow.python.framework import config

from reptile_tf import learners, problems, tasks
from reptile_tf.settings import Settings

# For five layers with weights: the forward pass, the weights' gradient, and the inputs' gradient except in the first.
DOTS = 3 * 5 - 1
CALL, IMAGES = 10, 1000


@pytest.fixture(autouse=True)
def deterministic():
    """Selects deterministic operations, as a run does."""
    tf.config.experimental.enable_op_determinism()
    tf.random.set_seed(0)  # TensorFlow draws a random number to find its device
    yield
    config.disable_op_determinism()


def operations(function, *specs, platform=None):
    """Counts each operation in the HLO of a compiled function."""
    concrete = tf.function(function, jit_compile=True).get_concrete_function(*specs)
    text = compiler_ir.from_concrete_function(concrete)(stage="hlo", platform_name=platform)
    found = re.findall(r" = .*? ([a-z-]+)\(", re.sub(r"/\*.*?\*/|\{[^{}]*\}", "", text))
    assert len(found) > 100
    return {kind: found.count(kind) for kind in set(found)}


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["omniglot-1shot-5way", "omniglot-1shot-20way", "miniimagenet-1shot-5way"])
def test_the_stacked_programs_are_no_more_than_they_need_to_be(preset):
    name = preset.split("-")[0]
    settings = Settings.preset(preset)
    model = problems.find(name).network(settings)
    learner = learners.make_learner(model, settings, 0.5, stacked=True)
    network, image, count = learner.network, model.input_shape[1:], settings.meta_batch

    def integers(*shape):
        return tf.TensorSpec(shape, tf.int32)

    gradient = operations(
        lambda weights, x, y: network.gradient(weights, x, y)[0],
        tf.TensorSpec([count, network.size]),
        tf.TensorSpec([count, settings.inner_batch, *image], tf.uint8),
        integers(count, settings.inner_batch),
        platform="GPU",
    )
    samples = settings.classes * settings.images_per_class
    batches = tasks.Tasks(
        integers(CALL, count, samples),
        integers(CALL, count, samples),
        integers(CALL, count, settings.inner_iters, settings.inner_batch),
        seed=integers(CALL, count, 2),
    )
    call = operations(
        learner._meta_iterations.python_function,
        batches,
        tf.TensorSpec([CALL]),
        integers(),
        tf.TensorSpec([IMAGES, *image], tf.uint8),
    )
    for found in gradient, call:
        assert found["dot"] == DOTS
        assert not {"convolution", "custom-call", "infeed", "outfeed", "send", "recv", "sort", "scatter"} & set(found)
    assert "while" not in gradient
    assert call["while"] == 2  # over meta-iterations, and over inner steps
    assert call["gather"] == 3  # the images of the tasks; the images and labels of a minibatch
    assert sum(call.values()) < 2500

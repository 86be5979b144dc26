"""Runs run_omniglot.py in float64, so that rounding does not hide a task that is counted twice."""

import sys

from reptile_tf import backend

backend.import_quietly()

import keras

from reptile_tf import cli
from reptile_tf.problems.omniglot import PROBLEM

if __name__ == "__main__":
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    sys.exit(cli.main(sys.argv, __doc__, PROBLEM))

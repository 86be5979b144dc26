"""Runs run_omniglot.py so that worker 1 hangs at the third meta-iteration, and the others wait only briefly for it."""

import sys
import time

from reptile_tf import backend

backend.import_quietly()

from reptile_tf import cli
from reptile_tf.distributed import cluster
from reptile_tf.meta import MetaLearner
from reptile_tf.problems.omniglot import PROBLEM

if __name__ == "__main__":
    cluster.PATIENCE = 15.0
    steps, calls = MetaLearner.steps, []

    def hanging_steps(self, *arguments, **options):
        calls.append(1)
        if self.cluster.index == 1 and len(calls) == 3:
            time.sleep(6000)
        return steps(self, *arguments, **options)

    MetaLearner.steps = hanging_steps
    sys.exit(cli.main(sys.argv, __doc__, PROBLEM))

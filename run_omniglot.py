"""Reptile on Omniglot: meta-trains a few-shot classifier and reports its accuracy on characters that are new to it.

The paper's settings are presets. One training run serves 1 and 5 shots, transductive or not; add --pretrained to the
other commands to evaluate without training again:

  python run_omniglot.py --preset omniglot-1shot-5way --transductive     paper: 97.68 ± 0.04 %
  python run_omniglot.py --preset omniglot-1shot-5way                    paper: 95.39 ± 0.09 %
  python run_omniglot.py --preset omniglot-5shot-5way --transductive     paper: 99.48 ± 0.06 %
  python run_omniglot.py --preset omniglot-5shot-5way                    paper: 98.90 ± 0.10 %

Run the same command again to resume from the newest checkpoint. `bash fetch_data.sh omniglot` downloads the images.
"""

import sys

from reptile_tf import cli
from reptile_tf.problems.omniglot import PROBLEM

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv, __doc__, PROBLEM))

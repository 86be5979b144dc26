"""Reptile on Mini-ImageNet, or on your own photographs in DIR/{train,val,test}/CLASS/IMAGE (--data-dir DIR).

The paper's settings are presets. One training run serves 1 and 5 shots, transductive or not; add --pretrained to the
other commands to evaluate without training again:

  python run_miniimagenet.py --preset miniimagenet-1shot-5way --transductive                  paper: 49.97 ± 0.32 %
  python run_miniimagenet.py --preset miniimagenet-1shot-5way                                 paper: 47.07 ± 0.26 %
  python run_miniimagenet.py --preset miniimagenet-5shot-5way --transductive --eval-batch 5   paper: 65.99 ± 0.58 %
  python run_miniimagenet.py --preset miniimagenet-5shot-5way                                 paper: 62.74 ± 0.37 %

Run the same command again to resume from the newest checkpoint. `bash fetch_data.sh miniimagenet` builds the data set
from your copy of ImageNet.
"""

import sys

from reptile_tf import cli
from reptile_tf.problems.miniimagenet import PROBLEM

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv, __doc__, PROBLEM))

"""Reptile on your own images: --data-dir DIR with DIR/CLASS/IMAGE, DIR/{train,val,test}/CLASS/IMAGE, or a table.

  python run_folder.py --data-dir photos --preset folder-quick          a minute or two; from 10 classes of 20 images up
  python run_folder.py --data-dir photos --preset folder-5shot-5way     like the paper's Mini-ImageNet; many hours
  python run_folder.py --data-dir scans.csv --size 28 --channels 1      a table with the columns path,label[,set]

Classes without sets are split by --split; test classes are never trained on. At the end it prints the accuracy on each
set, and writes the accuracy of each class, a confusion matrix and the worst tasks to the folder --checkpoint, which
`reptile_tf.load` and `python -m reptile_tf.classify` read. Run the same command again to resume from the newest
checkpoint.
"""

import sys

from reptile_tf import cli
from reptile_tf.problems.folder import PROBLEM

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv, __doc__, PROBLEM))

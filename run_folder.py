"""Reptile on images of your own: --data-dir DIR with DIR/CLASS/IMAGE, DIR/{train,val,test}/CLASS/IMAGE, or a table.

  python run_folder.py --data-dir photos --preset folder-quick          a minute or two, from 10 classes of 20 images on
  python run_folder.py --data-dir photos --preset folder-5shot-5way     as the paper's Mini-ImageNet; many hours
  python run_folder.py --data-dir scans.csv --size 28 --channels 1      a table with the columns path,label[,set]

Classes that are in no sets are split by --split: those tested on are never trained on. It ends with the accuracy on
each set, and of each class, a confusion matrix and the worst tasks in the folder --checkpoint, which `reptile_tf.load`
and `python -m reptile_tf.classify` take. Run the same command again to resume from the newest checkpoint.
"""

import sys

from reptile_tf import cli
from reptile_tf.problems.folder import PROBLEM

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv, __doc__, PROBLEM))

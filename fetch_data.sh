#!/usr/bin/env bash
# Gets a data set into data/ (or another folder), completely or not at all:
#
#   bash fetch_data.sh omniglot [FOLDER]                            downloads it
#   IMAGENET_TAR=FILE bash fetch_data.sh miniimagenet [FOLDER]      extracts the paper's from ILSVRC2012_img_train.tar
#   IMAGENET_DIR=DIR bash fetch_data.sh miniimagenet [FOLDER]       copies the paper's from unpacked class folders
#   MINIIMAGENET_DIR=DIR bash fetch_data.sh miniimagenet [FOLDER]   copies your own train, val and test folders
#
# After an interruption, run it again to continue. `bash fetch_data.sh --help` lists the settings.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
if ! command -v "$python" > /dev/null; then
  echo "fetch_data.sh: $python is not installed; install Python 3.11 or later, or set PYTHON to where it is" >&2
  exit 1
fi
# exec replaces the shell, so that killing this script kills the process that does the work.
exec "$python" "$here/reptile_tf/fetch/__main__.py" "$@"

#!/usr/bin/env bash
# Gets a data set into data/ (or another folder), whole or not at all:
#
#   bash fetch_data.sh omniglot [FOLDER]
#
# Run again after any interruption, it goes on where it stopped; `bash fetch_data.sh --help` lists the settings.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
if ! command -v "$python" > /dev/null; then
  echo "fetch_data.sh: $python is not installed; install Python 3.11 or later, or set PYTHON to where it is" >&2
  exit 1
fi
# exec: killing this script then kills the one process that does the work.
exec "$python" "$here/reptile_tf/data/archive.py" "$@"

"""The command line of fetch_data.sh, which runs this file. It needs only Python, and curl for downloads."""

import argparse
import io
import os
import pathlib
import sys

# fetch_data.sh may run before the package or its dependencies are installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from reptile_tf.fetch import archive, imagenet

_EPILOG = f"""
Environment:
DATA_DIR, the default FOLDER (else data, beside fetch_data.sh, or where you are if the package is installed without it);
OMNIGLOT_URL, the address of the folder with Omniglot's zips (default {archive.OMNIGLOT_URL}), also a mirror or
file:///SOME/FOLDER;
METADATA_URL, the address of the zip with Mini-ImageNet's lists (default {imagenet.METADATA_URL}), also a mirror or
file:///SOME/FILE.zip;
FETCH_PATIENCE, seconds to wait for a server that sends nothing (60);
PYTHON, the interpreter (python3).
For miniimagenet, {imagenet.WAYS}.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="fetch_data.sh",
        description="Gets a data set, verifies it and installs it. To continue after an interruption, run it again.",
        epilog=_EPILOG,
    )
    commands = parser.add_subparsers(dest="data_set", required=True, metavar="DATA_SET")
    repository = pathlib.Path(__file__).resolve().parents[2]
    beside = repository if (repository / "fetch_data.sh").exists() else pathlib.Path()  # not into site-packages
    root = pathlib.Path(os.environ.get("DATA_DIR") or beside / "data")
    for name, what in {
        "omniglot": "1,623 handwritten characters; 16 MB to download, 130 MB on disk",
        "miniimagenet": "100 classes of photos, from a copy of ImageNet or Mini-ImageNet that you have; 7 GB on disk",
    }.items():
        command = commands.add_parser(name, help=what, description=what, epilog=_EPILOG)
        command.add_argument(
            "folder", nargs="?", type=pathlib.Path, default=root, metavar="FOLDER", help=f"put it at FOLDER/{name}"
        )
    options = parser.parse_args(arguments)
    try:
        patience = float(os.environ.get("FETCH_PATIENCE") or 60)
        if not 1 <= patience < 1e6:
            raise ValueError
    except ValueError:
        parser.error("FETCH_PATIENCE must be a number of seconds, 1 or more")

    what = "Mini-ImageNet"
    try:
        if options.data_set == "omniglot":
            what = os.environ.get("OMNIGLOT_URL") or archive.OMNIGLOT_URL
            archive.fetch_omniglot(what, options.folder, patience)
        else:
            imagenet.fetch_miniimagenet(os.environ, options.folder, patience)
    except archive.FetchError as error:
        print(f"fetch_data.sh: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"fetch_data.sh: cannot put {what} into {options.folder}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fetch_data.sh: interrupted; run this again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for paths that cannot be encoded, as stderr does
    sys.exit(main())

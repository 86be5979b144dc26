"""Measures the memory for training on many photographs, which stay on disk in a memory-mapped store.

  python benchmarks/memory.py                      100,000 random images of 84x84, 1,000 classes; needs 2.2 GB of disk
  python benchmarks/memory.py --json memory.json   also writes the result to a file

Prints the process's resident memory after training: its own memory, and separately the pages of the mapped store, which
the system can reclaim at any time.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

import numpy as np

import reptile_tf as rt
from reptile_tf import device, files
from reptile_tf.data import cache
from reptile_tf.problems.miniimagenet import PROBLEM


def resident() -> dict[str, int]:
    """Returns the bytes of this process's own memory and of its mapped files (Linux)."""
    lines = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    return {name: 1024 * int(lines[key].split()[0]) for name, key in (("own", "RssAnon"), ("mapped", "RssFile"))}


def store(folder: pathlib.Path, images: int, classes: int) -> rt.ImageClasses:
    """Writes a store of random images, class by class."""
    rng, each = np.random.default_rng(0), images // classes

    def fill(array: np.ndarray) -> tuple[dict[str, int], dict]:
        for number in range(classes):
            array[number * each : (number + 1) * each] = rng.integers(0, 256, (each, *array.shape[1:]), np.uint8)
        return {f"class {number}": each for number in range(classes)}, {}

    return cache.prepared(folder / "made-up.json", "made up", (images, 84, 84, 3), fill).classes(scale=1 / 255)


def main() -> None:
    """Makes the store, trains from it and prints the memory used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--meta-iters", type=int, default=100)
    parser.add_argument("--json", type=pathlib.Path, help="file to write the result to")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    rt.show_progress()
    settings = rt.Settings.preset("miniimagenet-1shot-5way", meta_iters=arguments.meta_iters)
    device.configure(settings.meta_batch)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        classes = store(pathlib.Path(folder), arguments.images, arguments.classes)
        began = time.monotonic()
        rt.meta_train(PROBLEM.network(settings), classes, settings)
        result = {
            "command": f"python benchmarks/memory.py --images {arguments.images} --classes {arguments.classes} "
            f"--meta-iters {arguments.meta_iters}",
            "bytes of images": classes.images.nbytes,
            "resident bytes": resident(),
            "seconds": round(time.monotonic() - began, 1),
        }
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if arguments.json:
        files.write_text(arguments.json, text)


if __name__ == "__main__":
    main()

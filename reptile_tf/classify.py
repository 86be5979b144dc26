"""Classify your own images from a few examples of each class.

  python -m reptile_tf.classify --checkpoint pretrained/omniglot-5way --support shapes --queries new --report new.html

SUPPORT/CLASS/IMAGE are the examples, at least one of each class and at least two classes. The network in --checkpoint
adapts to them and classifies the queries. Images are prepared like its training images. An Omniglot network accepts
photographs and scans of drawings.
"""

import argparse
import csv
import io
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from reptile_tf import backend  # slow imports wait until the flags are checked
from reptile_tf.errors import UserError

if TYPE_CHECKING:
    import numpy as np


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 1 after a user error, 2 (by SystemExit) after a bad flag."""
    parser = _parser()
    arguments = parser.parse_args(_hyphenated(sys.argv[1:] if argv is None else argv))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may not be encodable
    try:
        _classify(arguments)
    except UserError as error:
        print(f"{parser.prog}: {error.on_command_line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    def at_least(least: int) -> Callable[[str], int]:
        def number(text: str) -> int:
            if not text.isdecimal() or int(text) < least or len(text) > 9:
                raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
            return int(text)

        return number

    def ending(*suffixes: str) -> Callable[[str], pathlib.Path]:
        def path(text: str) -> pathlib.Path:
            if pathlib.Path(text).suffix not in suffixes:
                raise argparse.ArgumentTypeError(f"{text!r} does not end in {' or '.join(suffixes)}")
            return pathlib.Path(text)

        return path

    parser = argparse.ArgumentParser(
        prog="python -m reptile_tf.classify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Flags may be written with hyphens or underscores. Images may have any common format.",
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="folder of a trained network")
    parser.add_argument("--support", required=True, metavar="DIR", help="folder with one folder of images per class")
    parser.add_argument(
        "--queries", required=True, nargs="+", metavar="PATH", help="images to classify: files, or folders of them"
    )
    parser.add_argument(
        "--transductive",
        action="store_true",
        help="classify all queries in one batch, instead of each one in a batch with the support set",
    )
    parser.add_argument(
        "--steps", type=at_least(0), metavar="N", help="inner steps (default: as in the run's evaluation)"
    )
    parser.add_argument(
        "--batch", type=at_least(1), metavar="N", help="images per minibatch (default: as in the run's evaluation)"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="seed of the minibatches (default: 0)")
    parser.add_argument(
        "--save", type=ending(".keras"), metavar="FILE", help="write the classifier as a Keras model (.keras)"
    )
    parser.add_argument(
        "--report", type=ending(".html", ".htm"), metavar="FILE", help="write images and answers to one HTML file"
    )
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all probabilities as JSON")
    parser.add_argument("--csv", type=pathlib.Path, metavar="FILE", help="write file, label and probability as CSV")
    return parser


def _hyphenated(argv: Sequence[str]) -> list[str]:
    """Replaces underscores in flag names, but not in values, by hyphens."""
    normal = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        normal.append(name.replace("_", "-") + equals + value if argument.startswith("--") else argument)
    return normal


def _classify(arguments: argparse.Namespace) -> None:
    from reptile_tf import files, preparing  # still without TensorFlow

    began = time.monotonic()
    written = {name: getattr(arguments, name) for name in ("save", "report", "json", "csv")}
    for flag, path in written.items():
        if path is not None and not path.absolute().parent.is_dir():
            raise UserError(f"no folder {path.parent} for --{flag}; make it first")
    examples = preparing.example_files(arguments.support)
    queries = preparing.files(arguments.queries)

    backend.check()
    backend.import_quietly()
    from reptile_tf import learners
    from reptile_tf.state import NotFiniteError

    learner = learners.load(arguments.checkpoint)
    support = [file for found in examples.values() for file in found]
    labels = [label for label, found in examples.items() for _ in found]
    support_x, query_x = preparing.images(support, learner), preparing.images(queries, learner)
    try:
        few = learner.adapt(support_x, labels, steps=arguments.steps, batch=arguments.batch, seed=arguments.seed)
    except NotFiniteError as error:
        raise UserError(
            "the adaptation produced non-finite values; the examples, or the network, are damaged"
        ) from error
    except ValueError as error:
        raise UserError(str(error)) from error
    probabilities = few.probabilities(query_x, transductive=arguments.transductive)

    names = [str(label) for label in few.labels] if few.labels is not None else []
    best = probabilities.argmax(-1)
    answers = [
        {
            "file": str(file),
            "label": names[chosen],
            "probability": _rounded(of_each[chosen]),
            "probabilities": dict(zip(names, map(_rounded, of_each), strict=True)),
        }
        for file, chosen, of_each in zip(queries, best, probabilities, strict=True)
    ]
    run = {
        "checkpoint": str(arguments.checkpoint),
        "examples": {label: len(found) for label, found in examples.items()},
        "transductive": arguments.transductive,
        "steps": learner.origin.steps if arguments.steps is None else arguments.steps,
        "batch": learner.origin.batch if arguments.batch is None else arguments.batch,
        "seed": arguments.seed,
    }
    _print(run, answers)
    if written["save"]:
        try:
            few.save(written["save"])
        except ValueError as error:
            raise UserError(str(error)) from error
    if written["report"]:
        from reptile_tf import report

        shown = [(*pair, label) for *pair, label in zip(support, support_x, labels, strict=True)]
        asked = list(zip(queries, query_x, (answer["probabilities"] for answer in answers), strict=True))
        files.write_text(written["report"], report.page(run, shown, asked, learner.origin.white or 255))
    if written["json"]:
        files.write_text(written["json"], json.dumps(run | {"answers": answers}, indent=1) + "\n")
    if written["csv"]:
        files.write_text(written["csv"], _csv(answers))
    places = ", ".join(str(path) for path in written.values() if path)
    print(f"{time.monotonic() - began:.1f} s" + (f"; written: {places}" if places else ""))


def _rounded(probability: "np.floating") -> float:
    return round(float(probability), 6)


def _print(run: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    counts = ", ".join(f"{label} {count}" for label, count in run["examples"].items())
    how = "all queries together" if run["transductive"] else "each query beside the support set"
    print(f"{len(run['examples'])} classes ({counts}); {run['steps']} steps on minibatches of {run['batch']}; {how}")
    rows = [("file", "label", "probability")]
    rows += [(answer["file"], answer["label"], f"{answer['probability']:.1%}") for answer in answers]
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for file, label, probability in rows:
        print(f"{file:{wide[0]}}  {label:{wide[1]}}  {probability:>11}")


def _csv(answers: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["file", "label", "probability"], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(answers)
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(main())

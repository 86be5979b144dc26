"""Runs a command line and returns its exit code. TensorFlow is imported only after the flags are checked."""

import contextlib
import os
import pathlib
import sys

from reptile_tf import backend, flags, launch
from reptile_tf.errors import UserError
from reptile_tf.problems import Problem
from reptile_tf.progress import log, show_progress  # quiet on all workers but the chief


def main(argv: list[str], doc: str, problem: Problem) -> int:
    """Runs a problem's script.

    Args:
      argv: arguments like sys.argv, with the program's name first.
      doc: the script's docstring, which begins --help.
      problem: the problem to train on.

    Returns:
      The exit code: 0; 1 after a user error; 2 after a bad flag; 75 if another worker of the cluster has stopped;
      130 or 143 after SIGINT or SIGTERM.
    """
    program = os.path.basename(argv[0])
    show_progress()
    try:
        settings, chosen = flags.parse(argv, doc, problem)
    except flags.FlagsError as error:
        print(f"{program}: {error.on_command_line} (see --help)", file=sys.stderr)
        return 2
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", _onednn(settings.checkpoint, problem))
    launch.end_with_launcher()
    try:
        backend.check()
        backend.import_quietly()
        from reptile_tf import run
        from reptile_tf.train import Interrupted
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        print(f"{program}: {error.on_command_line}", file=sys.stderr)
        return 1
    try:
        run.run(settings, chosen, problem)
    except UserError as error:
        print(f"{program}: {error.on_command_line}", file=sys.stderr)
        return error.exit_code
    except Interrupted as interrupted:
        log.info(
            f"stopped after {interrupted.done} meta-iterations, saved in {settings.checkpoint}; "
            "run the same command again to resume"
        )
        return 128 + interrupted.signal
    except KeyboardInterrupt:
        log.info(f"stopped; the same command resumes from {settings.checkpoint}'s newest checkpoint, if there is one")
        return 130
    return 0


def _onednn(folder: str, problem: Problem) -> str:
    """TF_ENABLE_ONEDNN_OPTS, which TensorFlow reads when it is imported: the run's in the folder, or the problem's."""
    from reptile_tf import files

    with contextlib.suppress(OSError, ValueError):  # there is none, or it is damaged
        recorded = files.unsealed(pathlib.Path(folder, "config.json").read_text(encoding="utf-8"))
        if recorded.get("problem") == problem.name and "onednn" in recorded:  # earlier versions do not say it
            return recorded["onednn"]
    return str(int(problem.onednn))

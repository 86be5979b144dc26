"""From a command line to an exit code. TensorFlow is imported only once the flags are right."""

import io
import os
import sys

from reptile_tf import backend, flags, launch
from reptile_tf.errors import UserError
from reptile_tf.settings import WITH_ONEDNN


def main(argv: list[str], doc: str, benchmark: str) -> int:
    """Runs a benchmark's script.

    Args:
      argv: as sys.argv.
      doc: the script's docstring, the beginning of --help.
      benchmark: a name in `benchmarks.BENCHMARKS`.

    Returns:
      The exit code: 0, 1 after a user's mistake, 2 after a bad flag, 130 or 143 after SIGINT or SIGTERM.
    """
    program = os.path.basename(argv[0])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path or "±" that it cannot show is no reason to stop
    try:
        settings, chosen = flags.parse(argv, doc, benchmark)
    except flags.FlagsError as error:
        print(f"{program}: {error} (see --help)", file=sys.stderr)
        return 2
    if benchmark in WITH_ONEDNN:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # start-up messages; what goes wrong is raised too
    launch.end_with_launcher()
    try:
        backend.check()
        from reptile_tf import run
        from reptile_tf.benchmarks import BENCHMARKS
        from reptile_tf.progress import say  # quiet on all workers but the chief
        from reptile_tf.train import Interrupted
    except KeyboardInterrupt:
        return 130
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    try:
        run.run(settings, chosen, BENCHMARKS[benchmark])
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        say(
            f"stopped after {interrupted.done} meta-iterations, saved in {settings.checkpoint}; "
            "the same command goes on from there"
        )
        return 128 + interrupted.signal
    except KeyboardInterrupt:
        say(f"stopped; the same command goes on from the newest checkpoint in {settings.checkpoint}, if there is one")
        return 130
    return 0

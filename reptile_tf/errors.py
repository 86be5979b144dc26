"""Exceptions that commands report as one line and an exit code."""

import re


def as_arguments(message: str) -> str:
    """Replaces flags in a message, such as --eval-batch, by argument names, such as eval_batch."""
    return re.sub(r"(?<![\w/-])--([a-z][a-z0-9-]*)", lambda found: found[1].replace("-", "_"), message)


class UserError(Exception):
    """Raised for something that the user can correct.

    The message is one line that says what is wrong, where, and what to do. Commands print it without a traceback and
    exit with `exit_code`.

    Args:
      message: the message, with settings written as flags, such as --eval-batch.

    Attributes:
      on_command_line: the message as given; str() has argument names instead of flags.
      exit_code: exit code of a command.
    """

    exit_code = 1

    def __init__(self, message: str):
        # A quoted path or another library's message may contain line breaks.
        self.on_command_line = " ".join(message.splitlines())
        super().__init__(as_arguments(self.on_command_line))


class ClusterError(UserError):
    """Raised if workers cannot connect, or one has stopped. The same command on all workers may succeed."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h

"""The exceptions that become one line and an exit code."""

import re


def as_arguments(message: str) -> str:
    """A message that names flags, such as --eval-batch, with the arguments' names instead, such as eval_batch."""
    return re.sub(r"(?<![\w/-])--([a-z][a-z0-9-]*)", lambda found: found[1].replace("-", "_"), message)


class UserError(Exception):
    """Something the user can put right.

    The message is one line: what is wrong, where, and what to do; it names arguments. Commands print it without a
    traceback, by their flags, and exit with `exit_code`.

    Args:
      message: naming flags, such as --eval-batch.

    Attributes:
      on_command_line: the message that names flags.
    """

    exit_code = 1

    def __init__(self, message: str):
        # What is quoted in it, a path or another library's words, may have line breaks.
        self.on_command_line = " ".join(message.splitlines())
        super().__init__(as_arguments(self.on_command_line))


class ClusterError(UserError):
    """The workers do not come together, or one is lost: no mistake, and the same command on all may go on."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h

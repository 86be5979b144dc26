"""The exceptions that become one line and an exit code."""


class UserError(Exception):
    """Something the user can put right.

    The message is one line: what is wrong, where, and what to do. Commands print it without a traceback and exit with
    `exit_code`.
    """

    exit_code = 1

    def __init__(self, message: str):
        # What is quoted in it, a path or another library's words, may have line breaks.
        super().__init__(" ".join(message.splitlines()))


class ClusterError(UserError):
    """The workers do not come together, or one is lost: no mistake, and the same command on all may go on."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h

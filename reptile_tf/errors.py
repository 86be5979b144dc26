"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """Something the user can put right.

    The message is one line: what is wrong, where, and what to do. Commands print it without a traceback and exit with
    code 1.
    """

    def __init__(self, message: str):
        # What is quoted in it, a path or another library's words, may have line breaks.
        super().__init__(" ".join(message.splitlines()))

"""The one exception that means "the user can fix this"."""

from __future__ import annotations


class UserError(Exception):
    """A problem the user can fix; its message is one sentence: what is wrong, where, what to do.

    The command line prints the message alone, without a traceback, and exits with code 2. Line breaks, which come with
    the names of files and the messages of libraries, become spaces.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(message.splitlines()))


def first_line(error: BaseException) -> str:
    """What an exception says, in one line without its full stop; its name if it says nothing."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)

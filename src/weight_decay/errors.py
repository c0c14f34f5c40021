"""The one exception that means "the user can fix this"."""

from __future__ import annotations

import sys
from collections.abc import Callable

from weight_decay import extras


class UserError(Exception):
    """A problem the user can fix; its message is one sentence: what is wrong, where, what to do.

    The command line prints the message alone, without a traceback, and exits with code 2. Line breaks, which come with
    the names of files and the messages of libraries, become spaces.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(" ".join(message.splitlines()))


def told(work: Callable[[], int]) -> int:
    """The exit code of `work`; a UserError or a missing extra becomes its sentence on standard error, and 2."""
    try:
        return work()
    except UserError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        if (lacking := extras.sentence(error)) is None:
            raise
        message = lacking
    print(f"weight-decay: {message}", file=sys.stderr)
    return 2

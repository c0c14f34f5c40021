"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A problem the user can fix; its message is one sentence: what is wrong, where, what to do.

    The command line prints the message alone, without a traceback, and exits with code 2.
    """

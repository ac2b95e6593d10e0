"""The one exception that users see as a single line."""


class UserError(Exception):
    """Bad input, told in one line: the value, what was expected, what to do.

    The command line prints the message without a traceback and exits with code 2.
    """

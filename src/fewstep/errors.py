"""The exception that users see as a single line, and other errors cut to one line."""


class UserError(Exception):
    """Bad input, in one line: the value, what was expected, and what to do; several arguments are several lines.

    The command line prints the message without a traceback and exits with code 2.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def first_line(error: BaseException, longest: int = 200) -> str:
    """The first line of an error's message, cut to ``longest`` characters, or the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:longest]

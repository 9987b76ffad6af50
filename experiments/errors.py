"""The one exception that means: the user can mend this."""


class RunError(Exception):
    """Ends a command with its message as one line on stderr and no traceback."""

    status = 1
    """The process's exit status."""

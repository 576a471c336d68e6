"""Errors that a user can correct, as opposed to our bugs."""


class SscxrError(ValueError):
    """An error that a user can correct: its text is one line that states what was wrong and what to do.

    A command prints that line and exits with 1; any other exception is a bug, and shows its traceback.
    """

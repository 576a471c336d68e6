"""What a person can mend, as opposed to a defect of ours."""


class SscxrError(ValueError):
    """Something that a person can mend: its text is one line that says what was wrong and what to do.

    A command line prints that line and exits with 1; anything else that is raised is a defect, and shows its
    traceback.
    """

"""Keeps image libraries from printing: their warnings quote headers, and a header names a patient."""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("pydicom", "PIL", "pylibjpeg", "openjpeg", "highdicom")
_STDERR = 2  # the descriptor that C libraries print on
_one_at_a_time = threading.RLock()  # the whole process shares the descriptor and Python's list of warnings


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings, log lines and C-level messages of libraries from stderr."""
    silence_loggers()
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sink = os.open(os.devnull, os.O_WRONLY)
        try:
            with _redirected(sink):
                yield
        finally:
            os.close(sink)


def silence_loggers() -> None:
    """Switch off the loggers of libraries and GDCM's messages; without a handler, Python would print warnings."""
    import logging

    import gdcm

    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    for off in (gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff, gdcm.Trace.DebugOff):
        off()


@contextmanager
def _redirected(sink: int) -> Iterator[None]:
    """Redirect descriptor 2, if the process has one, to `sink`."""
    try:
        before = os.dup(_STDERR)
    except OSError:
        yield
        return
    os.dup2(sink, _STDERR)
    try:
        yield
    finally:
        os.dup2(before, _STDERR)
        os.close(before)

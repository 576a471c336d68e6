"""The errors that a command line answers with one line: what was wrong and what to do, no traceback."""

import omegaconf.errors

EXPECTED = (ValueError, omegaconf.errors.OmegaConfBaseException)

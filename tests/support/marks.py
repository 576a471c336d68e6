"""Cases of a parametrised test that `make quick` leaves out, since others of them tell nearly as much."""

from functools import partial

import pytest

slow = partial(pytest.param, marks=pytest.mark.slow)

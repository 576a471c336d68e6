"""A file where a folder is to be written: one line that says so, whichever program."""

from collections.abc import Callable
from pathlib import Path

import pytest

from client import settings
from server import status
from sim import asked, plan
from sscxr.files import ExistsError

WRITERS: dict[str, Callable[[Path], object]] = {
    "sim.plan": lambda out: plan.main(data=[], out=out),
    "sim.run": lambda out: asked.locked(out).__enter__(),
    "site init": lambda out: settings.init(out, name="a"),
    "a server": lambda out: status.held(out).__enter__(),
}


@pytest.mark.parametrize("program", WRITERS)
@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_in_the_place_of_a_folder_is_named(program: str, below: str, tmp_path: Path) -> None:
    file = tmp_path / "FILE"
    file.write_text("kept")
    with pytest.raises(ExistsError, match=rf"{file} is a file; name a folder"):
        WRITERS[program](file / below)
    assert file.read_text() == "kept"

"""The doctor on the site service: answers, a socket for its group alone, and nothing open to the app."""

import os
import socket as sockets
from collections.abc import Iterator
from pathlib import Path

import federation as fed
import pytest
import services

from client.doctor.checks import Check
from client.doctor.service import is_open_to, service
from client.settings import read_settings


@pytest.fixture
def site() -> Iterator[Path]:
    """A site and its socket, whose group is this account's, below a folder that every account may enter."""
    with services.short_folder() as folder:
        file = fed.make_site(folder / "anna", "anna")
        (folder / "anna" / "state").mkdir(mode=0o700)
        file.write_text(f"{file.read_text()}\nsocket: ../run/site.sock\n")
        file.chmod(0o600)
        (folder / "anna" / "cache").chmod(0o700)
        yield file


def look(site: Path) -> Check:
    (found,) = service(read_settings(site), site)
    return found


def test_a_service_that_answers_and_is_closed_is_ok(site: Path) -> None:
    with services.in_a_thread(site, site.parents[1] / "run" / "site.sock"):
        found = look(site)
    assert (found.state, found.advice) == ("ok", "")


def test_without_a_service_the_coordinators_code_reads_the_images(site: Path) -> None:
    site.write_text(site.read_text().replace("socket: ../run/site.sock", ""))
    assert (look(site).state, look(site).value[:5]) == ("warning", "none:")


def test_a_service_that_is_not_there(site: Path) -> None:
    assert "nothing is at" in look(site).value
    place = site.parents[1] / "run" / "site.sock"
    place.parent.mkdir()
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(place))
    assert "nobody answers" in look(site).value
    assert look(site).state == "failed"


def test_a_socket_for_everybody_is_a_failure(site: Path) -> None:
    place = site.parents[1] / "run" / "site.sock"
    with services.in_a_thread(site, place):
        place.chmod(0o666)
        found = look(site)
    assert (found.state, "every account" in found.value) == ("failed", True)


@pytest.mark.parametrize(
    ("name", "mode"), [("site.yaml", 0o644), ("cache", 0o750), ("state", 0o777), ("cache", 0o710)]
)
def test_what_the_app_could_read_is_named(site: Path, name: str, mode: int) -> None:
    path = site.parent / name
    path.chmod(mode)
    with services.in_a_thread(site, site.parents[1] / "run" / "site.sock"):
        found = look(site)
    assert found.state == "failed"
    assert found.value.endswith(name)


def test_a_folder_above_that_is_closed_closes_what_is_in_it(site: Path) -> None:
    site.chmod(0o644)
    assert is_open_to(site, os.getgid())
    assert is_open_to(site, 64203)
    site.parent.chmod(0o750)
    assert not is_open_to(site, 64203)
    assert is_open_to(site, os.getgid())
    site.parent.chmod(0o700)
    assert not is_open_to(site, os.getgid())

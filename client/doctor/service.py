"""Checks of the site service: that it answers, and that the coordinator's app can read nothing but its socket."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from client.doctor.checks import Check, failed, ok, warning
from client.settings import SiteSettings

_START = "start it: `sudo systemctl start sscxr-site`, and look at `journalctl -u sscxr-site`"
_SECONDS = 5.0  # to wait for a connection


def service(settings: SiteSettings, file: Path) -> Iterator[Check]:
    """Check the service's socket, and the rights of `site.yaml`, cache and state."""
    if not settings.socket:
        yield warning(
            "service",
            "none: the coordinator's code reads the images itself",
            "set it up (docs/join-a-federation.md), and name its socket in site.yaml",
        )
        return
    place = Path(settings.socket)
    try:
        found = place.stat()
    except FileNotFoundError:
        yield failed("service", f"nothing is at {place}", _START)
        return
    except PermissionError:
        yield warning("service", f"{place} is closed to this account", "ask as root")
        return
    if not stat.S_ISSOCK(found.st_mode) or not _answers(place):
        yield failed("service", f"nobody answers at {place}", _START)
        return
    if found.st_mode & 0o007:
        yield failed(
            "service",
            f"every account may send tasks to {place} (mode {found.st_mode & 0o777:o})",
            "restart it: it makes the socket for its group alone",
        )
        return
    yield from _closed(settings, file, found.st_gid, place)


def _closed(settings: SiteSettings, file: Path, group: int, place: Path) -> Iterator[Check]:
    """Check that the socket's group can open none of what is the service's."""
    paths = {"site.yaml": file, "the cache": Path(settings.cache), "the state": Path(settings.state)}
    if settings.identity:
        paths["the identity key"] = Path(settings.identity)
    own = [name for name, path in paths.items() if path.exists() and is_open_to(path, group)]
    if own:
        yield failed(
            "service",
            f"the coordinator's app can read {', '.join(own)}",
            "give them to the service's account alone: chown, and chmod o=,g= for a group of the app's",
        )
    else:
        yield ok("service", f"it answers at {place}, and what it reads is closed to the app")


def is_open_to(path: Path, group: int) -> bool:
    """Return whether an account of this group, which owns nothing, can read a file, or list or enter a folder."""
    steps = [*reversed(path.resolve().parents), path.resolve()]
    for step in steps:
        found = step.stat()
        bits = found.st_mode >> 3 if found.st_gid == group else found.st_mode
        passed = step != steps[-1]
        if not bits & (os.X_OK if passed else os.R_OK | (os.X_OK if step.is_dir() else 0)):
            return False
    return True


def _answers(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as tried:
        tried.settimeout(_SECONDS)
        return tried.connect_ex(str(place)) == 0

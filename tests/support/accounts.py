"""Accounts of a hospital that nobody has, for processes that a test starts as root."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import sscxr

# Python's own folder may be in root's home: there, a process gets a view of its own, in which only that is.
_REACHABLE = """
base=$1; top=$2; shift 2
held=$(mktemp -d)
mount --bind "$base" "$held"
mount -t tmpfs -o mode=755 tmpfs "$top"
mkdir -p "$base"
mount --bind "$held" "$base"
umount "$held"
rmdir "$held"
exec "$@"
"""
_FIRST = 100_000 + os.getpid() % 20_000 * 8  # so that no other test run has them
SERVICE, NODE, *APPS = range(_FIRST, _FIRST + 8)


def prefix(user: int, *groups: int, capable: bool = False) -> list[str]:
    """The words before a command that start it under an account.

    Args:
        groups: the account's further groups.
        capable: it may change to another account, as the unit of the app's launcher allows.
    """
    wanted = "+setuid,+setgid" if capable else "-all"
    drop = [f"--inh-caps={wanted}", f"--ambient-caps={wanted}", f"--bounding-set={'-all,' * capable}{wanted}"]
    member = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    return [*_view(), "setpriv", "--reuid", str(user), "--regid", str(user), *member, *drop, "--"]


@cache
def available() -> bool:
    """Whether other accounts can run what is installed here."""
    if os.geteuid() != 0 or not shutil.which("setpriv") or not shutil.which("unshare"):
        return False
    tried = [*prefix(NODE), sys.executable, "-c", "import sscxr, omegaconf, flwr, timm.version"]
    return subprocess.run(tried, capture_output=True, cwd="/", timeout=120).returncode == 0


def own(folder: Path, user: int, *, mode: int = 0o700) -> None:
    """Give a folder to an account, closed to all others but as `mode` of the folder itself."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user)
        path.chmod(0o700 if path.is_dir() else 0o600)
    folder.chmod(mode)


def _view() -> list[str]:
    base, code = Path(sys.base_prefix).resolve(), Path(sscxr.__file__)
    closed = [parent for parent in base.parents if not parent.stat().st_mode & 0o001]
    top = Path("/", *base.parts[1:2])
    if not closed or top in code.parents or top in Path(sys.prefix).parents:
        return []
    return [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-ec",
        _REACHABLE,
        "sh",
        str(base),
        str(top),
    ]

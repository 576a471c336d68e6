"""What becomes of a federation that runs while a test brings a fault about, read from the run's folder."""

import csv
import errno
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from deployments import NAME, SETTINGS, Deployment
from omegaconf import OmegaConf
from processes import DeploymentError
from simulations import weights


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "sites.csv").open() as handle:
        return list(csv.DictReader(handle))


def came_of(out: Path, round_number: int) -> dict[str, tuple[str, str]]:
    """Site -> what became of it in a round, and why."""
    return {
        row["site"]: (row["outcome"], row["reason"]) for row in rows(out) if row["round"] == str(round_number)
    }


def until(federation: Deployment, there: Callable[[], Any], limit: float, what: str) -> Any:
    """What `there` returns, once it is something; the run's own log where it ended before."""
    began = looked = monotonic()
    while not (found := there()):
        if monotonic() - looked > 20:
            looked, newest = monotonic(), federation.listed()[-1]
            over = str(newest["status"]).startswith("finished") and not (found := there())
            if over or monotonic() - began > limit:
                log = federation.flwr("log", str(newest["run-id"]), NAME, "--show")
                raise DeploymentError(f"{what}: not within {limit:g} s\n{log[-3000:]}\n{federation.tail()}")
        sleep(0.1)
    return found


def in_round(federation: Deployment, out: Path, number: int, limit: float = 240) -> None:
    """Wait until the server has sent out a round, from 1."""

    def there() -> bool:
        try:
            return int(json.loads((out / "checkpoints" / "attempt.json").read_text())["round"]) == number - 1
        except (OSError, ValueError):
            return False

    until(federation, there, limit, f"round {number} begins")


def after_round(federation: Deployment, out: Path, number: int, limit: float = 300) -> dict[str, Any]:
    """Wait until a round is committed, and give its line."""

    def line() -> dict[str, Any] | None:
        if not (out / "rounds.jsonl").exists():
            return None
        lines = [json.loads(text) for text in (out / "rounds.jsonl").read_text().splitlines()]
        return lines[number - 1] if len(lines) >= number else None

    found: dict[str, Any] = until(federation, line, limit, f"round {number} ends")
    return found


def fill(file: Path) -> None:
    """Write until the disk is full; again, where something was deleted since."""
    with file.open("ab", buffering=0) as filler:
        try:
            while filler.write(bytes(1 << 12)):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


@contextmanager
def a_small_disk(folder: Path, *, megabytes: int) -> Iterator[Path | None]:
    """A folder, emptied, on a disk of its own; None where this user may not mount one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def undisturbed(federation: Deployment, folder: Path, settings: Sequence[str]) -> bytes:
    """The encoder's bytes of the same run in one process, over the same caches; its recipe has been approved."""
    from client.app import app as client
    from server.app import app as server
    from sim.engine import run_inline

    files, alone = [], folder / "alone"
    for file in federation.files():
        copy = OmegaConf.load(file)
        copy.cache = str(file.parent / copy.cache)
        files.append(folder / str(copy.name) / "site.yaml")
        files[-1].parent.mkdir()
        files[-1].write_text(OmegaConf.to_yaml(copy))
    sites = f"federation.sites=[{','.join(sorted(federation.sites))}]"
    overrides = " ".join([*SETTINGS, *settings, sites, "run.name=alone"])
    run_inline(server, client, files, {"config": "smoke", "overrides": overrides, "out": str(alone)})
    return weights(alone)

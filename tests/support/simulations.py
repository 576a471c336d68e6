"""Small runs of `sim.run`, killed where asked; and what of two runs has to be the same."""

import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from sscxr.data.phantoms import phantom
from sscxr.data.prepare.prepare import PUBLIC_SALT, prepare

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 150  # seconds for one run; it takes one or two where the machine is free
SMALLEST = [
    "encoder.depth=1", "encoder.img_size=32", "gmml.blocks=[1]", "gmml.max_block=0.8", "run.threads=1",
    "pretrain.batch_size=8", "probe.min_cases=1000",
]  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    """One thread for every library, nothing sent anywhere, and this checkout's modules."""
    quiet = {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    return os.environ | quiet | {"PYTHONPATH": str(ROOT)} | more


def small_cache(folder: Path) -> Path:
    """A cache of two phantom hospitals, 72 images."""
    manifests = phantom.write(folder / "phantoms", images=72, sites=2, seed=0, size=96)
    return prepare(manifests, folder / "cache", size=80, workers=0, salt=PUBLIC_SALT, progress=False).folder


def arguments(out: Path, *more: str, data: Path | None = None) -> list[str]:
    """Of `python -m sim.run`: two sites, three rounds."""
    given = [] if data is None else ["--data", str(data)]
    return [
        "--config",
        "smoke",
        "--clients",
        "2",
        "--rounds",
        "3",
        *given,
        "--out",
        str(out),
        *SMALLEST,
        *more,
    ]


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit status, the signal's number negated where one killed it; what it printed."""

    status: int
    log: str


class Killer:
    """`killer.py`, running."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "log.txt"
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(ROOT / "tests" / "sim" / "killer.py")],
            cwd=folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        assert self._answer() == "ready\n"

    def run(self, argv: list[str], **job: Any) -> Ended:
        """Run `sim.run` with these arguments; the rest is as `killer.py` says."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"argv": argv, "log": str(self._log), **job}) + "\n")
        return Ended(**json.loads(self._answer()))

    def _answer(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], LIMIT)
        assert ready, f"no answer in {LIMIT} s"
        return self._process.stdout.readline()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def run(argv: list[str], *, mark: str, interrupt_when: Path | None = None) -> Ended:
    """Run `python -m sim.run`, its environment marked; Ctrl-C comes once a file is there."""
    command = [sys.executable, "-m", "sim.run", *argv]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(SSCXR_MARK=mark), text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        if interrupt_when is not None:
            until = monotonic() + LIMIT
            while not interrupt_when.exists() and process.poll() is None and monotonic() < until:
                sleep(0.2)
            os.killpg(process.pid, signal.SIGINT)
        log, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    return Ended(process.returncode, log)


def typed(argv: list[str]) -> int:
    """Run `python -m sim.run` as typed, in this process: torch takes seconds to import. Its exit status."""
    from sim import run

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    typed_before, sys.argv = sys.argv, ["sim.run", *argv]
    try:
        run.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = typed_before
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


def left_running(mark: str, patience: float = 20.0) -> list[str]:
    """The command lines of processes with this mark in their environment that do not end by themselves."""
    until = monotonic() + patience
    while True:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"SSCXR_MARK={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:  # gone, or another user's
                continue
        if not found or monotonic() > until:
            return found
        sleep(0.5)


def weights(out: Path) -> bytes:
    """The released encoder's bytes."""
    return (out / "encoder" / "model.safetensors").read_bytes()


def losses(out: Path) -> list[dict[str, Any]]:
    """`rounds.jsonl` without the times."""
    records = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder: its time of change and its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def whole_and_interrupted(folder: Path, cache: Path, engine: str, *chosen: str) -> tuple[Path, Path]:
    """The folders of two runs of the same settings: one whole, one interrupted under `engine`, resumed inline."""
    whole, stopped = folder / "whole", folder / "stopped"
    assert typed(arguments(whole, *chosen, data=cache)) == 0
    argv = arguments(stopped, *chosen, data=cache)
    after = stopped / "checkpoints" / "round-00001"
    ended = run([*argv, "--engine", engine], mark=str(folder), interrupt_when=after)
    assert ended.status == 130, ended.log
    assert typed([*argv, "--resume"]) == 0
    return whole, stopped

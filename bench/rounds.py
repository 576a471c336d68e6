"""The cost of a federation's round besides the sites' training, for each transport of the messages.

    python bench/rounds.py --steps 60 --json rounds.json               # 8 sites, the demo recipe
    python bench/rounds.py --engines inline --steps 4 --rounds 8       # where the time goes beside training

`inline`, `pool` and `ray` are the simulation's engines. `loopback` is a SuperLink and a SuperNode for each site on
127.0.0.1, without TLS, and a fresh process for each message, which is Flower's way; `service` is the same with a
site service each. Sites have images of noise; held-out figures are left out. The first round is not counted.

Seconds are processor time, summed over all processes of a run (Linux), since wall time depends on the machine's
other work. Training and the other parts are measured in the inline engine's one thread; the other engines train on
as many images. `wall` compares wall time: that of a round, and that of the sites' training as they report it,
divided by the number of sites that train simultaneously.
"""

import argparse
import functools
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from unittest.mock import patch

import noise
import pandas as pd
from timing import report, timed_calls

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
DEPLOYED = ("loopback", "service")  # engines whose sites are processes
MARK = "SSCXR_BENCH"  # in the environment of every process of a run
_LIMIT = 3000.0  # seconds for a run
_TICKS = os.sysconf("SC_CLK_TCK")
_SIZE = 128  # px a side of the cached images

# part -> the functions that do it; none of them is called by another.
PARTS = {
    "training": ["sscxr.stages.pretrain:SiteTraining.train_round"],
    "settings": ["client.virtual:settings_of", "sscxr.config:loads", "sscxr.config:recipe_hash"],
    "cache": ["client.site:Site.__init__", "client.site:Site.training_rows"],
    "model": ["sscxr.stages.pretrain:Pretraining.training", "sscxr.training.parts:Parts.load_shared",
              "sscxr.stages.pretrain:SiteTraining.load_local", "sscxr.stages.pretrain:SiteTraining.local"],
    "weights": ["sscxr.federation.codecs:encode", "sscxr.federation.codecs:decode", "client.app:_message",
                "server.rounds:to_arrays"],
    "state": ["client.site:StateStore.load", "client.site:StateStore.save", "client.site:StateStore.keep_only"],
    "aggregating": ["server.aggregate:WeightedSum.add", "server.aggregate:WeightedSum.mean",
                    "server.optimisers:FedAvg.step", "sscxr.federation.codecs:norm"],
    "checkpoint": ["server.ledger:Ledger.commit", "server.ledger:Ledger.next_attempt",
                   "server.ledger:Ledger.log_sites", "server.ledger:Ledger.log_round", "server.status:write"],
    "report": ["server.reporting:Reporter.committed"],
}  # fmt: skip


# ---- one run, in a separate process that carries the mark


def in_process(engine_name: str, out: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Run inline, in a pool of processes or on Ray's actors, over virtual sites that share a cache."""
    import client.app
    from server.app import Hooks
    from server.app import app as server_app
    from server.rounds import Listener
    from sim import engine, rays
    from sim.sites import write_config, write_sites
    from sscxr import config as configs
    from sscxr.data.cache.cache import open_cache

    config = configs.load(given.config, settings(given))
    config.federation.sites = write_sites(
        open_cache(noise.make(out / "cache", given.sites * _images(config, given.steps), _SIZE)),
        out, config, given.sites,
    )  # fmt: skip
    files = [out / "sites" / name / "site.yaml" for name in config.federation.sites]
    run_config = {"config": str(write_config(config, out)), "overrides": "", "out": str(out), "resume": ""}
    seen: list[dict[str, float]] = []
    with timed(engine_name == "inline") as spent:
        # From the second round's start, after the first one's report, to the last one's commit.
        Hooks.listener = Listener(
            started=lambda number, *_: seen.append(dict(spent) | _now()) if number else None,
            committed=lambda record: (
                seen.append(dict(spent) | _now()) if record["round"] == config.federation.rounds else None
            ),
        )
        try:
            if engine_name == "inline":
                engine.run_inline(server_app, client.app.app, files, run_config)
                return {"seen": seen, "at_once": 1}
            threads = config.run.threads
            at_once = min(given.sites, len(os.sched_getaffinity(0)) // threads)
            if engine_name == "pool":
                engine.run_pool(server_app, files, run_config, processes=at_once, threads=threads)
            else:
                rays.run_ray(server_app, client.app.__file__, files, run_config, threads=threads)
            return {"seen": seen, "at_once": at_once}
        finally:
            Hooks.listener = None


@contextmanager
def timed(wanted: bool) -> Iterator[Counter[str]]:
    """Measure the processor time of this thread in each of `PARTS` within the block."""
    spent: Counter[str] = Counter()
    with ExitStack() as stack:
        for part, places in PARTS.items() if wanted else ():
            for place in places:
                module, _, path = place.partition(":")
                *owners, name = path.split(".")
                owner = functools.reduce(getattr, owners, importlib.import_module(module))
                stack.enter_context(patch.object(owner, name, timed_calls(getattr(owner, name), part, spent)))
        yield spent


def loopback(out: Path, given: argparse.Namespace, *, services: bool) -> dict[str, Any]:
    """Run over a SuperLink and SuperNodes on this machine, each hospital with its own folder, and its service."""
    from omegaconf import OmegaConf

    from sscxr import config as configs
    from sscxr.data.cache import columns
    from sscxr.data.cache.cache import read_index
    from sscxr.federation import approval

    config = configs.load(given.config, settings(given))
    names = [f"hospital-{number}" for number in range(given.sites)]
    for name in names:
        cache = noise.make(out / name / "cache", _images(config, given.steps), _SIZE)
        columns.write(cache, read_index(cache))
        pinned = {"approved": [approval.digest(config)], "min_mixed": 0}
        text = OmegaConf.to_yaml({"name": name, "cache": "cache", "state": "state", "min_cell": 1, **pinned})
        (out / name / "site.yaml").write_text(text)
    home, port, folder = out / "home", _free_port(), out / "run"
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')

    def start(name: str, *command: object) -> None:
        with (home / f"{name}.log").open("wb") as log:
            subprocess.Popen(
                [BIN / str(command[0]), *map(str, command[1:])], cwd=home, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, env=os.environ | {
                    "HOME": str(home), "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0",
                    "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
                    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
                },
            )  # fmt: skip

    start("superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", port)
    _until(lambda: _listens(port), home)
    for name in names:
        own = ("--host", "127.0.0.1", "--port", _free_port())
        link = ("--insecure", "--superlink", f"127.0.0.1:{port}")
        file, socket = out / name / "site.yaml", out / name / "run" / "site.sock"
        if services:
            start(f"{name}-service", "sscxr", "site", "serve", file, "--socket", socket)
            _until(socket.exists, home)
        place = f'service="{socket}"' if services else f'site="{file}"'
        start(name, "flower-supernode", *link, *own, "--node-config", place)
    overrides = " ".join([*settings(given), f"federation.sites=[{','.join(names)}]"])
    run_config = {"config": given.config, "overrides": overrides, "out": str(folder)}
    words = " ".join(f"{key}={json.dumps(value)}" for key, value in run_config.items())
    start("flwr", "flwr", "run", ROOT, "bench", "--run-config", words)
    seen: list[dict[str, float]] = []
    for number in range(1, given.rounds + 2):
        checkpoint = folder / "checkpoints" / f"round-{number:05d}"
        _until(checkpoint.is_dir, home, folder)
        seen.append(_now())
    return {"seen": seen, "at_once": given.sites}


def settings(given: argparse.Namespace) -> list[str]:
    """Return the overrides of a run."""
    return [
        f"federation.rounds={given.rounds + 1}", "federation.keep_checkpoints=99", "federation.retries=0",
        "federation.evaluate_every=0", "federation.deadline=3000", "sim.partition=iid", "run.device=cpu",
        "run.threads=1", *given.overrides,
    ]  # fmt: skip


def _images(config: Any, steps: int) -> int:
    """Return the images of a site for a number of steps per round, after a share is set aside."""
    share = (1 - config.data.test_share) * config.federation.local_epochs
    return round(steps * config.pretrain.batch_size / share)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _until(there: Callable[[], bool], logs: Path, run: Path | None = None) -> None:
    until = monotonic() + _LIMIT
    while not there():
        if run and (run / "status.json").is_file():
            status = json.loads((run / "status.json").read_text())
            if status["state"] == "stopped":
                raise SystemExit(f"the run stopped: {status['reason']}")
        if monotonic() > until:
            tails = [f"--- {log.name}\n{log.read_text()[-800:]}" for log in sorted(logs.glob("*.log"))]
            raise SystemExit("\n".join([f"not within {_LIMIT:g} s", *tails]))
        sleep(0.1)


# ---- the processes of a run


def _now() -> dict[str, float]:
    """Return wall time, and the processor time of this run's processes so far."""
    return {
        "clock": monotonic(),
        "processor": sum(seconds for _, seconds in _processes(os.environ.get(MARK, ""))),
    }


def _processes(mark: str) -> Iterator[tuple[int, float]]:
    """Yield each living process with this mark, and its processor time, including its ended children's."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                yield int(folder.name), sum(map(int, fields[11:15])) / _TICKS
        except OSError:  # gone, or another user's
            continue


@contextmanager
def ended(mark: str) -> Iterator[None]:
    """End all processes with this mark when the block ends."""
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid, _ in _processes(mark):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            sleep(1)


def measure(engine_name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Do one run in a separate process, and return its figures per round."""
    scratch = Path(tempfile.mkdtemp(prefix="rounds-"))
    mark = str(scratch)
    command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--one", engine_name, "--out", mark]
    try:
        with ended(mark):
            env = os.environ | {MARK: mark, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT)
            run = json.loads(done.stdout.splitlines()[-1])
        folder = scratch / "run" if engine_name in DEPLOYED else scratch
        sites = pd.read_csv(folder / "sites.csv")
        first, last = run["seen"][0], run["seen"][-1]
        spent = {key: (last[key] - first.get(key, 0)) / given.rounds for key in last}
        later = sites[(sites["round"] > 1) & (sites["round"] <= given.rounds + 1)]
        trained = float(later["seconds"].sum()) / given.rounds
        return spent | {"wall": spent["clock"] * run["at_once"] / trained, "at_once": run["at_once"]}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def start_of_a_process() -> float:
    """Return the processor time of a site's process before it can read a message."""
    before = os.times().children_user + os.times().children_system
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import client.app, client.work"], check=True, cwd=ROOT
    )
    return os.times().children_user + os.times().children_system - before


def main() -> None:
    """Print the figures and write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", default="inline,pool,ray,loopback")
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2, help="that are counted")
    parser.add_argument("--steps", type=int, default=60, help="of a site in a round")
    parser.add_argument("--config", default="demo", help="a recipe")
    parser.add_argument("--json", help="where to write the figures")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    if given.one:
        run = (
            loopback(given.out, given, services=given.one == "service")
            if given.one in DEPLOYED
            else in_process(given.one, given.out, given)
        )
        print(json.dumps(run))
        return
    found: dict[str, Any] = {name: measure(name, given) for name in given.engines.split(",")}
    training = found["inline"]["training"] if "inline" in found else None
    for one in found.values():
        if training:
            one["processor / training"] = one["processor"] / training
    if "inline" in found:
        parts = {part: found["inline"].pop(part) for part in PARTS if part in found["inline"]}
        found["share of training"] = {part: spent / training for part, spent in parts.items()}
    if "loopback" in found:
        start = start_of_a_process()
        found["start of a process"] = {"seconds": start, "a round": start * given.sites}
    report(found, given.json)


if __name__ == "__main__":
    main()

"""`python -m sim.compare.worker FOLDER`: one run of a comparison, in a process of its own.

The simulation is that of `python -m sim.run`. In place of its pictures, map, report and release, which hundreds of
runs do not need, the scores of the probes are kept image by image, so that runs can be compared in pairs.
"""

import copy
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from sscxr import config as configs
from sscxr.commands import command_line
from sscxr.config import Config

JOB, SCORES = "job.json", "scores.csv"  # the scores are written last: they mark a finished run
ALL_SITES = "all_sites.json"  # the loss on the held-out images of all sites
_BATCH = 64  # held-out images that are corrupted together, by each other's patches
# Of a run, for the process that runs are forked from.
IMPORTS = (
    *("client.app", "server.app", "sim.asked", "sim.data", "sim.engine", "sim.outcome", "sim.pictures"),
    *(
        "sim.progress",
        "sim.run",
        "sim.scores",
        "sim.sites",
        "sscxr.data.cache.view",
        "sscxr.evaluation.probe",
    ),
    *("sscxr.stages.pretrain", "sim.compare.worker"),
)


def forked(folder: str, log: str) -> None:
    """Do the job in a folder, in a fork that writes what it prints to a log."""
    os.setsid()  # Ctrl-C in the terminal reaches the comparison alone, which then ends its runs
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(handle, stream)
    threading.Thread(target=_follow_parent, daemon=True).start()
    sys.argv = ["sim.compare.worker", folder]
    main()


def work(folder: Path) -> None:
    """Do the job in a folder, or what is left of it."""
    from sim import run  # torch takes seconds to import; the signals are handled before

    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    config = configs.loads(job["settings"])
    if job["untrained"]:
        _probe_untrained(Path(job["data"]), config, folder)
    else:
        run.simulate(
            config, job["clients"], [Path(job["data"])], folder, "inline", resume=True, measure=_probe_trained
        )
        _clear(folder)


def _probe_trained(cache: Any, config: Config, folder: Path) -> None:
    from server.ledger import Ledger

    state = Ledger(folder, config, resume=True).last()
    assert state is not None, "a run that ended has a checkpoint"
    _measure_all_sites(cache, config, folder, state.encoder)
    _probe(cache, config, folder, state.encoder)


def _measure_all_sites(cache: Any, config: Config, folder: Path, encoder: Any) -> None:
    """Write the loss on the held-out images of all sites, corrupted alike for all runs, if the head is averaged.

    Sites' own losses have another corruption in each partition: by patches of images of the same site alone.
    """
    import numpy as np

    from sscxr import stages
    from sscxr.files import write_atomically
    from sscxr.training.device import set_up

    alike = copy.deepcopy(config)
    alike.run.seed, alike.pretrain.batch_size = 0, _BATCH
    stage = stages.of(alike)
    if not stage.shares_head:
        return
    rows = cache.rows(laterals=config.data.laterals)
    rows = rows[cache.held_out(config.data.test_share)[rows]]
    training = stage.training(set_up(alike), cache, np.empty(0, np.int64))
    training.parts.load_shared(encoder)
    loss = training.held_out(np.random.default_rng(0).permutation(rows), site="").loss
    write_atomically(folder / ALL_SITES, json.dumps({"loss": loss, "images": len(rows)}).encode())


def _probe_untrained(data: Path, config: Config, folder: Path) -> None:
    from sscxr import stages
    from sscxr.data.cache.cache import open_cache

    _probe(open_cache(data), config, folder, stages.of(config).start())


def _probe(cache: Any, config: Config, folder: Path, encoder: Any) -> None:
    from sim import scores

    tasks = scores.tasks_of(cache, config)
    scores.write(folder / SCORES, cache, tasks, scores.of(cache, config, encoder, tasks))


def _clear(folder: Path) -> None:
    """Delete what only a resumed run needs: the sites' states, and all checkpoints but the last."""
    for state in (folder / "sites").glob("*/state"):
        shutil.rmtree(state, ignore_errors=True)
    for old in sorted((folder / "checkpoints").glob("round-*"))[:-1]:
        shutil.rmtree(old, ignore_errors=True)


def _follow_parent() -> None:
    """End this process, its state saved, when the comparison's own process ends, however it ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the command line."""
    import typer

    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

    @app.command()
    def run(folder: Path) -> None:
        """Do the job in a folder."""
        work(folder)

    command_line.main(app, "python -m sim.compare.worker", lambda arguments: "finished work is saved")


if __name__ == "__main__":
    main()

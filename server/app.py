"""The Flower ServerApp: settings in, rounds, a released encoder out."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.exit import add_exit_handler

from server import status
from server.ledger import Ledger, State
from server.mail import RunStopped
from server.optimisers import server_optimiser
from server.reporting import Reporter
from server.rounds import Federation, Listener
from server.tracking import Tracking, kinds_of
from server.watch import committed
from sscxr import config as configs
from sscxr import printable, runs, stages
from sscxr.config import Config, ConfigError
from sscxr.errors import SscxrError
from sscxr.federation import floors
from sscxr.files import write_atomically
from sscxr.release.card import SiteData
from sscxr.stages import publishing
from sscxr.training.device import set_up

log = logging.getLogger("sscxr.server")
app = ServerApp()
_FROM_OUTSIDE = "ended from outside, as by flwr stop or Ctrl-C; resume it"


class Hooks:
    """Where the rounds are shown; the simulation sets its progress display here."""

    listener: Listener | None = None


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run or resume a federation, and release its encoder; a fine-tuning also saves its model.

    Raises:
        ConfigError, LedgerError, RunStopped: one line states why; completed rounds are saved.
    """
    _log_to_stderr()
    settings = context.run_config
    overrides = configs.split_overrides(str(settings.get("overrides") or ""))
    resume = str(settings.get("resume") or "")
    out = status.folder_of(resume or str(settings.get("out") or ""))
    recipe = str(settings.get("config") or "default")
    stored = bool(resume) and (out / "config.yaml").exists()
    if stored:
        recipe = str(out / "config.yaml")
    config = stages.load_config(recipe, overrides, foreign=stored)
    if not (resume or settings.get("out")):
        out = status.folder_of(config.run.name)
    tracking, releases = str(settings.get("tracking") or ""), bool(settings.get("releases", True))
    run(grid, config, out, resume=bool(resume), tracking=tracking, releases=releases)


def _log_to_stderr() -> None:
    """Show our own log in Flower's process, which shows none; leave other loggers unchanged."""
    ours = logging.getLogger("sscxr")
    if not (ours.handlers or logging.getLogger().handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(printable.Formatter("%(asctime)s %(levelname)s %(message)s"))
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)


def run(
    grid: Grid, config: Config, out: Path, *, resume: bool, tracking: str = "", releases: bool = True
) -> None:
    """Run the rounds that are left in `out`, then write `out/encoder`.

    `out/status.json` and the exception or the last line of the log state how the run ended.

    Args:
        tracking: where its curves go too, such as "tensorboard,mlflow".
        releases: False leaves the encoder and the model to the simulation, which measures them first.
    """
    problem = floors.problem(config)
    if problem:
        raise ConfigError(problem)
    set_up(config)
    # Before the folder is made: a folder with invalid settings would block a run with the corrected ones.
    start = None if (out / "config.yaml").exists() else stages.of(config).start()
    rounds = config.federation.rounds
    with status.held(out):
        ledger = Ledger(out, config, resume=resume)
        write_atomically(out / runs.WORDS, json.dumps(asdict(stages.of(config).words), indent=1).encode())
        state = ledger.last()
        if state is None:
            state = State(round=0, encoder=start or stages.of(config).start(), optimiser={})
        if state.round >= rounds and (not releases or (out / "encoder").is_dir()):
            recorded = (out / runs.STATUS).exists() and runs.read_status(out).state == "finished"
            if not recorded:  # it was killed between its last file and its last status
                status.write(out, "finished", done=state.round, rounds=rounds)
            log.info("run %s is finished: %d rounds; nothing to do", out, state.round)
            return
        status.write(out, "running", done=state.round, rounds=rounds)
        try:
            with _EndedByFlower(out, state, rounds):
                _run(grid, config, ledger, state, tracking)
                if releases:
                    _release(config, state, out)
        except BaseException as error:
            from_outside = isinstance(error, KeyboardInterrupt | SystemExit)
            kind = "stopped" if from_outside or isinstance(error, RunStopped) else "failed"
            reason = str(error) if isinstance(error, SscxrError) else type(error).__name__
            if from_outside:
                reason = _FROM_OUTSIDE
            ended = status.write(out, kind, done=state.round, rounds=rounds, reason=reason)
            Reporter(out).write()
            log.error("run %s %s", out, ended.line())
            if isinstance(error, RunStopped):
                raise RunStopped(ended.line()) from None
            raise
        ended = status.write(out, "finished", done=state.round, rounds=rounds)
        log.info("run %s %s", out, ended.line())


class _EndedByFlower:
    """While open, writes the status immediately when `flwr stop` or a signal ends the run.

    Flower ends the process a few seconds after its own handlers have begun, whatever it is doing.
    """

    def __init__(self, out: Path, state: State, rounds: int) -> None:
        self._out, self._state, self._rounds, self._open = out, state, rounds, False
        add_exit_handler(self._write, run_before_force_exit=True)

    def _write(self) -> None:
        if self._open:
            status.write(
                self._out, "stopped", done=self._state.round, rounds=self._rounds, reason=_FROM_OUTSIDE
            )

    def __enter__(self) -> None:
        self._open = True

    def __exit__(self, *error: object) -> None:
        self._open = False


def _run(grid: Grid, config: Config, ledger: Ledger, state: State, tracking: str) -> None:
    optimiser = server_optimiser(config)
    optimiser.load(state.optimiser)
    reporter, shown = Reporter(ledger.out), Hooks.listener or _logged(config.federation.rounds)
    listener = shown.also(Listener(committed=reporter.committed))
    with _tracked(listener, tracking, ledger.out, config.run.name) as followed:
        Federation(grid, config, ledger, state, optimiser, followed).run()
    reporter.write(status=replace(runs.read_status(ledger.out), state="finished"))


def _release(config: Config, state: State, out: Path) -> None:
    stage = stages.of(config)
    if stage.shares_head:
        stage.save_model(state.encoder, out / "model")
    # Last, since a folder with an encoder is that of a finished run.
    data = [SiteData(site, state.images.get(site), cost=state.cost_of(site)) for site in state.roster]
    publishing.write(config, state.encoder, state.round, out / "encoder", data)


def _logged(rounds: int) -> Listener:
    """Log a line per round, and one for each site that was not folded or has a remark."""

    def heard(row: runs.SiteRow) -> None:
        if row.outcome != "folded" or row.reason:
            log.warning("%s", status.of_site(asdict(row)))

    return Listener(heard=heard, committed=lambda record: log.info("%s", status.of_round(record, rounds)))


@contextmanager
def _tracked(listener: Listener, tracking: str, out: Path, name: str) -> Iterator[Listener]:
    """Yield a listener that updates the curves after each commit."""
    try:
        kinds = kinds_of(tracking)
    except SscxrError as error:  # tracking must not fail a run
        log.warning("%s", error)
        kinds = []
    tracks = Tracking(kinds, out, name, partial(committed, out))

    def follow(record: Mapping[str, Any]) -> None:
        listener.committed(record)
        tracks.follow()

    try:
        yield replace(listener, committed=follow)
    finally:
        tracks.close()

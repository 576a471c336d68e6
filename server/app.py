"""The Flower ServerApp: settings in, rounds, a released encoder out."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

import sscxr
from server.aggregate import server_optimiser
from server.ledger import Ledger, State, read_sites
from server.rounds import Federation, Listener, RunStopped
from sscxr import config as configs
from sscxr import release, report
from sscxr.card import Card, SiteData
from sscxr.config import Config
from sscxr.evaluation.probe import Comparison
from sscxr.models import encoder as encoders
from sscxr.report import Reconstruction
from sscxr.training.pretrain import build_encoder, set_up

log = logging.getLogger("sscxr.server")
app = ServerApp()


class Hooks:
    """Whom the rounds are shown to; the simulation puts its progress display here."""

    listener: Listener | None = None


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run or resume a federated pretraining, and release its encoder.

    Raises:
        ConfigError, LedgerError, RunStopped: one line that says why; what was done is saved.
    """
    settings = context.run_config
    config = configs.load(
        str(settings.get("config") or "default"),
        configs.split_overrides(str(settings.get("overrides") or "")),
    )
    out = str(settings.get("out") or "") or f"~/.sscxr/runs/{config.run.name}"
    run(grid, config, Path(out).expanduser(), resume=bool(settings.get("resume")))


def run(grid: Grid, config: Config, out: Path, *, resume: bool) -> None:
    """Run the rounds that are left in `out`, then write `out/encoder`."""
    set_up(config)
    # Before the folder is made: one with settings that cannot be used would be in the way of the mended ones.
    start = None if (out / "config.yaml").exists() else _start(config)
    ledger = Ledger(out, config, resume=resume)
    state = ledger.last()
    if state is None:
        state = State(round=0, encoder=start or _start(config), optimiser={})
    optimiser = server_optimiser(config.federation.server)
    optimiser.load(state.optimiser)
    if state.round >= config.federation.rounds and (out / "encoder").is_dir():
        log.info("run %s is finished: %d rounds; nothing to do", out, state.round)
        return
    try:
        state = Federation(grid, config, ledger, state, optimiser, Hooks.listener).run()
    except RunStopped as error:
        write_report(config, out, stopped=str(error))
        raise
    write_report(config, out)
    # Last, since a folder with an encoder is that of a finished run.
    publish(config, state, out / "encoder", [SiteData(site, state.images.get(site)) for site in state.roster])


def _start(config: Config) -> dict[str, Tensor]:
    encoder = build_encoder(config)
    if config.encoder.start:
        missing = encoders.load_start(encoder, Path(config.encoder.start).expanduser())
        if missing:
            log.warning("the start has no %s; they begin at random", ", ".join(missing))
    return {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}


def publish(config: Config, state: State, folder: Path, data: list[SiteData], **card: object) -> Path:
    """Write the run's encoder as a release.

    Args:
        data: what each site trained on.
        card: further fields of the model card.
    """
    encoder = build_encoder(config)
    encoder.load_state_dict(state.encoder)
    settings = config.encoder
    return release.write_encoder(
        encoder,
        folder,
        architecture=settings.name,
        model_args=encoders.model_args(
            img_size=settings.img_size,
            patch_size=settings.patch_size,
            in_chans=settings.in_chans,
            depth=settings.depth,
        ),
        mean=config.data.mean,
        std=config.data.std,
        card=Card(
            name=config.run.name,
            data=data,
            rounds=state.round,
            settings=configs.dumps(config),
            code_version=sscxr.__version__,
            min_cell=config.privacy.min_cell,
            **card,  # type: ignore[arg-type]
        ),
    )


def write_report(
    config: Config,
    out: Path,
    *,
    probes: Sequence[Comparison] = (),
    reconstructions: Sequence[Reconstruction] = (),
    stopped: str = "",
) -> Path:
    """Write `out/report.html` from the ledger's files; pictures and probes only where images are at hand."""
    rounds_file = out / "rounds.jsonl"
    rounds = (
        [json.loads(line) for line in rounds_file.read_text().splitlines()] if rounds_file.exists() else []
    )
    return report.write(
        out / "report.html",
        title=config.run.name,
        rounds=rounds,
        sites=read_sites(out / "sites.csv"),
        reconstructions=reconstructions,
        probes=probes,
        stopped=stopped,
        min_cell=config.privacy.min_cell,
    )

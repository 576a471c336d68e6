"""A federation of five small sites whose updates are summed under masks."""

from collections.abc import Iterable
from pathlib import Path

import federation as fed
from omegaconf import OmegaConf

from client import identity
from server.ledger import Ledger, State
from server.optimisers import server_optimiser
from server.rounds import Federation
from sim.engine import InlineGrid
from sscxr import stages
from sscxr.config import Config

NAMES = ["anna", "bona", "cora", "dora", "edna"]  # five, of whom four at least are in a sum
SECURE = [
    *("federation.secure=true", "federation.weight_cap=0", "federation.evaluate_every=0"),
    *("federation.quorum=0.5", "federation.deadline=60"),
]


def sites(folder: Path, names: Iterable[str] = NAMES, *, images: int = 12) -> list[Path]:
    """Sites with an identity key each."""
    files = fed.make_sites(folder, list(names), images=images)
    for file in files:
        identity.made(file.parent)
        settings = OmegaConf.load(file)
        settings.identity = identity.FILE
        file.write_text(OmegaConf.to_yaml(settings))
    return files


def settings(files: list[Path], *overrides: str) -> Config:
    """The settings of a secure sum of these sites."""
    config = fed.settings(*SECURE, *overrides)
    keys = {file.parent.name: identity.fingerprint(file.with_name(identity.FILE)) for file in files}
    config.federation.members, config.federation.sites = keys, sorted(keys)
    return config


def federation(grid: InlineGrid, config: Config, out: Path) -> Federation:
    """A run of which the optimiser's moments may be a part."""
    state = State(round=0, encoder=stages.of(config).start(), optimiser={})
    return Federation(grid, config, Ledger(out, config, resume=False), state, server_optimiser(config))

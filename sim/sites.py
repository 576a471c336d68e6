"""Writes the folder of virtual sites: the files that each hospital would have on its own disk."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from client import identity
from client.settings import METRICS, SiteSettings
from sim import asked, findings, holdings, published
from sim import test_sets as tested
from sim.partition import groups_of, partition
from sscxr import config as configs
from sscxr import printable, stages
from sscxr.config import Config, ConfigError, yaml_text
from sscxr.data.cache.cache import Cache
from sscxr.federation import approval
from sscxr.report.record import HOLDINGS, NOTES


def check_labelled(cache: Cache, config: Config) -> None:
    """Refuse to fine-tune without labels or masks: no site could train, and the server would wait.

    Raises:
        ConfigError: no image has the label, or a mask.
    """
    if missing := stages.of(config).missing(cache):
        raise ConfigError(missing)


def write_sites(cache: Cache, out: Path, config: Config, clients: int, *, pictured: bool = True) -> list[str]:
    """Partition the cache and write `out/sites/NAME/site.yaml`, one per virtual site.

    With `federation.secure` each site has a key, and `federation.members`, which is set here, their fingerprints.
    Also write `out/partition.csv` (see `published.py`), `out/holdings.csv`, `out/holdings.png` and
    `out/notes.json`. A resumed run writes all of them again, with the same content.

    Args:
        pictured: write `out/holdings.png`, which takes a second.

    Returns:
        The sites' names, in the order of their folders.

    Raises:
        LedgerError: the run in `out` started with other images or another partition.
        PartitionError: the partition is impossible.
    """
    parts, notes = parts_of(cache, config, clients)
    notes = [*notes, *findings.notes(cache, config.privacy.min_cell)]
    table = "".join(f"{group},{name}\n" for name, members in parts.items() for group in members)
    asked.same_data(out, cache, table)
    rows = cache.rows(laterals=config.data.laterals)
    index, held_out = cache.index.iloc[rows], cache.held_out(config.data.test_share)[rows]
    describe(index, held_out, out, parts, notes, pictured=pictured)
    folders = {name: out / "sites" / name for name in sorted(parts)}
    trained = set(index["group"].to_numpy()[~held_out])
    patients = {name: max(1, len(trained.intersection(members))) for name, members in parts.items()}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    if config.federation.secure:  # a resumed run finds the keys of its beginning
        config.federation.members = {
            name: identity.fingerprint(SiteSettings(identity=str(identity.made(folder))))
            for name, folder in folders.items()
        }
    for name, members in parts.items():
        folder = folders[name]
        (folder / "groups.txt").write_text("".join(f"{group}\n" for group in members))
        settings = {
            "name": name,
            "cache": str(cache.folder.resolve()),
            "state": "state",
            "groups": "groups.txt",
            "stages": [config.run.stage],
            "metrics": list(METRICS),
            "min_cell": 1,  # a virtual site has nothing to protect; the run's setting applies
            "min_mixed": 0,
            "identity": identity.FILE if config.federation.secure else "",
            "approved": [approval.digest(config)],
        }
        if config.privacy.noise:
            settings["privacy"] = {"patients": patients[name], "delta": min(1e-5, 0.1 / patients[name])}
        (folder / "site.yaml").write_text(yaml_text.dump(settings), encoding="utf-8")
    return sorted(parts)


def parts_of(cache: Cache, config: Config, clients: int) -> tuple[dict[str, list[str]], list[str]]:
    """Return the sites' patient groups, and lines about differences between a partition file and the data."""
    laterals, test_share = config.data.laterals, config.data.test_share
    settings, minimum = config.sim, config.privacy.min_cell
    groups = groups_of(cache, laterals=laterals, test_share=test_share, by=settings.by, label=settings.label)
    if settings.file is not None:
        rows = cache.rows(laterals=laterals)
        index, held_out = cache.index.iloc[rows], cache.held_out(test_share)[rows]
        return published.read(Path(settings.file), index, held_out, groups, minimum)
    parts = partition(
        groups, settings.partition, clients, alpha=settings.alpha, minimum=minimum, seed=config.run.seed
    )
    return parts, []


def describe(
    index: pd.DataFrame,
    held_out: npt.NDArray[np.bool_],
    out: Path,
    parts: dict[str, list[str]],
    notes: list[str],
    *,
    pictured: bool = True,
) -> list[str]:
    """Write the partition, its table, its picture if `pictured`, and the lines about it for report and card."""
    home = holdings.homes(index, parts)
    counts = holdings.table(index, held_out, home)
    trained = [group for members in parts.values() for group in members]
    notes = [*notes, *tested.lines(index, held_out, trained), *holdings.warnings(index, held_out, home)]
    (out / "partition.csv").write_text(published.text(index, held_out, parts), encoding="utf-8")
    (out / "holdings.csv").write_text(printable.frame(counts), encoding="utf-8")
    if pictured:
        (out / HOLDINGS).write_bytes(holdings.picture(index, home, counts))
    (out / NOTES).write_text(json.dumps(notes, indent=1) + "\n")
    return notes


def write_config(config: Config, out: Path) -> Path:
    """Write the run's settings in the form that the ServerApp reads."""
    file = out / "sites" / "run.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(configs.dumps(config), encoding="utf-8")
    return file

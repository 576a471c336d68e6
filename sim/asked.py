"""What a run was asked for, kept in its folder: it goes on with the same, or not at all."""

import json
from collections.abc import Sequence
from pathlib import Path

from server.ledger import LedgerError, differing, write_atomically
from sscxr import config as configs
from sscxr.config import Config


def is_started(out: Path) -> bool:
    """Whether a run is in the folder; before its first message there is only data."""
    return (out / "config.yaml").exists()


def is_finished(out: Path) -> bool:
    """Whether the run in the folder has left all that it should; `probes.json` is the last file written."""
    return (out / "probes.json").exists() and (out / "encoder" / "model.safetensors").exists()


def agree(out: Path, config: Config, clients: int, data: Sequence[Path]) -> None:
    """Note what a new run is asked for in `out/asked.json`; hold one to go on with to what is noted.

    A folder with prepared data only is held to the data.

    Raises:
        LedgerError: something else was asked for, named; nothing was changed then.
    """
    file = out / "asked.json"
    asked = {
        "--clients": clients,
        "--data": [str(path.resolve()) for path in data],
        "settings": configs.as_dict(config),
    }
    if file.exists():
        before = json.loads(file.read_text())
        prepared = any((out / name).exists() for name in ("phantoms", "cache", "prepared"))
        if not is_started(out):
            before = asked | ({"--data": before["--data"]} if prepared else {})
        keys = [key.removeprefix("settings.") for key in differing(before, asked)]
        if keys:
            raise LedgerError(
                f"{out} was started with other settings ({', '.join(keys[:5])}); "
                "resume with the same ones, or give another --out"
            )
        if is_started(out):
            return
    write_atomically(file, json.dumps(asked, indent=1, sort_keys=True).encode())

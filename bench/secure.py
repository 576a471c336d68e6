"""The cost of a secure sum: bytes and processor seconds of a round, by how many sites drop out.

    python bench/secure.py --json secure.json        # 8 sites, the demo recipe; 0 to 3 of them drop out

Sites have images of noise, and a step of noise takes the place of their training, so that the seconds are those of
the rest. Those that drop out do so after they shared their keys, which costs the server most: it has to restore
their mask keys. Seconds are those of this thread; `site` is the mean over the sites that stay, its model's building
included. Bytes are arrays', in MB, of all sites.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from time import thread_time
from typing import Any
from unittest.mock import patch

import noise
import torch
from flwr.app import Error, Message
from omegaconf import OmegaConf
from timing import report, timed_calls

from client import app as client
from client import identity, work
from client.settings import SiteSettings
from server import fold as folds
from server.ledger import Ledger, State
from server.optimisers import server_optimiser
from server.rounds import Federation
from sim.engine import InlineGrid
from sscxr import config as configs
from sscxr import stages
from sscxr.data.cache import columns
from sscxr.data.cache.cache import read_index
from sscxr.federation import approval
from sscxr.stages.pretrain import SiteTraining
from sscxr.training.loop import Trained

_SIZE, _IMAGES = 128, 60
SECURE = ["federation.secure=true", "federation.weight_cap=0", "federation.threshold=0.5"]


class Grid(InlineGrid):
    """Sites of which some drop out before they send an update, and a count of the bytes of their replies."""

    def __init__(self, files: list[Path], gone: int) -> None:
        super().__init__(client.app, files)
        self._gone, self.up = set(range(1, gone + 1)), 0

    def pull_messages(self, message_ids: Any) -> Any:
        """Answer as `InlineGrid` does, or with an error."""
        for identifier in message_ids:
            message = self._waiting[identifier]
            if message.metadata.message_type == "train" and message.metadata.dst_node_id in self._gone:
                del self._waiting[identifier]
                yield Message(Error(5, ""), reply_to=message)
                continue
            for reply in super().pull_messages([identifier]):
                self.up += folds.arrays_bytes(reply)
                yield reply


def timed(owner: Any, name: str, spent: Counter[str]) -> Any:
    """Add up the seconds of a function's calls within the block."""
    return patch.object(owner, name, timed_calls(getattr(owner, name), name, spent))


def untrained(self: SiteTraining, rows: Any, *, site: str, **given: Any) -> Trained:
    """Move each weight a little in place of training."""
    source = torch.Generator().manual_seed(len(site))
    for _, parameter in self.parts.parameters():
        parameter.data += 1e-3 * torch.randn(parameter.shape, generator=source)
        # A step's moments, so that those that are averaged are there.
        parameter.grad = torch.full_like(parameter, 1e-3)
    self.optimiser.step()
    return Trained(0.5, 3, len(rows), 0.0)


def measure(folder: Path, config: Any, sites: int, gone: int) -> dict[str, float]:
    """Do one round, and return its figures."""
    names = [f"hospital-{number}" for number in range(sites)]
    files = []
    for name in names:
        cache = noise.make(folder / name / "cache", _IMAGES, _SIZE)
        columns.write(cache, read_index(cache))
        identity.made(folder / name)
        files.append(folder / name / "site.yaml")
    keys = {
        name: identity.fingerprint(SiteSettings(identity=str(folder / name / identity.FILE)))
        for name in names
    }
    config.federation.members, config.federation.sites = keys, names
    for name, file in zip(names, files, strict=True):
        text = {"name": name, "cache": "cache", "state": "state", "min_cell": 1, "min_mixed": 0}
        text |= {"identity": identity.FILE, "approved": [approval.digest(config)]}
        file.write_text(OmegaConf.to_yaml(text))
    grid, spent = Grid(files, gone), Counter[str]()
    state = State(round=0, encoder=stages.of(config).start(), optimiser={})
    ledger = Ledger(folder / "run", config, resume=False)
    run = Federation(grid, config, ledger, state, server_optimiser(config))
    with patch.object(SiteTraining, "train_round", untrained), timed(work, "answer", spent):
        began = thread_time()
        run.run()
        whole = thread_time() - began
    return {
        "up MB": grid.up / 1e6,
        "down MB": run.mail.bytes_sent / 1e6,
        "site s": spent["answer"] / (sites - gone),
        "server s": whole - spent["answer"],
    }


def main() -> None:
    """Print the figures and write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--config", default="demo", help="a recipe")
    parser.add_argument("--gone", type=int, default=3, help="the most sites that drop out")
    parser.add_argument("--json", help="where to write the figures")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    common = [
        "federation.rounds=1", "federation.retries=0", "federation.evaluate_every=0", "federation.quorum=0.5",
        "federation.deadline=3000", "run.device=cpu", "run.threads=1", *given.overrides,
    ]  # fmt: skip
    found: dict[str, Any] = {}
    for masked in (False, True):
        for gone in range(given.gone + 1):
            config = configs.load(given.config, [*common, *(SECURE if masked else [])])
            name = f"{'masked' if masked else 'plain'}, {gone} dropped out"
            with tempfile.TemporaryDirectory() as folder:
                found[name] = measure(Path(folder), config, given.sites, gone)
            print(name, found[name], flush=True)
    report(found, given.json)


if __name__ == "__main__":
    main()

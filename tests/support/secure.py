"""A federation of five small sites whose updates are summed under masks."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import federation as fed
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from omegaconf import OmegaConf

from client import app as client
from client import identity
from client.settings import read_settings
from server.fold import ARRAYS, RECORD
from server.ledger import Ledger, State
from server.optimisers import server_optimiser
from server.rounds import Federation
from server.secure import SecureFold
from sim.engine import InlineGrid
from sscxr import config as configs
from sscxr import stages
from sscxr.config import Config
from sscxr.federation import codecs, floors, wire

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
    keys = {file.parent.name: identity.fingerprint(read_settings(file)) for file in files}
    config.federation.members, config.federation.sites = keys, sorted(keys)
    return config


def federation(grid: InlineGrid, config: Config, out: Path) -> Federation:
    """A run of which the optimiser's moments may be a part."""
    state = State(round=0, encoder=stages.of(config).start(), optimiser={})
    return Federation(grid, config, Ledger(out, config, resume=False), state, server_optimiser(config))


Change = Callable[[str, str, Message], "Message | None"]


def copied(message: Message) -> Message:
    """The same message to the same node, of its own."""
    made = RecordDict(copy.deepcopy(dict(message.content)))
    return Message(made, message.metadata.dst_node_id, message.metadata.message_type)


class Post:
    """Sites that answer a `SecureFold` in this process, and a server that may change what it sends, or lose it.

    Attributes:
        asked, answered: (kind, site) -> the last message to the site and its reply.
    """

    def __init__(self, files: list[Path], config: Config) -> None:
        fed.approve(config, *files)
        self.grid = InlineGrid(client.app, files)
        self.asked: dict[tuple[str, str], Message] = {}
        self.answered: dict[tuple[str, str], Message] = {}
        self.change: Change = lambda kind, site, message: message
        self.damage: Change = lambda kind, site, reply: reply

    def ask(
        self,
        tasks: Mapping[int, wire.Task],
        kind: str,
        deadline: float,
        arrays: ArrayRecord | Mapping[int, ArrayRecord] | None = None,
    ) -> Iterator[tuple[int, Message]]:
        """As `Mail.ask` does; a message or a reply that became None never arrives."""
        for node, task in tasks.items():
            record = RecordDict({RECORD: ConfigRecord(dict(wire.to_record(task)))})
            own = arrays if isinstance(arrays, ArrayRecord) else (arrays or {}).get(node)
            if own is not None:
                record[ARRAYS] = copy.deepcopy(own)
            name = Path(str(self.grid._contexts[node].node_config["site"])).parent.name
            step = kind.rpartition(".")[2]
            message = self.change(step, name, Message(record, node, kind))
            if message is None:
                continue
            self.asked[step, name] = message
            (reply,) = self.grid.send_and_receive([message])
            self.answered[step, name] = copy.deepcopy(reply)
            answer = self.damage(step, name, reply)
            if answer is not None:
                yield node, answer

    def again(self, step: str, site: str, **fields: object) -> Message:
        """What a site replies if the last message of a step is sent again, some of its fields replaced."""
        message = copied(self.asked[step, site])
        message.content.config_records[RECORD].update(fields)  # type: ignore[arg-type]
        (reply,) = self.grid.send_and_receive([message])
        return reply


def fold_of(post: Any, config: Config, files: list[Path], attempt: int = 0, **fields: Any) -> SecureFold:
    """One attempt at the first round, done; `fields` are of its tasks."""
    encoder = stages.of(config).start()
    fingerprint = wire.fingerprint(configs.recipe_hash(config))
    text = configs.dumps(config)

    def task(site: str) -> wire.Task:
        return wire.Task(config.run.name, 0, attempt, "", text, fingerprint, 600.0, **fields)

    encoded = codecs.encode(encoder, config.federation.downlink)
    fold = SecureFold(config, encoder, encoded, task, post, floors.threshold(config.federation))
    list(fold.run({node: file.parent.name for node, file in enumerate(files, start=1)}))
    return fold

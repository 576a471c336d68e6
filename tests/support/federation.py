"""A federation small enough for tests: the real apps, a one-block encoder, sites of a dozen noise images."""

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from caches import make_cache
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from omegaconf import OmegaConf
from torch import Tensor

from client import app as client
from server.fold import RECORD, to_arrays
from server.ledger import Ledger, State
from server.optimisers import server_optimiser
from server.rounds import Federation
from sim.engine import InlineGrid
from sscxr import config as configs
from sscxr.config import Config
from sscxr.federation import approval, codecs, wire
from sscxr.stages.pretrain import build_encoder

SMALL = [
    *(
        "encoder.depth=1",
        "encoder.img_size=32",
        "gmml.blocks=[1]",
        "gmml.max_block=0.5",
        "gmml.head_layers=1",
    ),
    *("run.threads=1", "run.device=cpu", "data.cache_size=32", "privacy.min_cell=2"),
    "federation.moments=local",  # messages of the encoder alone, as `start` makes them
    *("federation.retries=0", "federation.start_timeout=0", "federation.evaluate_every=0"),
]


class Grid(InlineGrid):
    """A Grid whose hospitals approve what a run is about to ask for, as people would who read its join file."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        asked = list(messages)
        for message in asked:
            task = message.content.config_records.get(RECORD)
            if task is not None:
                site = self._contexts[message.metadata.dst_node_id].node_config["site"]
                approve(configs.loads(str(task["config"])), Path(str(site)))
        return super().push_messages(asked)


Damage = Callable[[Message, Message], Message]


def settings(*overrides: str) -> Config:
    return copy.deepcopy(_settings(overrides))


@functools.cache
def _settings(overrides: tuple[str, ...]) -> Config:
    return configs.load("smoke", [*SMALL, *overrides])


def make_site(folder: Path, name: str, *, images: int = 12, seed: int = 0, **index: object) -> Path:
    """A site's cache and its `site.yaml`; one image a patient, the first fifth held out."""
    pixels = np.random.default_rng(seed).integers(0, 256, (images, 32, 32), dtype=np.uint8)
    make_cache(folder / "cache", pixels, {"split": (np.arange(images) + 0.5) / images, **index})
    file = folder / "site.yaml"
    file.write_text(
        OmegaConf.to_yaml({"name": name, "cache": "cache", "state": "state", "min_cell": 1, "min_mixed": 0})
    )
    return file


def make_sites(folder: Path, names: Sequence[str], *, images: int = 12) -> list[Path]:
    return [make_site(folder / n, n, images=images, seed=i) for i, n in enumerate(names)]


def approve(config: Config, *sites: Path) -> None:
    """Pin a recipe in each `site.yaml`, as a hospital does that was shown it."""
    own = approval.digest(config)
    for file in sites:
        text = file.read_text() if file.exists() else own  # some tests take it away
        if own not in text:
            file.write_text(approval.pinned(text, own, "a test"))


def start(config: Config) -> State:
    return State(round=0, encoder=dict(build_encoder(config).state_dict()), optimiser={})


_start = start


def federation(grid: InlineGrid, config: Config, out: Path, *, resume: bool = False) -> Federation:
    approve(config, *(Path(str(one.node_config["site"])) for one in getattr(grid, "_contexts", {}).values()))
    ledger = Ledger(out, config, resume=resume)
    state = ledger.last() or start(config)
    optimiser = server_optimiser(config)
    optimiser.load(state.optimiser)
    return Federation(grid, config, ledger, state, optimiser)


def damaging(damage: dict[str, Damage], *, train: bool = True) -> ClientApp:
    """The real ClientApp, but the sites named change what they reply to `train`: damage(reply, request).

    Args:
        train: False: do not train; `damage` is given the request in place of a reply.
    """
    app, really = ClientApp(), train

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return client.hello(message, context)

    @app.train()
    def answer(message: Message, context: Context) -> Message:
        site = Path(str(context.node_config["site"])).parent.name
        reply = client.train(message, context) if really else message
        return damage[site](reply, message) if site in damage else reply

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return client.evaluate(message, context)

    return app


def ask(
    config: Config,
    site: Path,
    kind: str = "train",
    /,
    *,
    encoder: bool = True,
    approved: bool = True,
    start: Mapping[str, Tensor] | None = None,
    **fields: object,
) -> Message:
    """What the real ClientApp of one site replies to a task, some of its fields replaced."""
    grid = InlineGrid(client.app, [site])
    if approved:
        approve(config, site)
    (reply,) = grid.send_and_receive([task_message(config, kind, encoder=encoder, start=start, **fields)])
    return reply


def task_message(
    config: Config,
    kind: str,
    /,
    *,
    encoder: bool = True,
    start: Mapping[str, Tensor] | None = None,
    **fields: object,
) -> Message:
    """A task as the server sends it, some of its fields replaced."""
    fingerprint = wire.fingerprint(configs.recipe_hash(config))
    task = wire.Task(config.run.name, 0, 0, "", configs.dumps(config), fingerprint, 600.0)
    record = RecordDict({RECORD: ConfigRecord({**wire.to_record(task), **fields})})
    if start is not None or encoder:
        sent = _start(config).encoder if start is None else start
        record[client.ARRAYS] = to_arrays(codecs.encode(sent, config.federation.downlink))
    return Message(record, 1, kind)

"""The Flower ClientApp: receives a message, lets the site work on it, replies with fields of `federation.wire`.

The outermost layer catches everything: Flower would send an exception's text to the server, and a text can name a
file or a patient. The site's own log keeps it; the server gets one of a few fixed words.
"""

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.settings import (
    SiteError,
    SiteSettings,
    check_allowed,
    check_approved,
    check_mixed,
    check_registered,
    limit_memory,
    read_settings,
)
from client.site import Site
from sscxr import config as configs
from sscxr import printable, seeds, stages
from sscxr.config import Config, ConfigError
from sscxr.data.rows import Rows
from sscxr.federation import codecs, wire
from sscxr.federation.wire import ARRAYS, RECORD
from sscxr.files import expanded, is_full_disk, locked
from sscxr.stages.base import Training
from sscxr.training.device import set_up
from sscxr.training.loop import NonFiniteLossError, OutOfTimeError

_TIME_TO_REPLY = 0.9  # share of the round's time that training may take; the rest is for the upload
_RESIDUAL = "residual."  # prefix, in the site's state, of what the codec left out of the update
_PHANTOMS, _PHANTOM_SIZE = 100, 128  # images, px: for a virtual node without a site

log = logging.getLogger("sscxr.site")
if logging.lastResort is not None:  # shows this log in Flower's process, which configures none
    logging.lastResort.setFormatter(printable.Formatter())
app = ClientApp()


@dataclass
class Display:
    """Receives the steps of training; the simulation sets its progress bar here."""

    on_step: Callable[[str, int, int, int, float], None] | None = None


display = Display()


@app.query()
def hello(message: Message, context: Context) -> Message:
    """Reply with this site's name, fingerprint and number of images."""
    return _answer(message, context, _hello)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received encoder on this site's images; reply with the update."""
    return _answer(message, context, _train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the received encoder on this site's held-out images."""
    return _answer(message, context, _evaluate)


Reply = tuple[wire.Message, bytes | None]


def _hello(site: Site, task: wire.Task, config: Config, message: Message) -> Reply:
    images = len(site.training_rows(config))  # with too few, this site does not join
    check_mixed(site.settings, config, images, 0)
    return wire.Hello(site.name, wire.fingerprint(configs.recipe_hash(config)), images), None


def _train(site: Site, task: wire.Task, config: Config, message: Message) -> Reply:
    rows = site.training_rows(config)
    check_mixed(site.settings, config, len(rows), task.round)
    site.store.keep_only(task.run, task.base)
    training, state, received, residual = _begin(site, task, config, message, rows)
    show = display.on_step
    trained = training.train_round(
        rows,
        site=site.name,
        round_number=task.round,
        budget=task.budget * _TIME_TO_REPLY,
        on_step=None if show is None else lambda *done: show(site.name, len(rows), *done),
    )
    update = training.update(received)
    source = seeds.generator("cpu", config.run.seed, "encode", site.name, task.round)
    try:
        encoded, residual = codecs.encode_update(update, residual, config.federation.uplink, source)
    except wire.WireError as error:
        raise SiteError("codec", f"the update cannot be sent: {error}") from None
    kept = training.local() | {_RESIDUAL + name: tensor for name, tensor in residual.items()}
    site.store.save(task.run, wire.generation(task.round, task.attempt), kept)
    reply = wire.TrainReply(
        site=site.name,
        round=task.round,
        attempt=task.attempt,
        fingerprint=task.fingerprint,
        images=len(rows),
        steps=trained.steps,
        loss=trained.loss,
        seconds=round(trained.seconds, 3),
        state=state,
    )
    return reply, encoded


def _evaluate(site: Site, task: wire.Task, config: Config, message: Message) -> Reply:
    metrics = site.settings.metrics
    rows = site.held_out_rows(config) if "held_out_loss" in metrics else np.empty(0, np.int64)
    if not site.may_tell(rows, config):
        rows = rows[:0]
    counts = site.told_counts(config)
    loss, score = 0.0, wire.NO_SCORE
    if len(rows):
        training, *_ = _begin(site, task, config, message, site.training_rows(config))
        found = training.held_out(rows, site=site.name)
        loss = found.loss
        reported = "held_out_score" in metrics and math.isfinite(found.score)
        score = found.score if reported else wire.NO_SCORE
    return wire.EvaluateReply(site.name, task.round, len(rows), loss, score, counts), None


def _begin(
    site: Site, task: wire.Task, config: Config, message: Message, rows: Rows
) -> tuple[Training, str, codecs.Tensors, codecs.Tensors]:
    """Build the stage's training, with the received encoder and this site's own head and moments.

    Returns:
        The training; whether the state was "kept", is "new" or was "lost"; the encoder as decoded; the residual
        of the last folded update.
    """
    tensors, state = site.store.load(task.run, task.base)
    training = stages.of(config).training(set_up(config), site.cache, rows, blank=tensors is not None)
    sent = message.content.array_records
    if ARRAYS not in sent or ARRAYS not in sent[ARRAYS]:
        raise wire.WireError("a task without an encoder")
    data = sent[ARRAYS][ARRAYS].data
    received = codecs.decode(data, config.federation.downlink, training.shared())
    if tensors is not None:
        training.load_local(tensors)
    training.load_shared(received)
    if state == "lost":
        log.warning(
            "state %s of run %s is missing or damaged; this site starts without it", task.base, task.run
        )
    residual = {
        name.removeprefix(_RESIDUAL): tensor
        for name, tensor in (tensors or {}).items()
        if name.startswith(_RESIDUAL)
    }
    return training, state, received, residual


def _answer(
    message: Message, context: Context, do: Callable[[Site, wire.Task, Config, Message], Reply]
) -> Message:
    """Do the task and reply; any error becomes one of the fixed words."""
    name, failure = "unknown", "internal"
    try:
        settings = _settings(context)
        name = settings.name
        try:
            task = wire.from_record(wire.Task, dict(message.content.config_records[RECORD]))
            config = configs.loads(task.config)
            stages.of(config)  # refuses a method's own settings, too
        except (wire.WireError, ConfigError, KeyError) as error:
            log.error("request refused: %s", error)
            if do is _hello:  # perhaps from other code: its server sees that from the fingerprint
                return _message(wire.Hello(name, wire.fingerprint(""), 0), None, message)
            return _message(wire.Failure(name, "request"), None, message)
        own = wire.fingerprint(configs.recipe_hash(config))
        if do is not _hello and task.fingerprint != own:
            raise SiteError("fingerprint", f"the run's fingerprint is {task.fingerprint}, this site's {own}")
        if task.registered:
            check_registered(settings, task.registered)
        check_allowed(settings, config)
        if not _is_of_phantoms(context):
            check_approved(settings, config)
        limit_memory(settings)
        config.run.device = settings.device or config.run.device
        reply, encoded = do(Site(settings), task, config, message)
        return _message(reply, encoded, message)
    except SiteError as error:
        failure = error.failure
        log.error("%s", error)
    except (wire.WireError, ConfigError) as error:
        failure = "request"
        log.error("request refused: %s", error)
    except OutOfTimeError as error:
        failure = "time"
        log.error("%s", error)
    except NonFiniteLossError as error:
        failure = "loss"
        log.error("%s", error)
    except Exception as error:
        failure = _kind(error)
        log.exception("failed: %s", wire.FAILURES[failure])
    return _message(wire.Failure(name, failure), None, message)


def _kind(error: Exception) -> str:
    """Return the fixed word for an unexpected exception."""
    if is_full_disk(error):
        return "disk"
    # torch's allocator of main memory has no exception class.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "memory"
    return "internal"


def _message(reply: wire.Message, encoded: bytes | None, to: Message) -> Message:
    content = RecordDict({RECORD: ConfigRecord(dict(wire.to_record(reply)))})
    if encoded is not None:
        content[ARRAYS] = ArrayRecord({ARRAYS: Array("uint8", (len(encoded),), "bytes", encoded)})
    return Message(content, reply_to=to)


def _settings(context: Context) -> SiteSettings:
    """Return the settings of this node's site: its `site.yaml`, or one of the simulation's virtual sites."""
    file = context.node_config.get("site")
    if file:
        return read_settings(expanded(str(file)))
    number = context.node_config.get("partition-id")
    if number is None:
        raise SiteError(
            "settings", "this node has no site: start it with --node-config 'site=\"/path/site.yaml\"'"
        )
    _check_own_code()
    folder = context.run_config.get("sites")
    if folder:
        files = sorted(expanded(str(folder)).glob("*/site.yaml"))
        if int(number) >= len(files):
            raise SiteError("settings", f"{folder} has {len(files)} virtual sites, this is number {number}")
        return read_settings(files[int(number)])
    return _phantom_hospital(int(number))


def _is_of_phantoms(context: Context) -> bool:
    """Return whether this is a virtual node without a site, whose images are phantoms."""
    return not context.node_config.get("site") and not context.run_config.get("sites")


def _check_own_code() -> None:
    """Check that this is the bundle's code.

    Actors of Flower's simulation prefer a `client` package in the directory that the SuperLink was started in,
    and would run it silently; PYTHONPATH has the path of the process that started them.

    Raises:
        SiteError: the code is not the bundle's.
    """
    here = Path(__file__).parent
    for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        bundled = Path(folder) / here.name
        if folder and (bundled / "app.py").is_file():
            if _code(here) != _code(bundled):
                raise SiteError(
                    "settings",
                    f"this actor runs {here} in place of {bundled}: end the local SuperLink, and start the run "
                    "from another directory",
                )
            return


def _code(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.py")}


def _phantom_hospital(number: int) -> SiteSettings:
    """Return a hospital of phantoms for a virtual node without a site, made once and kept."""
    # Imported here: a real site should not import them at every message.
    from sscxr.data.phantoms import phantom
    from sscxr.data.prepare.prepare import PUBLIC_SALT, prepare

    folder = expanded("~/.sscxr/phantoms") / f"hospital-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):  # another run's node may be making the same one
        manifests = phantom.write(folder / "files", images=_PHANTOMS, sites=1, seed=number)
        prepare(manifests, folder / "cache", size=_PHANTOM_SIZE, workers=0, salt=PUBLIC_SALT, progress=False)
    return SiteSettings(f"phantom-{number}", str(folder / "cache"), str(folder / "state"), min_cell=1)

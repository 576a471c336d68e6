"""What a site does on request: who it is, a round of training, an evaluation, the steps of a secure sum.

The same function answers in the site service and in a simulation's process. Its outermost layer catches everything:
the text of an exception can name a file or a patient. The site's own log keeps it; the server gets one of a few
fixed words.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from client import budget, secure
from client.policy import check_allowed, check_approved, check_registered, check_rounds
from client.settings import SiteError, SiteSettings, limit_memory
from client.site import Site
from sscxr import config as configs
from sscxr import printable, seeds, stages
from sscxr.config import Config, ConfigError
from sscxr.data.rows import Rows
from sscxr.federation import codecs, frames, parcels, wire
from sscxr.files import is_full_disk
from sscxr.stages.base import Training
from sscxr.training.device import set_up
from sscxr.training.loop import NonFiniteLossError, OutOfTimeError

_TIME_TO_REPLY = 0.9  # share of the round's time that training may take; the rest is for the upload
_PRIVATE = "trained-privately"  # in the site's state: all of it follows from private gradients
_RESIDUAL = "residual."  # prefix, in the site's state, of what the codec left out of the update

log = logging.getLogger("sscxr.site")
if logging.lastResort is not None:  # shows this log in Flower's process, which configures none
    logging.lastResort.setFormatter(printable.Formatter())

OnStep = Callable[[str, int, int, int, float], None]  # site, its images, steps done, images done, latest loss
Reply = tuple[wire.Message, bytes | None]


@dataclass
class Display:
    """Receives the steps of training; the simulation sets its progress bar here."""

    on_step: OnStep | None = None


display = Display()


@dataclass(frozen=True)
class Request:
    """A task as it arrived, unchecked.

    Attributes:
        kind: one of `frames.KINDS`.
        record: returns the fields of a `wire.Task`, or raises WireError.
        encoder: returns the bytes of the encoder that came with it, given how many there must be at most; raises
            WireError if there is none, or if it is larger.
        admit: a further check of the task, which may raise SiteError or WireError.
        on_step: see `OnStep`; None: the display's.
    """

    kind: str
    record: Callable[[], Mapping[str, object]]
    encoder: Callable[[int], bytes]
    admit: Callable[[SiteSettings, wire.Task, Config], None] = lambda settings, task, config: None
    on_step: OnStep | None = None


def _hello(site: Site, task: wire.Task, config: Config, request: Request) -> Reply:
    images = len(site.training_rows(config))  # with too few, this site does not join
    if privacy := budget.terms(site.settings, config):
        images = privacy.patients
        left = range(task.round, config.federation.rounds)
        budget.check(site.settings, budget.charge_of(privacy, config, *left))
    check_rounds(site.settings, config, images, 0)
    if config.federation.secure:  # its weight is known in the sum alone
        secure.check(site.settings, config)
        images = 0
    return wire.Hello(site.name, wire.fingerprint(configs.recipe_hash(config)), images), None


def _train(site: Site, task: wire.Task, config: Config, request: Request) -> Reply:
    rows = site.training_rows(config)
    privacy = budget.terms(site.settings, config)
    images = privacy.patients if privacy else len(rows)
    check_rounds(site.settings, config, images, task.round)
    if config.federation.secure:
        secure.ready(site, task, config)
    costs = budget.charge_of(privacy, config, task.round) if privacy else []
    budget.check(site.settings, costs)
    site.store.keep_only(task.run, task.base)
    training, state, received, residual = _begin(site, task, config, request, rows)
    show = request.on_step or display.on_step
    seconds = min(task.budget * _TIME_TO_REPLY, site.settings.limits.round_seconds or math.inf)
    trained = training.train_round(
        rows,
        site=site.name,
        round_number=task.round,
        budget=seconds,
        privacy=privacy,
        on_step=None if show is None else lambda *done: show(site.name, images, *done),
    )
    update = training.update(received)
    source = seeds.generator("cpu", config.run.seed, "encode", site.name, task.round)
    try:
        encoded, residual = codecs.encode_update(update, residual, config.federation.uplink, source)
    except wire.WireError as error:
        raise SiteError("codec", f"the update cannot be sent: {error}") from None
    kept = training.local() | {_RESIDUAL + name: tensor for name, tensor in residual.items()}
    if config.federation.secure:
        loss = 0.0 if privacy else trained.loss
        encoded = secure.masked(site, task, config, encoded, received, images, loss)
    if privacy:
        kept[_PRIVATE] = torch.ones(())
    site.store.save(task.run, wire.generation(task.round, task.attempt), kept)
    spent = budget.spend(site.settings, task, config, *costs) if privacy else 0.0
    if config.federation.secure:
        return _step(site, task, state), encoded
    reply = wire.TrainReply(
        site=site.name,
        round=task.round,
        attempt=task.attempt,
        fingerprint=task.fingerprint,
        images=images,
        steps=trained.steps,
        loss=trained.loss,
        seconds=round(trained.seconds, 3),
        state=state,
    )
    if privacy:  # beside the update only what does not depend on the images
        delta = site.settings.privacy.delta
        reply = replace(reply, loss=wire.NO_LOSS, seconds=0.0, epsilon=spent, delta=delta)
    return reply, encoded


def _evaluate(site: Site, task: wire.Task, config: Config, request: Request) -> Reply:
    if config.federation.secure:
        raise SiteError(
            "not allowed", "the run asks for held-out figures of this site, and its sum is secure"
        )
    if config.privacy.noise:  # figures of images have no noise: they would have to be charged too
        return wire.EvaluateReply(site.name, task.round, 0, 0.0, wire.NO_SCORE), None
    metrics = site.settings.metrics
    rows = site.held_out_rows(config) if "held_out_loss" in metrics else np.empty(0, np.int64)
    if not site.may_tell(rows, config):
        rows = rows[:0]
    counts = site.told_counts(config)
    loss, score = 0.0, wire.NO_SCORE
    if len(rows):
        training, *_ = _begin(site, task, config, request, site.training_rows(config))
        found = training.held_out(rows, site=site.name)
        loss = found.loss
        reported = "held_out_score" in metrics and math.isfinite(found.score)
        score = found.score if reported else wire.NO_SCORE
    return wire.EvaluateReply(site.name, task.round, len(rows), loss, score, counts), None


def _step(site: Site, task: wire.Task, state: str = "") -> wire.SecureReply:
    return wire.SecureReply(site.name, task.round, task.attempt, task.fingerprint, state)


def _keys(site: Site, task: wire.Task, config: Config, request: Request) -> Reply:
    return _step(site, task), secure.keys(site, task, config)


def _shares(site: Site, task: wire.Task, config: Config, request: Request) -> Reply:
    return _step(site, task), secure.shares(site, task, config, request.encoder(parcels.MOST))


def _survivors(site: Site, task: wire.Task, config: Config, request: Request) -> Reply:
    return _step(site, task), secure.survivors(site, task, config)


def _unmask(site: Site, task: wire.Task, config: Config, request: Request) -> Reply:
    return _step(site, task), secure.unmask(site, task, config, request.encoder(parcels.MOST))


WORK: dict[str, Callable[[Site, wire.Task, Config, Request], Reply]] = {
    "query": _hello,
    "train": _train,
    "evaluate": _evaluate,
    "keys": _keys,
    "shares": _shares,
    "survivors": _survivors,
    "unmask": _unmask,
}


def _begin(
    site: Site, task: wire.Task, config: Config, request: Request, rows: Rows
) -> tuple[Training, str, codecs.Tensors, codecs.Tensors]:
    """Build the stage's training, with the received encoder and this site's own head and moments.

    Returns:
        The training; whether the state was "kept", is "new" or was "lost"; the encoder as decoded; the residual
        of the last folded update.
    """
    tensors, state = site.store.load(task.run, task.base)
    if config.privacy.noise and tensors is not None and _PRIVATE not in tensors:
        tensors, state = (
            None,
            "lost",
        )  # of another run of this name: its moments would show what was not charged
    training = stages.of(config).training(set_up(config), site.cache, rows, blank=tensors is not None)
    like, codec = training.shared(), config.federation.downlink
    received = codecs.decode(request.encoder(codecs.payload_bytes(codec, like)), codec, like)
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


def answer(request: Request, settings_of: Callable[[], SiteSettings], *, pinned: bool = True) -> Reply:
    """Do a task and return the reply, with the update's bytes if it has one; any error becomes a fixed word.

    Args:
        settings_of: reads the site's settings, as they are now.
        pinned: whether the site must have approved the recipe; only phantoms need not.
    """
    name, failure = "unknown", "internal"
    try:
        settings = settings_of()
        name = settings.name
        try:
            task = wire.from_record(wire.Task, request.record())
            config = configs.loads(task.config)
            stages.of(config)  # refuses a method's own settings, too
        except (wire.WireError, ConfigError) as error:
            log.error("request refused: %s", error)
            if request.kind == "query":  # perhaps from other code: its server sees that from the fingerprint
                return wire.Hello(name, wire.fingerprint(""), 0), None
            return wire.Failure(name, "request"), None
        _check(request, settings, task, config, pinned)
        limit_memory(settings)
        config.run.device = settings.device or config.run.device
        return WORK[request.kind](Site(settings), task, config, request)
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
    return wire.Failure(name, failure), None


def _check(request: Request, settings: SiteSettings, task: wire.Task, config: Config, pinned: bool) -> None:
    """Check that the site may do a task of this configuration.

    Raises:
        SiteError, WireError: it may not.
    """
    own = wire.fingerprint(configs.recipe_hash(config))
    if request.kind != "query" and task.fingerprint != own:
        raise SiteError("fingerprint", f"the run's fingerprint is {task.fingerprint}, this site's {own}")
    wire.check_name(task.run, "run")
    if task.base:
        wire.check_name(task.base, "base")
    if not (0 <= task.round < config.federation.rounds and task.attempt >= 0):
        raise wire.WireError(
            f"round {task.round}, attempt {task.attempt}: the recipe has rounds 0 to {config.federation.rounds - 1}"
        )
    if task.registered:
        check_registered(settings, task.registered)
    if request.kind in frames.SECURE and not config.federation.secure:
        raise wire.WireError(f"a step of a secure sum, {request.kind}, of a run with federation.secure=false")
    check_allowed(settings, config)
    if pinned:
        check_approved(settings, config)
    request.admit(settings, task, config)


def _kind(error: Exception) -> str:
    """Return the fixed word for an unexpected exception."""
    if is_full_disk(error):
        return "disk"
    # torch's allocator of main memory has no exception class.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "memory"
    return "internal"

"""Trains each site alone, for comparison: the same network, start, epochs and rates, without the others.

A site's own model is trained in `out/alone/SITE.safetensors` (`client/alone.py`), several sites at a time where the
run's engine is a pool. Pretrained encoders are compared by probes, on the site's own held-out patients and on
everybody's; fine-tuned models by the stage's figure on the site's own.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import cast

import numpy as np
import torch
from torch import Tensor

import client.alone
from client.settings import SiteError, read_settings
from client.site import Site
from server.ledger import State
from sim import pool, scores
from sim.choice import POOL, Choice, seconds_of
from sim.pool import Pool
from sim.scores import Scores
from sscxr import config as configs
from sscxr import runs, stages
from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows
from sscxr.display import Board, Clock, Line, duration
from sscxr.evaluation import pairs, probe
from sscxr.evaluation.metrics import Interval
from sscxr.evaluation.tasks import Task
from sscxr.finetuning import KINDS, finetune, finetuned
from sscxr.finetuning.finetune import Split
from sscxr.finetuning.site_finetune import SiteFineTuning
from sscxr.report import SiteScore
from sscxr.runs import EVERYBODY, OWN
from sscxr.training.loop import NonFiniteLossError

AUTO, ALL, NONE = "auto", "all", "none"
FOLDER = "alone"
IMPORTS = ("sim.alone", "sscxr.evaluation.probe")  # besides those of the rounds
# Seconds of a pretraining, all sites in turn, up to which three of its sites are trained alone without being asked.
_SHORT = 3600.0

log = logging.getLogger("sscxr.sim")


def chosen(
    which: str, config: Config, cache: Cache, out: Path, names: Sequence[str]
) -> tuple[list[str], str]:
    """Return the sites to train alone, in the order in which to begin, and a line for a person.

    Args:
        which: auto, all, some or none. `some`: the smallest, the median and the largest. `auto`: all in
            fine-tuning, which is cheap; in pretraining some, if the run is short.
    """
    if which == NONE:
        return [], ""
    if not config.pretrains:
        return list(names), ""
    if not scores.tasks_of(cache, config):
        return [], "" if which == AUTO else "no site is trained alone: no label has enough cases to probe"
    if which == AUTO and seconds_of(config, len(cache)) > _SHORT:
        return [], "no site is trained alone, which would take long; --alone some, or all, does it"
    sizes = {name: len(_site(out, name).own_rows(config)[0]) for name in names}
    ordered = sorted(names, key=lambda name: (sizes[name], runs.natural(name)), reverse=True)
    if which == ALL or len(ordered) <= 3:
        return ordered, ""
    some = [ordered[0], ordered[len(ordered) // 2], ordered[-1]]
    return some, f"trained alone, too: {', '.join(some)} (the largest, the median and the smallest site)"


def train(out: Path, config: Config, names: Sequence[str], engine: Choice) -> None:
    """Train sites alone, as far as that has not been done; a site whose training fails is logged and left out."""
    left = [name for name in names if not (out / FOLDER / f"{name}.csv").is_file()]
    clock, lines = Clock(), dict[str, Line]()
    with Board() as board:

        def on_round(name: str, done: int, rounds: int, loss: float) -> None:
            lines[name] = Line(
                f"{name} alone", done, rounds, [f"round {done} of {rounds}", f"loss {loss:.4f}"]
            )
            share = sum(line.done / (line.total or 1) for line in lines.values())
            left_over = clock.left(share, len(left))
            board.lines = [Line("sites alone", share, len(left), [left_over]), *_unfinished(lines)]

        for name, seconds, problem in _each(out, config, left, engine, on_round):
            board.say(f"{name} alone: {problem or f'done in {duration(seconds)}'}")


def _unfinished(lines: Mapping[str, Line]) -> Iterator[Line]:
    return (line for line in lines.values() if line.done < (line.total or 0))


def _each(
    out: Path, config: Config, names: Sequence[str], engine: Choice, on_round: Callable[..., None]
) -> Iterator[tuple[str, float, str]]:
    """Train sites, and yield for each its name, the seconds, and why it failed; empty if it did not."""
    if engine.name != POOL or len(names) < 2:
        for name in names:
            yield name, *_trained(out, name, on_round)
        return
    with Pool(min(engine.at_once, len(names)), IMPORTS, config.run.threads) as processes:
        processes.heard = on_round
        for name in names:
            processes.put(name, _trained, out, name)
        while processes.busy:
            for ended in processes.fetch(None):
                seconds, problem = ended.value or (0.0, ended.problem)
                yield cast(str, ended.name), seconds, problem


def _trained(out: Path, name: str, on_round: Callable[..., None] = pool.say) -> tuple[float, str]:
    """Train one site alone; a pretrained encoder is probed, too. Return the seconds and why it failed."""
    began = monotonic()
    config = configs.loads((out / "sites" / "run.yaml").read_text(encoding="utf-8"))
    site = _site(out, name)
    try:
        training = client.alone.train(
            site, config, _file(out, name), on_round=lambda *done: on_round(name, *done)
        )
    except SiteError as error:  # too few images that the stage can use
        return monotonic() - began, str(error)
    except NonFiniteLossError:  # at rates that suit the average; nothing to compare with
        return monotonic() - began, "its loss is not finite"
    if config.pretrains:
        tasks = scores.tasks_of(site.cache, config)
        found = scores.of(site.cache, config, training.shared(), tasks)
        scores.write(out / FOLDER / f"{name}.csv", site.cache, tasks, found)
    return monotonic() - began, ""


def _file(out: Path, name: str) -> Path:
    return out / FOLDER / f"{name}.safetensors"


def _site(out: Path, name: str) -> Site:
    return Site(read_settings(out / "sites" / name / "site.yaml"))


def pretrained(
    out: Path, config: Config, names: Sequence[str], tasks: Sequence[Task], federated: Scores
) -> list[SiteScore]:
    """Compare the run's encoder with those of sites alone, by the probes' mean AUROC over the labels.

    Two figures for each kind of probe: on the site's own held-out patients, and on everybody's. All probes are
    fitted on the training patients of all sites, so that they differ in the encoder alone. A site whose own encoder
    is better on its own patients beyond the interval keeps it, in `out/alone/SITE`.

    Args:
        names: the sites that were trained alone.
        tasks, federated: of `scores.tasks_of`, and the run's own scores of them.
    """
    found = []
    for name in sorted(names, key=runs.natural):
        file = out / FOLDER / f"{name}.csv"
        if not file.is_file():
            continue
        site = _site(out, name)
        alone, groups = (
            scores.of_tasks(file, tasks),
            set(site.cache.column("group")[site.usable_rows(config)]),
        )
        train, _ = site.own_rows(config)
        mine = [
            _pair(name, kind, where, len(train), tasks, federated, alone, inside, config)
            for where, inside in ((OWN, groups), (EVERYBODY, None))
            for kind in probe.KINDS
        ]
        if any(score.worse for score in mine if score.where == OWN):
            training = client.alone.train(site, config, _file(out, name))  # read from its file
            client.alone.release(site, config, training, out / FOLDER / name)
        found += mine
    return found


def _pair(
    name: str,
    kind: str,
    where: str,
    images: int,
    tasks: Sequence[Task],
    federated: Scores,
    alone: Scores,
    groups: set[str] | None,
    config: Config,
) -> SiteScore:
    scored = pairs.of_tasks(tasks, federated, alone, kind, groups=groups)
    pair = pairs.compare(scored, resamples=config.probe.resamples, seed=config.run.seed)
    if pair is None:
        return SiteScore(name, kind, images, 0, 0, None, None, None, where)
    federation, own, gap = (_figure(one, pair.patients) for one in (pair.first, pair.second, pair.gap))
    return SiteScore(name, kind, images, pair.images, pair.patients, federation, own, gap, where)


def _figure(found: Interval, count: int) -> dict[str, float | int | None]:
    ends = {end: value if np.isfinite(value) else None for end, value in asdict(found).items()}
    return {**ends, "n": count}


def tuned(
    out: Path, config: Config, names: Sequence[str], state: State, device: torch.device
) -> list[SiteScore]:
    """Score a fine-tuning's model and each site's own on the same held-out images of that site.

    A site whose own model is better beyond the interval keeps it, in `out/alone/SITE`.
    """
    return [_score(_site(out, name), out, config, state, device) for name in names]


def _score(site: Site, out: Path, config: Config, state: State, device: torch.device) -> SiteScore:
    """Compare the two models of a site; keep its own if it is the better one."""
    try:
        train, test = site.training_rows(config), site.held_out_rows(config)
    except SiteError:  # too few images that the stage can use
        return SiteScore(site.name, "", 0, 0, 0, None, None, None)
    federated = cast(SiteFineTuning, stages.of(config).training(device, site.cache, train))
    federated.parts.load_shared(state.encoder)
    tensors, _ = site.store.load(config.run.name, state.bases.get(site.name, ""))
    if tensors is not None:
        federated.load_local(tensors)
    groups = site.cache.index["group"].to_numpy()
    name = stages.of(config).figure
    counts = (len(train), len(test), len(set(groups[test])))
    unmeasured = SiteScore(site.name, name, *counts, None, None, None)
    try:
        alone = cast(SiteFineTuning, client.alone.train(site, config, _file(out, site.name)))
    except NonFiniteLossError:
        return unmeasured
    if not len(test):
        return unmeasured
    kind, place = KINDS[config.run.stage], (site.cache, test, finetuned.spec_of(config).labels)
    predicted = [kind.predict(one.model, one.task.input, *place, place[-1]) for one in (federated, alone)]
    each, gap = kind.compare(*predicted, *place)
    score = SiteScore(site.name, name, *counts, *(figures[name] for figures in (*each, gap)))
    if score.worse:
        _save(config, alone.parts.shared() | alone.parts.local(), site.cache, train, out / FOLDER / site.name)
    return score


def warnings(scores: Sequence[SiteScore]) -> list[str]:
    """Return a line for each site at which the federation's model is worse than the site's own."""
    return [
        f"{score.site}: the federation's {score.thing} is worse than the site's own beyond the interval, "
        f"{score.name} {score.federated['value']:.3f} against {score.alone['value']:.3f}; use the site's own there"
        for score in scores
        if score.worse and score.where == OWN and score.federated and score.alone
    ]


def save_model(out: Path, config: Config, state: State, cache: Cache) -> Path:
    """Write the federation's model, with the patients it learned from, which a simulation knows."""
    train: Rows = np.zeros(0, dtype=np.int64)
    for name in state.roster:
        try:
            train = np.append(train, _site(out, name).training_rows(config))
        except SiteError:
            continue
    return _save(config, state.encoder, cache, train, out / "model")


def _save(config: Config, tensors: Mapping[str, Tensor], cache: Cache, train: Rows, folder: Path) -> Path:
    """Write a model with the patients that it learned from."""
    extra = {finetuned.TRAINED_ON: finetune.trained_on(cache, Split(train, train[:0], train[:0]))}
    data = dataclasses.replace(config.data, cache_size=cache.size)  # what `sscxr predict` scales files to
    config = dataclasses.replace(config, data=data)
    stages.of(config).save_model(tensors, folder, extra=extra)
    return folder

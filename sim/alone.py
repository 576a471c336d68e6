"""Trains each site alone, for comparison: the same network, start, epochs and rates, without the others."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from client.settings import SiteError, read_settings
from client.site import Site
from server.ledger import State
from sscxr import stages
from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows
from sscxr.files import write_atomically
from sscxr.finetuning import KINDS, finetune, finetuned
from sscxr.finetuning.finetune import Split
from sscxr.finetuning.site_finetune import SiteFineTuning
from sscxr.report import SiteScore
from sscxr.training.loop import NonFiniteLossError


def site_scores(
    out: Path, config: Config, state: State, device: torch.device, on_site: Callable[[str], None]
) -> list[SiteScore]:
    """Score the federation's model and each site's own on the same held-out images of that site.

    This trains the sites' own models; their scores are kept in `out/alone`, so that a resumed run has them
    already. A site whose own model is better beyond the interval keeps it, in `out/alone/SITE`.

    Args:
        on_site: called with each site's name before it is trained.
    """
    start = stages.of(config).start()
    found = []
    for name in state.roster:
        file = out / "alone" / f"{name}.json"
        if not file.is_file():
            site = Site(read_settings(out / "sites" / name / "site.yaml"))
            on_site(name)
            score = _score(site, config, state, start, device, out / "alone" / name)
            write_atomically(file, json.dumps(asdict(score), indent=1).encode())
        found.append(SiteScore(**json.loads(file.read_text())))
    return found


def _score(
    site: Site, config: Config, state: State, start: Mapping[str, Tensor], device: torch.device, folder: Path
) -> SiteScore:
    """Compare the two models of a site; write its own to `folder` if it is the better one."""
    try:
        train, test = site.training_rows(config), site.held_out_rows(config)
    except SiteError:  # too few images that the stage can use
        return SiteScore(site.name, "", 0, 0, 0, None, None, None)
    federated = cast(SiteFineTuning, stages.of(config).training(device, site.cache, train))
    federated.parts.load_shared(state.encoder)
    tensors, _ = site.store.load(config.run.name, state.bases.get(site.name, ""))
    if tensors is not None:
        federated.load_local(tensors)
    alone = cast(SiteFineTuning, stages.of(config).training(device, site.cache, train))
    alone.parts.load_shared(start)
    groups = site.cache.index["group"].to_numpy()
    name = stages.of(config).figure
    counts = (len(train), len(test), len(set(groups[test])))
    unmeasured = SiteScore(site.name, name, *counts, None, None, None)
    try:
        for number in range(config.federation.rounds):
            alone.train_round(train, site=site.name, round_number=number, budget=math.inf)
    except NonFiniteLossError:  # at rates that suit the average; nothing to compare with
        return unmeasured
    if not len(test):
        return unmeasured
    kind, place = KINDS[config.run.stage], (site.cache, test, finetuned.spec_of(config).labels)
    predicted = [kind.predict(one.model, one.task.input, *place, place[-1]) for one in (federated, alone)]
    each, gain = kind.compare(*predicted, *place)
    score = SiteScore(site.name, name, *counts, *(figures[name] for figures in (*each, gain)))
    if score.worse:
        _save(config, alone.parts.shared() | alone.parts.local(), site.cache, train, folder)
    return score


def warnings(scores: Sequence[SiteScore]) -> list[str]:
    """Return a line for each site at which the federation's model is worse than the site's own."""
    return [
        f"{score.site}: the federation's model is worse than the site's own beyond the interval, {score.name} "
        f"{score.federated['value']:.3f} against {score.alone['value']:.3f}; use the site's own there"
        for score in scores
        if score.worse and score.federated and score.alone
    ]


def save_model(out: Path, config: Config, state: State, cache: Cache) -> Path:
    """Write the federation's model, with the patients it learned from, which a simulation knows."""
    train: Rows = np.zeros(0, dtype=np.int64)
    for name in state.roster:
        try:
            site = Site(read_settings(out / "sites" / name / "site.yaml"))
            train = np.append(train, site.training_rows(config))
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

"""The results of a simulation: probes against the untrained encoder, the report, the model card, a table."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from server.app import publish
from server.ledger import Ledger, State
from sim import alone, pictures
from sscxr import report, runs, stages
from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.evaluation import probe
from sscxr.evaluation.gains import Comparison
from sscxr.files import write_atomically
from sscxr.models.inference import Input
from sscxr.release.card import SiteData
from sscxr.report import SiteScore
from sscxr.report.record import HOLDINGS, NOTES
from sscxr.runs import PROBES, SCORES
from sscxr.stages.pretrain import SiteTraining, build_encoder
from sscxr.training.device import set_up


def finish(cache: Cache, config: Config, out: Path, console: Console) -> None:
    """Measure the encoder, release it, write the report, print what a person wants to know."""
    state = Ledger(out, config, resume=True).last()
    assert state is not None, "a run that ended has a checkpoint"
    if config.pretrains:
        _finish_pretraining(cache, config, out, state, console)
    else:
        _finish_tuning(cache, config, out, state, console)


def _finish_tuning(cache: Cache, config: Config, out: Path, state: State, console: Console) -> None:
    """Compare the federation's model with each site's own, site by site."""
    device = set_up(config)
    scores = alone.site_scores(
        out, config, state, device, lambda name: console.print(f"{name} alone ...", highlight=False)
    )
    warnings = alone.warnings(scores)
    if stages.of(config).shares_head:
        alone.save_model(out, config, state, cache)
    data = [_site_data(cache, out, name, config, state.cost_of(name)) for name in state.roster]
    folder = publish(config, state, out / "encoder", data, notes=[*warnings, *runs.read_list(out / NOTES)])
    page = report.write(out, scores=scores)
    write_atomically(out / SCORES, json.dumps([asdict(score) for score in scores], indent=1).encode())
    _print_sites(out, console)
    _print_scores(scores, console)
    for line in warnings:
        console.print(line, style="bold red", highlight=False)
    places = {"sites": out / HOLDINGS, "report": page, "encoder": folder}
    places |= {"model": out / "model"} if stages.of(config).shares_head else {}
    places |= {f"{score.site}'s own": out / "alone" / score.site for score in scores if score.worse}
    _print_places(places, console)


def _finish_pretraining(cache: Cache, config: Config, out: Path, state: State, console: Console) -> None:
    device = set_up(config)
    training = SiteTraining(config, device, cache)
    training.parts.load_shared(state.encoder)
    settings, data = config.probe, config.data
    wants = Input(config.encoder.img_size, data.mean, data.std, settings.batch_size, device)
    probes = probe.run(
        training.objective.encoder,
        build_encoder(config),
        cache,
        wants=wants,
        test_share=data.test_share,
        neighbours=settings.neighbours,
        resamples=settings.resamples,
        min_cases=settings.min_cases,
        cohorts=dict(settings.cohorts) or None,
        seed=config.run.seed,
    )
    sites = [_site_data(cache, out, name, config, state.cost_of(name)) for name in state.roster]
    notes = runs.read_list(out / NOTES)
    folder = publish(config, state, out / "encoder", sites, probes=probes, notes=notes)
    with pictures.guarded():
        pictures.show(cache, config, out, state.round)
        pictures.place(training.objective.encoder, cache, out, config, sorted(state.roster, key=runs.natural))
    page = report.write(out, probes=probes)
    # Last: this file marks a finished run.
    write_atomically(out / PROBES, json.dumps([asdict(pair) for pair in probes], indent=1).encode())
    _print_sites(out, console)
    _print_probes(probes, console)
    _print_places({"sites": out / HOLDINGS, "report": page, "encoder": folder}, console)


def _site_data(
    cache: Cache, out: Path, name: str, config: Config, cost: tuple[float, float] | None = None
) -> SiteData:
    groups = (out / "sites" / name / "groups.txt").read_text().split()
    rows = cache.rows(laterals=config.data.laterals)
    rows = stages.of(config).usable(cache, rows[~cache.held_out(config.data.test_share)[rows]])
    index = cache.index.iloc[rows]
    mine = index[index["group"].isin(groups)]
    licences = sorted({licence for licence in mine["licence"] if licence})
    return SiteData(name, len(mine), mine["group"].nunique(), licences, cost)


def _print_places(places: Mapping[str, Path], console: Console) -> None:
    """Print paths, one per line and unwrapped, so that they can be copied."""
    for what, path in places.items():
        console.print(f"{what:8} {path}", markup=False, highlight=False, soft_wrap=True)


def _table(title: str, words: Collection[str], headings: Sequence[str]) -> Table:
    """Return a table with these headings; columns that are not in `words` are numbers."""
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in words else "right", overflow="fold")
    return table


def _print_sites(out: Path, console: Console) -> None:
    sites = runs.read_sites(out / runs.SITES)
    costs = {
        site: cost
        for row in runs.read_rounds(out / runs.ROUNDS)
        for site, cost in row.get("privacy", {}).items()
    }
    headings = ("site", "images", "rounds", "first loss", "last loss", "MB sent", "seconds", "not folded")
    table = _table("sites", ("site",), (*headings, "epsilon") if costs else headings)
    for name, rows in sorted(sites.groupby("site"), key=lambda site: runs.natural(site[0])):
        good = rows[rows["outcome"] == "folded"].sort_values("round")
        losses = good["loss"].dropna()
        ends = [f"{losses.iloc[place]:.4f}" if len(losses) else "-" for place in (0, -1)]
        images = f"{int(good['images'].iloc[-1])}" if len(good) else "-"
        megabytes, seconds = good["bytes"].sum() / 1e6, good["seconds"].sum()
        missed = str(len(rows) - len(good))
        cost = [f"{costs[name][0]:.3g}" if name in costs else "-"] if costs else []
        table.add_row(
            str(name), images, str(len(good)), *ends, f"{megabytes:.1f}", f"{seconds:.1f}", missed, *cost
        )
    console.print(table)


def _print_probes(probes: Sequence[Comparison], console: Console) -> None:
    if not probes:
        console.print("no probe: no label has enough cases in training and test", highlight=False)
        return
    title = "probes: AUROC [95 % interval] on patients that were never trained on"
    words = ("cohort", "label", "probe")
    table = _table(title, words, (*words, "this encoder", "untrained", "gain"))
    for pair in probes:
        after, before = pair.trained, pair.untrained
        table.add_row(
            after.cohort,
            after.label,
            after.kind,
            f"{after.auroc:.3f} [{after.low:.3f}, {after.high:.3f}]",
            f"{before.auroc:.3f} [{before.low:.3f}, {before.high:.3f}]",
            f"{pair.gain:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]",
        )
    console.print(table)


def _print_scores(scores: Sequence[SiteScore], console: Console) -> None:
    title = "each site's held-out patients [95 % interval]: the federation's model, and the site's own"
    headings = ("site", "images", "tested on", "figure", "federated", "alone", "gap")
    table = _table(title, ("site", "figure"), headings)
    for score in sorted(scores, key=lambda one: runs.natural(one.site)):
        table.add_row(score.site, str(score.images), str(score.test_images), score.figure, *score.told())
    console.print(table)

"""The results of a simulation: probes against the untrained encoder, the report, the model card, a table."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from server.ledger import Ledger, State
from sim import alone, pictures, scores
from sim import few as few_labels
from sscxr import report, runs, stages
from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.evaluation import probe
from sscxr.evaluation.gains import Comparison
from sscxr.files import write_atomically
from sscxr.release.card import SiteData
from sscxr.report import SiteScore
from sscxr.report.record import HOLDINGS, NOTES
from sscxr.runs import ALONE, FEW, OWN, PROBES, SCORES
from sscxr.stages import publishing
from sscxr.training.device import set_up


def finish(cache: Cache, config: Config, out: Path, names: Sequence[str], console: Console) -> None:
    """Measure the encoder, release it, write the report, print what a person wants to know.

    Args:
        names: the sites that were trained alone, too.
    """
    state = Ledger(out, config, resume=True).last()
    assert state is not None, "a run that ended has a checkpoint"
    if config.pretrains:
        _finish_pretraining(cache, config, out, state, names, console)
    else:
        _finish_tuning(cache, config, out, state, names, console)


def _finish_tuning(
    cache: Cache, config: Config, out: Path, state: State, names: Sequence[str], console: Console
) -> None:
    """Compare the federation's model with each site's own, site by site."""
    compared = alone.tuned(out, config, names, state, set_up(config))
    warnings = alone.warnings(compared)
    if stages.of(config).shares_head:
        alone.save_model(out, config, state, cache)
    data = [_site_data(cache, out, name, config, state.cost_of(name)) for name in state.roster]
    notes = [*warnings, *runs.read_list(out / NOTES)]
    folder = publishing.write(config, state.encoder, state.round, out / "encoder", data, notes=notes)
    page = report.write(out, scores=compared)
    write_atomically(out / SCORES, json.dumps([asdict(score) for score in compared], indent=1).encode())
    _print_sites(out, console)
    _print_scores(compared, console)
    for line in warnings:
        console.print(line, style="bold red", highlight=False)
    places = {"sites": out / HOLDINGS, "report": page, "encoder": folder}
    places |= {"model": out / "model"} if stages.of(config).shares_head else {}
    _print_places(places | _own(compared, out), console)


def _own(scores: Sequence[SiteScore], out: Path) -> dict[str, Path]:
    """Return the folders of the models, or encoders, that are better at their sites than the federation's."""
    worse = {score.site for score in scores if score.worse and score.where == OWN}
    return {f"{site}'s own": out / alone.FOLDER / site for site in sorted(worse, key=runs.natural)}


def _finish_pretraining(
    cache: Cache, config: Config, out: Path, state: State, names: Sequence[str], console: Console
) -> None:
    tasks = scores.tasks_of(cache, config)
    start = stages.of(config).parts().shared()
    trained, untrained = (scores.of(cache, config, tensors, tasks) for tensors in (state.encoder, start))
    drawn = {"resamples": config.probe.resamples, "seed": config.run.seed}
    probes = [
        probe.compare(task, kind, one[kind], other[kind], **drawn)
        for task, one, other in zip(tasks, trained, untrained, strict=True)
        for kind in probe.KINDS
    ]
    few = few_labels.rows(cache, config, state.encoder, tasks)
    compared = alone.pretrained(out, config, names, tasks, trained)
    warnings = alone.warnings(compared)
    sites = [_site_data(cache, out, name, config, state.cost_of(name)) for name in state.roster]
    notes = [*warnings, *runs.read_list(out / NOTES)]
    folder = publishing.write(
        config, state.encoder, state.round, out / "encoder", sites, probes=probes, notes=notes
    )
    with pictures.guarded():
        pictures.show(cache, config, out, state.round)
        encoder, names = stages.of(config).encoder(state.encoder), sorted(state.roster, key=runs.natural)
        pictures.place(encoder, cache, out, config, names)
    page = report.write(out, probes=probes, scores=compared, few=few)
    write_atomically(out / FEW, json.dumps(few, indent=1).encode())
    write_atomically(out / ALONE, json.dumps([asdict(score) for score in compared], indent=1).encode())
    # Last: this file marks a finished run.
    write_atomically(out / PROBES, json.dumps([asdict(pair) for pair in probes], indent=1).encode())
    _print_sites(out, console)
    _print_probes(probes, console)
    _print_few(few, console)
    _print_scores(compared, console)
    for line in warnings:
        console.print(line, style="bold red", highlight=False)
    places = {"sites": out / HOLDINGS, "report": page, "encoder": folder}
    _print_places(places | _own(compared, out), console)


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
        shown = good.dropna(subset=["loss"])  # a secure sum or a private round has none
        ends = [f"{shown['loss'].iloc[place]:.4f}" if len(shown) else "-" for place in (0, -1)]
        counted = good["images"].dropna()
        images = f"{int(counted.iloc[-1])}" if len(counted) else "-"
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


def _print_few(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    if not rows:
        return
    title = (
        f"linear probes with {rows[0]['per_class']} patients a class: AUROC, mean of {rows[0]['draws']} draws"
    )
    table = _table(title, ("cohort", "label", "encoder"), ("cohort", "label", "encoder", "AUROC", "gain"))
    for row in rows:
        area, gain = row["auroc"], row["gain"]
        shown = f"{area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}]"
        more = f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" if gain else ""
        table.add_row(row["cohort"], row["label"], row["encoder"], shown, more)
    console.print(table)


def _print_scores(scores: Sequence[SiteScore], console: Console) -> None:
    scores = [score for score in scores if score.figure != "k-NN"]  # the report has these, too
    if not scores:
        return
    title = f"the federation's {scores[0].thing}, and the site's own [95 % interval], on held-out patients"
    headings = ("site", "figure", "patients", "images", "federated", "alone", "gap")
    table = _table(title, ("site", "figure", "patients"), headings)
    for score in sorted(scores, key=lambda one: runs.natural(one.site)):
        table.add_row(score.site, score.name, score.where, str(score.test_images), *score.told())
    console.print(table)

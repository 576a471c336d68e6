"""`python -m sim.compare`: its file, its images, its runs from end to end, and the arithmetic of its intervals."""

import csv
import json
import math
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from caches import make_cache
from scipy import stats
from simulations import SMALLEST

from server.ledger import LedgerError
from sim.compare import __main__ as program
from sim.compare import data, figures, file, jobs, measure, tables, worker
from sim.compare.worker import SCORES
from sscxr import config as configs
from sscxr.config import ConfigError
from sscxr.evaluation import metrics
from sscxr.evaluation.metrics import Interval
from sscxr.training.batches import batches_of_round, steps_of_round

FILE = """
base: smoke
clients: 2
settings: {run.threads: 1, federation.share_head: true}
epochs: 2
cells:
  one place: {clients: 1, partition: iid}
  two sites: {pretrain.lr: 2.0e-3}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


# ---- the file


def test_cells_are_settings_over_the_base(tmp_path: Path) -> None:
    plan = file.read(written(tmp_path, FILE), ["gmml.align=16", "epochs=4", "seeds=[3, 1]"])
    one, two = plan.cells
    assert (plan.name, plan.title, plan.seeds, plan.reference) == ("mine", "mine", (3, 1), "one place")
    assert (one.folder, one.clients, one.config.sim.partition, one.config.run.name) == (
        "one-place", 1, "iid", "one-place",
    )  # fmt: skip
    assert (two.clients, two.config.pretrain.lr, two.config.gmml.align) == (2, 2e-3, 16)  # type: ignore[attr-defined]
    assert two.config.federation.rounds == 4
    assert two.settings(1).run.seed == 1


def test_rounds_follow_from_the_views(tmp_path: Path) -> None:
    text = FILE.replace("pretrain.lr: 2.0e-3", "federation.local_epochs: 0.25, epochs: 3") + "points: 4\n"
    one, two = file.read(written(tmp_path, text)).cells
    assert (one.config.federation.rounds, one.config.federation.evaluate_every) == (2, 1)
    assert (two.config.federation.rounds, two.config.federation.evaluate_every) == (12, 3)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("clients: 2", "client: 2", "unknown entry 'client'; did you mean 'clients'"),
        ("clients: 2", "clients: two", "clients=two: expected a whole number from 1"),
        ("epochs: 2", "epochs: 0", "epochs=0: expected a number above 0"),
        ("epochs: 2", "epochs: 1.5", "cell 'one place': epochs=1.5 are 1.5 rounds"),
        ("epochs: 2", "seeds: [0]", "'epochs' is missing"),
        ("epochs: 2", "epochs: 2\nseeds: [0, 0]", "seeds=.0, 0.: name at least one, and each once"),
        ("epochs: 2", "epochs: 2\npatients: all", "patients='all' is neither"),
        ("epochs: 2", "epochs: 2\nreference: two site", "is not a cell; did you mean 'two sites'"),
        ("epochs: 2", "epochs: 2\ncohorts: {a: b}", "cohorts: expected lines"),
        ("base: smoke", "base: smok", "no config file 'smok'"),
        ("pretrain.lr: 2.0e-3", "pretrain.lrr: 1", "cell 'two sites': .*did you mean 'pretrain.lr'"),
        ("pretrain.lr: 2.0e-3", "partitions: iid", "unknown key 'partitions'; did you mean 'partition'"),
        ("pretrain.lr: 2.0e-3", "federation.rounds: 3", "federation.rounds: `epochs` sets it"),
        ("pretrain.lr: 2.0e-3", "data.test_share: 0.3", "data.test_share: all cells have the same"),
        ("pretrain.lr: 2.0e-3", "pretrain.objective: gmm", "is none of"),
        ("pretrain.lr: 2.0e-3", "untrained: true, alone: true", "exclude each other"),
        ("pretrain.lr: 2.0e-3", "alone: yes", "alone: expected true or false"),
        ("two sites", "one place", "'one place' .*twice"),
        ("two sites", "one-place", "would have the same folder, one-place"),
        ("two sites", "'***'", "no letter or digit"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(old: str, new: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says) as found:
        file.read(written(tmp_path, FILE.replace(old, new)))
    assert str(found.value).startswith(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(found.value)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    damaged = tmp_path / "mine.yaml"
    damaged.write_bytes(b"\x91\xff\x00title")
    with pytest.raises(ConfigError, match=r"mine.yaml: not a text in UTF-8"):
        file.read(str(damaged))


def test_a_damaged_job_is_one_line_that_names_it(tmp_path: Path) -> None:
    plan = file.read(written(tmp_path, FILE))
    job = jobs.Job(plan.cells[0], 0, "", tmp_path / "run", plan.cells[0].config)
    job.folder.mkdir()
    (job.folder / worker.SCORES).write_text("cohort\n")  # a finished run
    for damaged in (b"\x91{", b"[]", b"{}"):
        (job.folder / worker.JOB).write_bytes(damaged)
        with pytest.raises(LedgerError, match=r"job.json is damaged; delete its folder"):
            jobs._check(job)


def test_worst_sites_are_compared_between_cells_with_the_same_sites(tmp_path: Path) -> None:
    more = "  iid: {partition: iid}\n  alone: {alone: true}\n  as before: {pretrain.lr: 1.0e-4}\n"
    plan = file.read(written(tmp_path, FILE + more))
    assert figures._with_the_same_sites(plan) == {"two sites", "alone", "as before"}
    plan = file.read(written(tmp_path, FILE + more + "reference: iid\n"))
    assert figures._with_the_same_sites(plan) == {"iid"}


def test_an_override_that_is_no_entry_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="override 'epoch=1': not an entry"):
        file.read(written(tmp_path, FILE), ["epoch=1"])
    with pytest.raises(ConfigError, match=r"no comparison 'nowhere'; .*attribution"):
        file.read("nowhere")


def test_the_shipped_comparisons_can_be_read() -> None:
    folder = Path(file.__file__).parents[2] / "configs" / "compare"
    for path in folder.glob("*.yaml"):
        assert len(file.read(path.stem).cells) > 1


# ---- the images


def test_validation_leaves_out_the_patients_of_the_acceptance(tmp_path: Path) -> None:
    count, share = 400, 0.2
    split = np.random.default_rng(0).random(count)
    groups = [f"{number // 2:016x}" for number in range(count)]  # two images a patient
    split = np.repeat(split[::2], 2)
    split[0] = -0.5  # one image of a patient was published as a test image: both go
    images = np.random.default_rng(1).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    cache = make_cache(tmp_path / "cache", images, {"split": split, "group": groups})
    seen = data.without_test(cache, share, tmp_path / "seen")
    gone = set(cache.index["group"][split < share])
    kept = [row for row, group in enumerate(groups) if group not in gone]
    assert groups[0] in gone
    assert seen.index["image"].tolist() == cache.index["image"][kept].tolist()
    assert (seen.images == images[kept]).all()
    assert np.allclose(seen.column("split"), (split[kept] - share) / (1 - share))
    assert 0.1 < seen.held_out(share).mean() < 0.3  # validation patients
    assert not set(seen.index["group"][seen.held_out(share)]) & gone


# ---- the arithmetic


@pytest.mark.parametrize(
    ("images", "batch", "local"), [(37, 8, 0.25), (100, 16, 2.0), (5, 8, 0.125), (64, 8, 0.3)]
)
def test_views_are_the_images_that_the_batches_have(images: int, batch: int, local: float) -> None:
    config = configs.load("smoke", [f"pretrain.batch_size={batch}", f"federation.local_epochs={local}"])
    rows = np.arange(images)
    for number in range(7):
        steps = steps_of_round(images, batch, local, number)
        drawn = sum(len(one) for one in batches_of_round(rows, batch, steps, seed=0, site="a"))
        assert measure.views_of_round(images, config, number) == drawn


def test_views_of_a_round_of_gradients_are_those_of_its_one_step() -> None:
    sent = ["federation.sends=gradients", "federation.server.name=adamw", "federation.share_head=true"]
    config = configs.load("smoke", [*sent, "federation.local_epochs=0.25", "pretrain.batch_size=8"])
    assert [measure.views_of_round(100, config, number) for number in range(5)] == [25] * 5


def test_the_bootstrap_draws_the_same_patients_and_seeds_for_all_cells() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat([f"p{number}" for number in range(20)], 3)
    positive = rng.random(60) < 0.4
    scores = {
        cell: {seed: [rng.normal(size=60) + gain * positive] for seed in (0, 1, 2)}
        for cell, gain in (("a", 1.0), ("b", 0.5))
    }
    drawn = figures.resampled(scores, positive, groups, resamples=50)
    weights = np.concatenate(list(metrics.resampled(groups, 50, 0)))
    for cell, seeds in scores.items():
        for seed, (one,) in seeds.items():
            for resample in range(50):  # brute force: the images of the patients drawn, as often as drawn
                rows = np.repeat(np.arange(60), weights[resample])
                assert drawn[cell][seed][resample] == pytest.approx(metrics.auroc(one[rows], positive[rows]))
    gaps = np.array([drawn["a"][seed] - drawn["b"][seed] for seed in (0, 1, 2)])
    each = [figures.nested(np.array([drawn[cell][seed] for seed in (0, 1, 2)])) for cell in ("a", "b")]
    assert np.allclose(figures.nested(gaps), each[0] - each[1])  # the same seeds on both sides
    assert np.allclose(figures.nested(gaps[:1]), gaps[0])
    assert figures.nested(gaps).mean() == pytest.approx(gaps.mean(), abs=0.02)


def test_losses_have_students_interval_and_none_with_one_seed() -> None:
    found = figures.t_interval([1.0, 2.0, 4.0])
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem([1.0, 2.0, 4.0]))
    assert (found.value, found.low, found.high) == pytest.approx((7 / 3, low, high))
    assert math.isnan(figures.t_interval([1.0]).low)


def test_the_best_cell_is_named_with_those_that_are_not_told_apart() -> None:
    rows = [
        (cell, seed, "", 10, 0, measure.HELD_OUT, "", "", value + seed / 1000, 1.0)
        for cell, value in (("a", 0.5), ("b", 0.5), ("c", 0.7))
        for seed in (0, 1, 2)
    ]
    rows[4] = ("b", 1, "", 10, 0, measure.HELD_OUT, "", "", 0.52, 1.0)
    losses = figures.last(pd.DataFrame(rows, columns=list(measure.COLUMNS)), measure.HELD_OUT)
    figure = figures._of_losses(measure.HELD_OUT, losses, "c")
    assert (figure.best, figure.alike) == ("a", ["b"])
    assert (figure.verdict("a"), figure.verdict("b"), figure.verdict("c")) == ("better", "better", "")
    assert tables.verdicts([figure]) == ["held-out loss: the best is a; not told apart from it: b."]
    one = figures._of_losses(measure.HELD_OUT, {"a": {0: 0.5}, "b": {0: 0.6}}, "b")
    assert tables.verdicts([one]) == ["held-out loss: the best is a, of one seed and so without an interval."]
    assert figure.differences["a"].value == pytest.approx(-0.2)
    assert tables.interval(Interval(0.5, math.nan, math.nan), ".3f") == "0.500"


# ---- runs, from end to end


SMALL = [*SMALLEST[:-1], "sim.phantoms=72", "privacy.min_cell=2", "probe.min_cases=2", "resamples=100"]


def typed(out: Path, *more: str, name: str = "smoke") -> int:
    """Run `python -m sim.compare` as typed, in this process; its exit code."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before, sys.argv = sys.argv, ["sim.compare", name, "--out", str(out), "--jobs", "2", *SMALL, *more]
    try:
        program.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = before
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


def rows_of(out: Path) -> list[list[str]]:
    """The rows of `compare.csv` without the seconds."""
    with (out / "compare.csv").open(newline="") as handle:
        return [row[:-1] for row in csv.reader(handle)]


@pytest.mark.slow
def test_interrupted_and_resumed_it_is_as_if_it_never_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert typed(whole) == 0
    names = {row[5] for row in rows_of(whole)[1:]}
    assert {
        "held-out loss",
        "held-out loss, mean of the sites",
        "held-out loss, worst site",
        "loss on all held-out images",
        "training loss",
        "bytes up",
        "linear AUROC",
    } <= names
    assert "the best is" in capsys.readouterr().out
    report = (whole / "report.html").read_text()
    assert "Held-out loss by traffic" in report
    assert "| one place |" in (whole / "table.md").read_text()
    for run in (whole / "cells").glob("*/*"):
        held_out = json.loads((run / worker.ALL_SITES).read_text())
        assert 0 < held_out["loss"] < 2
        assert held_out["images"] == 10, "those of all sites"
        assert not list(run.glob("sites/*/state")), "kept what only a resumed run needs"

    class Once(jobs._Pool):
        """Ctrl-C comes when the first run has ended."""

        def ended(self) -> list[tuple[jobs.Job, int, float]]:
            found = super().ended()
            if found:
                os.kill(os.getpid(), signal.SIGINT)
            return found

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_Pool", Once)
        patch.setattr(jobs, "_LOOK", 0.01)
        assert typed(out, "--jobs", "1") == 128 + signal.SIGINT
    assert "finished work is saved. To continue: python -m sim.compare smoke" in capsys.readouterr().err
    done = list(out.glob(f"cells/*/*/{SCORES}"))
    assert len(done) == 1
    changed = done[0].stat().st_mtime_ns
    assert typed(out) == 0
    assert done[0].stat().st_mtime_ns == changed, "a finished run was run again"
    assert rows_of(out) == rows_of(whole)

    capsys.readouterr()
    # Settings that differ from those of a finished run are not passed over.
    assert typed(out, "pretrain.lr=0.02") == 1
    said = capsys.readouterr().err
    assert "was run with other settings (pretrain.lr); delete that folder" in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_a_site_alone_an_untrained_encoder_and_a_failed_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        FILE.replace("epochs: 2", "epochs: 1\npatients: validation\nreference: alone")
        .replace(
            "one place: {clients: 1, partition: iid}", "untrained: {untrained: true}\n  alone: {alone: true}"
        )
        .replace("pretrain.lr: 2.0e-3", "encoder.start: /nowhere/encoder.pth")
    )
    out = tmp_path / "out"
    assert typed(out, "sim.phantoms=96", name=written(tmp_path, text)) == 1
    said = capsys.readouterr().err
    assert "two sites, seed 0: failed: " in said
    assert said.splitlines()[-1].startswith("error: 1 runs failed: two sites, seed 0")
    rows = rows_of(out)
    sites = {row[2] for row in rows if row[0] == "alone"}
    assert len(sites) == 3  # each, and "" for both
    assert {"linear AUROC", "linear AUROC, worst site", "loss on all held-out images, worst site"} <= {
        row[5] for row in rows if row[0] == "alone" and not row[2]
    }
    untrained = [row for row in rows if row[0] == "untrained"]
    assert {row[5] for row in untrained} == {"linear AUROC", "k-NN AUROC"}
    assert {(row[3], row[4]) for row in untrained} == {("0", "0")}
    assert "two sites: without seed 0" in (out / "report.html").read_text()

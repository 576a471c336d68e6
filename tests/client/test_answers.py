"""Answers of a site never differ by a few patients, whatever a run asks for and however the cache changes."""

import itertools
import json
from pathlib import Path
from typing import Any

import federation as fed
import numpy as np
import pytest
from answers import said
from caches import make_cache

from client import answers
from client.doctor import data
from client.doctor.checks import to_json
from client.settings import SiteError, SiteSettings
from client.site import SHARES, Site

LEAST, PATIENTS = 10, 200


def site(folder: Path, patients: list[int]) -> Site:
    """One image a patient; every seventh a lateral, label a known of most, label b of few."""
    number = np.asarray(patients)
    index: dict[str, Any] = {
        "image": [f"i{n}" for n in number],
        "group": [f"g{n}" for n in number],
        "split": (number * 0.6180339887) % 1,
        "view": np.where(number % 7 == 0, "L", "PA"),
        "sex": np.where(number % 3 == 0, "F", "M"),
        "label:edema": np.where(number % 5 == 0, np.nan, number % 2),
        "label:mass": np.where(number < 4, 1.0, np.nan),
    }
    make_cache(folder / "cache", np.full((len(number), 8, 8), 9, np.uint8), index)
    return Site(SiteSettings("a", str(folder / "cache"), str(folder / "state"), min_cell=LEAST))


def numbers(at: Site, *overrides: str) -> tuple[int, int] | str:
    """What a run learns: images to train on and held out, or the word of the refusal."""
    config = fed.settings(*overrides)
    try:
        return len(at.training_rows(config)), len(at.held_out_rows(config))
    except SiteError as error:
        return error.failure


@pytest.mark.slow
def test_no_setting_of_a_run_gives_numbers_that_differ_by_a_few_patients(tmp_path: Path) -> None:
    here = site(tmp_path, list(range(PATIENTS)))
    told = [set(range(PATIENTS))] if here.told_counts(fed.settings()) != "{}" else []
    stages = (["run.stage=pretrain"], ["run.stage=classify", "classify.labels=[edema]"])
    for share, laterals, stage in itertools.product(SHARES, ("false", "true"), stages):
        config = fed.settings(f"data.test_share={share}", f"data.laterals={laterals}", *stage)
        try:
            told += [set(rows.tolist()) for rows in (here.training_rows(config), here.held_out_rows(config))]
        except SiteError:
            continue
    told = [rows for rows in told if rows]
    assert len({len(rows) for rows in told}) > 4
    for one, other in itertools.permutations(told, 2):
        assert len(one - other) == 0 or len(one - other) >= LEAST
        assert len(one & other) == 0 or len(one & other) >= LEAST
    assert numbers(here, "run.stage=classify", "classify.labels=[mass]") == "few images"
    for share in ("0.19", "0.2000001"):
        assert numbers(here, f"data.test_share={share}") == "not allowed"
    assert numbers(here, "privacy.min_cell=1") == numbers(here, "privacy.min_cell=190")
    kept = answers.Answers(tmp_path / "state", LEAST)
    assert kept.images.size
    assert (tmp_path / "state" / answers.FILE).stat().st_mode & 0o077 == 0


def test_counts_are_of_the_cache_whatever_the_run(tmp_path: Path) -> None:
    here = site(tmp_path, list(range(PATIENTS)))
    first = here.told_counts(fed.settings())
    assert json.loads(first)["sex"] == {"M": 133}  # of all; nobody is unknown, and a second cell hides it
    others = ("run.name=x", "privacy.min_cell=50", "data.test_share=0.4")
    assert {here.told_counts(fed.settings(one)) for one in others} == {first}


@pytest.mark.parametrize("change", ["one more", "one less"])
def test_a_patient_who_came_or_went_changes_no_number(tmp_path: Path, change: str) -> None:
    before = list(range(PATIENTS))
    trained = next(n for n in before if (n * 0.6180339887) % 1 > 0.5 and n % 7)
    after = [*before, PATIENTS + 1] if change == "one more" else [n for n in before if n != trained]
    here = site(tmp_path, before)
    told, counts = numbers(here), here.told_counts(fed.settings())
    here = site(tmp_path, after)
    assert numbers(here) == told
    assert here.told_counts(fed.settings("run.name=later")) == counts
    gone = set(here.cache.index["image"].iloc[here.training_rows(fed.settings())])
    assert f"i{trained}" not in gone or change == "one more"
    assert f"i{PATIENTS + 1}" not in gone


def test_a_batch_of_patients_is_taken_in(tmp_path: Path) -> None:
    here = site(tmp_path, list(range(PATIENTS)))
    told, counts = numbers(here), here.told_counts(fed.settings())
    here = site(tmp_path, list(range(2 * PATIENTS)))
    assert numbers(here) == told, "the run that has begun reads the same images to its end"
    more, now = numbers(here, "run.name=later"), here.told_counts(fed.settings("run.name=later"))
    assert isinstance(told, tuple)
    assert isinstance(more, tuple)
    assert min(more[0] - told[0], more[1] - told[1]) > LEAST
    sexes = [json.loads(one)["sex"] for one in (counts, now)]
    assert all(sexes[1][cell] - sexes[0][cell] >= LEAST for cell in sexes[0])


def test_a_coordinator_who_moves_the_held_out_share_past_a_patient_learns_nothing(site: Path) -> None:
    """The attack by messages: other shares, run names, stages and thresholds, and a known patient's place."""
    make_cache(
        site.parent / "cache",
        np.random.default_rng(0).integers(0, 256, (PATIENTS, 32, 32), dtype=np.uint8),
        {
            "split": (np.arange(PATIENTS) + 0.5) / PATIENTS,
            "group": [f"g{number}" for number in range(PATIENTS)],
            "sex": np.where(np.arange(PATIENTS) == 41, "F", "M"),
        },
    )
    site.write_text(site.read_text().replace("min_cell: 1", f"min_cell: {LEAST}"))
    numbers, counts = set(), set()
    place = 41 / PATIENTS  # of the only patient whose sex is F
    asks = [f"data.test_share={share}" for share in (place - 0.0051, place, place + 0.0051, 0.2, 0.25)]
    for number, share in enumerate([*asks, "data.test_share=0.2"]):
        config = fed.settings(share, f"run.name=run-{number}", "privacy.min_cell=1", "federation.rounds=9")
        hello = said(fed.ask(config, site, "query", encoder=False))
        evaluated = said(fed.ask(config, site, "evaluate"))
        assert ("failure" in hello) == ("failure" in evaluated)
        if "failure" not in hello:
            numbers |= {int(hello["images"]), int(evaluated["images"]), PATIENTS}  # type: ignore[call-overload]
            counts.add(evaluated["counts"])
    assert len(counts) == 1
    assert "F" not in json.loads(str(counts.pop()))["sex"]
    assert all(abs(one - other) >= LEAST for one, other in itertools.combinations(numbers, 2))
    assert len(numbers) > 2


def test_of_old_runs_the_oldest_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_RUNS", 4)
    here = site(tmp_path, list(range(PATIENTS)))
    for number in range(7):
        numbers(here, f"run.name=run-{number}")
        notes = answers.Answers(tmp_path / "state", LEAST).notes
        kept = [name.rpartition(" ")[2] for name, note in notes.items() if note.get("pinned")]
        assert kept == [f"run-{n}" for n in range(max(0, number - 3), number + 1)]


def test_the_doctor_says_how_many_images_wait(tmp_path: Path) -> None:
    here = site(tmp_path, list(range(PATIENTS)))
    assert here.waiting(fed.settings()) == 0, "a site that was never asked"
    numbers(here)
    here = site(tmp_path, list(range(PATIENTS + 3)))
    said = [line for check in data.cache(here.settings, fed.settings()) for line in check.lines()]
    assert any("3 more than runs have had: they wait until they are of 10 patients" in line for line in said)
    assert "3 more" not in to_json(list(data.cache(here.settings, fed.settings())))

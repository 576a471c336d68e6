"""Differential privacy as a site sets and keeps it: what it refuses, what it charges, and what it does not send."""

import json
import os
from pathlib import Path
from typing import Any

import federation as fed
import numpy as np
import pytest
from answers import failure, said, update
from omegaconf import OmegaConf

from client import budget, work
from client.settings import SiteError, read_settings
from sscxr import stages
from sscxr.config import Config, ConfigError
from sscxr.federation.accounting import Charge, epsilon
from sscxr.training.batches import steps_of_round

PATIENTS, DELTA = 50, 1e-3
PRIVATE = (
    *("gmml.kinds=[noise]", "privacy.noise=2", "privacy.clip=0.5", "pretrain.batch_size=8"),
    *("federation.rounds=2", "federation.local_epochs=0.5"),
)


def config(*overrides: str) -> Config:
    return fed.settings(*PRIVATE, *overrides)


def hospital(folder: Path, **privacy: Any) -> Path:
    """Forty patients, two images of each."""
    index = {"group": [f"p{n // 2}" for n in range(80)], "label:a": [n // 2 % 2 for n in range(80)]}
    file = fed.make_site(folder, "anna", images=80, **index)
    change(file, privacy={"patients": PATIENTS, "delta": DELTA} | privacy)
    return file


def change(file: Path, **settings: Any) -> None:
    file.write_text(OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.load(file), settings)))


def charge(rounds: int = 1, *, noise: float = 2.0) -> Charge:
    steps = sum(len(steps_of_round(PATIENTS, 8, 0.5, number)) for number in range(rounds))
    return Charge(noise, 8 / PATIENTS, steps)


def spent(site: Path) -> list[budget.Spent]:
    return budget.read(site.parent / "state")


def test_a_round_sends_nothing_of_the_images_but_the_update_and_is_charged(tmp_path: Path) -> None:
    site = hospital(tmp_path)
    (steps,) = (charge().steps,)
    told = said(fed.ask(config(), site))
    del told["fingerprint"]
    cost = epsilon([charge()], DELTA)
    assert told == {
        **{"site": "anna", "round": 0, "attempt": 0, "images": PATIENTS, "steps": steps, "state": "new"},
        **{"loss": -1.0, "seconds": 0.0, "epsilon": pytest.approx(cost, abs=1e-6), "delta": DELTA},
    }
    assert [(one.run, one.stage, one.round, one.charge) for one in spent(site)] == [
        ("smoke", "pretrain", 0, charge())
    ]
    assert said(fed.ask(config(), site, "query"))["images"] == PATIENTS
    assert said(fed.ask(config(), site, "evaluate")) == {
        **{"site": "anna", "round": 0, "images": 0, "loss": 0.0, "score": -1.0, "counts": "{}"}
    }
    again = said(fed.ask(config(), site, attempt=1))
    assert again["epsilon"] == pytest.approx(epsilon([charge(), charge()], DELTA), abs=1e-6)
    other = said(fed.ask(config("run.name=other"), site, run="other"))
    assert other["epsilon"] == pytest.approx(cost, abs=1e-6), "of this run; the site's own sum has all three"
    assert list(budget.lines(read_settings(site)))[-1].startswith(
        f"all runs: epsilon {epsilon([charge()] * 3, DELTA):.3g} "
    )


def test_updates_differ_each_time_and_no_seed_of_the_run_gives_them_again(tmp_path: Path) -> None:
    site = hospital(tmp_path)
    replies = [update(fed.ask(config(), site, attempt=attempt)) for attempt in range(2)]
    assert replies[0] != replies[1]


def test_the_budget_is_of_all_runs_and_stages_together(tmp_path: Path) -> None:
    run = charge(2)
    both = epsilon([run, Charge(run.noise, run.rate, charge().steps)], DELTA)
    site = hospital(tmp_path, epsilon=both * 1.0001)
    assert "failure" not in said(fed.ask(config(), site, "query")), "both rounds fit"
    assert "failure" not in said(fed.ask(config("run.name=other"), site, run="other"))
    assert "failure" not in said(fed.ask(config(), site, "query")), "and one of another run"
    for number in range(2):
        assert "failure" not in said(fed.ask(config(), site, round=number))
        asked = fed.ask(config("run.name=other"), site, "query", run="other")
        assert failure(asked) == "privacy", "a run that could not be finished is not begun"
    assert failure(fed.ask(config(), site, attempt=1)) == "privacy"
    classify = ("run.stage=classify", "classify.labels=[a]", "classify.balance=false")
    site_stages = ["pretrain", "classify"]
    change(site, stages=site_stages)
    small = config(*classify, "finetune.batch_size=8", "run.name=third")
    assert failure(fed.ask(small, site, run="third", encoder=False)) == "privacy"
    assert len(spent(site)) == 3, "a refusal costs nothing"


def test_a_site_that_demands_privacy_refuses_other_training(tmp_path: Path, caplog: Any) -> None:
    site = hospital(tmp_path, epsilon=8.0)
    for kind in ("query", "train", "evaluate"):
        assert failure(fed.ask(config("privacy.noise=0"), site, kind)) == "not allowed"
    assert "privacy.epsilon=8" in caplog.text
    change(site, privacy={"epsilon": 0.0, "patients": 0})
    assert failure(fed.ask(config(), site)) == "settings"
    assert "set privacy.patients" in caplog.text


def test_a_site_raises_the_noise_to_its_own(tmp_path: Path) -> None:
    site = hospital(tmp_path, noise=3.0)
    told = said(fed.ask(config(), site))
    assert told["epsilon"] == pytest.approx(epsilon([charge(noise=3.0)], DELTA), abs=1e-6)


def test_the_state_of_a_run_without_privacy_is_not_carried_over(tmp_path: Path) -> None:
    """Its moments would enter the update; a run may take the name of an earlier one."""
    site = hospital(tmp_path)
    open_run = config("privacy.noise=0")
    assert said(fed.ask(open_run, site))["state"] == "new"
    assert said(fed.ask(open_run, site, round=1, base="r00000-a00"))["state"] == "kept"
    assert said(fed.ask(config(), site, round=1, attempt=1, base="r00001-a00"))["state"] == "lost"
    assert said(fed.ask(config(), site, round=1, attempt=2, base="r00001-a01"))["state"] == "kept"


@pytest.mark.parametrize("tail", [b'{"time": "2026', b"", b"x" * 5000])
def test_an_unfinished_charge_is_dropped_and_a_damaged_one_refuses_all(tmp_path: Path, tail: bytes) -> None:
    site = hospital(tmp_path)
    file = site.parent / "state" / budget.FILE
    fed.ask(config(), site)
    file.write_bytes(file.read_bytes() + tail)
    assert len(spent(site)) == 1
    fed.ask(config(), site, attempt=1)
    assert len(spent(site)) == 2
    for bad in (b"{}\n", b'{"noise": 0}\n', file.read_bytes().replace(b'"steps": ', b'"steps": -')):
        whole = file.read_bytes()
        file.write_bytes(whole + bad)
        with pytest.raises(SiteError, match="damaged"):
            budget.read(file.parent)
        assert failure(fed.ask(config(), site, attempt=2)) == "privacy"
        file.write_bytes(whole)
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_charge_is_on_the_disk_before_the_reply_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, synced = hospital(tmp_path), []

    def killed(*given: object, **changes: object) -> None:
        raise SystemExit

    monkeypatch.setattr(work, "replace", killed)  # makes the reply
    monkeypatch.setattr(budget.os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    with pytest.raises(SystemExit):
        fed.ask(config(), site)
    file = site.parent / "state" / budget.FILE
    assert [one.charge for one in spent(site)] == [charge()]
    assert file.stat().st_size in synced


def test_what_couples_images_is_refused_in_one_line() -> None:
    for overrides, reason in [
        (["gmml.kinds=[noise,alien]"], "other patients' images"),
        (["pretrain.objective=dino"], "centre is a mean"),
        (["run.stage=classify", "classify.labels=[a]"], "set classify.balance=false"),
    ]:
        with pytest.raises(ConfigError, match=reason) as caught:
            stages.of(fed.settings("privacy.noise=1", *overrides))
        assert "\n" not in str(caught.value)


def test_only_whole_settings_are_taken(tmp_path: Path) -> None:
    for bad, named in [
        ({"epsilon": -1}, "privacy.epsilon"),
        ({"delta": 0.1}, "privacy.delta"),
        ({"delta": 0.0}, "privacy.delta"),
        ({"epsilon": 8, "patients": 0}, "without privacy.patients"),
    ]:
        with pytest.raises(SiteError, match=named):
            read_settings(hospital(tmp_path / named / str(len(str(bad))), **bad))


def test_json_has_a_line_for_each_update(tmp_path: Path) -> None:
    site = hospital(tmp_path)
    fed.ask(config(), site)
    (line,) = (site.parent / "state" / budget.FILE).read_text().splitlines()
    assert set(json.loads(line)) == {"time", "run", "stage", "round", "attempt", "noise", "rate", "steps"}
    assert np.isclose(json.loads(line)["rate"], 8 / PATIENTS)

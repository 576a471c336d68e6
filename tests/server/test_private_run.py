"""A run whose sites train with differential privacy: what its ledger, report and card state."""

import json
from pathlib import Path

import federation as fed
import pytest
import secure
from omegaconf import OmegaConf

from client import app as client
from server.app import run
from sscxr import report
from sscxr.federation.accounting import Charge, epsilon


def test_epsilon_is_in_the_ledger_the_report_and_the_card(tmp_path: Path) -> None:
    sites, patients = fed.make_sites(tmp_path, ["anna", "bona"], images=20), {"anna": 16, "bona": 32}
    for file in sites:
        privacy = {"privacy": {"patients": patients[file.parent.name], "delta": 1e-3}}
        file.write_text(OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.load(file), privacy)))
    config = fed.settings(
        *("privacy.noise=2", "gmml.kinds=[noise]", "pretrain.batch_size=8", "federation.rounds=2"),
        *("federation.evaluate_every=1", "federation.moments=both"),
    )
    out = tmp_path / "out"
    run(fed.Grid(client.app, sites), config, out, resume=False)
    records = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    for number, record in enumerate(records, 1):
        for name, expected in patients.items():
            cost = epsilon([Charge(2.0, 8 / expected, number * expected // 8)], 1e-3)
            assert record["privacy"][name] == [pytest.approx(cost, abs=1e-6), 1e-3]
        assert (record["loss"], record["held_out_loss"], record["images"]) == (None, None, 48)
    anna, bona = (records[-1]["privacy"][name][0] for name in ("anna", "bona"))
    card = (out / "encoder" / "README.md").read_text()
    assert "differentially private" in card
    assert "no\nformal privacy" not in card
    page = report.write(out).read_text()
    for shown in (f"{anna:.3g}", f"{bona:.3g}"):
        assert shown in card
        assert shown in page
    assert f"epsilon is {min(anna, bona):.3g} to {max(anna, bona):.3g}" in page


def test_masked_and_private_a_sum_has_no_loss_and_each_site_is_charged(tmp_path: Path) -> None:
    """The charge is on the disk although the reply does not state it; a site without budget sends nothing."""
    files = secure.sites(tmp_path, images=20)
    for number, file in enumerate(files):
        terms = {"patients": 16, "delta": 1e-3, "epsilon": 1e-3 if number == 4 else 50.0}
        file.write_text(OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.load(file), {"privacy": terms})))
    config = secure.settings(
        files, "privacy.noise=2", "gmml.kinds=[noise]", "pretrain.batch_size=8", "federation.rounds=1"
    )
    config.federation.sites = [file.parent.name for file in files[:4]]
    fed.approve(config, *files)
    post = secure.Post(files[:4], config)
    fold = secure.fold_of(post, config, files[:4])
    assert sorted(fold.folded) == [file.parent.name for file in files[:4]]
    images, loss = fold.trained()
    assert (images, loss) == (64, None)
    for reply in post.answered.values():
        assert "loss" not in dict(reply.content.config_records["sscxr"])
    for file in files[:4]:
        (line,) = (file.parent / "state" / "_privacy.jsonl").read_text().splitlines()
        spent = json.loads(line)
        assert (spent["noise"], spent["rate"], spent["steps"]) == (2.0, 8 / 16, 2)
    refused = fed.ask(config, files[4], "query")
    assert refused.content.config_records["sscxr"]["failure"] == "privacy"
    assert not (files[4].parent / "state" / "_privacy.jsonl").exists()

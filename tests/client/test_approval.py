"""A run does at a site what the site has approved, and nothing else; approving changes one line of `site.yaml`."""

import logging
import re
from pathlib import Path
from typing import Any

import federation as fed
import pytest
import typer
from answers import failure, said, states
from typer.testing import CliRunner

from client import commands
from client.policy import approve
from client.settings import init, read_settings
from server.commands import describe
from sscxr import config as configs
from sscxr import stages
from sscxr.config import ConfigError
from sscxr.federation import approval, wire

KINDS = ("query", "train", "evaluate")


def run(*arguments: object, answer: str = "") -> Any:
    app = typer.Typer()
    commands.add(app)
    return CliRunner().invoke(app, [str(one) for one in arguments], input=answer)


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """A site as `sscxr site init` leaves it, its join file beside it."""
    describe("smoke", list(fed.SMALL), name="lungs", superlink="localhost:1", ca=None).write(
        tmp_path / "join.yaml"
    )
    return init(tmp_path / "site", name="anna", join=tmp_path / "join.yaml")


def test_nothing_runs_before_it_is_approved(site: Path) -> None:
    for kind in KINDS:
        assert failure(fed.ask(fed.settings(), site, kind, approved=False)) == "not approved"
    assert not states(site)
    assert said(fed.ask(fed.settings(), site))["images"] == 8


# What an update contains, and what is reported beside it.
DECIDE = (
    *(
        "encoder.patch_size=4",
        "encoder.start=x.pth",
        "pretrain.lr=0.01",
        "pretrain.batch_size=8",
        "data.test_share=0.3",
    ),
    *(
        "data.laterals=true",
        "gmml.drop_budget=[0.1,0.2]",
        "augment.flip=0.5",
        "run.threads=2",
        "run.compile=true",
    ),
    *(
        "federation.uplink=fp32",
        "federation.downlink=fp16",
        "federation.local_epochs=2",
        "federation.rounds=9",
    ),
    *(
        "federation.share_head=true",
        "federation.max_images=5",
        "federation.evaluate_every=1",
        "privacy.min_cell=3",
    ),
)


@pytest.mark.parametrize("setting", DECIDE)
def test_every_setting_that_decides_is_pinned_and_the_log_names_it(
    tmp_path: Path, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    known, other = fed.settings(), fed.settings(setting)
    assert approval.digest(known) != approval.digest(other)
    with pytest.raises(approval.NotApprovedError, match=re.escape(setting.partition("=")[0])):
        approval.check(other, [approval.digest(known)], known)
    approval.check(other, [approval.digest(known), approval.digest(other)], known)


def test_what_decides_nothing_is_free() -> None:
    free = (
        "run.name=other",
        "run.seed=3",
        "federation.deadline=7",
        "federation.sites=[a]",
        "probe.neighbours=3",
    )
    assert approval.digest(fed.settings(*free)) == approval.digest(fed.settings())


def test_the_log_of_a_site_names_what_differs(hospital: Path, caplog: pytest.LogCaptureFixture) -> None:
    approve(hospital, hospital.parent / "join.yaml")
    reply = fed.ask(fed.settings("federation.uplink=fp32"), hospital, "query", approved=False, encoder=False)
    assert failure(reply) == "not approved"
    assert "differs from the approved one in federation.uplink" in caplog.text


def test_init_approves_nothing_and_approving_changes_one_line(hospital: Path) -> None:
    join, before = hospital.parent / "join.yaml", hospital.read_text().splitlines()
    assert not read_settings(hospital).approved
    refused = run("site", "approve", join, answer="n\n")
    assert refused.exit_code == 1
    assert hospital.read_text().splitlines() == before
    for words in ("4 x 4 patches", "mixes 16 images", "few patches an image", "fp16", "rounds"):
        assert words in refused.output
    assert run("site", "approve", join, answer="y\n").exit_code == 0
    own = approval.digest(fed.settings())
    assert read_settings(hospital).approved == [own]
    assert run("site", "approved", hospital).stdout.split() == [own]
    after = hospital.read_text().splitlines()
    added = [line for line in after if line not in before]
    assert [line for line in before if line not in after] == [
        line for line in before if line.startswith("approved:")
    ]
    assert [line.split()[:2] for line in added] == [["approved:", "#"], ["-", own]]
    assert run("site", "approve", join, "--yes").exit_code == 0
    assert hospital.read_text().splitlines() == after, "a second time changes nothing"
    hospital.write_text("\n".join(line for line in after if own not in line))
    assert not read_settings(hospital).approved, "deleting its line withdraws it"


def test_what_the_site_s_limits_exclude_cannot_be_approved(hospital: Path) -> None:
    hospital.write_text(hospital.read_text().replace("img_size: [8, 4096]", "img_size: [64, 4096]"))
    before = hospital.read_text()
    with pytest.raises(ConfigError, match=r"img_size=32; site.yaml allows limits.img_size=\[64, 4096\]"):
        approve(hospital, hospital.parent / "join.yaml")
    assert hospital.read_text() == before


@pytest.mark.parametrize(
    "written",
    ["approved: []", "approved:", "approved: [{0}]", "approved:\n- {0}", "approved:\n# two\n    - {0}", ""],
)
def test_a_second_recipe_is_added_however_the_list_is_written(tmp_path: Path, written: str) -> None:
    first, second = "a" * 64, "b" * 64
    text = f"name: anna  # here\n{written.format(first)}\ncache: cache\nstate: state\n"
    (tmp_path / "site.yaml").write_text(approval.pinned(text, second, "lungs"))
    found = read_settings(tmp_path / "site.yaml").approved or []
    assert sorted(found) == ([first] if "{0}" in written else []) + [second]
    assert "name: anna  # here\n" in (tmp_path / "site.yaml").read_text()


def test_three_recipes_are_added_to_what_init_writes(tmp_path: Path) -> None:
    file, digests = init(tmp_path, name="anna"), ["a" * 64, "b" * 64, "c" * 64]
    for digest in digests:
        file.write_text(approval.pinned(file.read_text(), digest, "lungs"))
    assert sorted(read_settings(file).approved or []) == digests


@pytest.mark.parametrize("value", ["yes", "[any]", "['*']", "[0123]"])
def test_there_is_no_word_for_every_recipe(site: Path, value: str) -> None:
    site.write_text(site.read_text() + f"approved: {value}\n")
    assert failure(fed.ask(fed.settings(), site, "query", encoder=False, approved=False)) == "settings"


def test_a_site_asks_for_more_images_an_update_than_the_ranges_do(site: Path) -> None:
    assert said(fed.ask(fed.settings(), site))["images"] == 8
    site.write_text(site.read_text().replace("min_mixed: 0", "min_mixed: 9"))
    assert failure(fed.ask(fed.settings(), site)) == "few images"


def test_the_server_names_who_has_not_approved_before_the_first_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from client import app as client
    from server.app import run as run_server
    from server.mail import RunStopped
    from sim.engine import InlineGrid

    sites = fed.make_sites(tmp_path, ["anna", "bona"])
    config = fed.settings("federation.sites=[anna,bona]", "federation.quorum=1", "federation.rounds=1")
    fed.approve(config, sites[0])
    caplog.set_level(logging.WARNING, logger="sscxr.server")
    with pytest.raises(RunStopped, match=re.escape(f"bona ({wire.FAILURES['not approved']})")):
        run_server(InlineGrid(client.app, sites), config, tmp_path / "out", resume=False)
    assert f"bona does not join yet: {wire.FAILURES['not approved']}" in caplog.text


@pytest.mark.parametrize("recipe", ["default", "demo", "smoke", "sscxr"])
def test_the_words_of_a_shipped_recipe(recipe: str) -> None:
    config = configs.load(recipe)
    found = {word.what: word for word in approval.words(config, stages.of(config).learns)}
    assert {
        "learns",
        "model",
        "a step",
        "a round",
        "rounds",
        "leaves",
        "sent in",
        "smallest count",
    } <= found.keys()
    marked = {what for what, word in found.items() if word.mark}
    # Batches of 8 are the least there may be, and the head's update leaves too.
    assert marked == ({"a step", "leaves"} if recipe == "demo" else set())

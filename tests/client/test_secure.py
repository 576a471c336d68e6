"""A secure sum through site services, and what a hospital is shown before it takes part."""

from contextlib import ExitStack
from pathlib import Path

import federation as fed
import secure
import services
import torch

from client import app as client
from client import sent
from client.doctor import machine
from client.settings import read_settings
from sscxr.federation import approval, floors, frames


def test_a_round_through_site_services_is_that_of_one_process(tmp_path: Path) -> None:
    """Three hospitals with a service each; every message is in its record of what left, once."""
    names, found = secure.NAMES[:3], {}
    for where in ("services", "inline"):
        files = secure.sites(tmp_path / where, names)
        config = secure.settings(files, "federation.rounds=1")
        fed.approve(config, *files)
        with ExitStack() as stack:
            grid = fed.Grid(client.app, files)
            if where == "services":
                sockets = []
                for file in files:
                    folder = stack.enter_context(services.short_folder())
                    sockets.append(folder / "run" / "site.sock")
                    stack.enter_context(services.in_a_thread(file, sockets[-1]))
                grid = services.Grid(client.app, files, sockets)
            found[where] = fed.federation(grid, config, tmp_path / f"{where}-run").run().encoder
    assert all(torch.equal(found["services"][name], found["inline"][name]) for name in found["inline"])
    for name in names:
        kinds = [one.kind for one in sent.read(tmp_path / "services" / name / "state")]
        assert kinds == ["query", "keys", "shares", "train", "survivors", "unmask"]
        assert set(kinds) | {"evaluate"} == set(frames.KINDS)


def test_a_hospital_is_shown_the_members_and_approves_them_with_the_recipe(tmp_path: Path) -> None:
    files = secure.sites(tmp_path)
    config = secure.settings(files)
    shown = {word.value for word in approval.words(config, "") if word.what == "member"}
    assert shown == {f"{name} {key}" for name, key in config.federation.members.items()}
    before = approval.digest(config)
    config.federation.members["anna"] = "SHA256:" + 43 * "A"
    assert approval.digest(config) != before
    config.federation.threshold = 0.5
    assert approval.digest(config) != before


def test_a_sum_is_of_more_than_half_of_the_members_and_of_three_at_least(tmp_path: Path) -> None:
    config = fed.settings(*secure.SECURE)
    for count, share, least in (
        (3, 0.5, 3),
        (3, 0.667, 3),
        (4, 0.5, 3),
        (8, 0.5, 5),
        (8, 0.667, 6),
        (9, 0.667, 7),
    ):
        config.federation.members = {f"site-{number}": "" for number in range(count)}
        config.federation.threshold = share
        assert floors.threshold(config.federation) == least
        assert 2 * least > count
    config.federation.members = {"anna": "", "bona": ""}
    assert "at least 3" in floors.problem(config)
    config.federation.members |= {"cora": ""}
    config.federation.sites = ["anna", "mara"]
    assert "federation.sites has mara" in floors.problem(config)


def test_the_doctor_finds_a_key_that_the_recipe_does_not_list(tmp_path: Path) -> None:
    files = secure.sites(tmp_path)
    config, settings = secure.settings(files), read_settings(files[0])
    (found,) = machine.members(config, settings)
    assert (found.state, config.federation.members["anna"] in found.value) == ("ok", True)
    config.federation.members["anna"] = "SHA256:" + 43 * "A"
    (found,) = machine.members(config, settings)
    assert (found.state, "its identity key is" in found.value) == ("failed", True)
    assert list(machine.members(fed.settings(), settings)) == []
